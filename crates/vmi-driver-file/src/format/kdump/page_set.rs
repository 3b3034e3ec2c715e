//! Which pages are in a file, and the how-many-th each is.

use core::ops::Range;

use vmi_core::{PAGE_SIZE, PhysAddr, Region};

use super::malformed;
use crate::FormatError;
use crate::source::Source;

/// 64-bit words of the bitmap that are counted together.
const WORDS: usize = 16;
/// Their bits.
const BITS: u64 = 64 * WORDS as u64;
/// Their bytes.
const BYTES: u64 = BITS / 8;
/// How much of the bitmap is read at once.
const STEP: u64 = BYTES << 13;
/// More runs of pages than any dump has: a dump of 64 GiB in which every other page is missing has half as many.
const MAX_RUNS: u64 = 16 << 20;

/// A set of pages. Stretches without any take no room: about 150 bytes for each 4 MiB of memory that has pages.
#[derive(Debug, Default)]
pub(super) struct PageSet {
    /// The stretches of [`BITS`] pages that have any: their numbers, ascending, and how many pages are before them.
    stretches: Vec<Stretch>,
    /// Their bits.
    words: Vec<[u64; WORDS]>,
    len: u64,
}

#[derive(Clone, Copy, Debug)]
struct Stretch {
    number: u64,
    before: u64,
}

impl PageSet {
    /// Reads the bitmap at `offset`, with a bit for each of `pages` pages; the first page's bit is the lowest of the first byte.
    pub(super) fn read(source: &Source, offset: u64, pages: u64) -> Result<Self, FormatError> {
        let len = pages.div_ceil(8);
        let available = source.len().saturating_sub(offset);
        if let Some(missing @ 1..) = len.checked_sub(available) {
            return Err(FormatError::Truncated { what: "the bitmap".to_owned(), missing });
        }
        let (mut set, mut at, mut runs, mut last) = (Self::default(), 0u64, 0u64, 0u64);
        while at < len {
            let bytes = source.get(offset.saturating_add(at), len.saturating_sub(at).min(STEP), "the bitmap")?;
            for (number, bytes) in (at / BYTES..).zip(bytes.chunks(BYTES as usize)) {
                let mut words = [0u64; WORDS];
                for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
                    let mut whole = [0; 8];
                    whole.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                    *word = u64::from_le_bytes(whole);
                }
                // Bits behind the last page are nothing.
                let left = pages.saturating_sub(number.saturating_mul(BITS));
                for (word, before) in words.iter_mut().zip((0u64..).step_by(64)) {
                    *word &= low_bits(left.saturating_sub(before));
                }
                for word in words {
                    runs = runs.saturating_add(u64::from((word & !(word << 1 | last >> 63)).count_ones()));
                    last = word;
                }
                if runs > MAX_RUNS {
                    return Err(malformed(offset.saturating_add(at), format!("more than {MAX_RUNS} runs of pages")));
                }
                set.push(number, words);
            }
            at = at.saturating_add(STEP);
        }
        Ok(set)
    }

    /// Adds a stretch behind all others.
    fn push(&mut self, number: u64, words: [u64; WORDS]) {
        let count = words.iter().fold(0u64, |sum, word| sum.saturating_add(word.count_ones().into()));
        if count > 0 {
            self.stretches.push(Stretch { number, before: self.len });
            self.words.push(words);
            self.len = self.len.saturating_add(count);
        }
    }

    /// Adds `page`, which is above all others.
    pub(super) fn add_last(&mut self, page: u64) {
        let (number, word, bit) = place(page);
        if self.stretches.last().is_none_or(|last| last.number != number) {
            self.stretches.push(Stretch { number, before: self.len });
            self.words.push([0; WORDS]);
        }
        if let Some(word) = self.words.last_mut().and_then(|words| words.get_mut(word)) {
            *word |= bit;
            self.len = self.len.saturating_add(1);
        }
    }

    /// How many pages there are.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How many pages of the set are below `page`; and whether it is in it.
    pub(super) fn rank(&self, page: u64) -> (u64, bool) {
        let (number, word, bit) = place(page);
        // Most machines have pages from the first on and no gaps, so that a stretch is where its number says.
        let guess = usize::try_from(number).ok().filter(|guess| self.stretches.get(*guess).is_some_and(|s| s.number == number));
        let index = guess.unwrap_or_else(|| self.stretches.partition_point(|stretch| stretch.number < number));
        let (Some(stretch), Some(words)) = (self.stretches.get(index), self.words.get(index)) else { return (self.len, false) };
        if stretch.number != number {
            return (stretch.before, false);
        }
        let (below, rest) = words.split_at(word);
        let here = rest.first().copied().unwrap_or_default();
        let count = below.iter().fold(0u32, |sum, word| sum.saturating_add(word.count_ones()));
        let count = count.saturating_add((here & bit.wrapping_sub(1)).count_ones());
        (stretch.before.saturating_add(count.into()), here & bit != 0)
    }

    /// The pages, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        self.stretches.iter().zip(&self.words).flat_map(|(stretch, words)| {
            let bits = (0u64..).step_by(64).zip(words).flat_map(|(first, word)| {
                let rest = |word: &u64| Some(word & word.wrapping_sub(1)).filter(|rest| *rest != 0);
                let bits = core::iter::successors(Some(*word).filter(|word| *word != 0), rest);
                bits.map(move |word| first.saturating_add(word.trailing_zeros().into()))
            });
            bits.map(|bit| stretch.number.saturating_mul(BITS).saturating_add(bit))
        })
    }

    /// The memory of those pages that are in one of `ranges` and not in `without`.
    pub(super) fn regions<'a>(&'a self, ranges: &'a [Range<u64>], without: &'a Self) -> impl Iterator<Item = Region> + 'a {
        let wanted = |page: &u64| ranges.iter().any(|range| range.contains(page)) && !without.rank(*page).1;
        let mut pages = self.iter().filter(wanted).peekable();
        core::iter::from_fn(move || {
            let first = pages.next()?;
            let mut end = first.saturating_add(1);
            while pages.next_if_eq(&end).is_some() {
                end = end.saturating_add(1);
            }
            Region::new(PhysAddr::new(first.saturating_mul(PAGE_SIZE)), end.saturating_sub(first).saturating_mul(PAGE_SIZE))
        })
    }
}

/// The stretch of a page, its word in it, and its bit in that.
fn place(page: u64) -> (u64, usize, u64) {
    (page / BITS, (page % BITS / 64) as usize, 1 << (page % 64))
}

/// A word with its lowest `count` bits set.
fn low_bits(count: u64) -> u64 {
    if count >= 64 { u64::MAX } else { (1u64 << count).wrapping_sub(1) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a list of the pages.
        #[test]
        fn ranks_are_counts(mut pages in prop::collection::btree_set(0u64..9000, 0..300), far in 0u64..3, max in 8000u64..40_000) {
            pages.extend((0..far).map(|i| 30_000 + i));
            let mut bitmap = vec![0u8; 5000];
            let mut added = PageSet::default();
            for page in &pages {
                bitmap[*page as usize / 8] |= 1 << (page % 8);
                added.add_last(*page);
            }
            let read = PageSet::read(&Source::mapped(bitmap), 0, max).unwrap();
            let below_max: Vec<u64> = pages.iter().copied().filter(|page| *page < max).collect();
            prop_assert_eq!(read.iter().collect::<Vec<_>>(), below_max.clone());
            prop_assert!(added.iter().eq(pages.iter().copied()));
            prop_assert_eq!((read.len(), added.len()), (below_max.len() as u64, pages.len() as u64));
            for page in (0..9000).step_by(7).chain(below_max.iter().copied()) {
                let rank = below_max.iter().filter(|other| **other < page).count() as u64;
                prop_assert_eq!(read.rank(page), (rank, below_max.contains(&page)));
            }
            let without = PageSet::default();
            let regions: Vec<Region> = read.regions(&[0..500, 500..1000, 4000..u64::MAX], &without).collect();
            let total = regions.iter().map(|region| region.len() / PAGE_SIZE).sum::<u64>();
            prop_assert_eq!(total, below_max.iter().filter(|page| **page < 1000 || **page >= 4000).count() as u64);
            prop_assert!(regions.windows(2).all(|pair| pair[0].end() < pair[1].start()));
        }
    }
}
