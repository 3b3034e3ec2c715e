//! What x86 processors do that a hypervisor may report.

use core::fmt;

use vmi_core::{EventAbility, VirtAddr};

/// A control register whose writes can be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ControlRegister {
    /// CR0: paging, write protection.
    Cr0,
    /// CR3: the page tables.
    Cr3,
    /// CR4: extensions.
    Cr4,
    /// XCR0: which processor state XSAVE keeps.
    Xcr0,
    /// Another one, by the hypervisor's own number.
    Other(u32),
}

impl fmt::Display for ControlRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cr0 => f.write_str("cr0"),
            Self::Cr3 => f.write_str("cr3"),
            Self::Cr4 => f.write_str("cr4"),
            Self::Xcr0 => f.write_str("xcr0"),
            Self::Other(number) => write!(f, "control register {number}"),
        }
    }
}

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Watch {
    /// A control register is written.
    ControlRegister {
        /// Which.
        register: ControlRegister,
        /// Whether only if its value changes.
        on_change: bool,
    },
    /// A model-specific register is written.
    Msr {
        /// Which.
        index: u32,
        /// Whether only if its value changes.
        on_change: bool,
    },
    /// CPUID is run.
    Cpuid,
    /// A debug exception (vector 1) is raised: debug registers, RFLAGS.TF, ICEBP.
    DebugExceptions,
    /// INT3 is run that is the guest's own.
    Breakpoints,
    /// A descriptor-table register is read or written: GDTR, IDTR, LDTR, TR.
    DescriptorTables,
    /// The guest asks for an event by a hypercall.
    GuestRequests,
    /// The guest calls a higher privilege.
    PrivilegedCalls,
    /// The hypervisor was to emulate an instruction and cannot.
    EmulationFailures,
    /// Every exit to the hypervisor.
    Exits,
}

/// What a vCPU did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Incident {
    /// It writes a control register.
    ControlRegister {
        /// Which.
        register: ControlRegister,
        /// What is in it when it goes on, unless that is denied.
        new: u64,
        /// What was in it.
        old: u64,
    },
    /// It writes a model-specific register.
    Msr {
        /// Which.
        index: u64,
        /// What is in it when it goes on, unless that is denied.
        new: u64,
        /// What was in it.
        old: u64,
    },
    /// It runs CPUID.
    Cpuid {
        /// The leaf: EAX.
        leaf: u32,
        /// The subleaf: ECX.
        subleaf: u32,
        /// Length of the instruction in bytes, with its prefixes.
        length: u32,
    },
    /// It raised a debug exception.
    DebugException {
        /// The kind of event, as VMX numbers them (Intel SDM, volume 3, table 25-17): 3 hardware exception, 5 privileged software exception (ICEBP).
        kind: u8,
        /// Length of the instruction in bytes, if it has one.
        length: u32,
        /// The conditions, in the bits of DR6, if the hypervisor tells them.
        pending: Option<u64>,
    },
    /// It ran an INT3 that is the guest's own.
    Breakpoint {
        /// The kind of event: 6 software exception.
        kind: u8,
        /// Length of the instruction in bytes, with its prefixes.
        length: u32,
    },
    /// It touches a descriptor-table register.
    DescriptorTable {
        /// Which.
        table: DescriptorTable,
        /// Whether it writes it.
        write: bool,
    },
    /// It asked for an event by a hypercall.
    GuestRequest,
    /// It calls a higher privilege.
    PrivilegedCall,
    /// An interrupt is delivered.
    Interrupt {
        /// Its vector.
        vector: u32,
        /// The kind of event, as VMX numbers them.
        kind: u32,
        /// The error code, where the vector has one.
        error_code: u32,
        /// CR2, for page faults.
        cr2: u64,
    },
    /// The hypervisor was to emulate the instruction and cannot.
    EmulationFailure,
    /// It left the guest for the hypervisor.
    Exit {
        /// The reason, as the processor numbers them.
        reason: u64,
        /// What belongs to the reason.
        qualification: u64,
    },
    /// Something that has no name here yet, by the hypervisor's own number.
    Other(u32),
}

/// A descriptor-table register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs)] // they carry their own names
pub enum DescriptorTable {
    Gdtr,
    Idtr,
    Ldtr,
    Tr,
    /// Another one, by the hypervisor's own number.
    Other(u8),
}

impl Incident {
    /// Its name in a word or two.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ControlRegister { .. } => "control register",
            Self::Msr { .. } => "msr",
            Self::Cpuid { .. } => "cpuid",
            Self::DebugException { .. } => "debug exception",
            Self::Breakpoint { .. } => "own breakpoint",
            Self::DescriptorTable { .. } => "descriptor table",
            Self::GuestRequest => "guest request",
            Self::PrivilegedCall => "privileged call",
            Self::Interrupt { .. } => "interrupt",
            Self::EmulationFailure => "emulation failure",
            Self::Exit { .. } => "exit",
            Self::Other(_) => "other",
        }
    }
}

impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ControlRegister { register, new, old } => write!(f, "{register} {old:#x} -> {new:#x}"),
            Self::Msr { index, new, old } => write!(f, "msr {index:#x} {old:#x} -> {new:#x}"),
            Self::Cpuid { leaf, subleaf, .. } => write!(f, "cpuid {leaf:#x} {subleaf:#x}"),
            Self::Interrupt { vector, .. } => write!(f, "interrupt {vector:#x}"),
            Self::Exit { reason, qualification } => write!(f, "exit {reason:#x} ({qualification:#x})"),
            Self::Other(number) => write!(f, "event {number}"),
            _ => f.write_str(self.name()),
        }
    }
}

/// What can be put into a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Injection {
    /// An external interrupt.
    Interrupt {
        /// Its vector, from 32 on.
        vector: u8,
    },
    /// An exception that the processor raises.
    Exception {
        /// Its vector, below 32.
        vector: u8,
        /// The error code, for the vectors that have one (Intel SDM, volume 3, table 6-1).
        error_code: Option<u32>,
    },
    /// A page fault (vector 14): CR2 becomes the address.
    PageFault {
        /// The linear address.
        at: VirtAddr,
        /// Which access it was (Intel SDM, volume 3, section 4.7).
        error_code: u32,
    },
}

pub(crate) fn springs(watch: &Watch, incident: &Incident) -> bool {
    match (*watch, *incident) {
        (Watch::ControlRegister { register, on_change }, Incident::ControlRegister { register: which, new, old }) => {
            register == which && (!on_change || new != old)
        }
        (Watch::Msr { index, on_change }, Incident::Msr { index: which, new, old }) => {
            u64::from(index) == which && (!on_change || new != old)
        }
        (Watch::Cpuid, Incident::Cpuid { .. })
        | (Watch::DebugExceptions, Incident::DebugException { .. })
        | (Watch::Breakpoints, Incident::Breakpoint { .. })
        | (Watch::DescriptorTables, Incident::DescriptorTable { .. })
        | (Watch::GuestRequests, Incident::GuestRequest)
        | (Watch::PrivilegedCalls, Incident::PrivilegedCall)
        | (Watch::EmulationFailures, Incident::EmulationFailure)
        | (Watch::Exits, Incident::Exit { .. }) => true,
        _ => false,
    }
}

pub(crate) const fn ability(watch: &Watch) -> EventAbility {
    match watch {
        Watch::ControlRegister { .. } => EventAbility::ControlRegister,
        Watch::Msr { .. } => EventAbility::ModelRegister,
        Watch::Cpuid => EventAbility::Identification,
        Watch::DebugExceptions => EventAbility::DebugException,
        Watch::Breakpoints => EventAbility::GuestBreakpoint,
        Watch::DescriptorTables => EventAbility::DescriptorTable,
        Watch::GuestRequests => EventAbility::GuestRequest,
        Watch::PrivilegedCalls => EventAbility::PrivilegedCall,
        Watch::EmulationFailures => EventAbility::EmulationFailure,
        Watch::Exits => EventAbility::Exit,
    }
}
