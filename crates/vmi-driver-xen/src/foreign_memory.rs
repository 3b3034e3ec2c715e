//! Guest memory through foreign mappings, in chunks: runs of guest-physical pages that are mapped at once.
//!
//! Reads go through a [`Window`](vmi_core::Window) that the core of the workspace knows: what is mapped is read without asking this driver, and [`Shown`] decides what is mapped. Writes are
//! rare, and have mappings of their own in a bounded cache.
//!
//! Mappings live for [`Limits::lifetime`]: a domain that gives pages back or gets new ones while it is looked at (ballooning) would otherwise be seen as it was, as a mapping stays on
//! the frames that it was made of. While the domain is paused by us nothing ages.
#![allow(unsafe_code)]

mod shown;

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use nix::time::{ClockId, clock_gettime};
use vmi_core::{
    Address, Error, ErrorKind, GuestMapping, MappedRange, MemoryMap, PAGE_SIZE, PhysAddr, RawPiece, ReadOp, Region, Result,
};

use crate::failure::Failures;
use crate::libraries::foreign_memory::{ForeignMemory, Mapped};
use crate::p2m::NONE;
pub(crate) use shown::Shown;

/// Pages in a chunk.
pub(crate) const CHUNK_PAGES: u64 = 64;
const CHUNK: u64 = CHUNK_PAGES * PAGE_SIZE;

/// Chunks that are mapped in one call for a long read or a batch.
const MAX_AT_ONCE: u64 = 16;

/// What the cache may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of guest memory that are mapped at most, for reading; for writing a sixteenth.
    pub(crate) mapped: u64,
    /// How long a mapping serves.
    pub(crate) lifetime: Duration,
    /// How long a page that could not be mapped is taken to be absent: it may have been on its way to the domain just then.
    pub(crate) absent: Duration,
}

impl Limits {
    /// What is mapped unless somebody asks for more or less.
    pub(crate) const DEFAULT: Self =
        Self { mapped: 1 << 30, lifetime: Duration::from_secs(1), absent: Duration::from_millis(10) };

    /// For a domain that is mapped as a whole, for as long as it is open.
    pub(crate) const NONE: Self = Self { mapped: u64::MAX, lifetime: Duration::MAX, ..Self::DEFAULT };
}

/// Which frames to map for guest-physical pages.
pub(crate) trait Frames: Send + Sync {
    /// The frames of `count` pages from page number `first`; all ones for a page that is none.
    fn frames(&self, first: u64, count: usize, frames: &mut Vec<u64>) -> Result<()>;
}

/// Maps frames of a domain; a trait so that what is mapped, and when, is tested without Xen.
pub(crate) trait Mapper: Send + Sync + 'static {
    /// Maps `frames`, which are those of the guest-physical `pages`, somewhere.
    fn map(&self, pages: &[u64], frames: &[u64], writable: bool) -> Result<GuestMapping>;

    /// Maps `frames` for reading at `place`. Says of each whether it is there; what is not must not be touched. After an error nothing is mapped, and the place may be nobody's.
    ///
    /// # Safety
    /// The place is as long as all pages, belongs to the caller, and nobody uses it.
    unsafe fn map_at(&self, place: NonNull<u8>, frames: &[u64]) -> Result<Vec<bool>>;

    /// Whether the domain is still there; asked when memory is missing that should not be.
    fn check(&self) -> Result<()>;
}

/// Through libxenforeignmemory.
#[derive(Debug)]
pub(crate) struct XenMapper {
    pub(crate) memory: Arc<ForeignMemory>,
    pub(crate) domain: u32,
    pub(crate) failures: Failures,
    pub(crate) check: DomainCheck,
}

/// Whether a domain is still there.
pub(crate) struct DomainCheck(pub(crate) Box<dyn Fn() -> Result<()> + Send + Sync>);

impl std::fmt::Debug for DomainCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DomainCheck")
    }
}

impl Mapper for XenMapper {
    fn map(&self, pages: &[u64], frames: &[u64], writable: bool) -> Result<GuestMapping> {
        let mapped =
            self.memory.map(self.domain, frames, writable).map_err(|error| self.failures.call("mapping its memory", error))?;
        if (0..mapped.pages()).any(|page| mapped.error(page) == Some(nix::libc::ESRCH)) {
            return Err(self.failures.ended("Xen knows no domain of its number any more"));
        }
        let mut pieces: Vec<RawPiece> = Vec::new();
        for (index, &page) in pages.iter().enumerate().filter(|(index, _)| mapped.is_there(*index)) {
            let Some(region) = Region::new(PhysAddr::new(page.saturating_mul(PAGE_SIZE)), PAGE_SIZE) else { continue };
            // The index is below the number of pages of the mapping.
            let host = mapped.address().as_ptr().wrapping_add(index.wrapping_mul(PAGE_SIZE as usize));
            match pieces.last_mut() {
                Some(last) if last.region.end() == region.start() && follows(last, host) => {
                    let len = last.region.len().saturating_add(PAGE_SIZE);
                    last.region = Region::new(last.region.start(), len).unwrap_or(last.region);
                }
                _ => pieces.push(RawPiece { region, host, writable: mapped.writable() }),
            }
        }
        let keep_alive: Arc<Mapped> = Arc::new(mapped);
        // SAFETY: each piece is a run of pages that are mapped, without those that are not; they stay so while `keep_alive` lives, and nobody has a reference to
        // them. They are writable if they were mapped so.
        unsafe { GuestMapping::raw(&pieces, keep_alive) }.map_err(|error| self.failures.other("mapping its memory", error))
    }

    unsafe fn map_at(&self, place: NonNull<u8>, frames: &[u64]) -> Result<Vec<bool>> {
        // SAFETY: as the caller says.
        let mapped = unsafe { self.memory.map_at(self.domain, place, frames) };
        let errors = mapped.map_err(|error| self.failures.call("mapping its memory", error))?;
        let failed = || frames.iter().zip(&errors).filter(|(frame, error)| **frame != NONE && **error != 0);
        if let Some((frame, errno)) = failed().next() {
            tracing::debug!(domain = self.domain, frame, errno, pages = failed().count(), "pages cannot be mapped");
        }
        Ok(errors.iter().map(|error| *error == 0).collect())
    }

    fn check(&self) -> Result<()> {
        (self.check.0)()
    }
}

/// Whether `host` is right behind a piece in this process.
fn follows(piece: &RawPiece, host: *mut u8) -> bool {
    piece.host.wrapping_add(usize::try_from(piece.region.len()).unwrap_or(usize::MAX)) == host
}

/// Counters of what was mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappingCounters {
    /// Chunks that were mapped so far.
    pub mapped: u64,
    /// Calls to Xen for that.
    pub calls: u64,
}

/// What is common to mappings for reading and for writing.
pub(crate) struct Source<M> {
    pub(crate) mapper: M,
    frames: Box<dyn Frames>,
    failures: Failures,
    clock: Clock,
    /// [`Limits::absent`] in milliseconds.
    absent: u64,
    mapped: AtomicU64,
    calls: AtomicU64,
}

impl<M> Source<M> {
    /// The frames of `count` chunks from number `first`, for a call that maps them.
    fn frames(&self, first: u64, count: u64) -> Result<Vec<u64>> {
        let mut frames = Vec::new();
        for number in first..first.saturating_add(count) {
            self.frames.frames(number.saturating_mul(CHUNK_PAGES), CHUNK_PAGES as usize, &mut frames)?;
        }
        if frames.len() as u64 != count.saturating_mul(CHUNK_PAGES) {
            return Err(self.failures.other("mapping its memory", "a list of frames of another length than that of its pages"));
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.mapped.fetch_add(count, Ordering::Relaxed);
        Ok(frames)
    }
}

/// A chunk that is mapped for writing.
#[derive(Clone, Debug)]
struct Chunk {
    memory: GuestMapping,
    /// When it was mapped, by [`Clock`].
    born: u64,
    /// The same by a clock that goes on in pauses.
    mapped: u64,
}

/// The memory of a domain.
pub(crate) struct GuestMemory<M: Mapper> {
    source: Arc<Source<M>>,
    shown: Shown<M>,
    writable: moka::sync::Cache<u64, Chunk>,
    lifetime: u64,
}

impl<M: Mapper> GuestMemory<M> {
    /// `memory` is where the domain has memory.
    pub(crate) fn new(
        mapper: M,
        frames: Box<dyn Frames>,
        failures: Failures,
        limits: Limits,
        memory: &MemoryMap,
    ) -> Result<Self> {
        let chunks = limits.mapped.checked_div(CHUNK).unwrap_or_default().max(1);
        let [lifetime, absent] =
            [limits.lifetime, limits.absent].map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        let (mapped, calls) = (AtomicU64::new(0), AtomicU64::new(0));
        let source = Arc::new(Source { mapper, frames, failures, clock: Clock::default(), absent, mapped, calls });
        let shown = Shown::new(Arc::clone(&source), memory, chunks, lifetime)?;
        // By moka's own policy, chunks that were written to often would keep out the one that is written to now, and it be mapped for each write.
        let policy = EvictionPolicy::lru();
        let writable = moka::sync::Cache::builder().max_capacity(chunks.div_ceil(16)).eviction_policy(policy).build();
        Ok(Self { source, shown, writable, lifetime })
    }

    pub(crate) fn counters(&self) -> MappingCounters {
        let Source { mapped, calls, .. } = &*self.source;
        MappingCounters { mapped: mapped.load(Ordering::Relaxed), calls: calls.load(Ordering::Relaxed) }
    }

    /// What is read from without asking.
    pub(crate) fn mapping(&self) -> &GuestMapping {
        self.shown.mapping()
    }

    /// Maps all memory now, and for as long as this or a clone of its mapping lives.
    pub(crate) fn map_whole(&mut self, memory: &MemoryMap) -> Result<()> {
        self.shown.map_whole(memory)
    }

    /// Maps a range by itself, until the result is dropped. `memory` is where the domain has memory.
    pub(crate) fn map_range(&self, range: Region, memory: &MemoryMap) -> Result<MappedRange> {
        if !self.mapping().is_window() {
            return self.mapping().range(range);
        }
        // A list of frames is as long as the range, so the range ends where the domain may.
        let end = self.shown.end();
        if range.end() > end {
            return Err(Error::hole(range.start().max(end)));
        }
        let (first, behind) = (range.start().get() / PAGE_SIZE, range.end().get().div_ceil(PAGE_SIZE));
        let chunk = first / CHUNK_PAGES;
        let frames = self.source.frames(chunk, behind.div_ceil(CHUNK_PAGES).saturating_sub(chunk))?;
        let pages: Vec<u64> = (first..behind).collect();
        let skip = usize::try_from(first % CHUNK_PAGES).unwrap_or(usize::MAX);
        let frames = frames.get(skip..skip.saturating_add(pages.len())).unwrap_or_default();
        let mapped = self.source.mapper.map(&pages, frames, false)?.range(range);
        if let Err(error) = &mapped
            && let ErrorKind::Hole { at } = error.kind()
            && memory.region_at(*at).is_some()
        {
            // There should be memory: perhaps the domain has ended, and Xen has taken it back.
            self.source.mapper.check()?;
        }
        mapped
    }

    /// The domain stands still: nothing ages.
    pub(crate) fn stands(&self) {
        self.source.clock.stop();
    }

    /// The domain is about to go on.
    pub(crate) fn goes_on(&self) {
        self.source.clock.go_on();
        self.shown.age();
    }

    /// Unmaps everything.
    pub(crate) fn forget(&self) {
        self.shown.forget();
        self.writable.invalidate_all();
        self.writable.run_pending_tasks();
    }

    /// Fills `buf`; see [`vmi_core::Driver::read`].
    pub(crate) fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        self.shown.read(at, buf)
    }

    /// Does many reads; chunks that are missing are mapped some at a time.
    pub(crate) fn read_batch(&self, ops: &mut [ReadOp<'_, PhysAddr>]) {
        let mut wanted: Vec<u64> = ops
            .iter()
            .filter(|op| !op.buf.is_empty() && op.buf.len() as u64 <= CHUNK)
            .flat_map(|op| {
                let last = op.at.get().saturating_add((op.buf.len() as u64).saturating_sub(1));
                [op.at.get() / CHUNK, last / CHUNK]
            })
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        // If this fails, the reads say why.
        _ = self.shown.prepare(&wanted);
        for op in ops {
            op.result = self.read(op.at, op.buf);
        }
    }

    /// Writes `data`; see [`vmi_core::WriteMemory::write`].
    pub(crate) fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()> {
        let now = self.source.clock.now();
        let mut done = 0usize;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let here = at.checked_add(done as u64).ok_or_else(|| at.out_of_range(data.len()).after(done))?;
            let left = CHUNK.wrapping_sub(here.get() % CHUNK);
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (part, _) = rest.split_at(piece);
            self.write_part(here, part, now).map_err(|error| error.after(done))?;
            done = done.saturating_add(piece);
        }
        Ok(())
    }

    /// Writes what lies in one chunk. One that lacks a page is mapped anew, unless that was done just now: the page may have been on its way to the domain.
    fn write_part(&self, here: PhysAddr, part: &[u8], now: u64) -> Result<()> {
        let number = here.get() / CHUNK;
        let known = self.writable.get(&number).filter(|chunk| now.wrapping_sub(chunk.born) <= self.lifetime);
        let Some(chunk) = known else { return self.map_for_writing(number, now)?.write(here, part) };
        match chunk.memory.write(here, part) {
            Err(error)
                if matches!(error.kind(), ErrorKind::Hole { .. })
                    && milliseconds().saturating_sub(chunk.mapped) >= self.source.absent =>
            {
                self.map_for_writing(number, now)?.write(here, part)
            }
            written => written,
        }
    }

    /// Maps a chunk for writing.
    fn map_for_writing(&self, number: u64, now: u64) -> Result<GuestMapping> {
        let frames = self.source.frames(number, 1)?;
        let first = number.saturating_mul(CHUNK_PAGES);
        let pages: Vec<u64> = (first..first.saturating_add(CHUNK_PAGES)).collect();
        let memory = self.source.mapper.map(&pages, &frames, true)?;
        self.writable.insert(number, Chunk { memory: memory.clone(), born: now, mapped: milliseconds() });
        // What the cache evicts is unmapped now and not some time.
        self.writable.run_pending_tasks();
        Ok(memory)
    }
}

impl<M: Mapper> std::fmt::Debug for GuestMemory<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestMemory").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

/// Time in milliseconds that stands still on demand.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// One more than the time at which it stands; zero while it goes.
    stands_at: AtomicU64,
}

impl Clock {
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        match self.stands_at.load(Ordering::Acquire) {
            0 => milliseconds(),
            at => at.wrapping_sub(1),
        }
    }

    pub(crate) fn stop(&self) {
        self.stands_at.store(milliseconds().wrapping_add(1), Ordering::Release);
    }

    pub(crate) fn go_on(&self) {
        self.stands_at.store(0, Ordering::Release);
    }
}

/// The coarse clock is read without a system call, to some milliseconds.
fn milliseconds() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE) else { return 0 };
    let (seconds, nanoseconds) = (u64::try_from(now.tv_sec()), u64::try_from(now.tv_nsec()));
    seconds.unwrap_or_default().wrapping_mul(1000).wrapping_add(nanoseconds.unwrap_or_default() / 1_000_000)
}

#[cfg(test)]
mod tests;
