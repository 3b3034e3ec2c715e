//! What core knows of paging: the question a page walk answers, and the two kinds of answer.
//!
//! The walks themselves belong to an architecture crate, which implements [`Paging`].

use core::fmt;
use core::hash::Hash;

use crate::{EventAbility, Memory, PhysAddr, Result, VirtAddr};

/// A processor architecture, as far as core must know it: which registers a vCPU has and how its paging works.
pub trait Architecture: Copy + Eq + Hash + fmt::Debug + Send + Sync + 'static {
    /// The register file of one vCPU.
    type Registers: Clone + fmt::Debug + Send + Sync + 'static;
    /// How virtual addresses become physical ones.
    type Paging: Paging;
    /// What its processors do that a back end may be asked to report, beside running instructions and touching memory;
    /// [`Infallible`](core::convert::Infallible) if nothing.
    type Watch: Copy + Eq + Hash + fmt::Debug + Send + Sync + 'static;
    /// What a back end reports of that.
    type Incident: Copy + Eq + fmt::Debug + Send + Sync + 'static;
    /// An interrupt or exception that a vCPU can be given.
    type Injection: Copy + Eq + fmt::Debug + Send + Sync + 'static;

    /// Whether a vCPU with these registers runs on the page tables at `root`, flags below and above the address left aside; `None` if the registers do
    /// not tell.
    fn runs_on(registers: &Self::Registers, root: PhysAddr) -> Option<bool>;

    /// Whether `incident` is one that `watch` asks for.
    fn springs(watch: &Self::Watch, incident: &Self::Incident) -> bool;

    /// What a back end needs for `watch`.
    fn ability(watch: &Self::Watch) -> EventAbility;
}

/// A paging mode: turns a virtual address into a physical one by reading page tables.
pub trait Paging: Copy + Eq + Hash + fmt::Debug + Send + Sync + 'static {
    /// Bytes in a pointer of code that runs under this mode (4 or 8).
    fn pointer_size(self) -> usize;

    /// Translates `at` through the tables at `root`, which is what the register that holds the root (x86: CR3) says,
    /// flags included.
    ///
    /// # Errors
    /// [`ErrorKind::Fault`](crate::ErrorKind::Fault) if the tables do not map the address, or if a table lies where there is no
    /// memory; other kinds if the source of the memory fails.
    fn translate<M>(self, memory: &M, root: PhysAddr, at: VirtAddr) -> Result<Translation>
    where
        M: Memory<Addr = PhysAddr> + ?Sized;
}

/// Where a virtual address lies in guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address.
    pub at: PhysAddr,
    /// log2 of the size of the page that maps it: 12, 21, 22 or 30 on x86.
    pub page_shift: u8,
    /// What the page tables allow, all levels taken together.
    pub access: Access,
}

impl Translation {
    /// Size in bytes of the page that maps the address.
    pub const fn page_size(self) -> u64 {
        1u64.wrapping_shl(self.page_shift as u32)
    }

    /// Bytes from the address to the end of its page, itself included; never zero.
    pub const fn rest_of_page(self) -> u64 {
        let size = self.page_size();
        size.wrapping_sub(self.at.get() & size.wrapping_sub(1))
    }
}

/// What page tables allow at an address. Reading is allowed wherever a page is present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Access {
    /// Writes are allowed.
    pub write: bool,
    /// Instruction fetches are allowed.
    pub execute: bool,
    /// User mode may access the page.
    pub user: bool,
}

impl fmt::Display for Access {
    /// `rwxu` with a dash for what is not allowed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |on, letter| if on { letter } else { '-' };
        write!(f, "r{}{}{}", flag(self.write, 'w'), flag(self.execute, 'x'), flag(self.user, 'u'))
    }
}

/// Why a virtual address has no physical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at} is not mapped: {kind} (level {level} entry {entry:#x} at {entry_at}, root {root})")]
pub struct Fault {
    /// The virtual address.
    pub at: VirtAddr,
    /// The root of the page tables that were walked.
    pub root: PhysAddr,
    /// The level of the table whose entry ended the walk: 1 holds 4 KiB pages, the root has the highest.
    pub level: u8,
    /// Where that entry lies in guest-physical memory.
    pub entry_at: PhysAddr,
    /// The entry's value; 0 if it could not be read.
    pub entry: u64,
    /// What was wrong with it.
    pub kind: FaultKind,
}

/// What ended a page walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The address is not canonical: its high bits are not copies of the highest translated one.
    NotCanonical,
    /// The entry's present bit is clear.
    NotPresent,
    /// The entry sets bits that the processor requires to be zero.
    ReservedBits,
    /// The entry itself lies where there is no memory.
    NoTable,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotCanonical => "the address is not canonical",
            Self::NotPresent => "the entry is not present",
            Self::ReservedBits => "the entry sets reserved bits",
            Self::NoTable => "the table lies outside memory",
        })
    }
}
