//! The paging modes and how an address is translated in each.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)] // provisional walk

use vmi_core::{Access, Error, Fault, FaultKind, Memory, Paging, PhysAddr, Result, Translation, VirtAddr};

/// A paging mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PagingMode {
    /// 32-bit paging: 4 KiB and 4 MiB pages, PSE-36.
    Bits32,
    /// PAE paging: 4 KiB and 2 MiB pages, 32-bit addresses.
    Pae,
    /// 4-level paging: 4 KiB, 2 MiB and 1 GiB pages, 48-bit addresses.
    Level4,
    /// 5-level paging: the same pages, 57-bit addresses.
    Level5,
}

impl PagingMode {
    /// The mode that CR0, CR4 and IA32_EFER select; `None` if paging is off (Intel SDM, volume 3, section 5.1.1).
    pub const fn from_control_registers(cr0: u64, cr4: u64, efer: u64) -> Option<Self> {
        const PG: u64 = 1 << 31;
        const PAE: u64 = 1 << 5;
        const LA57: u64 = 1 << 12;
        const LMA: u64 = 1 << 10;
        match (cr0 & PG != 0, cr4 & PAE != 0, efer & LMA != 0, cr4 & LA57 != 0) {
            (false, ..) => None,
            (_, false, ..) => Some(Self::Bits32),
            (_, _, false, _) => Some(Self::Pae),
            (_, _, _, false) => Some(Self::Level4),
            _ => Some(Self::Level5),
        }
    }
}

impl Paging for PagingMode {
    fn pointer_size(self) -> usize {
        match self {
            Self::Bits32 | Self::Pae => 4,
            Self::Level4 | Self::Level5 => 8,
        }
    }

    #[inline]
    fn translate<M>(self, memory: &M, root: PhysAddr, at: VirtAddr) -> Result<Translation>
    where
        M: Memory<Addr = PhysAddr> + ?Sized,
    {
        let (levels, entry_size) = match self {
            Self::Bits32 => (2u8, 4u64),
            Self::Pae => (3, 8),
            Self::Level4 => (4, 8),
            Self::Level5 => (5, 8),
        };
        let mut table = match self {
            Self::Pae => root.get() & 0xffff_ffe0,
            Self::Bits32 => root.get() & 0xffff_f000,
            _ => root.get() & 0x000f_ffff_ffff_f000,
        };
        let mut access = Access { write: true, execute: true, user: true };
        for level in (1..=levels).rev() {
            let shift = if entry_size == 4 { [12u32, 22] [usize::from(level - 1)] } else { 12 + 9 * u32::from(level - 1) };
            let mask = if entry_size == 4 { 0x3ff } else { 0x1ff };
            let entry_at = PhysAddr::new(table + ((at.get() >> shift) & mask) * entry_size);
            let mut bytes = [0u8; 8];
            memory.read_into(entry_at, &mut bytes[..entry_size as usize])?;
            let entry = u64::from_le_bytes(bytes);
            if entry & 1 == 0 {
                return Err(Error::from(Fault { at, root, level, entry_at, entry, kind: FaultKind::NotPresent }));
            }
            if !(self == Self::Pae && level == 3) {
                access.write &= entry & 2 != 0;
                access.user &= entry & 4 != 0;
                access.execute &= entry >> 63 == 0;
            }
            let large = entry & 0x80 != 0 && (level == 2 || (level == 3 && levels > 3));
            if level == 1 || large {
                let frame = (entry & 0x000f_ffff_ffff_f000) >> shift << shift;
                return Ok(Translation { at: PhysAddr::new(frame | at.get() & ((1 << shift) - 1)), page_shift: shift as u8, access });
            }
            table = entry & 0x000f_ffff_ffff_f000;
        }
        Err(Error::corrupt("a page walk without end", at))
    }
}
