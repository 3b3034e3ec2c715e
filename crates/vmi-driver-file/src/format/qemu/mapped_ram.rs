//! Memory at fixed places of the file (capability `mapped-ram`, QEMU 9.0): docs/devel/migration/mapped-ram.rst.
//!
//! Behind each block's entry in the list come a header, a bitmap with a bit for each page that was stored, and from a multiple of 1 MiB on
//! the pages, each at its own place. Where the bit is not set, the page is zero, whatever the file has there: a page of a running guest may have been
//! stored before it became zero.

use core::ops::Range;
use std::path::Path;

use vmi_core::{Piece, Region};

use super::cursor::Cursor;
use super::layout::Place;
use super::page_runs::{PAGE, PAGE_BITS};
use super::ram::Block;
use crate::FormatError;
use crate::image::{Image, Input, Part};
use crate::source::Source;
use crate::sparse::{self, is_zero};

/// Where a block's pages are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fixed {
    bitmap: u64,
    pages: u64,
}

const VERSION: u32 = 1;
/// The bitmap is made of words of this many bytes, little-endian as the machine.
const WORD: u64 = 8;

impl Fixed {
    /// Reads the header behind the entry of block `name`, and goes to the next entry.
    pub(super) fn read(cursor: &mut Cursor<'_>, name: &str, len: u64) -> Result<Self, FormatError> {
        const WHAT: &str = "the header of a memory block";
        let offset = cursor.at();
        let malformed = |what: String| FormatError::Malformed { offset, what };
        let (version, page_size) = (cursor.word(WHAT)?, cursor.long(WHAT)?);
        let (bitmap, pages) = (cursor.long(WHAT)?, cursor.long(WHAT)?);
        if version != VERSION || page_size != PAGE {
            return Err(malformed(format!("version {version} with pages of {page_size} bytes of the block `{name}`'s header")));
        }
        let bitmap_end = bitmap.saturating_add(bitmap_len(len));
        if bitmap < cursor.at() || pages < bitmap_end {
            return Err(malformed(format!("bitmap at {bitmap:#x} and pages at {pages:#x} of the block `{name}` cannot be")));
        }
        cursor.seek(pages.saturating_add(len));
        Ok(Self { bitmap, pages })
    }

    /// Where a page is in the file; `None` if it is not stored.
    pub(super) fn page(self, source: &Source, number: u64) -> Option<u64> {
        let byte: u8 = source.read(self.bitmap.checked_add(number / 8)?, "a bitmap").ok()?;
        (byte >> (number % 8) & 1 != 0).then(|| self.pages.saturating_add(number << PAGE_BITS))
    }
}

fn bitmap_len(len: u64) -> u64 {
    (len >> PAGE_BITS).div_ceil(WORD.saturating_mul(8)).saturating_mul(WORD)
}

/// Makes pieces of the pages that are stored, and zeros of the others.
pub(super) fn fill(image: &mut Image, input: Input<'_>, blocks: &[Block], places: &[Place]) -> Result<(), FormatError> {
    let mut pieces = Vec::new();
    let holes = Holes::of(input);
    for place in places {
        let Some((block, fixed)) = blocks.get(place.block).and_then(|block| Some((block, block.fixed?))) else { continue };
        let pages = fixed.pages.saturating_add(place.offset);
        // The file goes on behind the pages, be they stored or not.
        let len = input.present(pages, place.region.len(), || format!("the block `{}`", block.name))?;
        for run in runs(input, &holes, block, fixed, place.offset >> PAGE_BITS, len >> PAGE_BITS)? {
            let bytes = run.first << PAGE_BITS;
            let start = place.region.start().checked_add(bytes);
            let Some(region) = start.and_then(|start| Region::new(start, run.end.saturating_sub(run.first) << PAGE_BITS)) else {
                continue;
            };
            if run.stored {
                pieces.push(Piece { region, offset: pages.saturating_add(bytes) });
            } else {
                image.zeros.push(region);
            }
        }
    }
    image.parts.push(Part { source: input.source.clone(), pieces });
    Ok(())
}

/// Pages that are alike, counted from the first page of a place.
#[derive(Clone, Copy)]
struct Run {
    stored: bool,
    first: u64,
    end: u64,
}

/// More runs than the bitmap of 256 GiB has at its worst.
const MOST_RUNS: usize = 1 << 22;

/// What the bitmap says of `count` pages from page `first` of the block on.
fn runs(input: Input<'_>, holes: &Holes, block: &Block, fixed: Fixed, first: u64, count: u64) -> Result<Vec<Run>, FormatError> {
    // Read in steps, so that a header that promises petabytes makes nothing large.
    const STEP: u64 = 64 << 10;
    let mut runs: Vec<Run> = Vec::new();
    let behind = first.saturating_add(count);
    let mut page = first;
    while page < behind {
        let at = fixed.bitmap.saturating_add(page / 8);
        let len = STEP.min(behind.div_ceil(8).saturating_sub(page / 8));
        let bitmap = input.source.get(at, len, &format!("the bitmap of the block `{}`", block.name))?;
        for &byte in bitmap.iter() {
            let end = (page / 8).saturating_add(1).saturating_mul(8).min(behind);
            while page < end {
                let index = page.saturating_sub(first);
                let run = Run { stored: byte >> (page % 8) & 1 != 0, first: index, end: index.saturating_add(1) };
                append(&mut runs, run, |gap| {
                    let start = fixed.pages.saturating_add(first.saturating_add(gap.first) << PAGE_BITS);
                    holes.are_zero(input, start..start.saturating_add(gap.end.saturating_sub(gap.first) << PAGE_BITS))
                });
                page = page.saturating_add(1);
            }
        }
        if runs.len() > MOST_RUNS {
            let what = format!("the bitmap of the block `{}` has more than {MOST_RUNS} changes", block.name);
            return Err(FormatError::Malformed { offset: fixed.bitmap, what });
        }
    }
    Ok(runs)
}

/// A gap between stored pages is mapped with them where the file has zeros there, as it has unless the page became zero late: memory comes in
/// fewer pieces so, mostly in one.
fn append(runs: &mut Vec<Run>, run: Run, is_zero_in_the_file: impl FnOnce(Run) -> bool) {
    match runs.as_mut_slice() {
        [.., last] if last.stored == run.stored => last.end = run.end,
        [.., before, gap] if run.stored && is_zero_in_the_file(*gap) => {
            before.end = run.end;
            runs.pop();
        }
        _ => runs.push(run),
    }
}

/// Where the file has nothing: QEMU never writes pages of zeros.
struct Holes {
    /// What it has, ascending; `None` if that cannot be told.
    data: Option<Vec<Range<u64>>>,
}

impl Holes {
    fn of(input: Input<'_>) -> Self {
        // What is in a container is no file by itself.
        let own = |path: &&Path| path.metadata().is_ok_and(|metadata| metadata.len() == input.source.len());
        Self { data: input.path.filter(own).and_then(|path| sparse::data(path).ok()) }
    }

    /// Whether the bytes `range` of the file are known to be zero, at little cost.
    fn are_zero(&self, input: Input<'_>, range: Range<u64>) -> bool {
        /// As much is looked at where holes do not tell.
        const SHORT: u64 = 16 * PAGE;
        let hole = self.data.as_ref().is_some_and(|data| {
            let next = data.partition_point(|run| run.end <= range.start);
            data.get(next).is_none_or(|run| run.start >= range.end)
        });
        let len = range.end.saturating_sub(range.start);
        // Within a container it would have to be unpacked to be seen.
        let seen = len <= SHORT && matches!(input.source, Source::Mapped(_));
        hole || seen && input.source.get(range.start, len, "a page").is_ok_and(|bytes| is_zero(&bytes))
    }
}
