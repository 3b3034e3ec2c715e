//! The packed pages of a dump.

use core::ops::Range;

use vmi_core::{MemoryMap, PAGE_SIZE, PhysAddr, Region};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::codec;
use super::page_set::PageSet;
use crate::FormatError;
use crate::packed_memory::{Block, Blocks};
use crate::source::Source;

/// Where a packed page is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Descriptor {
    pub(crate) offset: U64,
    pub(crate) size: U32,
    /// How it is packed.
    pub(crate) flags: U32,
    /// Never used.
    pub(crate) page_flags: U64,
}

const DESCRIPTOR: u64 = size_of::<Descriptor>() as u64;
/// Descriptors that are read at once where many are.
const STEP: u64 = 4096;

/// A file with some of the pages.
#[derive(Debug)]
pub(super) struct Part {
    source: Source,
    /// The pages that it is responsible for.
    range: Range<u64>,
    /// Their ranks.
    ranks: Range<u64>,
    /// Where the descriptor of the first one is.
    descriptors: u64,
}

impl Part {
    pub(super) fn new(source: Source, range: Range<u64>, descriptors: u64, set: &PageSet) -> Self {
        let ranks = set.rank(range.start).0..set.rank(range.end).0;
        Self { source, range, ranks, descriptors }
    }

    /// Where the descriptor of the page with this rank is.
    fn descriptor_at(&self, rank: u64) -> u64 {
        rank.saturating_sub(self.ranks.start).saturating_mul(DESCRIPTOR).saturating_add(self.descriptors)
    }

    /// The descriptors of the pages with these ranks, which are at most [`STEP`].
    fn descriptors(&self, ranks: Range<u64>) -> Result<Vec<Descriptor>, FormatError> {
        let len = ranks.end.saturating_sub(ranks.start).saturating_mul(DESCRIPTOR);
        let bytes = self.source.get(self.descriptor_at(ranks.start), len, "the page descriptors")?;
        Ok(bytes.chunks_exact(DESCRIPTOR as usize).filter_map(|bytes| Descriptor::read_from_bytes(bytes).ok()).collect())
    }

    /// Whether the file has all its pages, told by its end: writers append pages in their order.
    ///
    /// Only the last descriptors are read, for their table is long: back to one whose page is not that of all zeros.
    fn check_end(&self) -> Result<(), FormatError> {
        let table_end = self.descriptor_at(self.ranks.end);
        if let Some(missing @ 1..) = table_end.checked_sub(self.source.len()) {
            return Err(FormatError::Truncated { what: "the page descriptors".to_owned(), missing });
        }
        let mut end = self.ranks.end;
        while end > self.ranks.start {
            let start = end.saturating_sub(STEP).max(self.ranks.start);
            let descriptors = self.descriptors(start..end)?;
            let furthest = descriptors.iter().map(|one| one.offset.get().saturating_add(one.size.get().into())).max();
            if let Some(missing @ 1..) = furthest.unwrap_or_default().checked_sub(self.source.len()) {
                return Err(FormatError::Truncated { what: "the packed pages".to_owned(), missing });
            }
            if descriptors.windows(2).any(|pair| matches!(pair, [a, b] if a.offset != b.offset)) {
                break;
            }
            end = start;
        }
        Ok(())
    }

    /// Adds those of its pages to `lost` that are not in the file.
    fn find_lost(&self, set: &PageSet, lost: &mut PageSet) -> Result<(), FormatError> {
        let mut pages = set.iter().skip_while(|page| *page < self.range.start);
        let mut start = self.ranks.start;
        while start < self.ranks.end {
            let end = start.saturating_add(STEP).min(self.ranks.end);
            // The table itself may be cut.
            let there = self.source.len().saturating_sub(self.descriptor_at(start)) / DESCRIPTOR;
            let mut descriptors = self.descriptors(start..end.min(start.saturating_add(there)))?.into_iter();
            for page in pages.by_ref().take(end.saturating_sub(start) as usize) {
                if descriptors.next().is_none_or(|descriptor| !self.has(descriptor)) {
                    lost.add_last(page);
                }
            }
            start = end;
        }
        Ok(())
    }

    fn has(&self, descriptor: Descriptor) -> bool {
        let end = descriptor.offset.get().saturating_add(descriptor.size.get().into());
        descriptor.offset.get() != 0 && end <= self.source.len()
    }
}

/// All pages.
#[derive(Debug)]
pub(super) struct Pages {
    set: PageSet,
    parts: Vec<Part>,
    /// Pages that should be in the file and are not.
    lost: PageSet,
}

impl Pages {
    /// Checks that all pages are there, or finds out which are if that is allowed.
    pub(super) fn new(set: PageSet, parts: Vec<Part>, incomplete: bool, allow_truncated: bool) -> Result<Self, FormatError> {
        let checked = parts.iter().try_for_each(Part::check_end);
        let mut lost = PageSet::default();
        match checked {
            Ok(()) if !incomplete => {}
            Err(error @ FormatError::Truncated { .. }) if !allow_truncated => return Err(error),
            Ok(()) | Err(FormatError::Truncated { .. }) => {
                parts.iter().try_for_each(|part| part.find_lost(&set, &mut lost))?;
                if lost.len() > 0 && !allow_truncated {
                    let what = "memory, as its writer says".to_owned();
                    return Err(FormatError::Truncated { what, missing: lost.len().saturating_mul(PAGE_SIZE) });
                }
                tracing::warn!(pages = lost.len(), "the dump is cut short");
            }
            Err(error) => return Err(error),
        }
        Ok(Self { set, parts, lost })
    }
}

impl Blocks for Pages {
    fn memory(&self) -> MemoryMap {
        let ranges: Vec<_> = self.parts.iter().map(|part| part.range.clone()).collect();
        MemoryMap::new(self.set.regions(&ranges, &self.lost))
    }

    fn block_at(&self, at: PhysAddr) -> Option<Block> {
        let page = at.get() / PAGE_SIZE;
        let (rank, there) = self.set.rank(page);
        let known = there && self.parts.iter().any(|part| part.range.contains(&page));
        let region = Region::new(PhysAddr::new(page.checked_mul(PAGE_SIZE)?), PAGE_SIZE)?;
        (known && (self.lost.len() == 0 || !self.lost.rank(page).1)).then_some(Block { region, id: rank })
    }

    fn unpack(&self, block: Block, out: &mut [u8]) -> Result<(), FormatError> {
        let page = block.region.start().get() / PAGE_SIZE;
        let part = self.parts.iter().find(|part| part.range.contains(&page)).ok_or(FormatError::NoMemory)?;
        let at = part.descriptor_at(block.id);
        let descriptor: Descriptor = part.source.read(at, "a page descriptor")?;
        if descriptor.offset.get() == 0 {
            return Err(super::malformed(at, format!("page {page:#x} has an empty descriptor")));
        }
        codec::unpack(&part.source, descriptor, out)
    }
}
