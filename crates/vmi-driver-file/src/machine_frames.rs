//! The machine frames behind the pages of a domain whose page tables hold those: Xen's paravirtualised ones.

use vmi_core::{PAGE_SIZE, PhysAddr};

/// Makes the address of a frame that is not the domain's one that no image has, and that still says which frame it is.
const NOWHERE: u64 = 1 << 63;

/// Runs of frames. Each takes 24 bytes. Xen gives a domain its memory in runs of 512 frames where it can, and of one where it cannot.
const MAX_RUNS: usize = 1 << 21;

/// Frames that are one behind the other, as are their pages.
#[derive(Clone, Copy, Debug)]
struct Run {
    frame: u64,
    page: u64,
    count: u64,
}

/// Which page a machine frame is.
#[derive(Debug, Default)]
pub(crate) struct MachineFrames {
    /// Ascending by frame, when all are there.
    runs: Vec<Run>,
}

impl MachineFrames {
    /// Notes the frame of a page; false if there are more runs than are kept.
    pub(crate) fn push(&mut self, frame: u64, page: u64) -> bool {
        let full = self.runs.len() >= MAX_RUNS;
        match self.runs.last_mut() {
            Some(run) if run.frame.checked_add(run.count) == Some(frame) && run.page.checked_add(run.count) == Some(page) => {
                run.count = run.count.saturating_add(1);
            }
            _ if full => return false,
            _ => self.runs.push(Run { frame, page, count: 1 }),
        }
        true
    }

    /// What has been pushed, ready to be asked.
    pub(crate) fn finish(mut self) -> Self {
        self.runs.sort_by_key(|run| run.frame);
        self.runs.shrink_to_fit();
        self
    }

    /// The page of a frame, or an address that no image has.
    pub(crate) fn page_of(&self, named: PhysAddr) -> PhysAddr {
        let (frame, within) = (named.get() / PAGE_SIZE, named.get() % PAGE_SIZE);
        let after = self.runs.partition_point(|run| run.frame <= frame);
        let page = after.checked_sub(1).and_then(|index| self.runs.get(index)).and_then(|run| {
            let offset = frame.saturating_sub(run.frame);
            if offset < run.count { run.page.checked_add(offset) } else { None }
        });
        PhysAddr::new(page.and_then(|page| page.checked_mul(PAGE_SIZE)).map_or(named.get() | NOWHERE, |page| page | within))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a table with an entry a frame; frames are different, as in files that do not lie.
        #[test]
        fn each_frame_is_its_page(
            shuffled in Just((0..64u64).collect::<Vec<_>>()).prop_shuffle(),
            runs in prop::collection::vec(1..9u64, 1..20),
            within in 0..4096u64,
        ) {
            let (mut frames, mut table, mut page) = (MachineFrames::default(), HashMap::new(), 0);
            for (place, count) in shuffled.iter().zip(runs) {
                for index in 0..count {
                    prop_assert!(frames.push(place * 16 + index, page));
                    table.insert(place * 16 + index, page);
                    page += 1;
                }
                page += count % 2;
            }
            let frames = frames.finish();
            for frame in 0..1100 {
                let expected = table.get(&frame).map_or(NOWHERE + frame * 4096, |page| page * 4096) + within;
                prop_assert_eq!(frames.page_of(PhysAddr::new(frame * 4096 + within)).get(), expected);
            }
        }

        #[test]
        fn any_frames_are_taken(pairs: Vec<(u64, u64)>, asked: Vec<u64>) {
            let mut frames = MachineFrames::default();
            for (frame, page) in &pairs {
                frames.push(*frame, *page);
            }
            let frames = frames.finish();
            for at in asked.into_iter().chain(pairs.into_iter().map(|(frame, _)| frame.wrapping_mul(4096))) {
                frames.page_of(PhysAddr::new(at));
            }
        }
    }
}
