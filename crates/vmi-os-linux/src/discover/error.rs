//! Why no kernel was found: what each strategy missed, and what the user can supply.

use core::fmt;

use vmi_arch_x86::PagingMode;
use vmi_core::PhysAddr;
use vmi_core::search::{Miss, NoKernel};

/// A way of finding the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Strategy {
    /// The page-table root that the user gave.
    GivenRoot,
    /// The page tables that a vCPU uses.
    Registers,
    /// The VMCOREINFO note that the source carries beside the memory.
    Note,
    /// The page table that x86-64 kernels keep in the first MiB for starting processors and waking up.
    Trampoline,
    /// VMCOREINFO in memory, found by a scan of all of it.
    VmCoreInfo,
    /// The symbol table (kallsyms) in memory, found by a scan of all of it.
    Kallsyms,
    /// The list of tasks in memory, found by content: of last resort, for kernels without a symbol table.
    Tasks,
}

impl Strategy {
    /// All of them, in order of cost.
    pub const ALL: [Self; 7] =
        [Self::GivenRoot, Self::Registers, Self::Note, Self::Trampoline, Self::VmCoreInfo, Self::Kallsyms, Self::Tasks];
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GivenRoot => "given page-table root",
            Self::Registers => "vCPU registers",
            Self::Note => "VMCOREINFO note of the source",
            Self::Trampoline => "start-up page table in the first MiB",
            Self::VmCoreInfo => "VMCOREINFO in memory",
            Self::Kallsyms => "symbol table in memory",
            Self::Tasks => "list of tasks in memory",
        })
    }
}

/// What a strategy missed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// Nothing to start from.
    #[error("{0}")]
    NotThere(&'static str),
    /// The source could not be read.
    #[error("{0}")]
    Unreadable(String),
    /// Page tables without a kernel.
    #[error("the page tables at {root} ({mode:?}) map nothing where a kernel lies")]
    NothingMapped {
        /// Their root.
        root: PhysAddr,
        /// The mode in which they were read.
        mode: PagingMode,
    },
    /// Page tables that map something without a symbol table.
    #[error("what the page tables at {root} ({mode:?}) map holds no symbol table{}", .why.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    NoSymbols {
        /// Their root.
        root: PhysAddr,
        /// The mode in which they were read.
        mode: PagingMode,
        /// What was wrong with the most table-like place.
        why: Option<crate::discover::kallsyms::Reject>,
    },
    /// No symbol table in memory.
    #[error("of {places} runs of digit tokens none belongs to a symbol table{}", .why.map(|why| format!(": {why}")).unwrap_or_default())]
    NoTable {
        /// Places with the digit tokens of a table.
        places: usize,
        /// What the most table-like of them lacks.
        why: Option<crate::discover::kallsyms::Reject>,
    },
    /// A symbol table that does not fit the memory it was found in.
    #[error("the symbol table at {at} is not that of the running kernel: {why}")]
    Stale {
        /// Where its token strings lie.
        at: PhysAddr,
        /// What did not fit.
        why: String,
    },
    /// No list of tasks.
    #[error("{0}")]
    NoTasks(String),
    /// A kernel that no vCPU of a running guest runs under: what a machine that was reset leaves behind.
    #[error("the kernel in memory does not run ({release}): {}", .vcpus.join(", "))]
    NotRunning {
        /// Its banner up to the release.
        release: String,
        /// What the vCPUs do instead, one sentence each.
        vcpus: Vec<String>,
    },
    /// VMCOREINFO lacks what is needed.
    #[error("VMCOREINFO without {0}")]
    Incomplete(&'static str),
}

impl Miss for Failure {
    fn progress(&self) -> u8 {
        match self {
            Self::NotThere(_) | Self::Unreadable(_) => 0,
            Self::Incomplete(_) | Self::NoTasks(_) => 1,
            Self::NothingMapped { .. } => 2,
            Self::NoTable { .. } | Self::NoSymbols { .. } => 3,
            Self::Stale { .. } => 4,
            Self::NotRunning { .. } => 5,
        }
    }
}

/// No Linux kernel was found. Each strategy's reason is kept.
pub type DiscoverError = NoKernel<Strategy, Failure>;

/// What the user can supply.
pub(super) const HELPS: &str =
    "an image with vCPU registers (ELF core), the kernel's page-table root (CR3), or its System.map or vmlinux";
