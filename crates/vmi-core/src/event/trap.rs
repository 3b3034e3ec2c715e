//! What can be asked for: traps.

use core::fmt;

use crate::{Accesses, Architecture, EventAbility, MemoryWatch, PhysAddr, VcpuId, VirtAddr};

/// Where and how a trap on a linear address is sprung.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// What springs it.
    pub kind: TrapKind,
    /// First linear address; breakpoints: of the instruction.
    pub at: VirtAddr,
    /// Bytes that are watched; 1 for breakpoints.
    pub len: u64,
}

/// What springs a trap on a linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TrapKind {
    /// An instruction is about to run, found by a breakpoint instruction or what the back end has in its place.
    SoftwareBreakpoint,
    /// An instruction is about to run, found by a debug register or its like.
    HardwareBreakpoint,
    /// Memory was written.
    Write,
    /// Memory was read.
    Read,
    /// Memory was read or written.
    Access,
}

impl fmt::Display for TrapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SoftwareBreakpoint => "software breakpoint",
            Self::HardwareBreakpoint => "hardware breakpoint",
            Self::Write => "write watchpoint",
            Self::Read => "read watchpoint",
            Self::Access => "access watchpoint",
        })
    }
}

/// What springs a trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause<A: Architecture> {
    /// A linear address is executed, read or written.
    Place(Place),
    /// Guest-physical memory is touched.
    Memory(MemoryWatch),
    /// The vCPU has run an instruction, whichever.
    Instructions(VcpuId),
    /// The processor does something of its architecture: [`Architecture::Watch`].
    Processor(A::Watch),
}

impl<A: Architecture> Cause<A> {
    /// What a back end needs for it.
    pub fn ability(&self) -> EventAbility {
        match self {
            Self::Place(place) => match place.kind {
                TrapKind::SoftwareBreakpoint => EventAbility::SoftwareBreakpoint,
                TrapKind::HardwareBreakpoint => EventAbility::HardwareBreakpoint,
                TrapKind::Write | TrapKind::Read | TrapKind::Access => EventAbility::Watchpoint,
            },
            Self::Memory(_) => EventAbility::MemoryAccess,
            Self::Instructions(_) => EventAbility::Instructions,
            Self::Processor(watch) => A::ability(watch),
        }
    }
}

/// A request to be told when a vCPU does something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trap<A: Architecture> {
    cause: Cause<A>,
    roots: Vec<PhysAddr>,
}

impl<A: Architecture> Trap<A> {
    /// Sprung when the instruction at `at` is about to run. [`Trap::hardware`] chooses debug registers instead.
    pub const fn breakpoint(at: VirtAddr) -> Self {
        Self::place_of(TrapKind::SoftwareBreakpoint, at, 1)
    }

    /// Sprung when any of `len` bytes at `at` is written.
    pub const fn write(at: VirtAddr, len: u64) -> Self {
        Self::place_of(TrapKind::Write, at, len)
    }

    /// Sprung when any of `len` bytes at `at` is read.
    pub const fn read(at: VirtAddr, len: u64) -> Self {
        Self::place_of(TrapKind::Read, at, len)
    }

    /// Sprung when any of `len` bytes at `at` is read or written.
    pub const fn access(at: VirtAddr, len: u64) -> Self {
        Self::place_of(TrapKind::Access, at, len)
    }

    /// Sprung before any of `len` bytes of guest-physical memory at `at` is touched as `on` says.
    pub const fn memory(at: PhysAddr, len: u64, on: Accesses) -> Self {
        Self::new(Cause::Memory(MemoryWatch { at, len, on }))
    }

    /// Sprung behind each instruction of a vCPU.
    pub const fn instructions(vcpu: VcpuId) -> Self {
        Self::new(Cause::Instructions(vcpu))
    }

    /// Sprung by something that belongs to the architecture: on x86 a write of a control register or MSR, CPUID and their like.
    pub const fn processor(watch: A::Watch) -> Self {
        Self::new(Cause::Processor(watch))
    }

    const fn place_of(kind: TrapKind, at: VirtAddr, len: u64) -> Self {
        Self::new(Cause::Place(Place { kind, at, len }))
    }

    /// A trap of this cause.
    pub const fn new(cause: Cause<A>) -> Self {
        Self { cause, roots: Vec::new() }
    }

    /// A breakpoint by debug register: it changes no guest memory, and there are few (four on x86 under KVM).
    #[must_use]
    pub fn hardware(mut self) -> Self {
        if let Cause::Place(place) = &mut self.cause
            && place.kind == TrapKind::SoftwareBreakpoint
        {
            place.kind = TrapKind::HardwareBreakpoint;
        }
        self
    }

    /// Only when the vCPU runs on the page tables at `root`, whose flags do not matter. May be called for several roots: a Linux process under page-table
    /// isolation has two. The vCPU stops all the same in other address spaces, and is let go on at once.
    #[must_use]
    pub fn in_address_space(mut self, root: PhysAddr) -> Self {
        self.roots.push(root);
        self
    }

    /// What springs it.
    pub const fn cause(&self) -> Cause<A> {
        self.cause
    }

    /// Where and how it is sprung, if by a linear address.
    pub const fn place(&self) -> Option<Place> {
        match self.cause {
            Cause::Place(place) => Some(place),
            _ => None,
        }
    }

    /// The page tables it is bound to; none: any.
    pub(super) fn roots(&self) -> &[PhysAddr] {
        &self.roots
    }
}

/// A trap that is set: its number in its session, from 1 on, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrapId(pub u64);
