//! Which frames are mapped for guest-physical pages: the same for HVM and PVH, machine frames for PV.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use vmi_core::{PAGE_SIZE, PhysAddr, Region, Result};

use crate::failure::Failures;
use crate::foreign_memory::Frames;
use crate::libraries::foreign_memory::ForeignMemory;
use crate::p2m::{Anchor, MachineFrames, NONE, P2m, P2mError, Page};

/// The frames of HVM and PVH domains: Xen knows their guest-physical ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Same;

impl Frames for Same {
    fn frames(&self, first: u64, count: usize, frames: &mut Vec<u64>) -> Result<()> {
        frames.extend((first..).take(count));
        Ok(())
    }
}

/// Machine frames of a PV domain.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) memory: Arc<ForeignMemory>,
    pub(crate) domain: u32,
    pub(crate) failures: Failures,
}

/// Frames that are mapped at once.
const BATCH: usize = 512;

impl MachineFrames for Machine {
    fn read(&self, frames: &[u64], visit: &mut dyn FnMut(usize, &Page)) -> Result<()> {
        for (start, part) in (0..).step_by(BATCH).zip(frames.chunks(BATCH)) {
            let mapped = self
                .memory
                .map(self.domain, part, false)
                .map_err(|error| self.failures.call("mapping its list of machine frames", error))?;
            let mut page: Page = [0; PAGE_SIZE as usize];
            for index in 0..part.len() {
                if mapped.copy(index, &mut page) {
                    visit(usize::saturating_add(start, index), &page);
                }
            }
        }
        Ok(())
    }
}

/// How long after it was read the whole list is not read anew, when it lacks something: ten times what reading took, so that a guest that names frames which are not its own costs
/// little, but not so long that a list of tasks which such a page belongs to is given up.
fn patience(took: Duration) -> Duration {
    took.saturating_mul(10).clamp(Duration::from_millis(10), Duration::from_millis(500))
}

/// When the list was read last, and how long that took.
#[derive(Clone, Copy, Debug)]
struct Reading {
    ended: Instant,
    took: Duration,
}

/// The two-way list of a PV domain, kept up to date.
#[derive(Debug)]
pub(crate) struct Paravirtual {
    machine: Machine,
    /// The page that the domain shares with Xen.
    shared: u64,
    /// Pages that the domain has by Xen's word.
    pages: u64,
    list: RwLock<P2m>,
    /// Held while the list is read anew: whoever lacks a frame meanwhile waits for it.
    last: Mutex<Reading>,
    /// How often it was read anew.
    readings: AtomicU64,
}

impl Paravirtual {
    /// Reads the list.
    pub(crate) fn new(machine: Machine, shared: u64, pages: u64) -> Result<Self, P2mError> {
        let began = Instant::now();
        let list = RwLock::new(Self::read(&machine, shared, pages)?);
        let last = Mutex::new(Reading { ended: Instant::now(), took: began.elapsed() });
        Ok(Self { machine, shared, pages, list, last, readings: AtomicU64::new(0) })
    }

    fn read(machine: &Machine, shared: u64, pages: u64) -> Result<P2m, P2mError> {
        P2m::read(machine, &anchor(machine, shared)?, pages)
    }

    /// Where the domain has memory.
    pub(crate) fn regions(&self) -> Vec<Region> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        let region =
            |(first, count): (u64, u64)| Region::new(PhysAddr::new(first.checked_mul(PAGE_SIZE)?), count.checked_mul(PAGE_SIZE)?);
        list.runs().into_iter().filter_map(region).collect()
    }

    /// Reads the list anew, unless that was done just now. Says whether it is another one than after so many readings.
    fn refresh(&self, readings: u64) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if self.readings.load(Ordering::Acquire) != readings {
            return true;
        }
        if last.ended.elapsed() < patience(last.took) {
            return false;
        }
        let began = Instant::now();
        let read = Self::read(&self.machine, self.shared, self.pages);
        *last = Reading { ended: Instant::now(), took: began.elapsed() };
        match read {
            Ok(new) => *self.list.write().unwrap_or_else(PoisonError::into_inner) = new,
            Err(error) => {
                tracing::warn!(%error, "the list of machine frames cannot be read anew");
                return false;
            }
        }
        self.readings.fetch_add(1, Ordering::Release);
        true
    }

    /// The page that a machine frame is, or `None` if it is none of the domain's.
    pub(crate) fn page(&self, frame: u64) -> Option<u64> {
        let readings = self.readings.load(Ordering::Acquire);
        let look = || self.list.read().unwrap_or_else(PoisonError::into_inner).page(frame);
        look().or_else(|| self.refresh(readings).then(look).flatten())
    }

    /// Whether the domain has changed where its list is since it was read.
    fn is_moved(&self) -> bool {
        let known = self.list.read().unwrap_or_else(PoisonError::into_inner).generation;
        anchor(&self.machine, self.shared).is_ok_and(|anchor| anchor.generation != known)
    }
}

fn anchor(machine: &Machine, shared: u64) -> Result<Anchor, P2mError> {
    let mut anchor = None;
    machine.read(&[shared], &mut |_, page| anchor = Some(Anchor::of(page))).map_err(P2mError::Map)?;
    anchor.ok_or(P2mError::Unreadable { frame: shared, what: "the page that it shares with Xen" })
}

/// The frames as the domain has them now: the part of its list is read each time.
impl Frames for Arc<Paravirtual> {
    fn frames(&self, first: u64, count: usize, frames: &mut Vec<u64>) -> Result<()> {
        const ENTRIES: u64 = PAGE_SIZE / 8;
        let readings = self.readings.load(Ordering::Acquire);
        if self.is_moved() {
            self.refresh(readings);
        }
        let list_frame = |page: u64| {
            let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
            usize::try_from(page / ENTRIES).ok().and_then(|index| list.list.get(index)).copied().unwrap_or(NONE)
        };
        let end = frames.len().saturating_add(count);
        // A chunk has fewer pages than a page of the list has entries, and is aligned: it lies in one page of the list.
        let frame = list_frame(first);
        if frame != NONE {
            let skip = (first % ENTRIES) as usize;
            let before = frames.len();
            self.machine.read(&[frame], &mut |_, page| frames.extend(P2m::entries(page, skip, count)))?;
            if frames.len() == before {
                tracing::debug!(frame, first, "a page of the list of machine frames cannot be mapped");
            }
        }
        frames.resize(end, NONE);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_read_soon_is_read_often() {
        let milliseconds = Duration::from_millis;
        assert_eq!(patience(Duration::ZERO), milliseconds(10));
        assert_eq!(patience(milliseconds(5)), milliseconds(50));
        assert_eq!(patience(Duration::MAX), milliseconds(500));
    }
}
