//! What a strategy has in hand: page tables, and where the kernel may be in what they map.

use vmi_arch_x86::PagingMode;
use vmi_core::{PhysAddr, VirtAddr};

/// Page tables that may map the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lead {
    pub(super) root: PhysAddr,
    pub(super) mode: PagingMode,
    /// Addresses at which the kernel's image is said to begin.
    pub(super) bases: Vec<VirtAddr>,
    /// Addresses that are said to lie inside the kernel.
    pub(super) hints: Vec<VirtAddr>,
    /// Where a processor enters the kernel, as far as its registers told: what tables of user mode map of it under a KVA shadow.
    pub(super) entries: Vec<VirtAddr>,
}

impl Lead {
    /// Page tables of which nothing else is known.
    pub(super) fn new(root: PhysAddr, mode: PagingMode) -> Self {
        Self { root: mode.top_table(root), mode, bases: Vec::new(), hints: Vec::new(), entries: Vec::new() }
    }
}

/// Whether `at` can be an address of the kernel: the upper half of the addresses, or of 32-bit ones what lies above the smallest part
/// that user mode can be given (2 GiB; Microsoft: "4-gigabyte tuning" gives it up to 3 GiB, which moves the kernel up).
pub(super) fn is_kernel_address(mode: PagingMode, at: VirtAddr) -> bool {
    match mode {
        PagingMode::Bits32 | PagingMode::Pae => (0x8000_0000..=0xffff_ffff).contains(&at.get()),
        PagingMode::Level4 => at.get() >= 0xffff_8000_0000_0000,
        PagingMode::Level5 => at.get() >= 0xff00_0000_0000_0000,
    }
}
