//! Guest memory through foreign mappings: a bounded cache of mapped chunks.
//!
//! A chunk is a run of guest-physical pages that is mapped at once. Mappings live for [`Limits::lifetime`] at most: a domain that gives pages back or gets new ones while
//! it is looked at (ballooning) would otherwise be seen as it was, as a mapping stays on the frames that it was made of. While the domain is paused by us nothing ages.
//!
//! In front of the cache are a few slots under a lock each, so that what is read again and again costs neither a lookup nor a reference count.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use vmi_core::{Address, GuestMapping, PAGE_SIZE, PhysAddr, RawPiece, ReadOp, Region, Result};

use crate::failure::Failures;
use crate::libraries::foreign_memory::{ForeignMemory, Mapped};

/// Pages in a chunk.
pub(crate) const CHUNK_PAGES: u64 = 64;
const CHUNK: u64 = CHUNK_PAGES * PAGE_SIZE;

/// Slots in front of the cache.
const SLOTS: usize = 64;

/// Chunks that are mapped in one call for a long read or a batch. They are unmapped together.
const MAX_AT_ONCE: usize = 16;
const AHEAD: u64 = MAX_AT_ONCE as u64 - 1;

/// What the cache may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of guest memory that are mapped at most, for reading; for writing a sixteenth.
    pub(crate) mapped: u64,
    /// How long a mapping serves.
    pub(crate) lifetime: Duration,
}

/// Which frames to map for guest-physical pages.
pub(crate) trait Frames: Send + Sync {
    /// The frames of `count` pages from page number `first`; all ones for a page that is none.
    fn frames(&self, first: u64, count: usize, frames: &mut Vec<u64>) -> Result<()>;
}

/// Maps frames of a domain; a trait so that the cache is tested without Xen.
pub(crate) trait Mapper: Send + Sync {
    /// Maps `frames`, which are those of guest-physical pages from number `first`.
    fn map(&self, pages: &[u64], frames: &[u64], writable: bool) -> Result<GuestMapping>;
}

/// Through libxenforeignmemory.
#[derive(Debug)]
pub(crate) struct XenMapper {
    pub(crate) memory: Arc<ForeignMemory>,
    pub(crate) domain: u32,
    pub(crate) failures: Failures,
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
}

/// Whether `host` is right behind a piece in this process.
fn follows(piece: &RawPiece, host: *mut u8) -> bool {
    piece.host.wrapping_add(usize::try_from(piece.region.len()).unwrap_or(usize::MAX)) == host
}

/// A mapped chunk.
#[derive(Clone, Debug)]
struct Chunk {
    memory: GuestMapping,
    /// When it was mapped, in milliseconds of the coarse clock; counted as the domain's time, which stands still in a pause.
    born: u64,
}

#[derive(Debug, Default)]
struct Slot(RwLock<Option<(u64, Chunk)>>);

/// Counters of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappingCounters {
    /// Chunks that were mapped so far.
    pub mapped: u64,
    /// Calls to Xen for that.
    pub calls: u64,
}

/// The memory of a domain.
pub(crate) struct GuestMemory<M> {
    mapper: M,
    frames: Box<dyn Frames>,
    failures: Failures,
    lifetime: u64,
    slots: Box<[Slot]>,
    readable: moka::sync::Cache<u64, Chunk>,
    writable: moka::sync::Cache<u64, Chunk>,
    mapped: AtomicU64,
    calls: AtomicU64,
    clock: Clock,
}

impl<M: Mapper> GuestMemory<M> {
    pub(crate) fn new(mapper: M, frames: Box<dyn Frames>, failures: Failures, limits: Limits) -> Self {
        let chunks = limits.mapped.checked_div(CHUNK).unwrap_or_default().max(1);
        Self {
            mapper,
            frames,
            failures,
            lifetime: u64::try_from(limits.lifetime.as_millis()).unwrap_or(u64::MAX),
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            readable: moka::sync::Cache::new(chunks),
            writable: moka::sync::Cache::new(chunks.div_ceil(16)),
            mapped: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            clock: Clock::default(),
        }
    }

    pub(crate) fn counters(&self) -> MappingCounters {
        MappingCounters { mapped: self.mapped.load(Ordering::Relaxed), calls: self.calls.load(Ordering::Relaxed) }
    }

    /// The time of the domain: it stands still while it is paused.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Unmaps everything.
    pub(crate) fn forget(&self) {
        for slot in &self.slots {
            *slot.0.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        for cache in [&self.readable, &self.writable] {
            cache.invalidate_all();
            cache.run_pending_tasks();
        }
    }

    /// Fills `buf`; see [`vmi_core::Driver::read`].
    pub(crate) fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        let now = self.clock.now();
        let number = at.get() / CHUNK;
        if (at.get() % CHUNK).saturating_add(buf.len() as u64) > CHUNK {
            return self.read_long(at, buf, now);
        }
        // The slot's number is below their count.
        if let Some(slot) = self.slots.get(number as usize % SLOTS)
            && let Ok(slot) = slot.0.try_read()
            && let Some((held, chunk)) = &*slot
            && *held == number
            && now.wrapping_sub(chunk.born) <= self.lifetime
        {
            return chunk.memory.read_into(at, buf);
        }
        self.chunk(number, now, false)?.memory.read_into(at, buf)
    }

    /// A read over several chunks. Those that are missing are mapped some at a time.
    #[inline(never)]
    fn read_long(&self, at: PhysAddr, buf: &mut [u8], now: u64) -> Result<()> {
        let len = buf.len();
        let mut done = 0usize;
        let mut ready = 0u64;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let here = at.checked_add(done as u64).ok_or_else(|| at.out_of_range(len).after(done))?;
            let number = here.get() / CHUNK;
            if number >= ready {
                let last = here.get().saturating_add((rest.len() as u64).saturating_sub(1)) / CHUNK;
                let ahead = last.saturating_sub(number).min(AHEAD);
                let numbers: Vec<u64> = (number..=number.saturating_add(ahead)).collect();
                self.prepare(&numbers, now).map_err(|error| error.after(done))?;
                ready = number.saturating_add(ahead).saturating_add(1);
            }
            let left = CHUNK.wrapping_sub(here.get() % CHUNK);
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (part, _) = rest.split_at_mut(piece);
            let chunk = self.chunk(number, now, false).map_err(|error| error.after(done))?;
            chunk.memory.read_into(here, part).map_err(|error| error.after(done))?;
            done = done.saturating_add(piece);
        }
        Ok(())
    }

    /// Does many reads; chunks that are missing are mapped some at a time.
    pub(crate) fn read_batch(&self, ops: &mut [ReadOp<'_, PhysAddr>]) {
        let now = self.clock.now();
        let mut missing: Vec<u64> = ops
            .iter()
            .filter(|op| !op.buf.is_empty() && op.buf.len() as u64 <= CHUNK)
            .flat_map(|op| {
                let last = op.at.get().saturating_add((op.buf.len() as u64).saturating_sub(1));
                [op.at.get() / CHUNK, last / CHUNK]
            })
            .collect();
        missing.sort_unstable();
        missing.dedup();
        for numbers in missing.chunks(MAX_AT_ONCE) {
            // If this fails, the reads say why.
            let _ = self.prepare(numbers, now);
        }
        for op in ops {
            op.result = self.read(op.at, op.buf);
        }
    }

    /// Writes `data`; see [`vmi_core::WriteMemory::write`].
    pub(crate) fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()> {
        let now = self.clock.now();
        let mut done = 0usize;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let here = at.checked_add(done as u64).ok_or_else(|| at.out_of_range(data.len()).after(done))?;
            let left = CHUNK.wrapping_sub(here.get() % CHUNK);
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (part, _) = rest.split_at(piece);
            let chunk = self.chunk(here.get() / CHUNK, now, true).map_err(|error| error.after(done))?;
            chunk.memory.write(here, part).map_err(|error| error.after(done))?;
            done = done.saturating_add(piece);
        }
        Ok(())
    }

    fn is_fresh(&self, chunk: &Chunk, now: u64) -> bool {
        now.wrapping_sub(chunk.born) <= self.lifetime
    }

    /// The chunk, mapped now if it is not.
    fn chunk(&self, number: u64, now: u64, writable: bool) -> Result<Chunk> {
        let cache = if writable { &self.writable } else { &self.readable };
        let chunk = match cache.get(&number).filter(|chunk| self.is_fresh(chunk, now)) {
            Some(chunk) => chunk,
            None => {
                let memory = self.map(&[number], writable)?;
                let chunk = Chunk { memory, born: now };
                cache.insert(number, chunk.clone());
                // What the cache evicts is unmapped now and not some time.
                cache.run_pending_tasks();
                chunk
            }
        };
        if !writable && let Some(slot) = self.slots.get(number as usize % SLOTS) {
            *slot.0.write().unwrap_or_else(PoisonError::into_inner) = Some((number, chunk.clone()));
        }
        Ok(chunk)
    }

    /// Maps in one call what of these chunks is not mapped.
    fn prepare(&self, numbers: &[u64], now: u64) -> Result<()> {
        let is_missing = |number: &u64| !self.readable.get(number).is_some_and(|chunk| self.is_fresh(&chunk, now));
        let missing: Vec<u64> = numbers.iter().copied().filter(is_missing).collect();
        if missing.len() < 2 {
            return Ok(());
        }
        let memory = self.map(&missing, false)?;
        for number in missing {
            self.readable.insert(number, Chunk { memory: memory.clone(), born: now });
        }
        self.readable.run_pending_tasks();
        Ok(())
    }

    fn map(&self, numbers: &[u64], writable: bool) -> Result<GuestMapping> {
        let (mut pages, mut frames) = (Vec::new(), Vec::new());
        for number in numbers {
            let first = number.saturating_mul(CHUNK_PAGES);
            pages.extend(first..first.saturating_add(CHUNK_PAGES));
            self.frames.frames(first, CHUNK_PAGES as usize, &mut frames)?;
        }
        if pages.len() != frames.len() {
            return Err(self.failures.other("mapping its memory", "a list of frames of another length than that of its pages"));
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.mapped.fetch_add(numbers.len() as u64, Ordering::Relaxed);
        self.mapper.map(&pages, &frames, writable)
    }
}

impl<M> std::fmt::Debug for GuestMemory<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestMemory").field("mapped", &self.mapped).field("calls", &self.calls).finish_non_exhaustive()
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
