//! What the answers of a stub mean (GDB manual, appendix "GDB Remote Serial Protocol", sections "Stop Reply Packets" and "General Query Packets").

use std::fmt;

use vmi_core::{VcpuId, VirtAddr};

use super::error::GdbCause;
use super::packet::{digit, push_hex};

/// How a stub calls a vCPU. QEMU numbers threads from one, in the order of the vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ThreadId {
    /// The process, if the stub tells several apart. QEMU has one for each cluster of vCPUs; x86 machines have a single one.
    pub process: Option<u64>,
    /// The thread.
    pub thread: u64,
}

impl ThreadId {
    /// Reads `1`, `p1.1`; all numbers are hexadecimal. `None` if this is no single thread.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let Some(rest) = text.strip_prefix(b"p") else { return Some(Self { process: None, thread: number(text)? }) };
        let dot = rest.iter().position(|byte| *byte == b'.')?;
        let (process, thread) = (rest.get(..dot)?, rest.get(dot.checked_add(1)?..)?);
        Some(Self { process: Some(number(process)?), thread: number(thread)? })
    }
}

impl fmt::Display for ThreadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.process {
            Some(process) => write!(f, "p{process:x}.{:x}", self.thread),
            None => write!(f, "{:x}", self.thread),
        }
    }
}

/// What a trap waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrapKind {
    /// Execution; under KVM the stub writes `int3` into guest memory.
    Software,
    /// Execution; under KVM by the debug registers, of which there are four for all kinds together.
    Hardware,
    /// A write.
    Write,
    /// A read. KVM has no such trap.
    Read,
    /// A read or a write.
    Access,
}

impl TrapKind {
    pub(super) fn digit(self) -> u8 {
        match self {
            Self::Software => b'0',
            Self::Hardware => b'1',
            Self::Write => b'2',
            Self::Read => b'3',
            Self::Access => b'4',
        }
    }
}

/// Why the guest stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// A breakpoint, or the end of a single step: QEMU does not say which of them.
    Trap,
    /// A breakpoint of this kind. QEMU up to 10.0 does not say so.
    Breakpoint(TrapKind),
    /// A watchpoint. QEMU tells where the trap was inserted, not which byte was touched.
    Watchpoint(TrapKind, VirtAddr),
    /// Paused: by [`interrupt`](super::GdbClient::interrupt), by attaching, or by someone else through QEMU's monitor.
    Paused,
    /// The guest has shut down.
    Shutdown,
    /// Another signal of gdb's numbering.
    Signal(u8),
    /// QEMU has ended, with this status.
    Exited(u8),
    /// QEMU was killed by this signal.
    Killed(u8),
}

/// The guest stands still: all of its vCPUs do, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The vCPU that is the cause; `None` if the stub did not say. Where several vCPUs met a trap at the same time, one is reported; the
    /// others meet it again once they run.
    pub vcpu: Option<VcpuId>,
    /// The cause.
    pub reason: StopReason,
}

/// A stop reply as it was sent, before its thread is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopReply {
    /// The thread that is the cause.
    pub thread: Option<ThreadId>,
    /// The cause.
    pub reason: StopReason,
}

impl StopReply {
    /// Whether a packet is a stop reply. No answer to any request that this client makes begins with such a letter.
    pub fn is(packet: &[u8]) -> bool {
        matches!(packet.first(), Some(b'T' | b'S' | b'W' | b'X'))
    }

    /// Reads a packet `T`, `S`, `W` or `X`. `None` if it is malformed.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let (&kind, rest) = packet.split_first()?;
        let (code, fields) = rest.split_at_checked(2)?;
        let code = u8::try_from(number(code)?).ok()?;
        let reason = match kind {
            b'T' | b'S' => signal(code),
            b'W' => StopReason::Exited(code),
            b'X' => StopReason::Killed(code),
            _ => return None,
        };
        let mut reply = Self { thread: None, reason };
        if kind != b'T' {
            return Some(reply);
        }
        for field in fields.split(|byte| *byte == b';').filter(|field| !field.is_empty()) {
            let colon = field.iter().position(|byte| *byte == b':')?;
            let (name, value) = (field.get(..colon)?, field.get(colon.checked_add(1)?..)?);
            let kind = match name {
                b"watch" => TrapKind::Write,
                b"rwatch" => TrapKind::Read,
                b"awatch" => TrapKind::Access,
                b"swbreak" => TrapKind::Software,
                b"hwbreak" => TrapKind::Hardware,
                b"thread" => {
                    reply.thread = Some(ThreadId::parse(value)?);
                    continue;
                }
                // Registers and what later versions may add.
                _ => continue,
            };
            reply.reason = match kind {
                TrapKind::Software | TrapKind::Hardware => StopReason::Breakpoint(kind),
                _ => StopReason::Watchpoint(kind, VirtAddr::new(number(value)?)),
            };
        }
        Some(reply)
    }
}

/// Signals have gdb's own numbers (include/gdb/signals.def of binutils-gdb).
fn signal(code: u8) -> StopReason {
    match code {
        2 => StopReason::Paused,
        3 => StopReason::Shutdown,
        5 => StopReason::Trap,
        _ => StopReason::Signal(code),
    }
}

/// What a stub says that it can, in its answer to `qSupported`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// The longest packet it takes, in bytes.
    pub packet_size: usize,
    /// It has a target description.
    pub description: bool,
    /// It tells processes apart.
    pub multiprocess: bool,
    /// Acknowledgements can be switched off.
    pub no_ack: bool,
}

impl Features {
    /// Packets are at least this long, whatever the stub says: gdb's own first guess.
    const SMALLEST: usize = 400;

    /// Reads the answer to `qSupported`.
    pub fn parse(answer: &[u8]) -> Self {
        let mut features = Self { packet_size: Self::SMALLEST, description: false, multiprocess: false, no_ack: false };
        for feature in answer.split(|byte| *byte == b';') {
            match feature {
                b"qXfer:features:read+" => features.description = true,
                b"multiprocess+" => features.multiprocess = true,
                b"QStartNoAckMode+" => features.no_ack = true,
                _ => {
                    if let Some(size) = feature.strip_prefix(b"PacketSize=").and_then(number) {
                        let most = super::packet::MAX_PACKET >> 1;
                        features.packet_size = usize::try_from(size).unwrap_or(most).clamp(Self::SMALLEST, most);
                    }
                }
            }
        }
        features
    }
}

/// One answer to `qfThreadInfo` or `qsThreadInfo`: threads, or `None` at the end of the list.
///
/// # Errors
/// [`GdbCause::Answer`] if it is malformed.
pub fn thread_list(answer: &[u8]) -> Result<Option<Vec<ThreadId>>, GdbCause> {
    if answer == b"l" {
        return Ok(None);
    }
    let list = answer.strip_prefix(b"m").ok_or_else(|| misunderstood(answer))?;
    let threads: Option<Vec<_>> = list.split(|byte| *byte == b',').map(ThreadId::parse).collect();
    threads.map(Some).ok_or_else(|| misunderstood(answer))
}

/// Gives an error packet (`E01`, `E.text`) and an empty one their meaning; anything else passes.
pub(super) fn accept(answer: Vec<u8>) -> Result<Vec<u8>, GdbCause> {
    match answer.as_slice() {
        [] => Err(GdbCause::Unsupported),
        [b'E', b'.', ..] => Err(GdbCause::Refused { code: excerpt(&answer) }),
        [b'E', high, low] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
            Err(GdbCause::Refused { code: String::from_utf8_lossy(&answer).into_owned() })
        }
        _ => Ok(answer),
    }
}

pub(super) fn expect_ok(answer: Vec<u8>) -> Result<(), GdbCause> {
    let answer = accept(answer)?;
    if answer == b"OK" { Ok(()) } else { Err(misunderstood(&answer)) }
}

pub(super) fn misunderstood(answer: &[u8]) -> GdbCause {
    GdbCause::Answer { got: excerpt(answer) }
}

fn excerpt(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer.get(..60).unwrap_or(answer)).into_owned()
}

/// A hexadecimal number of at most 64 bits.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    let value = text.iter().try_fold(0_u64, |value, byte| {
        let digit = digit(*byte)?;
        (value >> 60 == 0).then_some(value << 4 | u64::from(digit))
    })?;
    (!text.is_empty()).then_some(value)
}

/// Decodes hexadecimal bytes into `out`. `false` if they are not exactly as many.
pub(super) fn hex_into(text: &[u8], out: &mut [u8]) -> bool {
    let (pairs, odd) = text.as_chunks::<2>();
    if !odd.is_empty() || pairs.len() != out.len() {
        return false;
    }
    pairs.iter().zip(out).all(|([high, low], byte)| match (digit(*high), digit(*low)) {
        (Some(high), Some(low)) => {
            *byte = high << 4 | low;
            true
        }
        _ => false,
    })
}

pub(super) fn hex_bytes(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; text.len() >> 1];
    hex_into(text, &mut out).then_some(out)
}

pub(super) fn push_hex_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(bytes.len().saturating_mul(2));
    for byte in bytes {
        push_hex(*byte, out);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stop(text: &str) -> Option<StopReply> {
        StopReply::parse(text.as_bytes())
    }

    #[test]
    fn stop_replies() {
        let first = Some(ThreadId { process: Some(1), thread: 1 });
        let is = |text: &str, thread, reason| assert_eq!(stop(text), Some(StopReply { thread, reason }), "{text}");
        is("T02thread:01;", Some(ThreadId { process: None, thread: 1 }), StopReason::Paused);
        is("T05thread:p01.01;", first, StopReason::Trap);
        is("S05", None, StopReason::Trap);
        let at = VirtAddr::new(0xffff_ffff_8100_0000);
        is("T05thread:p01.01;watch:ffffffff81000000;", first, StopReason::Watchpoint(TrapKind::Write, at));
        is("T05thread:p01.01;rwatch:ffffffff81000000;", first, StopReason::Watchpoint(TrapKind::Read, at));
        is("T05awatch:ffffffff81000000;06:00;thread:p1.1", first, StopReason::Watchpoint(TrapKind::Access, at));
        is("T05swbreak:;thread:p1.1;core:1;", first, StopReason::Breakpoint(TrapKind::Software));
        is("T05hwbreak:;", None, StopReason::Breakpoint(TrapKind::Hardware));
        is("W00", None, StopReason::Exited(0));
        is("W01;process:1", None, StopReason::Exited(1));
        is("X09", None, StopReason::Killed(9));
        is("T03", None, StopReason::Shutdown);
        for text in ["", "T", "T5", "Tzz", "T05thread", "T05watch:;", "T05watch:11111111111111111;", "OK", "T05thread:-1;"] {
            assert_eq!(stop(text), None, "{text}");
        }
    }

    #[test]
    fn features_and_threads() {
        let features = Features::parse(b"PacketSize=1000;qXfer:features:read+;vContSupported+;multiprocess+");
        assert_eq!(features, Features { packet_size: 0x1000, description: true, multiprocess: true, no_ack: false });
        assert_eq!(Features::parse(b"").packet_size, 400);
        assert_eq!(Features::parse(b"PacketSize=ffffffffffffffff").packet_size, super::super::packet::MAX_PACKET / 2);
        assert_eq!(Features::parse(b"PacketSize=0").packet_size, 400);
        let thread = |process, thread| ThreadId { process, thread };
        assert_eq!(thread_list(b"mp01.01,p1.a").unwrap().unwrap(), [thread(Some(1), 1), thread(Some(1), 10)]);
        assert_eq!(thread_list(b"l").unwrap(), None);
        assert!(thread_list(b"m").is_err() && thread_list(b"mp1.-1").is_err() && thread_list(b"OK").is_err());
        assert_eq!(thread(Some(1), 10).to_string(), "p1.a");
    }

    #[test]
    fn errors() {
        let code = |text: &[u8]| match accept(text.to_vec()) {
            Err(GdbCause::Refused { code }) => code,
            other => format!("{other:?}"),
        };
        assert_eq!(code(b"E22"), "E22");
        assert_eq!(code(b"E.no"), "E.no");
        assert!(matches!(accept(vec![]), Err(GdbCause::Unsupported)));
        // Two bytes of memory, no error.
        assert_eq!(accept(b"E222".to_vec()).unwrap(), b"E222");
    }

    proptest! {
        #[test]
        fn any_stop_reply(bytes in prop::collection::vec(prop::sample::select(b"TSWX05:;watchrd.p1a\xff".to_vec()), 0..40)) {
            StopReply::parse(&bytes);
            Features::parse(&bytes);
            let _ = thread_list(&bytes);
        }

        #[test]
        fn hex_round_trip(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut text = Vec::new();
            push_hex_bytes(&bytes, &mut text);
            prop_assert_eq!(hex_bytes(&text).unwrap(), bytes);
            text.push(b'0');
            prop_assert_eq!(hex_bytes(&text), None);
        }
    }
}
