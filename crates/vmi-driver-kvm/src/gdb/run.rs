//! Traps, and the guest's running and standing still.

use std::time::Duration;

use vmi_core::{VcpuId, VirtAddr};

use super::client::{GdbClient, State};
use super::error::{GdbCause, GdbError};
use super::packet::Item;
use super::reply::{Stop, StopReason, StopReply, TrapKind, accept, misunderstood};
use crate::deadline::Deadline;

/// A breakpoint or watchpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Trap {
    /// What it waits for.
    pub kind: TrapKind,
    /// Where, in every address space: the stub knows none.
    pub at: VirtAddr,
    /// How many bytes it watches; 1 for breakpoints.
    pub len: u64,
}

impl Trap {
    fn request(&self, verb: u8) -> Vec<u8> {
        let mut request = vec![verb, self.kind.digit()];
        request.extend_from_slice(format!(",{:x},{:x}", self.at.get(), self.len).as_bytes());
        request
    }

    pub(super) fn removal(&self) -> Vec<u8> {
        self.request(b'z')
    }
}

impl GdbClient {
    /// Inserts a trap on all vCPUs. Under TCG there is no bound to their number and none is visible to the guest; under KVM there are four
    /// for hardware breakpoints and watchpoints together, of 1, 2, 4 or 8 aligned bytes, and a software breakpoint is an `int3` that the
    /// guest can see.
    ///
    /// # Errors
    /// [`GdbCause::Refused`] or [`GdbCause::Unsupported`] if the accelerator has no such trap (left).
    pub fn insert(&mut self, kind: TrapKind, at: VirtAddr, len: u64) -> Result<(), GdbError> {
        let trap = Trap { kind, at, len };
        self.command(&trap.request(b'Z'), "inserting a trap")?;
        self.traps.push(trap);
        self.watched |= !matches!(kind, TrapKind::Software | TrapKind::Hardware);
        Ok(())
    }

    /// Removes a trap that was inserted with the same values. TCG notes the hit of a watchpoint before it stops for it: a vCPU that something else
    /// stopped between the two stops once more when it runs, although the watchpoint is gone. Detaching takes such stops away.
    ///
    /// # Errors
    /// [`GdbCause::Refused`] if there is none.
    pub fn remove(&mut self, kind: TrapKind, at: VirtAddr, len: u64) -> Result<(), GdbError> {
        let trap = Trap { kind, at, len };
        self.command(&trap.removal(), "removing a trap")?;
        if let Some(index) = self.traps.iter().position(|known| *known == trap) {
            self.traps.swap_remove(index);
        }
        Ok(())
    }

    /// The traps that are inserted, in no order.
    pub fn traps(&self) -> &[Trap] {
        &self.traps
    }

    /// Lets all vCPUs run.
    ///
    /// # Errors
    /// What goes wrong with the stub; [`GdbCause::Running`] if they run already.
    pub fn resume(&mut self) -> Result<(), GdbError> {
        self.run(b"vCont;c", "resuming the guest")
    }

    /// Lets one vCPU execute one instruction while the others stand still. [`wait`](Self::wait) tells when it has. QEMU keeps interrupts and
    /// timers away meanwhile, if its accelerator can; a vCPU that waits for an interrupt (`hlt`) may then not come to an end.
    ///
    /// # Errors
    /// What goes wrong with the stub.
    pub fn step(&mut self, vcpu: VcpuId) -> Result<(), GdbError> {
        let thread = self.thread(vcpu)?;
        // When QEMU 7.2 is interrupted, it ends the single step of its current vCPU only, which need not be the one that steps.
        if self.qemu && self.current != Some(vcpu) {
            self.command(format!("Hc{thread}").as_bytes(), "selecting a vCPU")?;
            self.current = Some(vcpu);
        }
        self.run(format!("vCont;s:{thread}").as_bytes(), "stepping a vCPU")
    }

    fn run(&mut self, request: &[u8], doing: &'static str) -> Result<(), GdbError> {
        self.ready(doing)?;
        let deadline = Deadline::after(self.options.reply);
        self.connection.packet(request);
        let result = loop {
            if !self.connection.acks {
                break self
                    .connection
                    .flush(deadline)
                    .and_then(|all| if all { Ok(()) } else { Err(GdbCause::Timeout { after: deadline.limit }) });
            }
            match self.connection.next(deadline) {
                Ok(Some(Item::Ack)) => break Ok(()),
                Ok(Some(Item::Nak)) => break Err(GdbCause::Damaged { attempts: 1 }),
                Ok(Some(Item::Packet(packet))) if !StopReply::is(&packet) => break Err(misunderstood(&packet)),
                // Someone paused the guest through QEMU's monitor before the stub saw our request.
                Ok(Some(_)) => {}
                Ok(None) => break Err(GdbCause::Timeout { after: deadline.limit }),
                Err(cause) => break Err(cause),
            }
        };
        result.map_err(|cause| {
            let cause = self.lost(cause);
            self.error(doing, cause)
        })?;
        self.state = State::Running;
        Ok(())
    }

    /// Waits until the guest stands still; `None` if the time passed and it still runs. After the end of QEMU the reason is
    /// [`StopReason::Exited`], or the connection is closed. If the guest stands still already, gives the reason once more.
    ///
    /// # Errors
    /// What goes wrong with the stub; [`GdbCause::Refused`] or [`GdbCause::Unsupported`] if it did not want to resume.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<Stop>, GdbError> {
        const DOING: &str = "waiting for the guest to stop";
        if self.state != State::Running {
            return Ok(Some(self.last_stop));
        }
        let deadline = Deadline::after(limit);
        let mut damaged = 0_u32;
        let cause = loop {
            match self.connection.next(deadline) {
                Ok(Some(Item::Packet(packet))) => match StopReply::parse(&packet) {
                    Some(reply) => {
                        self.last_stop = self.stopped(reply);
                        return Ok(Some(self.last_stop));
                    }
                    None if packet.starts_with(b"O") => {}
                    None => {
                        self.state = State::Stopped;
                        break accept(packet).map_or_else(|cause| cause, |packet| misunderstood(&packet));
                    }
                },
                // The stub keeps its last packet until we acknowledge it, so that it can send it again; the guest stands still.
                Ok(Some(Item::Damaged)) if damaged < 4 => {
                    damaged = damaged.saturating_add(1);
                    self.connection.raw(b"-");
                }
                Ok(Some(Item::Damaged)) => break GdbCause::Damaged { attempts: damaged },
                Ok(Some(Item::Ack | Item::Nak | Item::Notification(_))) => {}
                Ok(None) => return Ok(None),
                Err(cause) => break cause,
            }
        };
        let cause = self.lost(cause);
        Err(self.error(DOING, cause))
    }

    /// Stops the guest and gives the reason: a trap, if one was met at the same time. A guest that stands still already is left so.
    ///
    /// # Errors
    /// What goes wrong with the stub.
    pub fn interrupt(&mut self) -> Result<Stop, GdbError> {
        const DOING: &str = "stopping the guest";
        if self.state == State::Running {
            // Where a stop reply is on its way already, QEMU takes no notice of this byte.
            self.connection.raw(b"\x03");
            let limit = self.options.reply;
            if self.wait(limit)?.is_none() {
                self.out_of_step = true;
                return Err(self.error(DOING, GdbCause::Timeout { after: limit }));
            }
        }
        match self.state {
            State::Exited => Err(self.error(DOING, GdbCause::Exited)),
            _ => Ok(self.last_stop),
        }
    }

    /// Why the guest stands still, or stood still when it last did.
    pub fn last_stop(&self) -> Stop {
        self.last_stop
    }
}

/// `true` for what ends the guest.
impl StopReason {
    /// Whether QEMU has ended.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Exited(_) | Self::Killed(_))
    }
}
