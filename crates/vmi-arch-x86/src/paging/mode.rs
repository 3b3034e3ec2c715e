//! The paging modes.

use vmi_core::{Memory, Paging, PhysAddr, Result, Translation, VirtAddr};

use super::level::{BITS32, LEVEL4, LEVEL5, Level, PAE};
use super::walk::walk;

/// A paging mode.
///
/// Walks follow the Intel SDM, volume 3, chapter 5. Three things that the page tables depend on are not in them. Each is taken to
/// be as some processor has it at its most generous, since the guest would have faulted where it is not so:
///
/// - Physical addresses have 52 bits; in 4 MiB pages of 32-bit paging, 40. No bit of a frame counts as reserved: a table beyond
///   memory ends the walk with [`FaultKind::NoTable`](vmi_core::FaultKind::NoTable), and a page beyond memory is a hole when it is read.
/// - Execution can be disabled (`EFER.NXE`): bit 63 is not reserved, except in the four top entries of PAE.
/// - Large pages exist: 4 MiB (`CR4.PSE`) and 1 GiB (CPUID).
///
/// All other reserved bits end a walk with [`FaultKind::ReservedBits`](vmi_core::FaultKind::ReservedBits), as they do in the processor;
/// but bit 5 of the four top entries of PAE is let pass, as QEMU's emulator uses it as the accessed bit.
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
        const LMA: u64 = 1 << 10;
        Self::select(cr0, cr4, efer & LMA != 0)
    }

    /// The same where all that is known of IA32_EFER is whether long mode is active.
    pub(crate) const fn select(cr0: u64, cr4: u64, long_mode: bool) -> Option<Self> {
        const PG: u64 = 1 << 31;
        const PAE: u64 = 1 << 5;
        const LA57: u64 = 1 << 12;
        match (cr0 & PG != 0, cr4 & PAE != 0, long_mode, cr4 & LA57 != 0) {
            (false, ..) => None,
            (_, false, ..) => Some(Self::Bits32),
            (_, _, false, _) => Some(Self::Pae),
            (_, _, _, false) => Some(Self::Level4),
            _ => Some(Self::Level5),
        }
    }

    /// Whether this is a mode of long mode (IA-32e): 4- or 5-level paging.
    pub const fn is_long(self) -> bool {
        matches!(self, Self::Level4 | Self::Level5)
    }

    /// How many tables a walk to a 4 KiB page reads: 2 to 5.
    pub fn levels(self) -> u8 {
        self.top().number
    }

    /// Whether `at` is an address at all. In long mode the bits above the highest translated one (47 or 56) must be copies of it;
    /// in the other modes an address has 32 bits.
    #[inline]
    pub const fn is_canonical(self, at: VirtAddr) -> bool {
        self.canonical(at.get()) == at.get()
    }

    /// Where the top table lies that `cr3` points at: CR3 without the flags, the PCID or the LAM bits beside the address.
    #[inline]
    pub const fn top_table(self, cr3: PhysAddr) -> PhysAddr {
        let address = match self {
            Self::Bits32 => 0xffff_f000,
            // The top table of PAE has 32 bytes, and so is aligned to 32.
            Self::Pae => 0xffff_ffe0,
            Self::Level4 | Self::Level5 => 0x000f_ffff_ffff_f000,
        };
        PhysAddr::new(cr3.get() & address)
    }

    /// The top table of the kernel for a Linux process whose `cr3` may be the one of user mode.
    ///
    /// With page-table isolation a Linux process has two top tables in an aligned pair of pages: the even one is the kernel's,
    /// the odd one user mode's (kernel 4.15, and 4.19 for PAE: arch/x86/include/asm/pgtable.h, `kernel_to_user_pgdp`). Without
    /// isolation bit 12 is an ordinary bit of the address: ask only where isolation is known to be on.
    pub const fn kernel_top_table(self, cr3: PhysAddr) -> PhysAddr {
        PhysAddr::new(self.top_table(cr3).get() & !(1 << 12))
    }

    /// The address that those bits of `at` stand for which this mode translates.
    #[inline(always)]
    pub(super) const fn canonical(self, at: u64) -> u64 {
        match self {
            Self::Bits32 | Self::Pae => at & 0xffff_ffff,
            Self::Level4 => ((at << 16) as i64 >> 16) as u64,
            Self::Level5 => ((at << 7) as i64 >> 7) as u64,
        }
    }

    /// The level of the top table.
    #[inline(always)]
    pub(super) fn top(self) -> &'static Level {
        match self {
            Self::Bits32 => &BITS32,
            Self::Pae => &PAE,
            Self::Level4 => &LEVEL4,
            Self::Level5 => &LEVEL5,
        }
    }
}

impl Paging for PagingMode {
    fn pointer_size(self) -> usize {
        if self.is_long() { 8 } else { 4 }
    }

    #[inline]
    fn translate<M>(self, memory: &M, root: PhysAddr, at: VirtAddr) -> Result<Translation>
    where
        M: Memory<Addr = PhysAddr> + ?Sized,
    {
        walk(self, memory, root, at, |_, _, _| ())
    }
}
