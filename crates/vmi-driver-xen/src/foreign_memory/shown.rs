//! Which chunks of a domain its window shows: mapped on first touch, so many at most, for so long at most.
//!
//! What is shown is read without a look at this, so nobody sees which chunk was used last: the oldest is unmapped when there is no room, and each one when its time is over, by a thread that
//! sleeps else. (A chunk in use is mapped anew then; that is one call to Xen for all of it.)

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vmi_core::{Address, Error, GuestMapping, MemoryMap, PAGE_SIZE, PhysAddr, RawPiece, Region, Result, Window};

use super::{CHUNK, CHUNK_PAGES, MAX_AT_ONCE, Mapper, Source, milliseconds};

/// Address space beyond the memory that a domain has when it is opened: it may get more.
const AT_LEAST: u64 = 8 << 30;

/// The longest sleep, in milliseconds.
const LONGEST: u64 = 3_600_000;

/// The chunks that are mapped.
#[derive(Debug, Default)]
struct State {
    /// Their numbers, with when they were mapped, by a clock that goes on in pauses.
    chunks: BTreeMap<u64, u64>,
    /// The same, the oldest in front, with when they were mapped by the clock by which they age.
    order: VecDeque<(u64, u64)>,
    /// Nothing is unmapped any more.
    stays: bool,
    closing: bool,
}

struct Inner<M> {
    source: Arc<Source<M>>,
    window: Arc<Window>,
    mapping: GuestMapping,
    /// Chunks at most.
    most: u64,
    /// In milliseconds.
    lifetime: u64,
    state: Mutex<State>,
    wake: Condvar,
}

/// What a domain's window shows.
pub(crate) struct Shown<M: Mapper> {
    inner: Arc<Inner<M>>,
    keeper: Option<JoinHandle<()>>,
    /// All memory, if it is mapped for ever.
    whole: Option<GuestMapping>,
}

impl<M: Mapper> Shown<M> {
    pub(super) fn new(source: Arc<Source<M>>, memory: &MemoryMap, most: u64, lifetime: u64) -> Result<Self> {
        let whole = |end: u64| end.max(CHUNK).checked_next_multiple_of(CHUNK).unwrap_or(u64::MAX);
        let end = memory.end().get();
        let roomy = end.checked_next_power_of_two().unwrap_or(end).max(AT_LEAST);
        // A process may be held to less address space (setrlimit(2), RLIMIT_AS).
        let window = Window::reserve(roomy).or_else(|_| Window::reserve(whole(end)));
        let window = window.map_err(|error| source.failures.other("reserving address space for its memory", error))?;
        let mapping = GuestMapping::window(Arc::clone(&window), memory.clone());
        let failures = source.failures.clone();
        let (state, wake) = (Mutex::default(), Condvar::new());
        let inner = Arc::new(Inner { source, window, mapping, most, lifetime, state, wake });
        let kept = Arc::clone(&inner);
        let keeper = std::thread::Builder::new().name("vmi-xen-mappings".to_owned()).spawn(move || kept.keep());
        let keeper = keeper.map_err(|error| failures.other("starting the thread that unmaps its memory", error))?;
        Ok(Self { inner, keeper: Some(keeper), whole: None })
    }

    /// What is read from.
    pub(super) fn mapping(&self) -> &GuestMapping {
        self.whole.as_ref().unwrap_or(&self.inner.mapping)
    }

    /// Behind the last address that can be shown.
    pub(super) fn end(&self) -> PhysAddr {
        PhysAddr::new(self.inner.window.pages().saturating_mul(PAGE_SIZE))
    }

    /// Maps all memory, which stays mapped from now on. It is read as memory that never goes: without a look whether it is there.
    #[allow(unsafe_code)]
    pub(super) fn map_whole(&mut self, memory: &MemoryMap) -> Result<()> {
        for region in memory.regions() {
            let numbers: Vec<u64> = (region.start().get() / CHUNK..region.end().get().div_ceil(CHUNK)).collect();
            self.prepare(&numbers)?;
        }
        let mut state = self.inner.lock();
        state.stays = true;
        let window = &self.inner.window;
        let mut pieces: Vec<RawPiece> = Vec::new();
        let mapped = state.chunks.keys().flat_map(|number| pages(*number, 1));
        for page in mapped.filter(|page| window.is_shown(*page)) {
            let place = window.place(&(page..page.saturating_add(1)));
            let region = Region::new(PhysAddr::new(page.saturating_mul(PAGE_SIZE)), PAGE_SIZE);
            let Some((place, region)) = place.zip(region) else { continue };
            match pieces.last_mut() {
                // What follows in the guest follows in the window.
                Some(last) if last.region.end() == region.start() => {
                    let len = last.region.len().saturating_add(PAGE_SIZE);
                    last.region = Region::new(last.region.start(), len).unwrap_or(last.region);
                }
                _ => pieces.push(RawPiece { region, host: place.as_ptr(), writable: false }),
            }
        }
        // SAFETY: each piece is a run of pages that are mapped for reading. `stays` says that nothing is taken away any more, so they stay so until the window is dropped, which the mapping keeps. Nobody
        // has a reference to them.
        let whole = unsafe { GuestMapping::raw(&pieces, Arc::clone(window) as _) };
        self.whole = Some(whole.map_err(|error| self.inner.source.failures.other("mapping its memory", error))?);
        Ok(())
    }

    /// Unmaps everything, but what stays.
    pub(super) fn forget(&self) {
        let mut state = self.inner.lock();
        self.inner.unmap_oldest(&mut state, usize::MAX);
    }

    /// Unmaps what is too old.
    pub(super) fn age(&self) {
        let mut state = self.inner.lock();
        self.inner.unmap_old(&mut state, self.inner.lifetime);
        self.inner.wake.notify_all();
    }

    /// Maps what of these chunks, which ascend, is not mapped.
    pub(super) fn prepare(&self, numbers: &[u64]) -> Result<()> {
        let mut state = self.inner.lock();
        let missing: Vec<u64> = numbers.iter().copied().filter(|number| !state.chunks.contains_key(number)).collect();
        for run in missing.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            for part in run.chunks(MAX_AT_ONCE as usize) {
                if let Some(first) = part.first() {
                    self.inner.map(&mut state, *first, part.len() as u64)?;
                }
            }
        }
        Ok(())
    }

    /// Fills `buf`, and maps what is needed for that.
    pub(super) fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        let len = buf.len();
        let mut done = self.inner.mapping.read_shown(at, buf);
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let here = at.checked_add(done as u64).ok_or_else(|| at.out_of_range(len).after(done))?;
            let more = self.inner.bring(here, rest).map_err(|error| error.after(done))?;
            done = done.saturating_add(more);
        }
        Ok(())
    }
}

impl<M: Mapper> Drop for Shown<M> {
    fn drop(&mut self) {
        self.inner.lock().closing = true;
        self.inner.wake.notify_all();
        if let Some(keeper) = self.keeper.take()
            && keeper.join().is_err()
        {
            tracing::error!("the thread that unmaps a domain's memory has ended before its time");
        }
        self.forget();
    }
}

/// The pages of `count` chunks.
fn pages(first: u64, count: u64) -> Range<u64> {
    let start = first.saturating_mul(CHUNK_PAGES);
    start..start.saturating_add(count.saturating_mul(CHUNK_PAGES))
}

impl<M: Mapper> Inner<M> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps what is missing at `here`, and reads from there as far as it is mapped then: at least a byte. All under the lock, so that nobody unmaps it before.
    fn bring(&self, here: PhysAddr, rest: &mut [u8]) -> Result<usize> {
        let mut state = self.lock();
        let number = here.get() / CHUNK;
        if !state.chunks.contains_key(&number) && here.get() / PAGE_SIZE < self.window.pages() {
            let last = here.get().saturating_add((rest.len() as u64).saturating_sub(1)) / CHUNK;
            let end = last.min(number.saturating_add(MAX_AT_ONCE.saturating_sub(1))).saturating_add(1);
            let count = (number..end).take_while(|number| !state.chunks.contains_key(number)).count() as u64;
            self.map(&mut state, number, count)?;
        }
        match self.mapping.read_shown(here, rest) {
            0 if self.mapping.memory_map().region_at(here).is_some() => {
                // There should be memory: perhaps the domain has ended, and Xen has taken it back.
                self.source.mapper.check()?;
                self.map_again(&mut state, number)?;
                match self.mapping.read_shown(here, rest) {
                    0 => Err(Error::hole(here)),
                    done => Ok(done),
                }
            }
            0 => Err(Error::hole(here)),
            done => Ok(done),
        }
    }

    /// Maps a chunk anew that lacks a page, unless that was done just now.
    fn map_again(&self, state: &mut State, number: u64) -> Result<()> {
        let Some(mapped) = state.chunks.get(&number).filter(|_| !state.stays) else { return Ok(()) };
        if milliseconds().saturating_sub(*mapped) < self.source.absent {
            return Ok(());
        }
        state.order.retain(|(other, _)| *other != number);
        self.unmap(state, &[number]);
        self.map(state, number, 1)
    }

    /// Maps so many chunks, which are not mapped, in one call.
    fn map(&self, state: &mut State, first: u64, count: u64) -> Result<()> {
        let room = self.window.pages().checked_div(CHUNK_PAGES).unwrap_or_default();
        let count = count.min(self.most).min(room.saturating_sub(first));
        if count == 0 {
            return Ok(());
        }
        let before = state.order.len() as u64;
        self.unmap_oldest(state, before.saturating_add(count).saturating_sub(self.most) as usize);
        let pages = pages(first, count);
        let frames = self.source.frames(first, count)?;
        // Taken before the call: what the domain changes meanwhile may not be in the mapping.
        let (born, mapped) = (self.source.clock.now(), milliseconds());
        self.map_pages(&pages, &frames)?;
        for number in first..first.saturating_add(count) {
            state.chunks.insert(number, mapped);
            state.order.push_back((number, born));
        }
        self.wake.notify_all();
        Ok(())
    }

    #[allow(unsafe_code)]
    fn map_pages(&self, pages: &Range<u64>, frames: &[u64]) -> Result<()> {
        let lost = "the place for this memory in the address space was lost in an earlier failure: open the domain again";
        let place = self.window.place(pages).ok_or_else(|| self.source.failures.other("mapping its memory", lost))?;
        // SAFETY: the place is that of these pages, of which there are as many as frames; none is mapped or shown, and others that could map there wait for the lock that the caller holds.
        let there = unsafe { self.source.mapper.map_at(place, frames) };
        let there = there.inspect_err(|_| self.window.reserve_again(pages))?;
        // SAFETY: what is there was mapped for reading at its place just now. It is taken away under the lock only, and only by `Window::take_away`.
        unsafe { self.window.show(pages.start, there) };
        Ok(())
    }

    fn unmap_old(&self, state: &mut State, age: u64) {
        let now = self.source.clock.now();
        let old = state.order.iter().take_while(|(_, born)| now.saturating_sub(*born) >= age).count();
        self.unmap_oldest(state, old);
    }

    fn unmap_oldest(&self, state: &mut State, count: usize) {
        let count = count.min(state.order.len());
        if count == 0 || state.stays {
            return;
        }
        let mut numbers: Vec<u64> = state.order.drain(..count).map(|(number, _)| number).collect();
        numbers.sort_unstable();
        self.unmap(state, &numbers);
    }

    /// Unmaps these chunks, which ascend.
    fn unmap(&self, state: &mut State, numbers: &[u64]) {
        for number in numbers {
            state.chunks.remove(number);
        }
        let run = |run: &[u64]| pages(run.first().copied().unwrap_or_default(), run.len() as u64);
        let runs: Vec<Range<u64>> = numbers.chunk_by(|a, b| a.checked_add(1) == Some(*b)).map(run).collect();
        if let Err(error) = self.window.take_away(&runs) {
            tracing::error!(%error, domain = self.source.failures.machine(), "memory of a domain stays mapped");
        }
    }

    /// What the thread does: unmaps what is too old. It looks some times in a lifetime at most, so it does that a little early.
    fn keep(&self) {
        let early = self.lifetime / 8;
        let old = self.lifetime.saturating_sub(early);
        let mut state = self.lock();
        while !state.closing {
            let Some((_, born)) = state.order.front() else {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let age = self.source.clock.now().saturating_sub(*born);
            if age >= old && !state.stays {
                self.unmap_old(&mut state, old);
                continue;
            }
            // In a pause the clock stands, and waking finds the same.
            let sleep = Duration::from_millis(old.saturating_sub(age).max(early).clamp(1, LONGEST));
            (state, _) = self.wake.wait_timeout(state, sleep).unwrap_or_else(PoisonError::into_inner);
        }
    }

    #[cfg(test)]
    fn mapped(&self) -> usize {
        self.lock().order.len()
    }
}

#[cfg(test)]
impl<M: Mapper> Shown<M> {
    /// How many chunks are mapped now.
    pub(super) fn mapped(&self) -> usize {
        self.inner.mapped()
    }
}
