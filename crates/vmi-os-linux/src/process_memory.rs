//! The memory of a process as the kernel knows it, which is more than the processor may touch.

use core::fmt;

use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{Access, Address, AddressSpace, ErrorKind, Fault, FaultKind, Memory, PhysAddr, Result, Translation, VirtAddr};

/// The memory of a process: its address space, and those pages in memory that it has forbidden itself with `PROT_NONE`.
///
/// Such pages are not present to the processor, but they keep their contents.
pub struct ProcessMemory<'v, D: X86Driver> {
    space: AddressSpace<'v, D>,
}

impl<'v, D: X86Driver> ProcessMemory<'v, D> {
    pub(crate) fn new(space: AddressSpace<'v, D>) -> Self {
        Self { space }
    }

    /// What the processor sees of it.
    pub fn address_space(&self) -> &AddressSpace<'v, D> {
        &self.space
    }

    /// Where `at` lies in guest-physical memory. Nothing is allowed at a page with `PROT_NONE`.
    ///
    /// # Errors
    /// As [`AddressSpace::translate`], for pages that are not in memory.
    pub fn translate(&self, at: VirtAddr) -> Result<Translation> {
        self.space.translate(at).or_else(|error| match error.kind() {
            ErrorKind::Fault(fault) => forbidden_page(self.space.mode(), fault).ok_or(error),
            _ => Err(error),
        })
    }
}

/// The page that an entry with `PROT_NONE` refers to; `None` for all others that are not present.
///
/// Such an entry has _PAGE_PROTNONE, which is the global bit, in place of the present bit, and keeps its frame
/// (arch/x86/include/asm/pgtable_types.h). Since 4.19 (commit 6b28baca9b1f, in 2018 also in the stable releases) the frame's bits are
/// inverted, but for 2-level page tables, so that speculation finds no memory there: then its highest bit is set.
fn forbidden_page(mode: PagingMode, fault: &Fault) -> Option<Translation> {
    const PROTNONE: u64 = 1 << 8;
    const LARGE: u64 = 1 << 7;
    // __PHYSICAL_MASK_SHIFT: 44 with PAE, 46 or 52 in long mode; no machine has memory above 46 bits.
    let (large_shift, bits) = match mode {
        PagingMode::Bits32 => (22, 32),
        PagingMode::Pae => (21, 44),
        PagingMode::Level4 | PagingMode::Level5 => (21, 46),
    };
    if fault.kind != FaultKind::NotPresent || fault.entry & PROTNONE == 0 {
        return None;
    }
    let page_shift = match fault.level {
        1 => 12u8,
        2 if fault.entry & LARGE != 0 => large_shift,
        _ => return None,
    };
    let offset = 1u64.wrapping_shl(u32::from(page_shift)).wrapping_sub(1);
    let frame = 1u64.wrapping_shl(bits).wrapping_sub(1) & !offset;
    let highest = 1u64.wrapping_shl(bits.wrapping_sub(1));
    let inverted = mode != PagingMode::Bits32 && fault.entry & highest != 0;
    let entry = if inverted { !fault.entry } else { fault.entry };
    Some(Translation { at: PhysAddr::new(entry & frame | fault.at.get() & offset), page_shift, access: Access::default() })
}

impl<D: X86Driver> Memory for ProcessMemory<'_, D> {
    type Addr = VirtAddr;

    fn read_into(&self, at: VirtAddr, buf: &mut [u8]) -> Result<()> {
        let Err(error) = self.space.read_into(at, buf) else { return Ok(()) };
        let len = buf.len();
        let mut done = error.done();
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let here = at.checked_add(done as u64).ok_or_else(|| at.out_of_range(len).after(done))?;
            let translation = self.translate(here).map_err(|error| error.after(done))?;
            let piece = usize::try_from(translation.rest_of_page()).unwrap_or(usize::MAX).min(rest.len());
            let (part, _) = rest.split_at_mut(piece);
            self.space.vmi().read_into(translation.at, part).map_err(|error| error.after(done))?;
            done = done.saturating_add(piece);
        }
        Ok(())
    }

    fn slice(&self, at: VirtAddr, len: usize) -> Option<&[u8]> {
        self.space.slice(at, len)
    }
}

impl<D: X86Driver> fmt::Debug for ProcessMemory<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessMemory").field("space", &self.space).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(level: u8, entry: u64) -> Fault {
        let kind = FaultKind::NotPresent;
        Fault { at: VirtAddr::new(0x1234_5678), root: PhysAddr::ZERO, level, entry_at: PhysAddr::ZERO, entry, kind }
    }

    #[test]
    fn inverted_and_plain_frames() {
        let page = |mode, level, entry| forbidden_page(mode, &fault(level, entry)).map(|page| page.at.get());
        let inverted = !0x0000_0001_2340_0000 & 0x000f_ffff_ffff_f000 | 0x8000_0000_0000_0160;
        assert_eq!(page(PagingMode::Level4, 1, inverted), Some(0x1_2340_0678));
        assert_eq!(page(PagingMode::Pae, 1, inverted & 0x0000_0fff_ffff_ffff), Some(0x1_2340_0678));
        assert_eq!(page(PagingMode::Level4, 1, 0x1_2340_0160), Some(0x1_2340_0678), "before 4.19");
        assert_eq!(page(PagingMode::Bits32, 1, 0xf234_0160), Some(0xf234_0678), "2-level tables are not inverted");
        assert_eq!(page(PagingMode::Level5, 2, !0x4000_0000 & 0x000f_ffff_ffe0_0000 | 0x1e0), Some(0x4014_5678));
    }

    #[test]
    fn other_entries_stay_absent() {
        assert_eq!(forbidden_page(PagingMode::Level4, &fault(1, 0)), None);
        assert_eq!(forbidden_page(PagingMode::Level4, &fault(1, 0x1234_5000)), None, "a swap entry");
        assert_eq!(forbidden_page(PagingMode::Level4, &fault(2, 0x1234_5100)), None, "a table");
        assert_eq!(forbidden_page(PagingMode::Level4, &fault(3, 0x1234_5180)), None);
    }
}
