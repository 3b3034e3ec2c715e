//! Events by the gdb stub.
//!
//! The stub stops all vCPUs for each event. A breakpoint that a vCPU has come to would be met again when it goes on: so that vCPU alone runs the one
//! instruction below it, with the breakpoint taken away, while the others stand still and none of them can pass unseen.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmi_arch_x86::{Registers, X86};
use vmi_core::{
    Capability, Cause, Error, EventAbilities, EventAbility, EventSession, Occurrence, PhysAddr, Place, Reply, Result, TrapKind,
    VcpuId, VirtAddr, What,
};

use crate::execution::{Execution, State};
use crate::failure::Failures;
use crate::gdb::{self, GdbClient, Stop, StopReason};

/// How long one instruction may take. One that waits for an interrupt does not end.
const STEP: Duration = Duration::from_secs(2);

/// How often a step is ordered until the vCPU has made it.
const STEP_ATTEMPTS: u32 = 16;

/// How long to wait at a time while somebody else keeps the guest from running.
const PAUSED: Duration = Duration::from_millis(20);

/// What a gdb stub has.
pub(crate) const ABILITIES: EventAbilities = EventAbilities::NONE
    .with(EventAbility::SoftwareBreakpoint)
    .with(EventAbility::HardwareBreakpoint)
    .with(EventAbility::Watchpoint)
    .with(EventAbility::SetRegisters)
    .with(EventAbility::Step);

/// An event session on one guest.
#[derive(Debug)]
pub(crate) struct GdbEvents {
    execution: Arc<Execution>,
    failures: Failures,
    connection: Option<OwnedFd>,
    armed: Vec<Place>,
    /// The vCPU whose event waits for its reply, and where it stands.
    current: Option<(VcpuId, VirtAddr)>,
    /// The vCPU that runs one instruction.
    stepping: Option<VcpuId>,
}

impl GdbEvents {
    pub(crate) fn new(execution: Arc<Execution>, failures: Failures) -> Result<Self> {
        execution.acquire()?;
        let mut session = Self { execution, failures, connection: None, armed: Vec::new(), current: None, stepping: None };
        // On an error `session` is dropped, which gives the connection up again.
        session.connection = session.execution.connection()?;
        Ok(session)
    }

    /// What a stop was, as an event; `None` if it is none of ours and the guest may go on.
    fn occurrence(&self, client: &mut GdbClient, stop: Stop) -> Result<Option<Occurrence<X86>>> {
        if matches!(stop.reason, StopReason::Exited(_) | StopReason::Killed(_) | StopReason::Shutdown) {
            return Err(self.failures.ended(format!("the gdb stub reports {:?}", stop.reason)));
        }
        let vcpu = stop.vcpu.unwrap_or(VcpuId(0));
        let registers = client.registers(vcpu).map_err(|error| self.failures.gdb("reading registers at an event", error))?;
        let rip = VirtAddr::new(registers.rip);
        let breakpoint = || self.armed.iter().copied().find(|place| is_breakpoint(place.kind) && place.at == rip);
        let what = match stop.reason {
            StopReason::Watchpoint(kind, at) => {
                let kind = watched(kind);
                let place = self.armed.iter().copied().find(|place| Some(place.kind) == kind && holds(*place, at));
                place.map_or(What::Stopped, |place| What::Trapped { place, at })
            }
            // A vCPU that was stepped onto a breakpoint has not met it yet: it does when it goes on.
            _ if self.stepping == Some(vcpu) => What::Stepped,
            _ => breakpoint().map_or(What::Stopped, |place| What::Trapped { place, at: rip }),
        };
        // A trap where none is set (any more): of a vCPU that met it while it was being removed.
        let nothing = what == What::Stopped && matches!(stop.reason, StopReason::Paused | StopReason::Trap);
        Ok((!nothing).then_some(Occurrence { vcpu, registers, what }))
    }

    /// Sets the waiting vCPU in motion beyond what it stands at, and then all of them. Stops that happen on the way become events.
    fn go_on(&mut self, client: &mut GdbClient, state: &mut State, reply: &Reply<Registers>) -> Result<()> {
        let failed = |error| self.failures.gdb("replying to an event", error);
        let Some((vcpu, at)) = self.current.take() else { return Ok(()) };
        state.in_event = false;
        if let Some(wanted) = &reply.registers {
            client.write_registers(vcpu, wanted).map_err(failed)?;
        }
        let moved = reply.registers.as_ref().is_some_and(|wanted| wanted.rip != at.get());
        let here: Vec<Place> = if moved {
            Vec::new()
        } else {
            self.armed.iter().copied().filter(|place| is_breakpoint(place.kind) && place.at == at).collect()
        };
        self.execution.starts_now();
        if reply.step || !here.is_empty() {
            for place in &here {
                client.remove(breakpoint(place.kind), place.at, place.len).map_err(failed)?;
            }
            let stepped = step(client, vcpu, at);
            for place in &here {
                client.insert(breakpoint(place.kind), place.at, place.len).map_err(failed)?;
            }
            let stop = stepped.map_err(failed)?;
            // The end of the step itself says no more than "trap", or "paused" where it had to be cut short.
            let only_the_step = matches!(stop.reason, StopReason::Trap | StopReason::Paused);
            if reply.step {
                self.stepping = Some(vcpu);
                state.pending.push(Stop { vcpu: Some(vcpu), reason: stop.reason });
            } else if !only_the_step {
                state.pending.push(stop);
            }
        }
        if state.pending.is_empty() && !Execution::is_paused(state) {
            client.resume().map_err(failed)?;
        }
        Ok(())
    }

    /// After somebody else has stopped the guest: sees whether they have let it go on, and has the stub tell of stops again. Whether that is done.
    fn take_over(&self, client: &mut GdbClient, state: &mut State) -> Result<bool> {
        let failed = |error| self.failures.gdb("waiting for the guest to go on", error);
        let Some(now) = self.execution.run_state()? else { return Ok(true) };
        if now.running && !Execution::is_paused(state) {
            client.resumed_elsewhere();
            let stop = client.interrupt().map_err(failed)?;
            if stop.reason == StopReason::Paused {
                client.resume().map_err(failed)?;
            } else {
                state.pending.push(stop);
            }
        } else if now.status == "debug" {
            // It went on and met a trap of ours before we saw it. The stub did not say which vCPU did; its instruction pointer does.
            client.stopped_elsewhere();
            let count = u32::try_from(client.vcpus().len()).unwrap_or(u32::MAX);
            let mut met = None;
            for vcpu in (0..count).map(VcpuId) {
                let rip = VirtAddr::new(client.registers(vcpu).map_err(failed)?.rip);
                if self.armed.iter().any(|place| is_breakpoint(place.kind) && place.at == rip) {
                    met = Some(vcpu);
                    break;
                }
            }
            state.pending.push(Stop { vcpu: met, reason: StopReason::Trap });
        } else {
            return Ok(false);
        }
        state.elsewhere = false;
        Ok(true)
    }

    /// Waits until the connection has something to say.
    fn listen(&self, limit: Duration) -> Result<()> {
        let Some(connection) = &self.connection else { return Ok(()) };
        let milliseconds = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX).max(1);
        match poll(&mut [PollFd::new(connection.as_fd(), PollFlags::POLLIN)], PollTimeout::from(milliseconds)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(self.failures.other("waiting for the guest", std::io::Error::from(error))),
        }
    }
}

/// Has one vCPU, which stands at `at`, run one instruction.
fn step(client: &mut GdbClient, vcpu: VcpuId, at: VirtAddr) -> Result<Stop, gdb::GdbError> {
    let mut attempts = 0u32;
    loop {
        client.step(vcpu)?;
        let stop = match client.wait(STEP)? {
            Some(stop) => stop,
            None => client.interrupt()?,
        };
        attempts = attempts.saturating_add(1);
        // Where two vCPUs met breakpoints at the same time, QEMU 10.0 may report the second one now instead of making the step. That vCPU meets its
        // breakpoint again when it goes on; ours has to be stepped still. So it has where a stop came before the step did, seen on a busy host. A string
        // instruction may stay where it is for several steps; each of them is one of its rounds, so more of them do no harm.
        let step_ended = matches!(stop.reason, StopReason::Trap | StopReason::Paused);
        if !step_ended || attempts >= STEP_ATTEMPTS || client.registers(vcpu)?.rip != at.get() {
            return Ok(stop);
        }
    }
}

impl EventSession<X86> for GdbEvents {
    fn abilities(&self) -> EventAbilities {
        ABILITIES
    }

    fn arm(&mut self, cause: Cause<X86>, _roots: &[PhysAddr]) -> Result<()> {
        let lacks = || Error::unsupported(Capability::Event(cause.ability()), self.failures.machine());
        let Cause::Place(place) = cause else { return Err(lacks()) };
        let kind = gdb_kind(place.kind).ok_or_else(lacks)?;
        if self.armed.contains(&place) {
            return Ok(());
        }
        self.execution.while_stopped(&format!("setting a {} at {}", place.kind, place.at), |client| {
            client.insert(kind, place.at, place.len)
        })?;
        self.armed.push(place);
        Ok(())
    }

    fn disarm(&mut self, cause: Cause<X86>) -> Result<()> {
        let Cause::Place(place) = cause else { return Ok(()) };
        let Some(kind) = gdb_kind(place.kind) else { return Ok(()) };
        self.armed.retain(|armed| *armed != place);
        self.execution.while_stopped(&format!("removing a {} at {}", place.kind, place.at), |client| {
            client.remove(kind, place.at, place.len)
        })
    }

    fn next(&mut self, limit: Duration) -> Result<Option<Occurrence<X86>>> {
        let began = Instant::now();
        loop {
            let execution = Arc::clone(&self.execution);
            let (mut paused, mut again) = (false, false);
            let found = execution.with_link(|client, state| {
                let stop = match state.pending.pop() {
                    Some(stop) => Some(stop),
                    None if state.elsewhere => {
                        again = self.take_over(client, state)?;
                        paused = !again;
                        return Ok(None);
                    }
                    None if client.is_running() => {
                        client.wait(Duration::ZERO).map_err(|error| self.failures.gdb("waiting for an event", error))?
                    }
                    // Said once already, by whatever failed first.
                    None if client.is_gone() => {
                        return Err(self.failures.ended("the connection to its gdb stub ended before"));
                    }
                    None => {
                        paused = true;
                        None
                    }
                };
                let Some(stop) = stop else { return Ok(None) };
                if stop.reason == StopReason::Paused && self.stepping.is_none() {
                    // Somebody paused the guest through QEMU's monitor: it is theirs to resume.
                    state.elsewhere = true;
                    paused = true;
                    return Ok(None);
                }
                let occurrence = self.occurrence(client, stop)?;
                self.stepping = None;
                if let Some(occurrence) = &occurrence {
                    self.current = Some((occurrence.vcpu, VirtAddr::new(occurrence.registers.rip)));
                    state.in_event = true;
                } else if !Execution::is_paused(state) {
                    client.resume().map_err(|error| self.failures.gdb("letting the guest go on", error))?;
                }
                Ok(occurrence)
            })?;
            if found.is_some() {
                return Ok(found);
            }
            if again {
                continue;
            }
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            if paused {
                std::thread::sleep(PAUSED.min(left));
            } else {
                self.listen(left)?;
            }
        }
    }

    fn reply(&mut self, reply: Reply<Registers>) -> Result<()> {
        let execution = Arc::clone(&self.execution);
        execution.with_link(|client, state| self.go_on(client, state, &reply))
    }
}

impl Drop for GdbEvents {
    fn drop(&mut self) {
        self.execution.release();
    }
}

const fn is_breakpoint(kind: TrapKind) -> bool {
    matches!(kind, TrapKind::SoftwareBreakpoint | TrapKind::HardwareBreakpoint)
}

const fn breakpoint(kind: TrapKind) -> gdb::TrapKind {
    match kind {
        TrapKind::HardwareBreakpoint => gdb::TrapKind::Hardware,
        _ => gdb::TrapKind::Software,
    }
}

const fn gdb_kind(kind: TrapKind) -> Option<gdb::TrapKind> {
    Some(match kind {
        TrapKind::SoftwareBreakpoint => gdb::TrapKind::Software,
        TrapKind::HardwareBreakpoint => gdb::TrapKind::Hardware,
        TrapKind::Write => gdb::TrapKind::Write,
        TrapKind::Read => gdb::TrapKind::Read,
        TrapKind::Access => gdb::TrapKind::Access,
        _ => return None,
    })
}

const fn watched(kind: gdb::TrapKind) -> Option<TrapKind> {
    Some(match kind {
        gdb::TrapKind::Write => TrapKind::Write,
        gdb::TrapKind::Read => TrapKind::Read,
        gdb::TrapKind::Access => TrapKind::Access,
        _ => return None,
    })
}

fn holds(place: Place, at: VirtAddr) -> bool {
    at.get().wrapping_sub(place.at.get()) < place.len
}
