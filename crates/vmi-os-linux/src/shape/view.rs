//! Kernel virtual memory, before and after the page tables are known.

use core::cell::Cell;
use std::rc::Rc;

use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{Address, AddressSpace, Error, ErrorKind, Memory, Paging, PhysAddr, Result, Translation, VirtAddr, Vmi};

/// Reads and page walks of one inference. A kernel with a hundred thousand tasks takes a million; hostile memory that leads in ever
/// new ways to nothing takes no more than this.
const MAX_READS: u64 = 1 << 25;

/// How many reads an inference may still do. Clones count together.
#[derive(Clone, Debug)]
pub(super) struct Budget(Rc<Cell<u64>>);

impl Budget {
    pub(super) fn new() -> Self {
        Self(Rc::new(Cell::new(MAX_READS)))
    }

    /// Counts a read; `None` if there were too many.
    pub(super) fn spend(&self) -> Option<()> {
        self.0.set(self.0.get().checked_sub(1)?);
        Some(())
    }

    pub(super) fn is_spent(&self) -> bool {
        self.0.get() == 0
    }
}

/// A run of virtual addresses that lies in physical memory in one piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) start: u64,
    /// Last address of the window.
    pub(super) last: u64,
    /// What to add (modulo 2^64) to a virtual address to get the physical one.
    pub(super) delta: u64,
}

/// Virtual memory of the kernel.
#[derive(Debug)]
pub(super) struct View<'v, D: X86Driver> {
    mapping: Rc<Mapping<'v, D>>,
    budget: Budget,
}

impl<D: X86Driver> Clone for View<'_, D> {
    fn clone(&self) -> Self {
        Self { mapping: Rc::clone(&self.mapping), budget: self.budget.clone() }
    }
}

#[derive(Debug)]
enum Mapping<'v, D: X86Driver> {
    /// Through the linear mappings that every Linux kernel has: lowmem on i386, the direct map and the kernel's image on x86-64.
    Linear { vmi: &'v Vmi<D>, windows: Vec<Window>, width: usize },
    /// Through the page tables.
    Paged(AddressSpace<'v, D>),
}

impl<'v, D: X86Driver> View<'v, D> {
    /// Memory seen through linear mappings by pointers of `width` bytes.
    pub(super) fn linear(vmi: &'v Vmi<D>, width: usize, windows: Vec<Window>, budget: &Budget) -> Self {
        Self { mapping: Rc::new(Mapping::Linear { vmi, windows, width }), budget: budget.clone() }
    }

    /// Memory seen through the page tables at `root`.
    pub(super) fn paged(vmi: &'v Vmi<D>, mode: PagingMode, root: PhysAddr, budget: &Budget) -> Self {
        Self { mapping: Rc::new(Mapping::Paged(vmi.address_space(root, mode))), budget: budget.clone() }
    }

    /// The paging mode, if the page tables are known.
    pub(super) fn mode(&self) -> Option<PagingMode> {
        match &*self.mapping {
            Mapping::Linear { .. } => None,
            Mapping::Paged(space) => Some(space.mode()),
        }
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Bytes in a pointer.
    pub(super) fn width(&self) -> usize {
        match &*self.mapping {
            Mapping::Linear { width, .. } => *width,
            Mapping::Paged(space) => space.mode().pointer_size(),
        }
    }

    /// Where `at` lies in physical memory, if this view maps it.
    pub(super) fn locate(&self, at: u64) -> Option<PhysAddr> {
        match &*self.mapping {
            Mapping::Linear { vmi, windows, .. } => {
                let window = windows.iter().find(|window| (window.start..=window.last).contains(&at))?;
                let at = PhysAddr::new(at.wrapping_add(window.delta));
                vmi.machine().memory.region_at(at).map(|_| at)
            }
            Mapping::Paged(_) => Some(self.translate(at).ok()?.at),
        }
    }

    /// What the page tables say of `at`.
    ///
    /// # Errors
    /// As [`AddressSpace::translate`]; without page tables, none is known.
    pub(super) fn translate(&self, at: u64) -> Result<Translation> {
        let at = VirtAddr::new(at);
        match &*self.mapping {
            Mapping::Paged(space) if self.budget.spend().is_some() => space.translate(at),
            _ => Err(Error::corrupt("not looked at", at)),
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
        let limit =
            || ErrorKind::Limit { what: "the inference of the kernel's structures".to_owned(), limit: MAX_READS as usize };
        self.budget.spend().ok_or_else(limit)?;
        match &*self.mapping {
            Mapping::Linear { vmi, .. } => {
                let last = at.checked_add(buf.len().saturating_sub(1) as u64).ok_or_else(|| at.out_of_range(buf.len()))?;
                match (self.locate(at.get()), self.locate(last.get())) {
                    (Some(first), Some(end)) if end.offset_from(first) == last.offset_from(at) => vmi.read_into(first, buf),
                    _ => Err(Error::corrupt("the address lies in no linear mapping of the kernel", at)),
                }
            }
            Mapping::Paged(space) => space.read_into(at, buf),
        }
    }
}
