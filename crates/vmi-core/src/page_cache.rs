//! The page cache of back ends that do not map guest RAM.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use moka::policy::EvictionPolicy;

use crate::{Driver, Gfn, PAGE_SIZE, PhysAddr, Result};

type Page = [u8; PAGE_SIZE as usize];

/// Whole pages of guest memory, bounded, keyed by frame and by the epoch in which they were read.
#[derive(Debug)]
pub(crate) struct PageCache {
    pages: moka::sync::Cache<(Gfn, u64), Arc<Page>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// How a page cache has fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCacheCounters {
    /// Pages that were in the cache.
    pub hits: u64,
    /// Pages that were read from the back end.
    pub misses: u64,
}

impl PageCache {
    /// A cache of at most `bytes`; below one page it caches nothing.
    pub(crate) fn new(bytes: u64) -> Self {
        let pages = bytes.checked_div(PAGE_SIZE).unwrap_or_default();
        // By moka's own policy, pages that were read often would keep out those that are read now: for good, if they are of an epoch that is over.
        let pages = moka::sync::Cache::builder().max_capacity(pages).eviction_policy(EvictionPolicy::lru()).build();
        Self { pages, hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    pub(crate) fn counters(&self) -> PageCacheCounters {
        PageCacheCounters { hits: self.hits.load(Ordering::Relaxed), misses: self.misses.load(Ordering::Relaxed) }
    }

    /// Reads `buf` at `at` page by page, from the cache or from the driver.
    pub(crate) fn read<D: Driver>(&self, driver: &D, epoch: u64, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        let len = buf.len();
        let mut done = 0usize;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let here = at.checked_add(done as u64).ok_or_else(|| crate::Address::out_of_range(at, len).after(done))?;
            let start = here.page_offset() as usize;
            let piece = (PAGE_SIZE as usize).saturating_sub(start).min(rest.len());
            let Some(target) = rest.get_mut(..piece) else { break };
            let page = match self.known(epoch, here.gfn()) {
                // Whoever reads a whole page has it, and would but fill the cache.
                None if piece == PAGE_SIZE as usize => None,
                None => self.fetch(driver, epoch, here.gfn()),
                known => known,
            };
            match page {
                Some(page) => {
                    if let Some(source) = page.get(start..start.saturating_add(piece)) {
                        target.copy_from_slice(source);
                    }
                }
                // Of a page that is not whole, the driver says what there is, and why not the rest.
                None => driver.read(here, target).map_err(|error| error.after(done))?,
            }
            done = done.saturating_add(piece);
        }
        Ok(())
    }

    fn known(&self, epoch: u64, gfn: Gfn) -> Option<Arc<Page>> {
        let page = self.pages.get(&(gfn, epoch));
        let counter = if page.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        page
    }

    /// Reads a page that is not known.
    fn fetch<D: Driver>(&self, driver: &D, epoch: u64, gfn: Gfn) -> Option<Arc<Page>> {
        let mut page: Page = [0; PAGE_SIZE as usize];
        driver.read(gfn.address()?, &mut page).ok()?;
        let page = Arc::new(page);
        self.pages.insert((gfn, epoch), Arc::clone(&page));
        Some(page)
    }
}
