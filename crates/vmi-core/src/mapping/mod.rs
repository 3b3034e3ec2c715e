//! Guest RAM that is mapped into this process: the fast path of every read.
//!
//! This module, its [`copy`], [`range`] and [`window`] are the only place of the crate with `unsafe` code. The rule that it keeps: each region of a
//! [`GuestMapping`] points at memory that stays mapped and readable for as long as any clone of the mapping lives, and memory
//! is lent out as a slice only if it does not change.

mod copy;
mod live;
#[cfg(target_os = "linux")]
mod private;
mod range;
#[cfg(target_os = "linux")]
mod readers;
#[cfg(target_os = "linux")]
mod window;

use core::fmt;
use std::any::Any;
use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::{Error, Liveness, MemoryMap, PhysAddr, Region, Result};
pub use live::{LivePiece, RawPiece, SharedRam};
#[cfg(target_os = "linux")]
pub(crate) use private::{BLOCK, Budget, PrivateMemory};
pub use range::MappedRange;
#[cfg(target_os = "linux")]
use window::View;
#[cfg(target_os = "linux")]
pub use window::Window;

/// A file mapped into memory for reading.
///
/// The file must keep its length and contents while it is mapped, as with every mapped file: a process that
/// truncates it in the meantime makes later reads end this process with SIGBUS.
#[derive(Debug)]
pub struct MappedFile(Option<memmap2::Mmap>);

impl MappedFile {
    /// Maps the whole of `file`. An empty file is an empty mapping.
    ///
    /// # Errors
    /// What `mmap` reports.
    pub fn new(file: &File) -> io::Result<Self> {
        if file.metadata()?.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the mapping is read-only and private to this value. That nobody changes the file is the documented duty of
        // whoever opens it; no library can enforce it.
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(Self(Some(map)))
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// Bytes that do not change, and that hold guest memory: a mapped file, a buffer.
pub type Store = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A run of guest-physical memory that lies in one run of bytes of a backing store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where the memory is in the guest.
    pub region: Region,
    /// Where its first byte is in the backing store.
    pub offset: u64,
}

/// Guest RAM mapped into this process. Cloning is cheap; the memory stays mapped until the last clone is gone.
#[derive(Clone)]
pub struct GuestMapping {
    /// The largest region by itself: nearly every read ends here.
    largest: MappedRegion,
    /// The window, if it is one.
    #[cfg(target_os = "linux")]
    view: View,
    shared: Arc<Shared>,
}

#[derive(Clone, Copy)]
struct MappedRegion {
    start: u64,
    len: u64,
    /// Where guest-physical address zero would be if it were in this region: what a read needs to know is one addition away from the address.
    base: *const u8,
    /// How many bytes from its start are whole words of 8 bytes; none if it is not aligned for those, in the guest or in this process.
    words: u64,
    /// Whether `host` may be written through: live memory that is mapped for it.
    writable: bool,
}

struct Shared {
    /// Ascending, disjoint; each within what `keep_alive` keeps mapped.
    regions: Vec<MappedRegion>,
    liveness: Liveness,
    keep_alive: Arc<dyn Any + Send + Sync>,
    /// Where memory is that a window can show.
    behind: Option<MemoryMap>,
}

// SAFETY: frozen memory is only read through the pointers, by volatile loads or as shared slices. Live memory is read and written by
// volatile accesses and never lent out; it belongs to another process that writes it at any time anyway. What the pointers point at stays
// mapped as long as `keep_alive` lives, whichever thread drops it.
unsafe impl Send for MappedRegion {}
// SAFETY: as above; concurrent volatile accesses need no more.
unsafe impl Sync for MappedRegion {}

/// Whether so many bytes are a word that one access can load, and aligned at this address.
#[inline(always)]
fn is_word(at: PhysAddr, len: usize) -> bool {
    matches!(len, 1 | 2 | 4 | 8) && at.get() & (len as u64).wrapping_sub(1) == 0
}

impl MappedRegion {
    const NONE: Self = Self { start: 0, len: 0, base: core::ptr::null(), words: 0, writable: false };

    /// # Safety
    /// `host` is valid for volatile reads of the region's length for as long as the result is used, and if `writable` for volatile
    /// writes too.
    unsafe fn new(region: Region, host: *const u8, writable: bool) -> Self {
        let (start, len) = (region.start().get(), region.len());
        let aligned = host.cast::<u64>().is_aligned() && start.is_multiple_of(8);
        let words = if aligned { len & !7 } else { 0 };
        Self { start, len, base: host.wrapping_sub(start as usize), words, writable }
    }

    /// Where a guest-physical address of this region is in this process.
    #[inline(always)]
    fn host(&self, at: PhysAddr) -> *const u8 {
        self.base.wrapping_add(at.get() as usize)
    }

    /// Fills `buf` if it is an aligned word of this region; else does nothing and says `false`. The hottest path of all.
    #[inline(always)]
    fn read_word(&self, at: PhysAddr, buf: &mut [u8]) -> bool {
        let within = is_word(at, buf.len()) && at.get().wrapping_sub(self.start) < self.words;
        if within {
            // SAFETY: the word is aligned and begins in a run of whole words of 8 bytes, so all of it is there; the region is readable while `self` is used.
            unsafe { copy::copy_word(self.host(at), buf) };
        }
        within
    }

    /// The host address of `len` bytes at `at`, if all of them are in this region.
    #[inline(always)]
    fn locate(&self, at: PhysAddr, len: usize) -> Option<*const u8> {
        let last = self.len.checked_sub(len as u64)?;
        let offset = at.get().wrapping_sub(self.start);
        (offset <= last).then(|| self.host(at))
    }
}

impl GuestMapping {
    /// Maps `pieces` of a store whose bytes do not change. Pieces must not overlap each other in the guest; several may show the same
    /// bytes.
    ///
    /// # Errors
    /// The first piece that reaches beyond the store or overlaps another.
    pub fn frozen<B>(store: Arc<B>, pieces: &[Piece]) -> Result<Self, PieceError>
    where
        B: AsRef<[u8]> + Send + Sync + 'static,
    {
        Self::frozen_stores(&[(store, pieces)])
    }

    /// As [`GuestMapping::frozen`], with memory in several stores.
    ///
    /// # Errors
    /// As [`GuestMapping::frozen`].
    pub fn frozen_stores(stores: &[(Store, &[Piece])]) -> Result<Self, PieceError> {
        let mut regions = Vec::new();
        for (store, pieces) in stores {
            // The reference is taken once: what it points at lives as long as the store, which `keep_alive` holds.
            let bytes: &[u8] = (**store).as_ref();
            for piece in *pieces {
                let part = usize::try_from(piece.offset)
                    .ok()
                    .zip(usize::try_from(piece.region.len()).ok())
                    .and_then(|(offset, len)| bytes.get(offset..offset.checked_add(len)?))
                    .ok_or(PieceError::Beyond { piece: *piece, store: bytes.len() as u64 })?;
                // SAFETY: `part` has the region's length and lives as long as the store, which the mapping keeps.
                regions.push(unsafe { MappedRegion::new(piece.region, part.as_ptr(), false) });
            }
        }
        let keep_alive: Vec<Store> = stores.iter().map(|(store, _)| Arc::clone(store)).collect();
        Self::from_regions(regions, Liveness::Frozen, Arc::new(keep_alive))
    }

    /// A mapping of nothing: every read through it finds a hole.
    pub fn empty() -> Self {
        Self::from_sorted(Vec::new(), Liveness::Frozen, Arc::new(()))
    }

    /// `keep_alive` keeps mapped what the regions point at.
    fn from_regions(
        mut regions: Vec<MappedRegion>,
        liveness: Liveness,
        keep_alive: Arc<dyn Any + Send + Sync>,
    ) -> Result<Self, PieceError> {
        regions.sort_by_key(|region| region.start);
        for pair in regions.windows(2) {
            if let [low, high] = pair
                && high.start.wrapping_sub(low.start) < low.len
            {
                return Err(PieceError::Overlap { at: PhysAddr::new(high.start) });
            }
        }
        Ok(Self::from_sorted(regions, liveness, keep_alive))
    }

    fn from_sorted(regions: Vec<MappedRegion>, liveness: Liveness, keep_alive: Arc<dyn Any + Send + Sync>) -> Self {
        let largest = regions.iter().max_by_key(|region| region.len).copied().unwrap_or(MappedRegion::NONE);
        Self {
            largest,
            #[cfg(target_os = "linux")]
            view: View::NONE,
            shared: Arc::new(Shared { regions, liveness, keep_alive, behind: None }),
        }
    }

    /// The guest-physical memory that is mapped; of a window, the memory that it can show.
    pub fn memory_map(&self) -> MemoryMap {
        if let Some(memory) = &self.shared.behind {
            return memory.clone();
        }
        MemoryMap::new(self.shared.regions.iter().filter_map(|r| Region::new(PhysAddr::new(r.start), r.len)))
    }

    /// Fills `buf` from guest-physical `at`.
    ///
    /// # Errors
    /// [`ErrorKind::Hole`](crate::ErrorKind::Hole) at the first address that is not mapped; the bytes before it are good.
    #[inline(always)]
    pub fn read_into(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        if self.read_word(at, buf) { Ok(()) } else { self.read_run(at, buf) }
    }

    /// Fills `buf` if it is an aligned word of the largest region, or one that a window shows; else does nothing and says `false`.
    #[inline(always)]
    pub(crate) fn read_word(&self, at: PhysAddr, buf: &mut [u8]) -> bool {
        #[cfg(target_os = "linux")]
        return self.largest.read_word(at, buf) || self.view.read_word(at, buf);
        #[cfg(not(target_os = "linux"))]
        self.largest.read_word(at, buf)
    }

    /// Whether it is a window: what it does not show may still be there.
    pub fn is_window(&self) -> bool {
        self.shared.behind.is_some()
    }

    /// Fills `buf` from a window, as far as it shows pages: how many bytes that are. None, if it is no window.
    pub fn read_shown(&self, at: PhysAddr, buf: &mut [u8]) -> usize {
        #[cfg(target_os = "linux")]
        return self.view.read_run(at, buf);
        #[cfg(not(target_os = "linux"))]
        0
    }

    /// Fills `buf` region by region; see [`GuestMapping::read_into`].
    pub(crate) fn read_run(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        let mut done = if self.is_window() { self.read_shown(at, buf) } else { 0 };
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let here = at.checked_add(done as u64).ok_or_else(|| crate::Address::out_of_range(at, rest.len()).after(done))?;
            let region = self.region_at(here).ok_or_else(|| Error::hole(here).after(done))?;
            let offset = here.get().wrapping_sub(region.start);
            let len = usize::try_from(region.len.wrapping_sub(offset)).unwrap_or(usize::MAX).min(rest.len());
            let (part, _) = rest.split_at_mut(len);
            let host = region.host(here);
            match self.shared.liveness {
                // SAFETY: `offset` is below the region's length and `len` at most what is left behind it; both ranges are readable while
                // `self` lives. A frozen store does not change, and `part` is not part of it.
                Liveness::Frozen if len <= copy::SMALL => unsafe { host.copy_to_nonoverlapping(part.as_mut_ptr(), len) },
                // SAFETY: as above, but for memory that may change.
                _ => unsafe { copy::copy_volatile(host, part) },
            }
            done = done.saturating_add(len);
        }
        Ok(())
    }

    fn region_at(&self, at: PhysAddr) -> Option<MappedRegion> {
        if self.largest.locate(at, 1).is_some() {
            return Some(self.largest);
        }
        let regions = &self.shared.regions;
        let index = regions.partition_point(|region| region.start <= at.get()).checked_sub(1)?;
        regions.get(index).copied().filter(|region| region.locate(at, 1).is_some())
    }

    /// Lends `len` bytes at `at`, if the memory is frozen and one region holds all of them.
    pub fn slice(&self, at: PhysAddr, len: usize) -> Option<&[u8]> {
        if self.shared.liveness != Liveness::Frozen {
            return None;
        }
        let host = self.largest.locate(at, len).or_else(|| self.region_at(at)?.locate(at, len))?;
        if len == 0 {
            return Some(&[]);
        }
        // SAFETY: `locate` found the bytes in a region that is mapped while `self` lives, and a frozen store does not change.
        Some(unsafe { core::slice::from_raw_parts(host, len) })
    }
}

impl fmt::Debug for GuestMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestMapping").field("memory_map", &self.memory_map()).field("liveness", &self.shared.liveness).finish()
    }
}

/// A piece that cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PieceError {
    /// The piece reaches beyond the store.
    #[error("guest memory at {} should lie at {:#x}..{:#x} of a store of {store:#x} bytes", piece.region.start(), piece.offset, piece.offset.saturating_add(piece.region.len()))]
    Beyond {
        /// The piece.
        piece: Piece,
        /// Bytes in the store.
        store: u64,
    },
    /// Two pieces claim the same guest memory.
    #[error("two pieces claim guest-physical address {at}")]
    Overlap {
        /// The first address of the higher piece.
        at: PhysAddr,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn piece(start: u64, len: u64, offset: u64) -> Piece {
        Piece { region: Region::new(PhysAddr::new(start), len).unwrap(), offset }
    }

    fn counting(len: usize) -> Arc<Vec<u8>> {
        Arc::new((0..len).map(|i| i as u8).collect())
    }

    #[test]
    fn reads_cross_regions_and_stop_at_holes() {
        let map = GuestMapping::frozen(counting(300), &[piece(0x1000, 100, 0), piece(0x1064, 100, 200), piece(0x9000, 10, 50)])
            .unwrap();
        let mut buf = [0; 8];
        map.read_into(PhysAddr::new(0x1060), &mut buf).unwrap();
        assert_eq!(buf, [96, 97, 98, 99, 200, 201, 202, 203]);
        let error = map.read_into(PhysAddr::new(0x9007), &mut buf).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Hole { at } if *at == PhysAddr::new(0x900a)));
        assert_eq!((error.done(), &buf[..3]), (3, &[57u8, 58, 59][..]));
        assert!(map.slice(PhysAddr::new(0x1060), 8).is_none());
        assert_eq!(map.slice(PhysAddr::new(0x9002), 2), Some(&[52u8, 53][..]));
    }

    #[test]
    fn the_end_of_the_address_range_is_an_error() {
        let map = GuestMapping::frozen(counting(16), &[piece(u64::MAX - 16, 16, 0)]).unwrap();
        let mut buf = [0; 32];
        let error = map.read_into(PhysAddr::new(u64::MAX - 16), &mut buf).unwrap_err();
        assert_eq!(error.done(), 16);
        assert!(map.read_into(PhysAddr::new(u64::MAX), &mut buf).is_err());
        assert!(GuestMapping::empty().read_into(PhysAddr::ZERO, &mut buf).is_err());
        GuestMapping::empty().read_into(PhysAddr::ZERO, &mut []).unwrap();
    }

    #[test]
    fn lying_pieces_are_refused() {
        assert!(matches!(GuestMapping::frozen(counting(16), &[piece(0, 17, 0)]), Err(PieceError::Beyond { .. })));
        assert!(matches!(GuestMapping::frozen(counting(16), &[piece(0, 8, u64::MAX)]), Err(PieceError::Beyond { .. })));
        assert!(matches!(
            GuestMapping::frozen(counting(16), &[piece(0, 8, 0), piece(7, 8, 0)]),
            Err(PieceError::Overlap { at }) if at == PhysAddr::new(7)
        ));
    }
}
