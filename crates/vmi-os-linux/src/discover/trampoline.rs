//! The start-up page table of x86-64 kernels.
//!
//! Processors start and wake up in real mode, so a kernel keeps code and a root page table for them below 1 MiB (kernel:
//! arch/x86/realmode/init.c, `trampoline_pgd`). The table's last entry, and on newer kernels its whole upper half, is that of
//! `init_top_pgt`. A look at 256 pages finds the running kernel so, wherever address-space randomisation put it.

use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{Memory, PAGE_SIZE, PhysAddr, Vmi};

/// Real mode reaches this far.
const END: u64 = 1 << 20;

/// Pages that are tried: there is one such table.
const MAX_ROOTS: usize = 16;

/// Pages below 1 MiB that may be such tables: their last entry points at a table in memory.
pub(super) fn roots<D: X86Driver>(vmi: &Vmi<D>) -> impl Iterator<Item = (PhysAddr, PagingMode)> {
    const PRESENT: u64 = 1;
    const PAGE_SIZE_BIT: u64 = 1 << 7;
    const FRAME: u64 = 0x000f_ffff_ffff_f000;
    (0..END / PAGE_SIZE)
        .filter_map(|page| page.checked_mul(PAGE_SIZE))
        .map(PhysAddr::new)
        .filter(|root| {
            let last: u64 = vmi.read(root.wrapping_add(PAGE_SIZE.wrapping_sub(8))).unwrap_or_default();
            last & (PRESENT | PAGE_SIZE_BIT) == PRESENT && vmi.machine().memory.region_at(PhysAddr::new(last & FRAME)).is_some()
        })
        .take(MAX_ROOTS)
        .flat_map(|root| [(root, PagingMode::Level4), (root, PagingMode::Level5)])
}
