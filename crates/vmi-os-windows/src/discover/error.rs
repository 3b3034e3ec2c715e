//! Why no kernel was found: what each strategy missed, and what the user can supply.

use core::fmt;

use vmi_arch_x86::PagingMode;
use vmi_core::search::{Miss, NoKernel};
use vmi_core::{PhysAddr, VirtAddr};

/// A way of finding the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Strategy {
    /// The page-table root that the user gave.
    GivenRoot,
    /// The page tables that a vCPU uses, and the kernel's entry points that its registers name.
    Registers,
    /// The header of a Windows crash dump.
    DumpHeader,
    /// The block in the first MiB by which x86-64 kernels start further processors.
    LowStub,
    /// Page tables that refer to themselves as those of Windows do, found by a scan of memory.
    PageTables,
    /// The kernel's image in physical memory, found by a scan of all of it, and page tables that map it.
    PhysicalScan,
}

impl Strategy {
    /// All of them, in order of cost.
    pub const ALL: [Self; 6] =
        [Self::GivenRoot, Self::Registers, Self::DumpHeader, Self::LowStub, Self::PageTables, Self::PhysicalScan];
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GivenRoot => "given page-table root",
            Self::Registers => "vCPU registers",
            Self::DumpHeader => "header of a crash dump",
            Self::LowStub => "processor start block in the first MiB",
            Self::PageTables => "page tables in memory",
            Self::PhysicalScan => "kernel image in memory",
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
    /// No page tables in memory.
    #[error("of {looked_at} page tables that refer to themselves as those of Windows do, none maps a kernel{}", .furthest.as_ref().map(|failure| format!("; the best of them: {failure}")).unwrap_or_default())]
    NoPageTables {
        /// How many there are.
        looked_at: usize,
        /// What the most kernel-like of them lacks.
        furthest: Option<Box<Failure>>,
    },
    /// Page tables without a kernel.
    #[error("the page tables at {root} ({mode:?}) map no image of a Windows kernel: {}", .why)]
    NoImage {
        /// Their root.
        root: PhysAddr,
        /// The mode in which they were read.
        mode: PagingMode,
        /// Where it was searched, and what was found instead.
        why: String,
    },
    /// The page tables of user mode, which map next to nothing of the kernel.
    #[error(
        "the page tables at {root} are those of user mode (KVA shadow): they map where the kernel is entered ({entry}), but not the kernel"
    )]
    UserTables {
        /// Their root.
        root: PhysAddr,
        /// Where the kernel is entered.
        entry: VirtAddr,
    },
    /// An image of the kernel in physical memory that no page tables map.
    #[error(
        "{image} lies at {at}, but no page tables in memory map it there: it may be a leftover, or its page tables are not in the source"
    )]
    Unmapped {
        /// What it is.
        image: String,
        /// Where it begins.
        at: PhysAddr,
    },
    /// An image of the kernel, but nothing behind it that can be read.
    #[error("the image at {base} (page tables at {root}) is one of a Windows kernel, but {why}")]
    NotUsable {
        /// Where the image is.
        base: VirtAddr,
        /// The page tables that map it.
        root: PhysAddr,
        /// What contradicts it.
        why: String,
    },
    /// A kernel that no vCPU of a running guest runs under: what a machine that was reset leaves behind.
    #[error("the kernel in memory at {base} does not run: {}", .vcpus.join(", "))]
    NotRunning {
        /// Where its image is.
        base: VirtAddr,
        /// What the vCPUs do instead, one sentence each.
        vcpus: Vec<String>,
    },
}

impl Miss for Failure {
    fn progress(&self) -> u8 {
        match self {
            Self::NotThere(_) | Self::Unreadable(_) => 0,
            Self::NoPageTables { .. } => 1,
            Self::NoImage { .. } => 2,
            Self::UserTables { .. } => 3,
            Self::Unmapped { .. } => 4,
            Self::NotUsable { .. } => 5,
            Self::NotRunning { .. } => 6,
        }
    }
}

/// No Windows kernel was found. Each strategy's reason is kept.
pub type DiscoverError = NoKernel<Strategy, Failure>;

/// What the user can supply.
pub(super) const HELPS: &str =
    "an image with vCPU registers (ELF core, crash dump, saved state), or the page-table root (CR3) of the process System";
