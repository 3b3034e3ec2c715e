//! Guest RAM of a running machine: a part of a file that both processes map shared.

use core::fmt;
use std::any::Any;
use std::fs::File;
use std::io;
use std::sync::Arc;

use memmap2::{Advice, MmapOptions, MmapRaw};

use super::{GuestMapping, MappedRegion, Piece, PieceError, copy};
use crate::{Error, Liveness, PhysAddr, Region, Result};

/// A part of a file, mapped shared with another process that changes it at any time.
///
/// The file must keep its length while it is mapped: if somebody truncates it, later reads end this process with SIGBUS. QEMU seals
/// its `memory-backend-memfd` against that, and truncates the file of a `memory-backend-file` only before the guest starts.
pub struct SharedRam {
    map: MmapRaw,
    /// Where the part starts in `map`, which starts at a multiple of the file's block size.
    skip: usize,
    len: usize,
    writable: bool,
    /// The file and where the part starts in it, to ask what of it was never written.
    #[cfg(target_os = "linux")]
    origin: (File, u64),
}

impl SharedRam {
    /// Maps `len` bytes of `file` from `offset`, both in bytes and of any alignment. A `writable` mapping needs a file that is open for
    /// reading and writing. Files of hugetlbfs and memfds of huge pages are mapped by whole huge pages. The file's read position is
    /// moved by later questions for its holes: use a descriptor that nobody else reads from.
    ///
    /// The mapping is left out of core dumps of this process.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if the part is empty or reaches beyond the end of the file; what `fstat` and `mmap` report.
    pub fn map(file: &File, offset: u64, len: u64, writable: bool) -> io::Result<Self> {
        let refuse = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        let metadata = file.metadata()?;
        let end = offset.checked_add(len).ok_or_else(|| refuse(format!("{len:#x} bytes from {offset:#x} of a file")))?;
        if len == 0 || end > metadata.len() {
            return Err(refuse(format!("{offset:#x}..{end:#x} of a file of {:#x} bytes", metadata.len())));
        }
        let block = block_size(&metadata);
        let start = offset & !block.wrapping_sub(1);
        let whole = end
            .checked_next_multiple_of(block)
            .and_then(|end| usize::try_from(end.checked_sub(start)?).ok())
            .ok_or_else(|| refuse(format!("{len:#x} bytes do not fit into this process")))?;
        let mut options = MmapOptions::new();
        options.offset(start).len(whole);
        let map = if writable { options.map_raw(file)? } else { options.map_raw_read_only(file)? };
        // Best effort: guest memory holds secrets that do not belong into a core dump. Kernels since 3.4 can do it.
        #[cfg(target_os = "linux")]
        let _ = map.advise(Advice::DontDump);
        // Both are at most `whole`, which is a `usize`.
        let (skip, len) = (offset.wrapping_sub(start) as usize, len as usize);
        Ok(Self {
            map,
            skip,
            len,
            writable,
            #[cfg(target_os = "linux")]
            origin: (file.try_clone()?, offset),
        })
    }

    /// Length of the part in bytes, at least 1.
    #[allow(clippy::len_without_is_empty)] // an empty part is refused
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether it may be written.
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// Where the part starts in this process: what `/proc/self/maps` lists it under.
    pub fn address(&self) -> usize {
        self.host() as usize
    }

    /// Whether `len` bytes at `offset` are a hole of the file: all zero, and no memory behind them until somebody touches them, if only to
    /// read. `false` where the file does not tell.
    #[cfg(target_os = "linux")]
    fn is_hole(&self, offset: u64, len: u64) -> bool {
        use nix::unistd::{Whence, lseek};
        let (file, start) = &self.origin;
        let Some(from) = start.checked_add(offset) else { return false };
        let Ok(seek) = nix::libc::off_t::try_from(from) else { return false };
        match lseek(file, seek, Whence::SeekData) {
            Ok(data) => u64::try_from(data).is_ok_and(|data| data >= from.saturating_add(len)),
            // No data from there to the end of the file (lseek(2)).
            Err(nix::errno::Errno::ENXIO) => true,
            Err(_) => false,
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn is_hole(&self, _: u64, _: u64) -> bool {
        false
    }

    fn host(&self) -> *mut u8 {
        self.map.as_mut_ptr().wrapping_add(self.skip)
    }
}

/// The unit in which the file system of a file maps it, a power of two: for hugetlbfs the size of its huge pages, which `mmap` and
/// `munmap` insist on (mmap(2), "Huge page mappings").
#[cfg(unix)]
fn block_size(metadata: &std::fs::Metadata) -> u64 {
    /// Above the huge pages of every architecture; a larger answer is no unit of mapping.
    const LARGEST: u64 = 16 << 30;
    let size = std::os::unix::fs::MetadataExt::blksize(metadata);
    if size.is_power_of_two() && size <= LARGEST { size.max(crate::PAGE_SIZE) } else { crate::PAGE_SIZE }
}

#[cfg(not(unix))]
fn block_size(_: &std::fs::Metadata) -> u64 {
    crate::PAGE_SIZE
}

impl fmt::Debug for SharedRam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedRam").field("len", &self.len).field("writable", &self.writable).finish_non_exhaustive()
    }
}

/// A run of guest-physical memory that lies in mapped shared RAM.
#[derive(Clone, Debug)]
pub struct LivePiece {
    /// Where the memory is in the guest.
    pub region: Region,
    /// What holds it.
    pub ram: Arc<SharedRam>,
    /// Where its first byte is in `ram`.
    pub offset: u64,
}

/// What keeps live memory mapped: its pieces, ascending.
struct LivePieces(Vec<LivePiece>);

/// A run of guest-physical memory that a back end has mapped into this process by means of its own (Xen's foreign memory).
#[derive(Clone, Copy, Debug)]
pub struct RawPiece {
    /// Where the memory is in the guest.
    pub region: Region,
    /// Where it is in this process.
    pub host: *mut u8,
    /// Whether it may be written there.
    pub writable: bool,
}

impl GuestMapping {
    /// Live memory that the caller has mapped, and that stays mapped as long as `keep_alive` lives. Pieces must not overlap each other in the guest.
    ///
    /// # Safety
    /// While `keep_alive` lives, every piece is valid for volatile reads of its region's length, and for volatile writes if it says so, from any thread; no
    /// reference to it exists.
    ///
    /// # Errors
    /// The first piece that overlaps another.
    pub unsafe fn raw(pieces: &[RawPiece], keep_alive: Arc<dyn Any + Send + Sync>) -> Result<Self, PieceError> {
        let regions = pieces.iter().map(|piece| {
            // SAFETY: as the caller promises.
            unsafe { MappedRegion::new(piece.region, piece.host, piece.writable) }
        });
        Self::from_regions(regions.collect(), Liveness::Live, keep_alive)
    }

    /// Several mappings of live memory as one. They must not overlap each other in the guest.
    ///
    /// # Errors
    /// The first piece that overlaps another.
    pub fn join(parts: Vec<Self>) -> Result<Self, PieceError> {
        let mut regions: Vec<MappedRegion> = parts.iter().flat_map(|part| part.shared.regions.iter().copied()).collect();
        regions.sort_by_key(|region| region.start);
        // What is one run in the guest and in this process is one region.
        regions.dedup_by(|next, last| {
            let follows =
                last.start.checked_add(last.len) == Some(next.start) && last.writable == next.writable && last.base == next.base;
            if follows && let Some(region) = Region::new(PhysAddr::new(last.start), last.len.saturating_add(next.len)) {
                // SAFETY: both runs stay mapped as long as the parts, which the result keeps, and they are one behind the other.
                *last = unsafe { MappedRegion::new(region, last.host(region.start()), last.writable) };
            }
            follows
        });
        Self::from_regions(regions, Liveness::Live, Arc::new(parts))
    }

    /// Maps `pieces` of the RAM of a running machine. Pieces must not overlap each other in the guest; several may show the same bytes.
    ///
    /// # Errors
    /// The first piece that reaches beyond its shared RAM or overlaps another.
    pub fn live(pieces: &[LivePiece]) -> Result<Self, PieceError> {
        let mut regions = Vec::with_capacity(pieces.len());
        for LivePiece { region, ram, offset } in pieces {
            let fits = offset.checked_add(region.len()).is_some_and(|end| end <= ram.len());
            if !fits {
                return Err(PieceError::Beyond { piece: Piece { region: *region, offset: *offset }, store: ram.len() });
            }
            // The offset is below the length of a mapping of this process.
            let host = ram.host().wrapping_add(*offset as usize);
            // SAFETY: `offset` and the region's length lie within the shared RAM, which the mapping keeps mapped; it is mapped writable
            // if it says so.
            regions.push(unsafe { MappedRegion::new(*region, host, ram.writable) });
        }
        let mut kept = pieces.to_vec();
        kept.sort_by_key(|piece| piece.region.start());
        Self::from_regions(regions, Liveness::Live, Arc::new(LivePieces(kept)))
    }

    /// Whether `len` bytes at `at` are live memory that nobody has touched yet: they read as zero, and reading them would make the host
    /// set memory aside for them. `false` where that is not known.
    pub(crate) fn is_untouched(&self, at: PhysAddr, len: u64) -> bool {
        let Some(LivePieces(pieces)) = self.shared.keep_alive.downcast_ref::<LivePieces>() else { return false };
        let index = pieces.partition_point(|piece| piece.region.end() <= at);
        pieces.get(index).is_some_and(|piece| {
            at.offset_from(piece.region.start())
                .filter(|offset| offset.checked_add(len).is_some_and(|end| end <= piece.region.len()))
                .is_some_and(|offset| piece.ram.is_hole(piece.offset.saturating_add(offset), len))
        })
    }

    /// Writes `data` to guest-physical `at`. An aligned word of 1, 2, 4 or 8 bytes is one store: the guest never sees half of it.
    ///
    /// # Errors
    /// [`ErrorKind::Hole`](crate::ErrorKind::Hole) at the first address that is not mapped,
    /// [`ErrorKind::ReadOnly`](crate::ErrorKind::ReadOnly) at the first one that is frozen or mapped for reading only;
    /// [`Error::done`] bytes before it have been written.
    pub fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()> {
        let mut done = 0usize;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let here = at.checked_add(done as u64).ok_or_else(|| crate::Address::out_of_range(at, data.len()).after(done))?;
            let region = self.region_at(here).ok_or_else(|| Error::hole(here).after(done))?;
            if !region.writable {
                return Err(Error::read_only(here).after(done));
            }
            let offset = here.get().wrapping_sub(region.start);
            let len = usize::try_from(region.len.wrapping_sub(offset)).unwrap_or(usize::MAX).min(rest.len());
            let (part, _) = rest.split_at(len);
            // SAFETY: `offset` is below the region's length and `len` at most what is left behind it. The region is writable, so it is live
            // memory, mapped while `self` lives and lent to nobody; `data` is a slice and therefore no part of it.
            unsafe { copy::store_volatile(part, region.host(here).cast_mut()) };
            done = done.saturating_add(len);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::ErrorKind;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn piece(start: u64, len: u64, ram: &Arc<SharedRam>, offset: u64) -> LivePiece {
        LivePiece { region: Region::new(PhysAddr::new(start), len).unwrap(), ram: Arc::clone(ram), offset }
    }

    fn counting(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i ^ (i >> 8)) as u8).collect()
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    fn several_stores_are_one_guest() {
        let bytes = counting(0x5000);
        let first = Arc::new(SharedRam::map(&file(&bytes), 0x1010, 0x2345, true).unwrap());
        let second = Arc::new(SharedRam::map(&file(&bytes), 0, 0x5000, false).unwrap());
        let guest =
            GuestMapping::live(&[piece(0x10_0000, 0x4000, &second, 0x1000), piece(0xf_e000, 0x2000, &first, 0x345)]).unwrap();
        let mut buf = [0; 0x1000];
        guest.read_into(PhysAddr::new(0xf_f800), &mut buf).unwrap();
        let start = 0x1010 + 0x345 + 0x1800;
        assert_eq!(buf[..0x800], bytes[start..start + 0x800]);
        assert_eq!(buf[0x800..], bytes[0x1000..0x1800]);
        assert!(guest.slice(PhysAddr::new(0x10_0000), 8).is_none(), "live memory is lent to nobody");
        assert_eq!(guest.memory_map().regions(), [Region::new(PhysAddr::new(0xf_e000), 0x6000).unwrap()]);

        guest.write(PhysAddr::new(0xf_f7fd), &[0xa5; 5]).unwrap();
        guest.read_into(PhysAddr::new(0xf_f7f8), &mut buf[..16]).unwrap();
        assert_eq!(buf[5..10], [0xa5; 5]);
        let error = guest.write(PhysAddr::new(0xf_fffe), &[1; 4]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::ReadOnly { at } if *at == PhysAddr::new(0x10_0000)), "{error}");
        assert_eq!(error.done(), 2);
        let error = guest.write(PhysAddr::new(0xf_dfff), &[1; 4]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Hole { .. }));
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    fn writes_reach_the_file_and_its_writes_are_seen() {
        let mut file = file(&counting(0x3000));
        let ram = Arc::new(SharedRam::map(&file, 0, 0x3000, true).unwrap());
        let guest = GuestMapping::live(&[piece(0, 0x3000, &ram, 0)]).unwrap();
        guest.write(PhysAddr::new(0x1ffd), b"across").unwrap();
        let mut back = [0; 6];
        file.seek(io::SeekFrom::Start(0x1ffd)).unwrap();
        file.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"across");
        file.seek(io::SeekFrom::Start(8)).unwrap();
        file.write_all(&7u64.to_ne_bytes()).unwrap();
        let mut word = [0; 8];
        guest.read_into(PhysAddr::new(8), &mut word).unwrap();
        assert_eq!(u64::from_ne_bytes(word), 7);
    }

    #[test]
    fn raw_pieces_are_read_written_and_joined() {
        let mut words = vec![0u64; 4 * 512];
        let host = words.as_mut_ptr().cast::<u8>();
        let raw = |start: u64, pages: u64, page: usize, writable| RawPiece {
            region: Region::new(PhysAddr::new(start), pages * 4096).unwrap(),
            host: host.wrapping_add(page * 4096),
            writable,
        };
        let keep_alive: Arc<dyn Any + Send + Sync> = Arc::new(words);
        // SAFETY: the pieces lie within the words, which the mappings keep, and to which nobody else refers.
        let part = |pieces: &[RawPiece]| unsafe { GuestMapping::raw(pieces, Arc::clone(&keep_alive)) };
        let guest = GuestMapping::join(vec![
            part(&[raw(0x2000, 1, 1, true), raw(0x8000, 1, 3, false)]).unwrap(),
            part(&[raw(0x1000, 1, 0, true)]).unwrap(),
        ])
        .unwrap();
        assert_eq!(guest.memory_map().regions().len(), 2);
        guest.write(PhysAddr::new(0x1ffe), b"both").unwrap();
        let mut back = [0; 4];
        guest.read_into(PhysAddr::new(0x1ffe), &mut back).unwrap();
        assert_eq!(&back, b"both");
        assert!(matches!(guest.write(PhysAddr::new(0x8000), b"x").unwrap_err().kind(), ErrorKind::ReadOnly { .. }));
        assert!(
            matches!(guest.read_into(PhysAddr::new(0x2ffe), &mut back).unwrap_err().kind(), ErrorKind::Hole { at } if at.get() == 0x3000)
        );
        let overlap = part(&[raw(0, 2, 0, true), raw(0x1000, 1, 2, true)]);
        assert!(matches!(overlap, Err(PieceError::Overlap { .. })));
        let twice = vec![part(&[raw(0, 2, 0, true)]).unwrap(), part(&[raw(0x1000, 1, 2, true)]).unwrap()];
        assert!(GuestMapping::join(twice).is_err());
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    fn parts_that_are_not_there_are_refused() {
        let file = file(&[0; 0x1800]);
        for (offset, len) in [(0, 0x1801), (0x1800, 1), (u64::MAX, 2), (0, 0), (u64::MAX, 0)] {
            let error = SharedRam::map(&file, offset, len, false).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{offset:#x} {len:#x}");
        }
        let ram = Arc::new(SharedRam::map(&file, 0x1000, 0x800, false).unwrap());
        assert!(matches!(GuestMapping::live(&[piece(0, 0x801, &ram, 0)]), Err(PieceError::Beyond { store: 0x800, .. })));
        assert!(matches!(GuestMapping::live(&[piece(0, 1, &ram, u64::MAX)]), Err(PieceError::Beyond { .. })));
        assert!(matches!(
            GuestMapping::live(&[piece(0, 8, &ram, 0), piece(4, 8, &ram, 0)]),
            Err(PieceError::Overlap { at }) if at == PhysAddr::new(4)
        ));
        let unopened = std::fs::OpenOptions::new().read(true).open("/proc/self/exe").unwrap();
        assert!(SharedRam::map(&unopened, 0, 1, true).is_err(), "a file that is open for reading only is not mapped for writing");
    }

    /// Words that a running guest stores whole are read whole, and words that are written whole are seen whole.
    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    fn aligned_words_are_never_torn() {
        let file = file(&[0; 0x2000]);
        let map = || {
            let ram = Arc::new(SharedRam::map(&file, 0, 0x2000, true).unwrap());
            GuestMapping::live(&[piece(0, 0x2000, &ram, 0)]).unwrap()
        };
        let (guest, ours) = (map(), map());
        let stop = AtomicBool::new(false);
        let word = |memory: &GuestMapping, at: u64| {
            let mut bytes = [0; 8];
            memory.read_into(PhysAddr::new(at), &mut bytes).unwrap();
            bytes
        };
        std::thread::scope(|scope| {
            for at in [0x100u64, 0x1ff8] {
                let (guest, stop) = (&guest, &stop);
                scope.spawn(move || {
                    for byte in (0u8..=255).cycle() {
                        guest.write(PhysAddr::new(at), &[byte; 8]).unwrap();
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                });
            }
            for round in 0..200_000u32 {
                for at in [0x100, 0x1ff8] {
                    let bytes = word(&ours, at);
                    assert!(bytes.iter().all(|&byte| byte == bytes[0]), "torn in round {round}: {bytes:?}");
                }
                // Long copies meet the same stores: each word of them is one load too.
                if round % 64 == 0 {
                    let mut page = [0; 0x2000];
                    ours.read_into(PhysAddr::ZERO, &mut page).unwrap();
                    assert!(page[0x100..0x108].iter().all(|&byte| byte == page[0x100]));
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
