//! Who speaks for which guest-physical memory, where a file says things twice.

use std::collections::BTreeMap;

use vmi_core::{PhysAddr, Region};

/// Memory that has been claimed. The first claim on an address holds.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// Start and end of the claimed runs, disjoint and apart from each other.
    runs: BTreeMap<u64, u64>,
}

impl Claims {
    /// Claims `region`, and tells those parts of it, ascending, that nobody had claimed before.
    ///
    /// Each run that a claim touches is merged into it, so many claims cost no more than sorting them.
    pub(crate) fn claim(&mut self, region: Region) -> Vec<Region> {
        let (start, end) = (region.start().get(), region.end().get());
        let (mut merged_start, mut merged_end) = (start, end);
        let mut free = Vec::new();
        let mut from = start;
        if let Some((&low, &low_end)) = self.runs.range(..start).next_back()
            && low_end >= start
        {
            (merged_start, merged_end) = (low, low_end.max(end));
            from = low_end;
        }
        while let Some((&next, &next_end)) = self.runs.range(start..=end).next() {
            free.extend(run(from, next));
            from = from.max(next_end);
            merged_end = merged_end.max(next_end);
            self.runs.remove(&next);
        }
        free.extend(run(from, end));
        self.runs.insert(merged_start, merged_end);
        free
    }
}

fn run(start: u64, end: u64) -> Option<Region> {
    Region::new(PhysAddr::new(start), end.checked_sub(start)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a table with one entry an address.
        #[test]
        fn the_first_claim_holds(claims in prop::collection::vec((0u64..60, 1u64..20), 0..30)) {
            let mut owner = [false; 80];
            let mut tested = Claims::default();
            for (start, len) in claims {
                let mut expected = Vec::new();
                for at in start..start + len {
                    if !owner[at as usize] {
                        expected.push(at);
                    }
                    owner[at as usize] = true;
                }
                let free = tested.claim(Region::new(PhysAddr::new(start), len).unwrap());
                let got: Vec<u64> = free.iter().flat_map(|r| r.start().get()..r.end().get()).collect();
                prop_assert_eq!(got, expected);
                for pair in tested.runs.iter().zip(tested.runs.iter().skip(1)) {
                    prop_assert!(pair.0.1 < pair.1.0, "runs are apart");
                }
            }
        }
    }
}
