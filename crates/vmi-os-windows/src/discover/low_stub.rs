//! The block by which an x86-64 kernel starts further processors.
//!
//! Processors start in real mode, so the kernel keeps code and a processor state for them in a page below 1 MiB, `PROCESSOR_START_BLOCK`. It begins
//! with a jump over itself and a flag, and holds the kernel's CR3 and the address in the kernel where the new processor goes on. The places are
//! those by which MemProcFS recognises it (`vmm/vmmwininit.c`). A look at 255 pages finds the running kernel so, wherever address-space randomisation put it.
//! Firmware, or a machine with one processor, may leave it out.

use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{Memory, PAGE_SIZE, PhysAddr, VirtAddr, Vmi};

use super::lead::Lead;

/// Real mode reaches this far.
const END: u64 = 1 << 20;

/// A jump (`e9`) to byte 0x600 or so behind it, and the completion flag of 1.
const START: (u64, u64) = (0xffff_ffff_ffff_00ff, 0x0000_0001_0006_00e9);
/// Where the address in the kernel is, and what it must look like: canonical, high, aligned to 4 bytes.
const TARGET: (u64, u64, u64) = (0x70, 0xffff_f800_0000_0003, 0xffff_f800_0000_0000);
/// Where CR3 is, and which of its bits must be clear.
const CR3: (u64, u64) = (0xa0, 0xffff_ff00_0000_0fff);

/// Blocks that are tried: there is one.
const MAX_BLOCKS: usize = 16;

/// Page tables and addresses in the kernel that blocks below 1 MiB name.
pub(super) fn leads<D: X86Driver>(vmi: &Vmi<D>) -> Vec<Lead> {
    // The first page belongs to the interrupt vectors of real mode.
    (1..END / PAGE_SIZE)
        .filter_map(|page| page.checked_mul(PAGE_SIZE))
        .filter_map(|at| {
            let word = |offset: u64| vmi.read::<u64>(PhysAddr::new(at.wrapping_add(offset))).ok();
            let (target, cr3) = (word(TARGET.0)?, word(CR3.0)?);
            let fits = word(0)? & START.0 == START.1 && target & TARGET.1 == TARGET.2 && cr3 & CR3.1 == 0 && cr3 != 0;
            let in_memory = vmi.machine().memory.region_at(PhysAddr::new(cr3)).is_some();
            (fits && in_memory).then(|| {
                let mut lead = Lead::new(PhysAddr::new(cr3), PagingMode::Level4);
                lead.hints.push(VirtAddr::new(target));
                lead
            })
        })
        .take(MAX_BLOCKS)
        .collect()
}
