//! A client of the stub: how it connects, what it knows, and which vCPU and memory it speaks of.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use vmi_core::VcpuId;

use super::address::GdbAddress;
use super::connection::Connection;
use super::detach::LastWords;
use super::error::{GdbCause, GdbError};
use super::layout::{Layout, MAX_BYTES};
use super::options::GdbOptions;
use super::reply::{
    Features, Stop, StopReason, StopReply, ThreadId, accept, hex_bytes, misunderstood, push_hex_bytes, thread_list,
};
use super::run::Trap;
use crate::deadline::Deadline;

/// What we believe of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Stopped,
    Running,
    Exited,
}

/// A debugger's connection to QEMU's gdb stub.
///
/// Connecting stops the guest. It runs again after [`detach`](Self::detach), or when the client is dropped, whatever state it was in
/// before: a guest that QEMU's monitor had paused runs then too. Between [`resume`](Self::resume) and the next [`Stop`] nothing can be
/// asked, because the stub takes any byte as an order to stop.
///
/// The stub serves one client at a time. It does not know of pauses and resumes through QEMU's monitor: whoever resumes the guest there
/// while this client takes it for stopped makes the next request fail with a timeout and stops the guest again.
#[derive(Debug)]
pub struct GdbClient {
    pub(super) connection: Connection,
    pub(super) address: Arc<str>,
    pub(super) options: GdbOptions,
    pub(super) state: State,
    pub(super) features: Features,
    pub(super) layout: Layout,
    pub(super) threads: Vec<ThreadId>,
    pub(super) selected: Option<VcpuId>,
    /// Whether `m` and `M` mean physical addresses; `None` if unknown.
    pub(super) physical: Option<bool>,
    /// The stub is that of QEMU's system emulation.
    pub(super) qemu: bool,
    pub(super) traps: Vec<Trap>,
    /// There was a watchpoint: see `GdbClient::drain`.
    pub(super) watched: bool,
    /// The vCPU that QEMU takes for the one that runs or stopped.
    pub(super) current: Option<VcpuId>,
    pub(super) pending: VecDeque<Stop>,
    pub(super) last_stop: Stop,
    /// An answer failed to come: before the next request, the stub is brought to a known state.
    pub(super) out_of_step: bool,
    pub(super) detached: bool,
}

impl GdbClient {
    /// Connects to a stub, which stops the guest; removes the breakpoints that a former client has left; learns the vCPUs and the
    /// layout of their registers.
    ///
    /// # Errors
    /// [`GdbCause::Connect`], [`GdbCause::Busy`] if another debugger is connected, or whatever makes the stub useless. The guest runs on.
    pub fn connect(address: &GdbAddress, options: &GdbOptions) -> Result<Self, GdbError> {
        let name: Arc<str> = address.to_string().into();
        let connection = Connection::open(address, Deadline::after(options.connect));
        let connection = connection.map_err(|cause| GdbError::new(&name, "connecting", cause))?;
        Self::handshake(connection, name, options)
    }

    pub(super) fn handshake(connection: Connection, address: Arc<str>, options: &GdbOptions) -> Result<Self, GdbError> {
        let mut client = Self {
            connection,
            address,
            options: *options,
            state: State::Stopped,
            features: Features::parse(b""),
            layout: Layout::default(),
            threads: Vec::new(),
            selected: None,
            physical: None,
            qemu: false,
            traps: Vec::new(),
            watched: false,
            current: None,
            pending: VecDeque::new(),
            last_stop: Stop { vcpu: None, reason: StopReason::Paused },
            out_of_step: false,
            detached: false,
        };
        let features = match client
            .exchange(b"qSupported:multiprocess+;xmlRegisters=i386;swbreak+;hwbreak+;vContSupported+", options.connect)
        {
            Ok(features) => features,
            Err(cause) => {
                let cause = if let GdbCause::Timeout { after } = cause { GdbCause::Busy { after } } else { cause };
                // QEMU would take this connection from its queue later, stop the guest and find nobody. So leave a farewell in it.
                client.detached = true;
                client.connection.raw(LastWords::in_advance());
                let _ = client.connection.flush(Deadline::after(Duration::from_millis(100)));
                return Err(client.error("greeting the stub", cause));
            }
        };
        // From here on `Drop` leaves the guest properly.
        client.features = Features::parse(&features);
        if client.features.no_ack {
            client.command(b"QStartNoAckMode", "switching acknowledgements off")?;
            client.connection.acks = false;
        }
        let runs = client.ask(b"vCont?", "asking how vCPUs are resumed")?;
        let actions: Vec<_> = runs.split(|byte| *byte == b';').collect();
        if !actions.contains(&b"c".as_slice()) || !actions.contains(&b"s".as_slice()) {
            return Err(client.error("asking how vCPUs are resumed", GdbCause::Unsupported));
        }
        client.threads = client.list_threads().map_err(|cause| client.error("listing vCPUs", cause))?;
        // QEMU removes all breakpoints on this request.
        let stop = client.ask(b"?", "asking why the guest stands still")?;
        let reply =
            StopReply::parse(&stop).ok_or_else(|| client.error("asking why the guest stands still", misunderstood(&stop)))?;
        client.last_stop = client.stopped(reply);
        if client.state == State::Exited {
            return Err(client.error("connecting", GdbCause::Exited));
        }
        client.qemu = matches!(client.request(b"qqemu.PhyMemMode", "asking for physical memory")?.as_slice(), b"0" | b"1");
        client.layout = client.describe().map_err(|cause| client.error("reading the target description", cause))?;
        tracing::debug!(address = &*client.address, vcpus = client.threads.len(), features = ?client.features, "attached to a gdb stub");
        Ok(client)
    }

    fn list_threads(&mut self) -> Result<Vec<ThreadId>, GdbCause> {
        // More than any machine has.
        const MOST: usize = 1 << 14;
        let mut threads = Vec::new();
        let mut answer = accept(self.exchange(b"qfThreadInfo", self.options.reply)?)?;
        while let Some(more) = thread_list(&answer)? {
            threads.extend(more);
            if threads.len() > MOST {
                return Err(misunderstood(&answer));
            }
            answer = accept(self.exchange(b"qsThreadInfo", self.options.reply)?)?;
        }
        threads.sort_unstable_by_key(|thread| (thread.thread, thread.process));
        threads.dedup();
        if threads.is_empty() { Err(misunderstood(b"l")) } else { Ok(threads) }
    }

    fn describe(&mut self) -> Result<Layout, GdbCause> {
        if self.features.description {
            return Layout::read(&mut |name| self.document(name));
        }
        let answer = accept(self.exchange(b"g", self.options.reply)?)?;
        Layout::without_description(answer.len() >> 1)
    }

    /// A document of the target description, part by part.
    fn document(&mut self, name: &str) -> Result<String, GdbCause> {
        let mut document = Vec::new();
        // `m`, the framing and the escapes of what must be escaped need room too.
        let part = (self.features.packet_size >> 1).saturating_sub(8).max(64);
        loop {
            let request = format!("qXfer:features:read:{name}:{:x},{part:x}", document.len());
            let answer = accept(self.exchange(request.as_bytes(), self.options.reply)?)?;
            match answer.split_first() {
                Some((b'l', last)) => document.extend_from_slice(last),
                Some((b'm', more)) if !more.is_empty() && document.len() <= MAX_BYTES => {
                    document.extend_from_slice(more);
                    continue;
                }
                _ => return Err(misunderstood(&answer)),
            }
            return String::from_utf8(document).map_err(|_| GdbCause::Description(format!("{name} is no text")));
        }
    }

    /// The address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The vCPUs as the stub calls them, in the order of their numbers.
    pub fn vcpus(&self) -> &[ThreadId] {
        &self.threads
    }

    /// Whether the guest runs, as far as this client knows.
    pub fn is_running(&self) -> bool {
        self.state == State::Running && self.pending.is_empty()
    }

    /// Whether the stub is gone: it said that the guest has ended, or the connection failed. Everything fails from then on.
    pub fn is_gone(&self) -> bool {
        self.state == State::Exited
    }

    /// Whether the stub reads physical memory: it is that of QEMU's system emulation.
    pub fn has_physical_memory(&self) -> bool {
        self.qemu
    }

    /// Whether the machine is that of a 64-bit emulator, whatever its guest does with it.
    pub fn is_64_bit(&self) -> bool {
        self.layout.place("rip").is_some()
    }

    /// The connection, for a process that inherits it and speaks [`LastWords`] when this one is gone.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    /// Runs a command of QEMU's monitor (HMP) and gives what it prints, lines ended by `\n`. Commands that let the guest run
    /// (`cont`, `system_reset`) or end QEMU have no place here: this client would not know.
    ///
    /// # Errors
    /// What goes wrong with the stub. What is wrong with the command is in the text.
    pub fn monitor(&mut self, command: &str) -> Result<String, GdbError> {
        const MOST: usize = 1 << 24;
        const DOING: &str = "running a monitor command";
        let mut request = b"qRcmd,".to_vec();
        push_hex_bytes(command.as_bytes(), &mut request);
        if request.len().saturating_add(8) > self.features.packet_size {
            return Err(self.error(DOING, GdbCause::TooLong { limit: self.features.packet_size }));
        }
        let mut text = Vec::new();
        let mut answer = self.ask(&request, DOING)?;
        while let Some(more) = answer.strip_prefix(b"O").filter(|rest| *rest != b"K") {
            text.extend(hex_bytes(more).ok_or_else(|| self.error(DOING, misunderstood(&answer)))?);
            if text.len() > MOST {
                self.out_of_step = true;
                return Err(self.error(DOING, GdbCause::TooLong { limit: MOST }));
            }
            answer = self
                .answer(None, Deadline::after(self.options.reply))
                .and_then(accept)
                .map_err(|cause| self.error(DOING, cause))?;
        }
        if answer != b"OK" {
            text.extend(hex_bytes(&answer).ok_or_else(|| self.error(DOING, misunderstood(&answer)))?);
        }
        Ok(String::from_utf8_lossy(&text).replace("\r\n", "\n"))
    }

    /// Makes requests concern a vCPU.
    pub(super) fn select(&mut self, vcpu: VcpuId) -> Result<(), GdbError> {
        let thread = self.thread(vcpu)?;
        self.ready("selecting a vCPU")?;
        if self.selected != Some(vcpu) {
            self.command(format!("Hg{thread}").as_bytes(), "selecting a vCPU")?;
            self.selected = Some(vcpu);
        }
        Ok(())
    }

    pub(super) fn thread(&self, vcpu: VcpuId) -> Result<ThreadId, GdbError> {
        let found = usize::try_from(vcpu.0).ok().and_then(|at| self.threads.get(at)).copied();
        found.ok_or_else(|| self.error("looking for a vCPU", GdbCause::NoVcpu { vcpu: vcpu.0, count: self.threads.len() }))
    }

    /// Makes `m` and `M` mean physical or virtual addresses.
    pub(super) fn physical_mode(&mut self, physical: bool) -> Result<(), GdbError> {
        const DOING: &str = "choosing physical or virtual memory";
        self.ready(DOING)?;
        if self.qemu && self.physical != Some(physical) {
            self.command(if physical { b"Qqemu.PhyMemMode:1" } else { b"Qqemu.PhyMemMode:0" }, DOING)?;
            self.physical = Some(physical);
        }
        if physical && !self.qemu {
            return Err(self.error(DOING, GdbCause::Unsupported));
        }
        Ok(())
    }

    pub(super) fn stopped(&mut self, reply: StopReply) -> Stop {
        self.state = match reply.reason {
            StopReason::Exited(_) | StopReason::Killed(_) => State::Exited,
            _ => State::Stopped,
        };
        // QEMU makes the vCPU that stopped the one that requests concern.
        self.selected = None;
        let same = |thread: &ThreadId| {
            reply.thread.is_some_and(|found| {
                found.thread == thread.thread
                    && found.process.is_none_or(|process| thread.process.is_none_or(|own| own == process))
            })
        };
        let vcpu = self.threads.iter().position(same).and_then(|at| u32::try_from(at).ok()).map(VcpuId);
        self.current = vcpu;
        Stop { vcpu, reason: reply.reason }
    }
}

impl AsFd for GdbClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
