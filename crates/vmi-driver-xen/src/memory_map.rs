//! Where an HVM or PVH domain has memory.
//!
//! Xen tells how many pages a domain has and the highest frame number in use, but not which lie between. So it is asked for the type of each frame
//! (`XEN_DOMCTL_getpageframeinfo3`), 1024 at a time: from the bottom up as far as the domain would reach if it had no holes, then from the top down, until all
//! pages are found. RAM starts at zero, and below 4 GiB the highest frames are those of devices and Xen's own, so this mostly ends after the first part of the top.
//!
//! A page may count as the domain's and lie at none of its frames: that of an event ring. Then all frames are looked at. That goes quickly, as only where Xen's own
//! pages are to be expected it is tried to map what has no type.

use vmi_core::{MemoryMap, PAGE_SIZE, PhysAddr, Region};

/// `XEN_DOMCTL_PFINFO_LTAB_MASK` and the types of a frame that has no memory: none, broken (domctl.h).
const TYPE: u64 = 0xf << 28;
const NO_PAGE: u64 = 0xf << 28;
const BROKEN: u64 = 0xd << 28;

/// Frames that are asked for at once; Xen's bound is 1024 (xen/arch/x86/domctl.c).
pub(crate) const BATCH: u64 = 1024;

/// Frames that are looked at: 4 TiB of addresses.
const MAX_FRAMES: u64 = 1 << 30;

/// Among so many frames below the highest, and below 4 GiB, are pages of Xen's own: 64 MiB of addresses.
const TOP: u64 = 16 * BATCH;
const FOUR_GIB: u64 = 1 << 20;

/// How to look at frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// By their types.
    Types,
    /// And by mapping those that have none.
    Mapped,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// There is no memory.
    None,
    /// A page that Xen counts as the domain's.
    Page,
    /// A page of Xen's own that the domain has put there, such as the one that it shares with Xen: Xen tells no type of it, but it can be mapped.
    Xens,
}

/// Whether the type of a frame says that there is memory of the domain's own.
pub(crate) fn is_memory(kind: u64) -> bool {
    !matches!(kind & TYPE, NO_PAGE | BROKEN)
}

/// The memory map of a domain that has `pages` pages and no frame above `last`. `present` says what each of up to [`BATCH`] frames is.
pub(crate) fn find<E>(
    pages: u64,
    last: u64,
    mut present: impl FnMut(core::ops::Range<u64>, Look) -> Result<Vec<Frame>, E>,
) -> Result<MemoryMap, E> {
    let end = last.saturating_add(1).min(MAX_FRAMES);
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut found = 0u64;
    let mut look = |range: core::ops::Range<u64>, how: Look, found: &mut u64| -> Result<(), E> {
        for (frame, what) in range.clone().zip(present(range, how)?) {
            match what {
                Frame::None => continue,
                Frame::Page => *found = found.saturating_add(1),
                Frame::Xens => {}
            }
            match runs.last_mut() {
                Some((first, count)) if first.saturating_add(*count) == frame => *count = count.saturating_add(1),
                _ => runs.push((frame, 1)),
            }
        }
        Ok(())
    };
    let bottom = pages.next_multiple_of(BATCH).min(end);
    let mut next = 0u64;
    while next < bottom {
        let stop = next.saturating_add(BATCH).min(bottom);
        look(next..stop, Look::Mapped, &mut found)?;
        next = stop;
    }
    let mut top = end;
    while top > bottom && found < pages {
        let start = top.saturating_sub(BATCH).max(bottom);
        let below = |limit: u64| start < limit && top > limit.saturating_sub(TOP);
        look(start..top, if below(end) || below(FOUR_GIB) { Look::Mapped } else { Look::Types }, &mut found)?;
        top = start;
    }
    let region =
        |(first, count): (u64, u64)| Region::new(PhysAddr::new(first.saturating_mul(PAGE_SIZE)), count.saturating_mul(PAGE_SIZE));
    Ok(MemoryMap::new(runs.into_iter().filter_map(region)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(is_there: bool) -> Frame {
        if is_there { Frame::Page } else { Frame::None }
    }

    fn map_of(frames: &[core::ops::Range<u64>]) -> MemoryMap {
        MemoryMap::new(
            frames.iter().filter_map(|run| Region::new(PhysAddr::new(run.start * PAGE_SIZE), (run.end - run.start) * PAGE_SIZE)),
        )
    }

    #[test]
    fn the_top_is_found_without_looking_at_the_hole() {
        let mut asked = 0;
        // A PVH domain of 128 MiB with its special pages below 4 GiB.
        let frames = [0..0x8000, 0xfeff8..0xff000];
        let map = find::<()>(0x8008, 0xfefff, |range, _| {
            asked += range.end - range.start;
            Ok(range.map(|frame| page(frames.iter().any(|run| run.contains(&frame)))).collect())
        });
        assert_eq!(map.unwrap(), map_of(&frames));
        assert!(asked < 0x9000, "{asked:#x} frames");
    }

    #[test]
    fn a_page_at_no_frame_costs_a_look_at_all_types() {
        let (mut typed, mut mapped) = (0, 0);
        let frames = [0..0x8000, 0xfeff8..0xff000];
        // The page of the event ring is one more.
        let map = find::<()>(0x8009, 0xfefff, |range, how| {
            match how {
                Look::Types => typed += range.end - range.start,
                Look::Mapped => mapped += range.end - range.start,
            }
            Ok(range.map(|frame| page(frames.iter().any(|run| run.contains(&frame)))).collect())
        });
        assert_eq!(map.unwrap(), map_of(&frames));
        assert_eq!(typed + mapped, 0xff000);
        assert!(mapped < 0x8400 + 0x4000 + 1, "{mapped:#x} frames");
    }

    /// Where RAM goes on above 4 GiB, Xen's pages are not among the highest.
    #[test]
    fn xen_s_pages_below_four_gib_are_found() {
        let frames = [0..0xf_0000, 0x10_0000..0x10_9000];
        let shared = 0xf_effd;
        let map = find::<()>(0xf_9001, 0x10_8fff, |range, how| {
            let there = |frame: u64| frames.iter().any(|run| run.contains(&frame));
            Ok(range.map(|frame| if frame == shared && how == Look::Mapped { Frame::Xens } else { page(there(frame)) }).collect())
        });
        assert!(map.unwrap().region_at(PhysAddr::new(shared * PAGE_SIZE)).is_some());
    }

    #[test]
    fn types_tell_what_is_memory() {
        assert!(is_memory(0) && is_memory(0x1 << 28) && is_memory(0xe << 28));
        assert!(!is_memory(0xf << 28) && !is_memory(0xd << 28));
    }

    proptest! {
        #[test]
        fn all_memory_is_found(runs in proptest::collection::vec((0..20_000u64, 1..600u64), 0..12)) {
            let there = |frame: u64| runs.iter().any(|(first, count)| (*first..first + count).contains(&frame));
            let pages = (0..21_000).filter(|frame| there(*frame)).filter(|frame| frame % 97 != 5).count() as u64;
            let last = (0..21_000).rev().find(|frame| there(*frame)).unwrap_or(0);
            let map = find::<()>(pages, last, |range, how| {
                assert!(range.end - range.start <= BATCH);
                let kind = |frame: u64| match (there(frame), frame % 97 == 5, how) {
                    (true, true, Look::Mapped) => Frame::Xens,
                    (true, true, Look::Types) => Frame::None,
                    (there, ..) => page(there),
                };
                Ok(range.map(kind).collect())
            });
            let map = map.unwrap();
            for frame in 0..21_000u64 {
                let is_there = map.region_at(PhysAddr::new(frame * PAGE_SIZE)).is_some();
                // Pages of Xen's own far from all others are not looked for.
                prop_assert!(is_there == there(frame) || (frame % 97 == 5 && !is_there), "{:#x}", frame);
            }
        }
    }
}
