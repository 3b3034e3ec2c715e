//! Virtual memory: one set of page tables of one machine.

use core::fmt;

use crate::tlb::Tlb;
use crate::{Address, Architecture, Driver, Memory, PAGE_SIZE, Paging, PhysAddr, Result, Translation, VirtAddr, Vmi};

/// The memory that one set of page tables maps, addressed by virtual address.
///
/// Translations are remembered while memory holds still ([`Vmi::epoch`]); in a running guest each is walked afresh.
pub struct AddressSpace<'v, D: Driver> {
    vmi: &'v Vmi<D>,
    root: PhysAddr,
    mode: <D::Arch as Architecture>::Paging,
    tlb: Tlb,
}

impl<'v, D: Driver> AddressSpace<'v, D> {
    pub(crate) fn new(vmi: &'v Vmi<D>, root: PhysAddr, mode: <D::Arch as Architecture>::Paging) -> Self {
        Self { vmi, root, mode, tlb: Tlb::new() }
    }

    /// The machine that holds the page tables.
    pub fn vmi(&self) -> &'v Vmi<D> {
        self.vmi
    }

    /// The root of the page tables, as the processor's register holds it.
    pub fn root(&self) -> PhysAddr {
        self.root
    }

    /// The paging mode.
    pub fn mode(&self) -> <D::Arch as Architecture>::Paging {
        self.mode
    }

    /// Translations that needed a page walk so far; the others came from the translation cache.
    pub fn walks(&self) -> u64 {
        self.tlb.walks()
    }

    /// Where `at` lies in guest-physical memory.
    ///
    /// # Errors
    /// [`ErrorKind::Fault`](crate::ErrorKind::Fault) if the page tables do not map it; see [`Paging::translate`].
    #[inline]
    pub fn translate(&self, at: VirtAddr) -> Result<Translation> {
        match self.vmi.epoch() {
            Some(epoch) => match self.tlb.get(at, epoch) {
                Some(translation) => Ok(translation),
                None => self.walk(at, epoch),
            },
            None => self.mode.translate(self.vmi, self.root, at),
        }
    }

    #[inline(never)]
    fn walk(&self, at: VirtAddr, epoch: u64) -> Result<Translation> {
        let translation = self.mode.translate(self.vmi, self.root, at)?;
        self.tlb.insert(at, epoch, translation);
        Ok(translation)
    }

    /// Reads a pointer of the guest's width (4 or 8 bytes).
    ///
    /// # Errors
    /// As [`Memory::read_into`].
    #[inline]
    pub fn read_pointer(&self, at: VirtAddr) -> Result<VirtAddr> {
        let pointer = match self.mode.pointer_size() {
            4 => u64::from(self.read::<u32>(at)?),
            _ => self.read::<u64>(at)?,
        };
        Ok(VirtAddr::new(pointer))
    }

    /// A read that crosses a page boundary: piece by piece, each as long as its page (of whatever size) lasts.
    #[inline(never)]
    fn read_across_pages(&self, at: VirtAddr, buf: &mut [u8]) -> Result<()> {
        let len = buf.len();
        let mut done = 0usize;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let here = at.checked_add(done as u64).ok_or_else(|| at.out_of_range(len).after(done))?;
            let translation = self.translate(here).map_err(|error| error.after(done))?;
            let piece = usize::try_from(translation.rest_of_page()).unwrap_or(usize::MAX).min(rest.len());
            let (part, _) = rest.split_at_mut(piece);
            self.vmi.read_into(translation.at, part).map_err(|error| error.after(done))?;
            done = done.saturating_add(piece);
        }
        Ok(())
    }
}

impl<D: Driver> Memory for AddressSpace<'_, D> {
    type Addr = VirtAddr;

    #[inline]
    fn read_into(&self, at: VirtAddr, buf: &mut [u8]) -> Result<()> {
        if at.page_offset().saturating_add(buf.len() as u64) <= PAGE_SIZE {
            let translation = self.translate(at)?;
            self.vmi.read_into(translation.at, buf)
        } else {
            self.read_across_pages(at, buf)
        }
    }

    fn slice(&self, at: VirtAddr, len: usize) -> Option<&[u8]> {
        let mut translation = self.translate(at).ok()?;
        let start = translation.at;
        // Pages that follow each other in both spaces are one run.
        let mut covered = translation.rest_of_page();
        while covered < len as u64 {
            translation = self.translate(at.checked_add(covered)?).ok()?;
            if translation.at.offset_from(start) != Some(covered) {
                return None;
            }
            covered = covered.checked_add(translation.rest_of_page())?;
        }
        self.vmi.slice(start, len)
    }
}

impl<D: Driver> fmt::Debug for AddressSpace<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace").field("root", &self.root).field("mode", &self.mode).finish_non_exhaustive()
    }
}
