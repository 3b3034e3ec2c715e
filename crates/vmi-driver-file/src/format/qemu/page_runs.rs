//! Where the pages of a block are in the file, as runs.

use core::cmp::Ordering;

/// Pages of the x86 family.
pub(super) const PAGE_BITS: u32 = 12;
pub(super) const PAGE: u64 = 1 << PAGE_BITS;

/// From the data of one page of a run to that of the next: a page and the 8 bytes of its record.
const STRIDE: u64 = PAGE + 8;

/// Stands for the offset of pages of zeros.
const ZEROS: u64 = u64::MAX;

/// Pages whose records follow each other, or pages of zeros. 16 bytes, as there may be one for every second page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    first: u32,
    count: u32,
    /// Of the first page's data.
    data: u64,
}

impl Run {
    fn end(self) -> u64 {
        u64::from(self.first).saturating_add(u64::from(self.count))
    }

    /// Offset of the data of page `page` of the block; `None` for zeros.
    fn data_of(self, page: u64) -> Option<u64> {
        let distance = page.saturating_sub(u64::from(self.first)).saturating_mul(STRIDE);
        (self.data != ZEROS).then(|| self.data.saturating_add(distance))
    }

    /// The pages from `page` on.
    fn from(self, page: u64) -> Self {
        let skipped = page.saturating_sub(u64::from(self.first)).min(u64::from(self.count)) as u32;
        let first = self.first.saturating_add(skipped);
        Self { first, count: self.count.saturating_sub(skipped), data: self.data_of(u64::from(first)).unwrap_or(ZEROS) }
    }

    /// The pages before `page`.
    fn before(self, page: u64) -> Self {
        Self { count: page.saturating_sub(u64::from(self.first)).min(u64::from(self.count)) as u32, ..self }
    }
}

/// Where pages are. A running guest's pages are sent in rounds, each in the order of addresses and with those pages that changed: what is sent
/// later holds.
///
/// Zeros are noted only from the second round on: what no run tells is zero.
#[derive(Debug, Default)]
pub(super) struct PageRuns {
    /// Rounds that were merged, the older one longer than the next one, so that each run is merged but a few times.
    rounds: Vec<Vec<Run>>,
    /// The round that is being read.
    current: Vec<Run>,
    /// Behind the last page of this round.
    next: u64,
    /// Behind the last page of the first round.
    first_end: Option<u64>,
}

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// At an offset of the file.
    At(u64),
    Zeros,
}

impl PageRuns {
    /// Notes a page, by its data's offset in the file, or as zero.
    pub(super) fn push(&mut self, page: u64, data: Option<u64>) {
        if page < self.next {
            self.first_end.get_or_insert(self.next);
            self.end_round();
        }
        self.next = page.saturating_add(1);
        if data.is_none() && self.first_end.is_none() {
            return;
        }
        // The list of blocks admits no block of 2^32 pages.
        let run = Run { first: u32::try_from(page).unwrap_or(u32::MAX), count: 1, data: data.unwrap_or(ZEROS) };
        append(&mut self.current, run);
    }

    /// After the last page.
    pub(super) fn finish(&mut self) {
        self.first_end.get_or_insert(self.next);
        self.end_round();
        while let Some(newer) = self.rounds.pop() {
            match self.rounds.pop() {
                Some(older) => self.rounds.push(overlay(&older, &newer)),
                None => {
                    self.current = newer;
                    break;
                }
            }
        }
        self.current.shrink_to_fit();
    }

    fn end_round(&mut self) {
        let mut newer = core::mem::take(&mut self.current);
        while let Some(older) = self.rounds.pop_if(|older| older.len() / 2 <= newer.len()) {
            newer = overlay(&older, &newer);
        }
        self.rounds.push(newer);
        self.next = 0;
    }

    /// Behind the last page that was sent: all before it were sent, too.
    pub(super) fn end(&self) -> u64 {
        self.first_end.unwrap_or(self.next)
    }

    /// What `page` is, and how many pages from there on are alike, at most `most` of them.
    pub(super) fn at(&self, page: u64, most: u64) -> (Stored, u64) {
        let index = self.current.partition_point(|run| run.end() <= page);
        match self.current.get(index) {
            Some(run) if u64::from(run.first) <= page => {
                let stored = run.data_of(page).map_or(Stored::Zeros, Stored::At);
                (stored, run.end().saturating_sub(page).min(most))
            }
            Some(next) => (Stored::Zeros, u64::from(next.first).saturating_sub(page).min(most)),
            None => (Stored::Zeros, most),
        }
    }

    #[cfg(test)]
    fn runs(&self) -> &[Run] {
        &self.current
    }
}

/// From the data of page `index` of a run to that of its first one.
pub(super) fn distance(index: u64) -> u64 {
    index.saturating_mul(STRIDE)
}

/// Adds a run behind the others, as a part of the last one if it continues that.
fn append(runs: &mut Vec<Run>, run: Run) {
    if run.count == 0 {
        return;
    }
    if let Some(last) = runs.last_mut()
        && last.end() == u64::from(run.first)
        && last.data_of(last.end()).unwrap_or(ZEROS) == run.data
        && let Some(count) = last.count.checked_add(run.count)
    {
        last.count = count;
    } else {
        runs.push(run);
    }
}

/// Both lists in one, where the newer one speaks for the pages that both have.
fn overlay(older: &[Run], newer: &[Run]) -> Vec<Run> {
    let mut merged = Vec::with_capacity(older.len().max(newer.len()));
    let mut old = older.iter().copied();
    let mut next_old = old.next();
    for &run in newer {
        while let Some(part) = next_old {
            match u64::from(part.first).cmp(&u64::from(run.first)) {
                Ordering::Less => {
                    append(&mut merged, part.before(u64::from(run.first)));
                    let rest = part.from(run.end());
                    if rest.count == 0 {
                        next_old = old.next();
                        continue;
                    }
                    next_old = Some(rest);
                    break;
                }
                _ if part.end() <= run.end() => next_old = old.next(),
                _ => {
                    next_old = Some(part.from(run.end()));
                    break;
                }
            }
        }
        append(&mut merged, run);
    }
    while let Some(part) = next_old {
        append(&mut merged, part);
        next_old = old.next();
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a table with one entry a page.
        #[test]
        fn what_is_sent_last_holds(pages in prop::collection::vec((0u64..40, prop::option::of(0u64..20)), 0..200)) {
            let mut oracle = [Stored::Zeros; 40];
            let mut tested = PageRuns::default();
            let mut file = 100u64;
            for (page, data) in pages {
                // Data that lies as in a stream, mostly behind each other.
                let data = data.map(|gap| { file += STRIDE + gap / 15; file });
                oracle[page as usize] = data.map_or(Stored::Zeros, Stored::At);
                tested.push(page, data);
            }
            tested.finish();
            for (page, expected) in (0u64..).zip(oracle) {
                let (got, alike) = tested.at(page, 40 - page);
                prop_assert_eq!(got, expected, "page {}", page);
                for more in 1..alike {
                    let expected = match expected { Stored::At(at) => Stored::At(at + distance(more)), Stored::Zeros => Stored::Zeros };
                    prop_assert_eq!(oracle[(page + more) as usize], expected);
                }
            }
            prop_assert!(tested.runs().windows(2).all(|pair| pair[0].end() <= u64::from(pair[1].first)));
        }
    }

    #[test]
    fn pages_behind_each_other_are_one_run() {
        let mut runs = PageRuns::default();
        for page in 0..1000 {
            runs.push(page, Some(50 + distance(page)));
        }
        runs.finish();
        assert_eq!(runs.runs().len(), 1);
        assert_eq!((runs.end(), size_of::<Run>()), (1000, 16));
        assert_eq!(runs.at(999, 9), (Stored::At(50 + distance(999)), 1));
        assert_eq!(runs.at(1000, 9), (Stored::Zeros, 9));
    }

    /// A round of one page each, in descending order: each merge must be of lists of like lengths.
    #[test]
    fn many_rounds_are_cheap() {
        let mut runs = PageRuns::default();
        for page in (0..200_000u64).rev() {
            runs.push(page, Some(page * 10_000));
        }
        runs.finish();
        assert_eq!(runs.runs().len(), 200_000);
    }
}
