//! Memory whose pages have records: they lie in the stream as they are, but 4104 bytes apart, so that they are copied when they are read.

use core::fmt;

use vmi_core::{MemoryMap, PhysAddr, Region};

use super::layout::Place;
use super::page_runs::{PAGE, PAGE_BITS, PageRuns, Stored, distance};
use super::ram::Block as RamBlock;
use crate::FormatError;
use crate::packed_memory::{Block, Blocks};
use crate::source::Source;

/// How many pages are copied at once.
const COPIED: u64 = 4;
/// How many pages of zeros make a block.
const ZEROS: u64 = 64;
/// Stands for zeros where an offset would be.
const NO_DATA: u64 = u64::MAX;

/// The pages of all blocks.
pub(super) struct Pages {
    source: Source,
    blocks: Vec<PageRuns>,
    /// In the order of addresses, disjoint.
    places: Vec<Place>,
}

impl Pages {
    /// If not the `whole` stream is there, pages that were never sent are no memory.
    pub(super) fn new(source: Source, blocks: Vec<RamBlock>, places: &[Place], whole: bool) -> Self {
        let sent = |place: &Place| {
            let block = blocks.get(place.block)?;
            let left_out = block.may_be_left_out && block.pages.end() == 0;
            let end = if left_out || !whole { block.pages.end().saturating_mul(PAGE) } else { block.len };
            let len = place.region.len().min(end.saturating_sub(place.offset));
            Some(Place { region: Region::new(place.region.start(), len)?, ..*place })
        };
        let places = places.iter().filter_map(sent).collect();
        Self { source, places, blocks: blocks.into_iter().map(|block| block.pages).collect() }
    }
}

impl Blocks for Pages {
    fn memory(&self) -> MemoryMap {
        MemoryMap::new(self.places.iter().map(|place| place.region))
    }

    fn block_at(&self, at: PhysAddr) -> Option<Block> {
        let index = self.places.partition_point(|place| place.region.end() <= at);
        let place = self.places.get(index).filter(|place| place.region.contains(at))?;
        let within = at.get().checked_sub(place.region.start().get())?;
        let page = place.offset.checked_add(within)? >> PAGE_BITS;
        // From a multiple of their number in the block, so that each has one place in the cache; but not across runs.
        let runs = self.blocks.get(place.block)?;
        let (first, behind) = (place.offset >> PAGE_BITS, place.offset.checked_add(place.region.len())? >> PAGE_BITS);
        let group = |size: u64| {
            let start = (page & size.wrapping_neg()).max(first);
            (start, start.saturating_add(size).min(behind))
        };
        let (mut start, mut end) = group(ZEROS);
        let (_, alike) = runs.at(start, end.saturating_sub(start));
        if runs.at(start, 1).0 != Stored::Zeros || alike < end.saturating_sub(start) {
            (start, end) = group(COPIED);
        }
        // At most four steps.
        loop {
            let (stored, alike) = runs.at(start, end.saturating_sub(start));
            let next = start.saturating_add(alike.max(1));
            if page < next {
                let data = match stored {
                    Stored::At(data) => data,
                    Stored::Zeros => NO_DATA,
                };
                let from = start.saturating_sub(first) << PAGE_BITS;
                let start_at = place.region.start().checked_add(from)?;
                let len = next.saturating_sub(start) << PAGE_BITS;
                return Some(Block { region: Region::new(start_at, len)?, id: data });
            }
            start = next;
        }
    }

    fn unpack(&self, block: Block, out: &mut [u8]) -> Result<(), FormatError> {
        if block.id == NO_DATA {
            out.fill(0);
            return Ok(());
        }
        for (index, page) in (0u64..).zip(out.chunks_mut(PAGE as usize)) {
            self.source.read_at(block.id.saturating_add(distance(index)), page, "a page")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("source", &self.source).field("places", &self.places).finish_non_exhaustive()
    }
}
