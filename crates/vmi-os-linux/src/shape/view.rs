//! Kernel virtual memory before the page tables are known.

use vmi_arch_x86::X86Driver;
use vmi_core::{Address, AddressSpace, Error, Memory, PhysAddr, Result, VirtAddr, Vmi};

/// A run of virtual addresses that lies in physical memory in one piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) start: u64,
    /// Last address of the window.
    pub(super) last: u64,
    /// What to add (modulo 2^64) to a virtual address to get the physical one.
    pub(super) delta: u64,
}

/// Virtual memory of the kernel: through its page tables, or through the linear mappings that every Linux kernel has
/// (lowmem on i386; the direct map and the kernel image on x86-64).
#[derive(Debug)]
pub(super) enum View<'v, D: X86Driver> {
    Linear { vmi: &'v Vmi<D>, windows: Vec<Window>, width: usize },
    Paged(AddressSpace<'v, D>),
}

impl<D: X86Driver> View<'_, D> {
    /// Bytes in a pointer.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::Linear { width, .. } => *width,
            Self::Paged(space) => vmi_core::Paging::pointer_size(space.mode()),
        }
    }

    /// Where `at` lies in physical memory, if this view maps it.
    pub(super) fn locate(&self, at: u64) -> Option<PhysAddr> {
        match self {
            Self::Linear { vmi, windows, .. } => {
                let window = windows.iter().find(|window| (window.start..=window.last).contains(&at))?;
                let at = PhysAddr::new(at.wrapping_add(window.delta));
                vmi.machine().memory.region_at(at).map(|_| at)
            }
            Self::Paged(space) => Some(space.translate(VirtAddr::new(at)).ok()?.at),
        }
    }

    /// The pointer at `at`, if it can be read.
    pub(super) fn pointer(&self, at: u64) -> Option<u64> {
        let at = VirtAddr::new(at);
        match self.width() {
            4 => self.read::<u32>(at).ok().map(u64::from),
            _ => self.read::<u64>(at).ok(),
        }
    }

    /// `len` bytes at `at`, if all can be read. The caller bounds `len`.
    pub(super) fn bytes(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        self.read_vec(VirtAddr::new(at), len).ok()
    }
}

impl<D: X86Driver> Memory for View<'_, D> {
    type Addr = VirtAddr;

    fn read_into(&self, at: VirtAddr, buf: &mut [u8]) -> Result<()> {
        match self {
            Self::Linear { vmi, .. } => {
                let last = at.checked_add(buf.len().saturating_sub(1) as u64).ok_or_else(|| at.out_of_range(buf.len()))?;
                match (self.locate(at.get()), self.locate(last.get())) {
                    (Some(first), Some(end)) if end.offset_from(first) == last.offset_from(at) => vmi.read_into(first, buf),
                    _ => Err(Error::corrupt("the address lies in no linear mapping of the kernel", at)),
                }
            }
            Self::Paged(space) => space.read_into(at, buf),
        }
    }
}
