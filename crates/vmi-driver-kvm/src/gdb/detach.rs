//! Leaving a guest, so that it runs on without us.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use vmi_core::VcpuId;

use super::client::{GdbClient, State};
use super::error::{GdbCause, GdbError};
use super::packet::encode;
use super::reply::{StopReason, ThreadId, expect_ok};
use crate::deadline::Deadline;

/// How long a vCPU may take for one instruction before it is taken for one that waits.
const STEP_TIME: Duration = Duration::from_millis(20);

/// How many instructions in a row touch what is watched, at most.
const STEPS: usize = 8;

/// What makes QEMU's stub let go of a guest, from any state: for a process that has inherited the connection of one that is gone.
///
/// What the stub is doing is unknown then. It may be that
/// - the guest runs: the stub takes any byte as an order to stop, and loses that byte. Only the byte 3 makes QEMU since 8.1 tell us of the
///   stop, and end a single step with it;
/// - the guest stands still and the stub waits for a packet;
/// - it has received half a packet: everything is a part of that until `#` and two digits, or until its buffer is full;
/// - its last packet is not acknowledged: it ignores everything until `+` or `$`.
///
/// So there are two parts. [`calm`](Self::calm) stops the guest and leaves the stub waiting for a packet:
/// ```text
/// 03 +    stops a running guest; + acknowledges the stop, or what else was pending
/// 03 +    the same, if what was pending swallowed the first 03
/// x x x.. more than the stub's buffer holds: half a packet is given up, not executed. Neither x is a digit of a checksum,
///         nor anything else. (To end it with a checksum of our own would execute it if that happened to be right.)
/// +       acknowledges what the x may have caused
/// $vAttach;1#37
///         it may be that the one who is gone had detached just before; another `D` would then make QEMU 7.2 follow a null pointer
/// $qqemu.sstepbits#38
/// ```
/// Then the answer to the last request must be awaited; it begins with `ENABLE=`, and no other answer does. Whoever sends everything at once loses a race: a vCPU
/// that met a breakpoint just before has ordered a stop that QEMU's main loop carries out only after it has read what we sent, and the guest
/// would stand still after the detach. All the while, what the stub sends must be read, as it may not read on before.
///
/// Then each vCPU is stepped once, and again while it reports a watchpoint: TCG notes a hit before it stops, and would stop a guest
/// without a debugger for one that it has noted. A step without an answer is ended by the byte 3.
///
/// [`part`](Self::part) makes memory virtual again and detaches, which removes all breakpoints. After its two answers the connection
/// may be closed, and nothing more may be sent: the guest runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastWords {
    calm: Vec<u8>,
    steps: Vec<Vec<u8>>,
    part: Vec<u8>,
    /// How many answers the second part has.
    answers: usize,
}

impl LastWords {
    /// The beginning of the answer that ends the first part.
    pub(super) const MARK: &'static [u8] = b"ENABLE=";

    pub(super) fn new(packet_size: usize, threads: &[ThreadId]) -> Self {
        let mut calm = b"\x03+\x03+".to_vec();
        calm.resize(calm.len().saturating_add(packet_size).saturating_add(16), b'x');
        calm.push(b'+');
        for process in processes(threads) {
            encode(format!("vAttach;{:x}", process.unwrap_or(1)).as_bytes(), &mut calm);
        }
        encode(b"qqemu.sstepbits", &mut calm);
        let mut part = b"+".to_vec();
        encode(b"Qqemu.PhyMemMode:0", &mut part);
        let farewells = farewells(threads);
        for farewell in &farewells {
            encode(farewell, &mut part);
        }
        let step = |thread: &ThreadId| {
            let mut step = b"+".to_vec();
            encode(format!("Hc{thread}").as_bytes(), &mut step);
            encode(format!("vCont;s:{thread}").as_bytes(), &mut step);
            step
        };
        Self { calm, steps: threads.iter().map(step).collect(), part, answers: farewells.len().saturating_add(1) }
    }

    /// For a connection that the stub will take only when we are gone: nothing can be pending in it.
    pub(super) fn in_advance() -> &'static [u8] {
        b"+$Qqemu.PhyMemMode:0#76$D;1#b0"
    }

    /// The first part: stops the guest and leaves the stub waiting for a packet.
    pub fn calm(&self) -> &[u8] {
        &self.calm
    }

    /// The second part: detaches.
    pub fn part(&self) -> &[u8] {
        &self.part
    }

    /// Speaks both parts and waits for the answers, at most for `limit`. Tells whether the stub confirmed; where it did not, all was
    /// sent nevertheless. Allocates nothing, so that a child may call it after a fork.
    ///
    /// # Errors
    /// Those of the socket: the stub is gone.
    pub fn speak(&self, socket: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
        let deadline = Deadline::after(limit);
        // The second part is to have a chance even if the first remains without an answer.
        let soon = Deadline::after(limit.mul_f32(0.7));
        let mut calm = Ear::new(&self.calm, false);
        calm.converse(socket, soon, |ear| ear.marked && ear.ends > 0)?;
        for step in self.steps.iter().filter(|_| calm.marked) {
            for _ in 0..STEPS {
                let mut ear = Ear::new(step, true);
                // `OK` and the stop reply.
                if !ear.converse(socket, Deadline::after(STEP_TIME.min(soon.left())), |ear| ear.ends >= 2)? {
                    ear.left = b"\x03";
                    ear.converse(socket, soon, |ear| ear.ends >= 2)?;
                }
                if !ear.watchpoint {
                    break;
                }
            }
        }
        let mut part = Ear::new(&self.part, true);
        let confirmed = part.converse(socket, deadline, |ear| ear.ends >= self.answers)?;
        Ok(confirmed && calm.marked)
    }
}

fn processes(threads: &[ThreadId]) -> Vec<Option<u64>> {
    let mut processes: Vec<_> = threads.iter().map(|thread| thread.process).collect();
    processes.sort_unstable();
    processes.dedup();
    processes
}

/// The requests that detach from all processes of these threads.
fn farewells(threads: &[ThreadId]) -> Vec<Vec<u8>> {
    let farewell = |process: Option<u64>| process.map_or_else(|| b"D".to_vec(), |process| format!("D;{process:x}").into_bytes());
    processes(threads).into_iter().map(farewell).collect()
}

/// Sends, and listens for the mark and the ends of packets.
struct Ear<'w> {
    left: &'w [u8],
    /// How many bytes of the mark were heard.
    heard: usize,
    /// How many packets have ended, since the mark.
    ends: usize,
    marked: bool,
    /// A packet held a `w`, as stop replies of watchpoints do and nothing else that is answered here.
    watchpoint: bool,
}

impl<'w> Ear<'w> {
    fn new(left: &'w [u8], marked: bool) -> Self {
        Self { left, heard: 0, ends: 0, marked, watchpoint: false }
    }

    fn converse(&mut self, socket: BorrowedFd<'_>, deadline: Deadline, done: impl Fn(&Self) -> bool) -> io::Result<bool> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let mut buffer = [0_u8; 2048];
        loop {
            match recv(socket.as_raw_fd(), &mut buffer, flags) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => {
                    self.listen(buffer.get(..len).unwrap_or_default());
                    continue;
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if !self.left.is_empty() {
                match send(socket.as_raw_fd(), self.left, flags) {
                    Ok(sent) => self.left = self.left.get(sent..).unwrap_or_default(),
                    Err(Errno::EAGAIN | Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            } else if done(self) {
                return Ok(true);
            }
            if deadline.is_over() {
                return Ok(false);
            }
            let wanted = if self.left.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT };
            let ms = u16::try_from(deadline.left().as_millis().saturating_add(1)).unwrap_or(u16::MAX);
            match poll(&mut [PollFd::new(socket, wanted)], PollTimeout::from(ms)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn listen(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.marked {
                self.ends = self.ends.saturating_add(usize::from(*byte == b'#'));
                self.watchpoint |= *byte == b'w';
            } else {
                let goes_on = LastWords::MARK.get(self.heard) == Some(byte);
                self.heard =
                    if goes_on { self.heard.saturating_add(1) } else { usize::from(LastWords::MARK.first() == Some(byte)) };
                self.marked = self.heard == LastWords::MARK.len();
            }
        }
    }
}

impl GdbClient {
    /// What another process that has inherited the [connection](Self::as_fd) must say if this one ends without a word.
    pub fn last_words(&self) -> LastWords {
        LastWords::new(self.features.packet_size, &self.threads_or_one())
    }

    fn threads_or_one(&self) -> Vec<ThreadId> {
        match self.vcpus() {
            [] => vec![ThreadId { process: self.features.multiprocess.then_some(1), thread: 1 }],
            threads => threads.to_vec(),
        }
    }

    /// Removes all traps and leaves the guest, which runs then, whatever state it was in.
    ///
    /// # Errors
    /// If the stub did not confirm that; it was told in any case.
    pub fn detach(mut self) -> Result<(), GdbError> {
        let limit = self.options.reply;
        self.leave(limit)
    }

    fn leave(&mut self, limit: Duration) -> Result<(), GdbError> {
        const DOING: &str = "detaching";
        if std::mem::replace(&mut self.detached, true) {
            return Ok(());
        }
        if self.state == State::Exited {
            return Err(self.error(DOING, GdbCause::Exited));
        }
        let deadline = Deadline::after(limit.mul_f32(0.6));
        match self.part_in_order(deadline) {
            Ok(()) => Ok(()),
            Err(GdbCause::Closed | GdbCause::Exited) => Err(self.error(DOING, GdbCause::Closed)),
            Err(cause) => match self.last_words().speak(self.connection.as_fd(), limit.mul_f32(0.4)) {
                Ok(true) => Ok(()),
                Ok(false) => Err(self.error(DOING, cause)),
                Err(_) => Err(self.error(DOING, GdbCause::Closed)),
            },
        }
    }

    fn part_in_order(&mut self, deadline: Deadline) -> Result<(), GdbCause> {
        // No answer takes longer than what is left.
        self.options.reply = self.options.reply.min(deadline.left());
        if self.state == State::Running {
            self.interrupt().map_err(|error| error.cause().clone())?;
        }
        if self.out_of_step {
            self.settle(deadline)?;
        }
        if self.watched {
            self.drain(deadline)?;
        }
        for trap in std::mem::take(&mut self.traps) {
            // A refusal means that it is gone.
            self.say(&trap.removal(), deadline)?;
        }
        // The next debugger expects virtual memory. It is also the answer that must come between a stop and the detach: see `LastWords`.
        self.say(b"Qqemu.PhyMemMode:0", deadline)?;
        for farewell in farewells(&self.threads_or_one()) {
            let answer = self.say(&farewell, deadline)?;
            expect_ok(answer)?;
        }
        Ok(())
    }

    /// Takes away the stops that watchpoints still have in store.
    ///
    /// TCG notes a hit and stops after the instruction. If something else stops the guest between the two, the note outlives the
    /// watchpoint, and a guest without a debugger would stop for good. Stepping the vCPU brings the stop about.
    pub(super) fn drain(&mut self, deadline: Deadline) -> Result<(), GdbCause> {
        let cause = |error: GdbError| error.cause().clone();
        for vcpu in (0..).map(VcpuId).take(self.vcpus().len()) {
            // A step may touch what is watched and leave a note itself.
            for _ in 0..STEPS {
                self.step(vcpu).map_err(cause)?;
                let stop = match self.wait(STEP_TIME.min(deadline.left())).map_err(cause)? {
                    Some(stop) => stop,
                    // It waits for an interrupt; so it has got past its last instruction, and past the stop behind it.
                    None => self.interrupt().map_err(cause)?,
                };
                if !matches!(stop.reason, StopReason::Watchpoint(..)) {
                    break;
                }
            }
        }
        Ok(())
    }

    fn say(&mut self, request: &[u8], deadline: Deadline) -> Result<Vec<u8>, GdbCause> {
        self.connection.packet(request);
        self.answer(Some(request), deadline)
    }
}

impl Drop for GdbClient {
    fn drop(&mut self) {
        let limit = self.options.farewell;
        if let Err(error) = self.leave(limit)
            && !matches!(error.cause(), GdbCause::Exited)
        {
            tracing::warn!(%error, "a guest may stand still");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let mut expected = b"+".to_vec();
        encode(b"Qqemu.PhyMemMode:0", &mut expected);
        encode(b"D;1", &mut expected);
        let threads = [ThreadId { process: Some(1), thread: 1 }, ThreadId { process: Some(1), thread: 2 }];
        let words = LastWords::new(0x1000, &threads);
        assert_eq!(LastWords::in_advance(), expected);
        assert_eq!(words.part(), expected);
        assert!(words.calm().starts_with(b"\x03+\x03+xxx") && words.calm().ends_with(b"x+$vAttach;1#37$qqemu.sstepbits#38"));
        assert!(words.calm().iter().filter(|byte| **byte == b'x').count() > 0x1000);
        assert_eq!(farewells(&[ThreadId { process: None, thread: 1 }]), [b"D"]);
    }
}
