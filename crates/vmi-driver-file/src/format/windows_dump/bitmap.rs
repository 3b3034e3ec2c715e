//! Dumps with a bitmap: pages whose bit is set, packed in the order of their numbers.
//!
//! The bitmap stays in the file. Where its pages make few runs they are shown as such, and can be read in place; where they are scattered
//! they are found by counting bits, from a sum for every few of them.

use vmi_core::{MemoryMap, PAGE_SIZE, PhysAddr};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::runs::{Run, place};
use crate::FormatError;
use crate::image::{Image, Input};
use crate::packed_memory::{Block, Blocks};
use crate::source::Source;

/// What is before the bitmap: `SUMMARY_DUMP`, the same in 32- and 64-bit dumps (LeechCore, device_file.c; kdmp-parser, structs.rs).
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    /// `SDMP`, or `FDMP` if the memory of processes is in it.
    magic: [u8; 4],
    valid: [u8; 4],
    unknown: [u8; 24],
    /// Where the first page is in the file.
    pages_at: U64,
    /// How many pages there are.
    pages: U64,
    /// How many bits.
    bits: U64,
}

/// The most pages that a bitmap may speak of: 16 TiB of memory.
const MAX_BITS: u64 = 1 << 32;

/// The most runs that are worth reading in place.
const MAX_RUNS: usize = 1 << 18;

/// Bits that share one sum: 4 KiB of the bitmap.
const CHUNK: u64 = 1 << 15;

/// Reads the memory that a bitmap at `offset` tells of.
pub(super) fn read(input: Input<'_>, offset: u64) -> Result<Image, FormatError> {
    let header: Header = input.source.read(offset, "the header of the bitmap")?;
    let malformed = |at: u64, what: String| FormatError::Malformed { offset: offset.saturating_add(at), what };
    if !matches!(&header.magic, b"SDMP" | b"FDMP") || &header.valid != b"DUMP" {
        return Err(malformed(0, "no header of a bitmap of pages (SDMP or FDMP) behind the header".to_owned()));
    }
    let (bits, pages_at) = (header.bits.get(), header.pages_at.get());
    if bits > MAX_BITS {
        return Err(malformed(0x30, format!("a bitmap of {bits:#x} pages is more than any machine has")));
    }
    let at = offset.saturating_add(size_of::<Header>() as u64);
    if at.saturating_add(bits.div_ceil(8)) > pages_at {
        return Err(malformed(0x20, format!("the first page at {pages_at:#x} lies within the bitmap")));
    }
    let bitmap = Bitmap { source: input.source.clone(), at, bits };
    let mut sums = Vec::new();
    let (mut pages, mut runs) = (0u64, Vec::new());
    for chunk in 0..bits.div_ceil(CHUNK) {
        sums.push(pages);
        let words = bitmap.words(chunk)?;
        pages = words.iter().fold(pages, |pages, word| pages.saturating_add(word.count_ones().into()));
        if runs.len() <= MAX_RUNS {
            add_runs(&words, chunk.saturating_mul(CHUNK), &mut runs);
        }
    }
    if pages != header.pages.get() {
        tracing::warn!(pages, promised = header.pages.get(), "the bitmap has another number of pages than its header says");
    }
    if runs.len() <= MAX_RUNS {
        return Ok(Image::of(input, place(input, pages_at, runs)?));
    }
    let len = pages.saturating_mul(PAGE_SIZE);
    let present = input.present(pages_at, len, || format!("the {pages} pages of the bitmap"))?;
    let scattered = Scattered { bitmap, sums, pages_at, present: present.checked_div(PAGE_SIZE).unwrap_or_default() };
    Ok(Image { packed: Some(Box::new(scattered)), ..Image::default() })
}

/// A bit for each page.
#[derive(Debug)]
struct Bitmap {
    source: Source,
    at: u64,
    bits: u64,
}

impl Bitmap {
    /// The bits of one chunk, in words of 64.
    fn words(&self, chunk: u64) -> Result<Vec<u64>, FormatError> {
        let first = chunk.saturating_mul(CHUNK);
        let bits = self.bits.saturating_sub(first).min(CHUNK);
        let offset = self.at.saturating_add(first.div_ceil(8));
        let bytes = self.source.get(offset, bits.div_ceil(8), "the bitmap of pages")?;
        let mut words: Vec<u64> = bytes.chunks(8).map(word).collect();
        // Bits behind the last one mean nothing.
        let used = (bits % 64) as u32;
        if used != 0
            && let Some(last) = words.last_mut()
        {
            *last &= below(used);
        }
        Ok(words)
    }
}

/// Up to eight bytes as a number.
fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

/// The bits below this one.
fn below(bit: u32) -> u64 {
    !u64::MAX.checked_shl(bit).unwrap_or_default()
}

/// Adds the runs of set bits in `words`, the first of which stands for the page `first`.
fn add_runs(words: &[u64], first: u64, runs: &mut Vec<Run>) {
    let mut page = first;
    for &word in words {
        let mut rest = word;
        let mut at = page;
        while rest != 0 {
            let zeros = rest.trailing_zeros();
            rest = rest.wrapping_shr(zeros);
            at = at.saturating_add(zeros.into());
            let ones = rest.trailing_ones();
            match runs.last_mut() {
                Some(last) if last.first.saturating_add(last.count) == at => last.count = last.count.saturating_add(ones.into()),
                _ => runs.push(Run { first: at, count: ones.into() }),
            }
            rest = rest.checked_shr(ones).unwrap_or_default();
            at = at.saturating_add(ones.into());
        }
        page = page.saturating_add(64);
    }
}

/// Pages in so many runs that they are looked up in the bitmap. A block is a run within one word of it.
#[derive(Debug)]
struct Scattered {
    bitmap: Bitmap,
    /// For each chunk, how many pages are before it.
    sums: Vec<u64>,
    pages_at: u64,
    /// How many of the pages are in the file.
    present: u64,
}

impl Scattered {
    fn block(&self, page: u64) -> Option<Block> {
        let chunk = page.checked_div(CHUNK)?;
        // The bitmap has been read once, and files do not shrink.
        let words = self.bitmap.words(chunk).ok()?;
        let within = page.checked_rem(CHUNK)?;
        let index = usize::try_from(within.checked_div(64)?).ok()?;
        let (before, rest) = words.split_at_checked(index)?;
        let word = *rest.first()?;
        let bit = (within % 64) as u32;
        if word.wrapping_shr(bit) & 1 == 0 {
            return None;
        }
        // From the next zero below on there are ones.
        let low = 64u32.saturating_sub((!word & below(bit)).leading_zeros());
        let count = u64::from(word.wrapping_shr(low).trailing_ones());
        let rank = before.iter().fold(0u64, |sum, word| sum.saturating_add(word.count_ones().into()));
        let rank = rank.saturating_add((word & below(low)).count_ones().into());
        let rank = rank.saturating_add(*self.sums.get(usize::try_from(chunk).ok()?)?);
        let first = page.checked_sub(u64::from(bit.checked_sub(low)?))?;
        let count = count.min(self.present.saturating_sub(rank));
        let region =
            Run { first, count }.region().filter(|region| region.contains(PhysAddr::new(page.saturating_mul(PAGE_SIZE))))?;
        Some(Block { region, id: self.pages_at.saturating_add(rank.saturating_mul(PAGE_SIZE)) })
    }
}

impl Blocks for Scattered {
    fn memory(&self) -> MemoryMap {
        let mut left = self.present;
        let mut runs = Vec::new();
        for chunk in 0..self.bitmap.bits.div_ceil(CHUNK) {
            add_runs(&self.bitmap.words(chunk).unwrap_or_default(), chunk.saturating_mul(CHUNK), &mut runs);
        }
        MemoryMap::new(runs.into_iter().filter_map(|run| {
            let count = run.count.min(left);
            left = left.saturating_sub(count);
            Run { count, ..run }.region()
        }))
    }

    fn block_at(&self, at: PhysAddr) -> Option<Block> {
        self.block(at.gfn().get())
    }

    fn unpack(&self, block: Block, out: &mut [u8]) -> Result<(), FormatError> {
        self.bitmap.source.read_at(block.id, out, "a page")
    }
}
