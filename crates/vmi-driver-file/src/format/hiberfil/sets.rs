//! Compression sets: up to 16 pages, packed together with Xpress, or stored.
//!
//! A set is a word with the number of its descriptors (8 bits), the length of its data (20 bits) and its algorithm (the top 2 bits), then the
//! descriptors, one for each run of pages (number of pages - 1 in 4 bits, first page above), then its data.

use std::sync::Arc;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use vmi_core::{MemoryMap, PAGE_SIZE, PhysAddr, Region};
use zerocopy::little_endian::{U32, U64};

use super::header::RestoreSet;
use super::lz77;
use crate::FormatError;
use crate::claims::Claims;
use crate::image::Input;
use crate::packed_memory::{Block, Blocks};
use crate::source::Source;

/// The most pages of a set.
const MAX_PAGES: u64 = 16;
/// A set in which a bit of these is set has Huffman codes.
const HUFFMAN: u32 = 0xc000_0000;
/// The most sets and runs: 1 TiB in full sets, an index of 512 MiB.
const MAX_SETS: usize = 1 << 24;
const MAX_RUNS: usize = 1 << 26;

/// A run of pages in one number, so that the index of a large machine is small: first page (36 bits), set (24), pages - 1 (4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Run(u64);

impl Run {
    /// `None` if the first page is beyond 2^48 bytes.
    fn new(first: u64, set: usize, pages: u64) -> Option<Self> {
        (first >> 36 == 0).then(|| Self(first << 28 | (set as u64 & 0xff_ffff) << 4 | pages.saturating_sub(1) & 15))
    }

    const fn first(self) -> u64 {
        self.0 >> 28
    }

    const fn set(self) -> u64 {
        self.0 >> 4 & 0xff_ffff
    }

    const fn end(self) -> u64 {
        self.first().saturating_add(self.0 & 15).saturating_add(1)
    }

    fn region(self) -> Option<Region> {
        let len = self.end().saturating_sub(self.first()).saturating_mul(PAGE_SIZE);
        Region::new(PhysAddr::new(self.first().saturating_mul(PAGE_SIZE)), len)
    }
}

/// What is before the data of a set.
struct SetHeader {
    /// First page and number of pages of each run.
    runs: Vec<(u64, u64)>,
    /// Where the data is.
    offset: u64,
    len: u64,
    huffman: bool,
}

impl SetHeader {
    /// Reads the header at `offset`; `None` if there are zeros instead.
    fn read(source: &Source, offset: u64, wide: bool) -> Result<Option<Self>, FormatError> {
        const WORD: u64 = size_of::<U32>() as u64;
        let malformed = |what: String| FormatError::Malformed { offset, what };
        let what = "the header of a compression set";
        let word = source.read::<U32>(offset, what)?.get();
        let (count, len) = (u64::from(word & 0xff), u64::from(word >> 8 & 0xf_ffff));
        if word == 0 {
            return Ok(None);
        }
        if count == 0 || count > MAX_PAGES {
            return Err(malformed(format!("a compression set of {count} runs of pages")));
        }
        let (at, width) = (offset.saturating_add(WORD), if wide { size_of::<U64>() } else { size_of::<U32>() });
        let descriptors = source.get(at, count.saturating_mul(width as u64), what)?;
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
        let runs: Vec<(u64, u64)> =
            descriptors.chunks(width).map(number).map(|run| (run >> 4, (run & 15).saturating_add(1))).collect();
        let pages = runs.iter().fold(0u64, |sum, (_, pages)| sum.saturating_add(*pages));
        if pages > MAX_PAGES || len == 0 || len > pages.saturating_mul(PAGE_SIZE) {
            return Err(malformed(format!("a compression set of {pages} pages in {len:#x} bytes")));
        }
        let offset = at.saturating_add(descriptors.len() as u64);
        Ok(Some(Self { runs, offset, len, huffman: word & HUFFMAN != 0 }))
    }

    fn pages(&self) -> u64 {
        self.runs.iter().fold(0, |sum, (_, pages)| sum.saturating_add(*pages))
    }
}

/// Finds all sets.
pub(super) struct Builder<'i> {
    input: Input<'i>,
    wide: bool,
    /// Where each is in the file.
    sets: Vec<u64>,
    runs: Vec<Run>,
}

impl<'i> Builder<'i> {
    pub(super) fn new(input: Input<'i>, wide: bool) -> Self {
        Self { input, wide, sets: Vec::new(), runs: Vec::new() }
    }

    /// Follows the chain of a restore set.
    pub(super) fn add(&mut self, restore_set: RestoreSet) -> Result<(), FormatError> {
        let RestoreSet { whose, mut offset, pages: mut left } = restore_set;
        let input = self.input;
        while left > 0 {
            let what = || format!("the {whose} restore set, of which {left} pages are still to come,");
            if input.present(offset, size_of::<U32>() as u64, what)? < size_of::<U32>() as u64 {
                break;
            }
            let set = match SetHeader::read(input.source, offset, self.wide) {
                Ok(Some(set)) => set,
                Ok(None) if input.options.allow_truncated => {
                    tracing::warn!(whose, left, "zeros in a restore set: it is not whole");
                    break;
                }
                Ok(None) => {
                    let what = format!("zeros in the {whose} restore set, of which {left} pages are still to come");
                    return Err(FormatError::Malformed { offset, what });
                }
                Err(FormatError::Truncated { .. }) if input.options.allow_truncated => break,
                Err(error) => return Err(error),
            };
            if input.present(set.offset, set.len, what)? < set.len {
                break;
            }
            self.push(offset, &set)?;
            left = left.saturating_sub(set.pages());
            offset = set.offset.saturating_add(set.len);
        }
        Ok(())
    }

    fn push(&mut self, offset: u64, set: &SetHeader) -> Result<(), FormatError> {
        let malformed = |what: String| FormatError::Malformed { offset, what };
        if self.sets.len() >= MAX_SETS || self.runs.len() >= MAX_RUNS {
            return Err(malformed("more compression sets than can be kept track of".to_owned()));
        }
        for &(first, pages) in &set.runs {
            let run = Run::new(first, self.sets.len(), pages).ok_or_else(|| malformed(format!("a page of number {first:#x}")))?;
            self.runs.push(run);
        }
        self.sets.push(offset);
        Ok(())
    }

    /// The memory of all sets.
    pub(super) fn finish(mut self) -> Sets {
        self.runs.sort_unstable();
        if self.runs.is_sorted_by(|low, high| low.end() <= high.first()) {
            self.runs.shrink_to_fit();
        } else {
            self.runs = disjoint(self.runs);
        }
        let Self { input, wide, sets, runs } = self;
        let cache = Cache::builder().max_capacity(UNPACKED_SETS).eviction_policy(EvictionPolicy::lru()).build();
        Sets { source: input.source.clone(), wide, sets, runs, cache }
    }
}

/// Each page once: the set that is restored last holds it.
fn disjoint(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable_by_key(|run| core::cmp::Reverse(run.set()));
    let mut claims = Claims::default();
    let mut parts = Vec::with_capacity(runs.len());
    for run in runs {
        for part in run.region().into_iter().flat_map(|region| claims.claim(region)) {
            let pages = part.len().div_ceil(PAGE_SIZE);
            parts.extend(Run::new(part.start().gfn().get(), run.set() as usize, pages));
        }
    }
    parts.sort_unstable();
    parts
}

/// Sets that are kept unpacked: 8 MiB. Pages of one set may be far from each other, and are asked for one after the other.
const UNPACKED_SETS: u64 = 128;

/// The memory of a hibernation file. A block is a run of pages; its number is that of the set.
pub(super) struct Sets {
    source: Source,
    wide: bool,
    sets: Vec<u64>,
    /// Sorted and disjoint.
    runs: Vec<Run>,
    /// Sets of several runs, by number.
    cache: Cache<u64, Arc<[u8]>>,
}

impl Sets {
    fn unpack_set(&self, set: &SetHeader, out: &mut [u8]) -> Result<(), FormatError> {
        let data = self.source.get(set.offset, set.len, "a compression set")?;
        let damaged = |what, why: String| FormatError::Damaged { what, offset: set.offset, why };
        if data.len() == out.len() {
            out.copy_from_slice(&data);
        } else if set.huffman {
            // The decoder stops when it has taken the last word of its input, and the bits that it has not looked at yet are lost. It takes
            // two words ahead ([MS-XCA] 2.2.4).
            let padded = [&data[..], &[0; 4]].concat();
            let unpacked =
                xpress_huffman::decompress(&padded, out.len()).map_err(|why| damaged("Xpress Huffman", why.to_string()))?;
            let unpacked = unpacked.get(..out.len()).ok_or_else(|| damaged("Xpress Huffman", "ends too early".to_owned()))?;
            out.copy_from_slice(unpacked);
        } else {
            lz77::unpack(&data, out).map_err(|why| damaged("Xpress", why.to_owned()))?;
        }
        Ok(())
    }
}

impl Blocks for Sets {
    fn memory(&self) -> MemoryMap {
        MemoryMap::new(self.runs.iter().filter_map(|run| run.region()))
    }

    fn block_at(&self, at: PhysAddr) -> Option<Block> {
        let page = at.gfn().get();
        let index = self.runs.partition_point(|run| run.first() <= page).checked_sub(1)?;
        let run = self.runs.get(index).filter(|run| page < run.end())?;
        Some(Block { region: run.region()?, id: run.set() })
    }

    fn unpack(&self, block: Block, out: &mut [u8]) -> Result<(), FormatError> {
        let offset = usize::try_from(block.id).ok().and_then(|set| self.sets.get(set)).copied().unwrap_or_default();
        let gone = || FormatError::Malformed { offset, what: "the compression set is another one than before".to_owned() };
        let set = SetHeader::read(&self.source, offset, self.wide)?.ok_or_else(gone)?;
        let len = usize::try_from(set.pages().saturating_mul(PAGE_SIZE)).map_err(|_| gone())?;
        if let [_] = *set.runs
            && len == out.len()
        {
            return self.unpack_set(&set, out);
        }
        let bytes = match self.cache.get(&block.id) {
            Some(bytes) => bytes,
            None => {
                let mut bytes = vec![0; len];
                self.unpack_set(&set, &mut bytes)?;
                let bytes: Arc<[u8]> = bytes.into();
                self.cache.insert(block.id, Arc::clone(&bytes));
                bytes
            }
        };
        // The block is a run of the set, or a part of one.
        let wanted = block.region.start().gfn().get();
        let mut before = 0u64;
        for &(first, pages) in &set.runs {
            if let Some(within) = wanted.checked_sub(first).filter(|&within| within < pages) {
                let start = before.saturating_add(within).saturating_mul(PAGE_SIZE) as usize;
                let pages = bytes.get(start..start.saturating_add(out.len())).ok_or_else(gone)?;
                out.copy_from_slice(pages);
                return Ok(());
            }
            before = before.saturating_add(pages);
        }
        Err(gone())
    }
}

impl core::fmt::Debug for Sets {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Sets").field("sets", &self.sets.len()).field("runs", &self.runs.len()).finish_non_exhaustive()
    }
}
