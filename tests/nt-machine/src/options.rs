//! What can be chosen about a machine.

use std::ops::Range;

use crate::paging::Paging;

/// The debugger's data block (`KdDebuggerDataBlock`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kdbg {
    /// As it was before Windows 8, and is with debugging on.
    Clear,
    /// Encoded with keys, as 64-bit kernels since Windows 8 have it.
    Encoded,
    /// Zeros.
    Absent,
}

/// How the list of processes is broken ([`crate::NtMachine::break_list`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokenList {
    /// The last process leads back to the second one and never to the head.
    Circle,
    /// The last process leads to an address that is not mapped.
    Hole,
    /// The last process leads to itself.
    Itself,
}

/// A KVA shadow (page-table isolation), and where a processor was when the image was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvaShadow {
    /// None.
    Off,
    /// Every process but System has one.
    On,
    /// As `On`, and the first processor runs user code: its CR3 is a shadow.
    InUserMode,
}

/// Choices. The default is a plain machine of 64 MiB.
#[derive(Clone, Debug)]
pub struct Options {
    /// Page tables other than the build's usual ones.
    pub paging: Option<Paging>,
    /// Where RAM is; default one run from 0 of 64 MiB. A raw image writes holes as zeros.
    pub ram: Vec<Range<u64>>,
    /// Whether the low stub (`PROCESSOR_START_BLOCK`) is there, and on which page; 64-bit only.
    pub low_stub: Option<u64>,
    /// Root of System's page tables; default where the build has it.
    pub system_root: Option<u64>,
    /// The kernel's first address; default a place that is usual for the build.
    pub kernel_base: Option<u64>,
    /// The kernel's first physical address, for machines that map it with large pages; default where there is room.
    pub kernel_physical: Option<u64>,
    /// Whether large pages map the kernel's image.
    pub kernel_large_pages: bool,
    /// Whether the image is as large as a real one (16.3 MiB) instead of half of it.
    pub kernel_full_size: bool,
    /// What the image is made of.
    pub kernel: crate::kernel_image::KernelImage,
    /// The debugger's data block; default what the build has usually.
    pub kdbg: Option<Kdbg>,
    /// The page that holds the export directory is paged out.
    pub exports_paged_out: bool,
    /// The page that holds the debug directory and its CodeView record is paged out.
    pub codeview_paged_out: bool,
    /// The header's page stands alone: the pages behind it are not mapped, as seen with virtualisation-based security.
    pub lonely_header: bool,
    /// Somewhere in physical memory lies the start of another kernel, left over from an earlier boot: its header, its RSDS record, its System process.
    pub stale_kernel: bool,
    /// A KVA shadow; 64-bit builds that know `UserDirectoryTableBase` only.
    pub kva_shadow: KvaShadow,
    /// What random-looking choices depend on.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            paging: None,
            ram: vec![0..64 << 20],
            low_stub: Some(0x13000),
            system_root: None,
            kernel_base: None,
            kernel_physical: None,
            kernel_large_pages: true,
            kernel_full_size: false,
            kernel: crate::kernel_image::KernelImage::Written,
            kdbg: None,
            exports_paged_out: false,
            codeview_paged_out: false,
            lonely_header: false,
            stale_kernel: false,
            kva_shadow: KvaShadow::Off,
            seed: 1,
        }
    }
}

impl Options {
    /// RAM as a PC has it: below a hole at 3 GiB, the rest from 4 GiB on.
    pub fn with_memory(mut self, bytes: u64) -> Self {
        let low = bytes.min(3 << 30);
        self.ram = vec![0..low];
        if bytes > low {
            self.ram.push(4 << 30..(4 << 30) + bytes - low);
        }
        self
    }
}
