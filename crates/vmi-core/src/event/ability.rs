//! Which events and answers a back end has: learned when it is asked, as one hypervisor has more of them than the next.

use core::fmt;

/// One thing that a back end may be able to report, or an answer that it may be able to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum EventAbility {
    /// Breakpoints by instruction ([`Trap::breakpoint`](crate::Trap::breakpoint)).
    SoftwareBreakpoint,
    /// Breakpoints by debug register ([`Trap::hardware`](crate::Trap::hardware)).
    HardwareBreakpoint,
    /// Accesses of linear addresses ([`Trap::write`](crate::Trap::write) and its siblings).
    Watchpoint,
    /// Accesses of guest-physical memory ([`Trap::memory`](crate::Trap::memory)).
    MemoryAccess,
    /// Every instruction of a vCPU ([`Trap::instructions`](crate::Trap::instructions)).
    Instructions,
    /// Writes of control registers.
    ControlRegister,
    /// Writes of the registers that belong to a processor model (x86: MSRs).
    ModelRegister,
    /// A vCPU asks what it is (x86: CPUID).
    Identification,
    /// Debug exceptions.
    DebugException,
    /// Breakpoint instructions that are the guest's own.
    GuestBreakpoint,
    /// The guest calls a higher privilege (ARM: SMC).
    PrivilegedCall,
    /// The guest asks for an event by a hypercall.
    GuestRequest,
    /// Interrupts that are delivered.
    Interrupt,
    /// Accesses of descriptor-table registers.
    DescriptorTable,
    /// Instructions that the hypervisor was to emulate and cannot.
    EmulationFailure,
    /// Every exit from the guest to the hypervisor.
    Exit,
    /// Answer: set registers.
    SetRegisters,
    /// Answer: run one instruction, which is an event again ([`Reply::step`](crate::Reply::step)).
    Step,
    /// Answer: what caused the event is not done ([`Action::Deny`](crate::Action::Deny)).
    Deny,
    /// Answer: the hypervisor emulates the instruction ([`Action::Emulate`](crate::Action::Emulate)).
    Emulate,
    /// Answer: the exception or breakpoint is given to the guest ([`Action::Reinject`](crate::Action::Reinject)).
    Reinject,
    /// Views of memory, and going on in another one ([`Views`](crate::Views)).
    View,
    /// Interrupts and exceptions are put into a vCPU ([`Injector`](crate::Injector)).
    Inject,
}

impl EventAbility {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::SoftwareBreakpoint,
        Self::HardwareBreakpoint,
        Self::Watchpoint,
        Self::MemoryAccess,
        Self::Instructions,
        Self::ControlRegister,
        Self::ModelRegister,
        Self::Identification,
        Self::DebugException,
        Self::GuestBreakpoint,
        Self::PrivilegedCall,
        Self::GuestRequest,
        Self::Interrupt,
        Self::DescriptorTable,
        Self::EmulationFailure,
        Self::Exit,
        Self::SetRegisters,
        Self::Step,
        Self::Deny,
        Self::Emulate,
        Self::Reinject,
        Self::View,
        Self::Inject,
    ];
}

impl fmt::Display for EventAbility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SoftwareBreakpoint => "software breakpoints",
            Self::HardwareBreakpoint => "hardware breakpoints",
            Self::Watchpoint => "watchpoints",
            Self::MemoryAccess => "traps on guest-physical memory",
            Self::Instructions => "events of every instruction",
            Self::ControlRegister => "events of control-register writes",
            Self::ModelRegister => "events of model-specific registers",
            Self::Identification => "events of processor identification",
            Self::DebugException => "events of debug exceptions",
            Self::GuestBreakpoint => "events of the guest's own breakpoints",
            Self::PrivilegedCall => "events of privileged calls",
            Self::GuestRequest => "events that the guest asks for",
            Self::Interrupt => "events of interrupts",
            Self::DescriptorTable => "events of descriptor-table registers",
            Self::EmulationFailure => "events of instructions that cannot be emulated",
            Self::Exit => "events of every exit to the hypervisor",
            Self::SetRegisters => "setting registers in the answer to an event",
            Self::Step => "single steps",
            Self::Deny => "denying what caused an event",
            Self::Emulate => "emulating the instruction that caused an event",
            Self::Reinject => "giving an exception on to the guest",
            Self::View => "views of memory",
            Self::Inject => "injecting interrupts and exceptions",
        })
    }
}

/// Which of them a back end has.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct EventAbilities(u64);

impl EventAbilities {
    /// None.
    pub const NONE: Self = Self(0);

    const fn bit(ability: EventAbility) -> u64 {
        1u64.wrapping_shl(ability as u32)
    }

    /// These and `ability`.
    #[must_use]
    pub const fn with(self, ability: EventAbility) -> Self {
        Self(self.0 | Self::bit(ability))
    }

    /// These without `ability`.
    #[must_use]
    pub const fn without(self, ability: EventAbility) -> Self {
        Self(self.0 & !Self::bit(ability))
    }

    /// Whether `ability` is among them.
    pub const fn has(self, ability: EventAbility) -> bool {
        self.0 & Self::bit(ability) != 0
    }

    /// All that are there.
    pub fn iter(self) -> impl Iterator<Item = EventAbility> {
        EventAbility::ALL.iter().copied().filter(move |ability| self.has(*ability))
    }
}

impl FromIterator<EventAbility> for EventAbilities {
    fn from_iter<I: IntoIterator<Item = EventAbility>>(abilities: I) -> Self {
        abilities.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Debug for EventAbilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ability_has_a_bit_of_its_own() {
        let all: EventAbilities = EventAbility::ALL.iter().copied().collect();
        assert_eq!(all.0.count_ones() as usize, EventAbility::ALL.len());
        assert_eq!(all.iter().count(), EventAbility::ALL.len());
        let less = all.without(EventAbility::Step);
        assert!(!less.has(EventAbility::Step) && less.has(EventAbility::Inject));
    }
}
