//! Which frames are mapped for guest-physical pages: the same for HVM and PVH, machine frames for PV.

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

/// How often the whole list is read anew at most, when it lacks something.
const PATIENCE: Duration = Duration::from_millis(500);

/// The two-way list of a PV domain, kept up to date.
#[derive(Debug)]
pub(crate) struct Paravirtual {
    machine: Machine,
    /// The page that the domain shares with Xen.
    shared: u64,
    /// Pages that the domain has by Xen's word.
    pages: u64,
    list: RwLock<P2m>,
    read_at: Mutex<Instant>,
}

impl Paravirtual {
    /// Reads the list.
    pub(crate) fn new(machine: Machine, shared: u64, pages: u64) -> Result<Self, P2mError> {
        let list = Self::read(&machine, shared, pages)?;
        Ok(Self { machine, shared, pages, list: RwLock::new(list), read_at: Mutex::new(Instant::now()) })
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

    /// Reads the list anew, unless that was done just now. Says whether it was.
    fn refresh(&self) -> bool {
        {
            let mut read_at = self.read_at.lock().unwrap_or_else(PoisonError::into_inner);
            if read_at.elapsed() < PATIENCE {
                return false;
            }
            *read_at = Instant::now();
        }
        match Self::read(&self.machine, self.shared, self.pages) {
            Ok(new) => *self.list.write().unwrap_or_else(PoisonError::into_inner) = new,
            Err(error) => {
                tracing::warn!(%error, "the list of machine frames cannot be read anew");
                return false;
            }
        }
        true
    }

    /// The page that a machine frame is, or `None` if it is none of the domain's.
    pub(crate) fn page(&self, frame: u64) -> Option<u64> {
        let look = || self.list.read().unwrap_or_else(PoisonError::into_inner).page(frame);
        look().or_else(|| self.refresh().then(look).flatten())
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
        if self.is_moved() {
            self.refresh();
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
            self.machine.read(&[frame], &mut |_, page| frames.extend(P2m::entries(page, skip, count)))?;
        }
        frames.resize(end, NONE);
        Ok(())
    }
}
