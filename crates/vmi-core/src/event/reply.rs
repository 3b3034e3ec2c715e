//! How events are answered.

use crate::{EventAbility, ViewId};

/// How an event is answered.
#[derive(Clone, Debug)]
#[must_use]
pub struct Reply<R> {
    /// Registers to set before the vCPU goes on.
    pub registers: Option<R>,
    /// Whether it runs one instruction only, which is then an event of its own ([`What::Stepped`](crate::What::Stepped)). With QEMU's gdb stub the
    /// other vCPUs stand still for it.
    pub step: bool,
    /// What becomes of what caused the event.
    pub action: Action,
    /// The view of memory in which the vCPU goes on; `None` leaves it where it is.
    pub view: Option<ViewId>,
}

/// What becomes of what caused an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// It is done, as if nobody had watched: the instruction below a breakpoint runs, a watched page is accessed, the guest gets its own exceptions.
    #[default]
    Go,
    /// It is not done: the register keeps its value.
    Deny,
    /// The hypervisor emulates the instruction, which does not spring the trap again.
    Emulate(Emulation),
    /// The guest gets the breakpoint or exception, even where it came from a trap of ours.
    Reinject,
}

/// How an instruction is emulated.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Emulation {
    /// As it is.
    Plain,
    /// Without its writes and other lasting effects.
    WithoutWrites,
    /// With these bytes in place of what it reads of memory.
    Reading(Vec<u8>),
    /// With these bytes in place of the instruction itself. Xen wants 16 of them.
    Instruction([u8; 16]),
}

impl<R> Reply<R> {
    /// The guest goes on.
    pub const fn resume() -> Self {
        Self { registers: None, step: false, action: Action::Go, view: None }
    }

    /// The vCPU runs one instruction, and there is an event again.
    pub const fn step() -> Self {
        Self { registers: None, step: true, action: Action::Go, view: None }
    }

    /// What caused the event is not done.
    pub const fn deny() -> Self {
        Self { registers: None, step: false, action: Action::Deny, view: None }
    }

    /// The hypervisor emulates the instruction.
    pub const fn emulate(how: Emulation) -> Self {
        Self { registers: None, step: false, action: Action::Emulate(how), view: None }
    }

    /// The guest gets the breakpoint or exception.
    pub const fn reinject() -> Self {
        Self { registers: None, step: false, action: Action::Reinject, view: None }
    }

    /// With these registers in the vCPU.
    pub fn with_registers(mut self, registers: R) -> Self {
        self.registers = Some(registers);
        self
    }

    /// In this view of memory.
    pub fn in_view(mut self, view: ViewId) -> Self {
        self.view = Some(view);
        self
    }

    /// What a back end needs to carry it out.
    pub fn abilities(&self) -> impl Iterator<Item = EventAbility> {
        let action = match self.action {
            Action::Go => None,
            Action::Deny => Some(EventAbility::Deny),
            Action::Emulate(_) => Some(EventAbility::Emulate),
            Action::Reinject => Some(EventAbility::Reinject),
        };
        let registers = self.registers.is_some().then_some(EventAbility::SetRegisters);
        let step = self.step.then_some(EventAbility::Step);
        let view = self.view.is_some().then_some(EventAbility::View);
        [action, registers, step, view].into_iter().flatten()
    }
}
