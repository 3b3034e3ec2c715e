//! The translation cache of one address space.
//!
//! A direct-mapped table of 4 KiB virtual pages. Each slot is a sequence lock over a few words, so that lookups take no lock and
//! write nothing, and many threads share one cache. A slot that another thread is writing counts as a miss, and a write that
//! meets another write is dropped: the cache may forget, never lie.

#[cfg(not(all(test, loom)))]
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(all(test, loom))]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::{Access, PAGE_SIZE, PhysAddr, Translation, VirtAddr};

/// Slots: 1024 pages of 4 KiB, 32 KiB of memory for each address space.
const SLOTS: usize = if cfg!(all(test, loom)) { 1 } else { 1024 };

/// `repr(align)` keeps a slot within one cache line.
#[derive(Debug, Default)]
#[repr(align(32))]
struct Slot {
    /// Odd while the slot is being written; zero if it never was.
    sequence: AtomicU32,
    /// The epoch in which the translation was read.
    epoch: AtomicU64,
    /// The virtual page number.
    page: AtomicU64,
    /// The guest-physical page; page shift and access in the low 12 bits.
    entry: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct Tlb {
    slots: Box<[Slot]>,
    walks: AtomicU64,
}

impl Tlb {
    pub(crate) fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| Slot::default()).collect(), walks: AtomicU64::new(0) }
    }

    /// Translations that were not in the cache.
    pub(crate) fn walks(&self) -> u64 {
        self.walks.load(Ordering::Relaxed)
    }

    #[inline]
    fn slot(&self, page: u64) -> Option<&Slot> {
        self.slots.get(page as usize % SLOTS)
    }

    /// The translation of `at` as it was in `epoch`.
    #[inline]
    pub(crate) fn get(&self, at: VirtAddr, epoch: u64) -> Option<Translation> {
        let page = at.get() / PAGE_SIZE;
        let slot = self.slot(page)?;
        let before = slot.sequence.load(Ordering::Acquire);
        // Acquire, with the release stores of `insert`: whoever sees a word of a new entry also sees the odd sequence below.
        let entry = slot.entry.load(Ordering::Acquire);
        let same = slot.page.load(Ordering::Acquire) == page && slot.epoch.load(Ordering::Acquire) == epoch;
        let after = slot.sequence.load(Ordering::Relaxed);
        (same && before == after && before & 1 == 0 && before != 0).then(|| unpack(entry, at))
    }

    /// Remembers the translation of `at`, read in `epoch`.
    pub(crate) fn insert(&self, at: VirtAddr, epoch: u64, translation: Translation) {
        self.walks.fetch_add(1, Ordering::Relaxed);
        let page = at.get() / PAGE_SIZE;
        let Some(slot) = self.slot(page) else { return };
        let before = slot.sequence.load(Ordering::Relaxed);
        let odd = before.wrapping_add(1) | 1;
        // Acquire: the stores below come after those of whoever wrote the slot before.
        if before & 1 == 1 || slot.sequence.compare_exchange(before, odd, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return; // another thread is writing this slot
        }
        slot.page.store(page, Ordering::Release);
        slot.epoch.store(epoch, Ordering::Release);
        slot.entry.store(pack(translation), Ordering::Release);
        // Zero would say that the slot was never written, so the count passes over it.
        slot.sequence.store(odd.wrapping_add(1).max(2), Ordering::Release);
    }
}

/// The guest-physical 4 KiB page with the page shift (6 bits) and access (3 bits) below it.
fn pack(translation: Translation) -> u64 {
    let access = translation.access;
    translation.at.page().get()
        | u64::from(translation.page_shift & 0x3f)
        | u64::from(access.write) << 6
        | u64::from(access.execute) << 7
        | u64::from(access.user) << 8
}

#[inline]
fn unpack(entry: u64, at: VirtAddr) -> Translation {
    Translation {
        at: PhysAddr::new(entry & !(PAGE_SIZE - 1) | at.page_offset()),
        page_shift: (entry & 0x3f) as u8,
        access: Access { write: entry & 1 << 6 != 0, execute: entry & 1 << 7 != 0, user: entry & 1 << 8 != 0 },
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn translation(at: u64) -> Translation {
        Translation { at: PhysAddr::new(at), page_shift: 21, access: Access { write: true, execute: false, user: true } }
    }

    #[test]
    fn keeps_page_and_access_apart_from_the_offset() {
        let tlb = Tlb::new();
        tlb.insert(VirtAddr::new(0xffff_8880_0012_3456), 7, translation(0x000f_ffff_ff12_3456));
        let got = tlb.get(VirtAddr::new(0xffff_8880_0012_3fff), 7).unwrap();
        assert_eq!(got, translation(0x000f_ffff_ff12_3fff));
        assert_eq!(tlb.walks(), 1);
    }

    #[test]
    fn another_page_or_epoch_misses() {
        let tlb = Tlb::new();
        assert_eq!(tlb.get(VirtAddr::ZERO, 0), None);
        tlb.insert(VirtAddr::ZERO, 0, translation(0));
        assert!(tlb.get(VirtAddr::ZERO, 0).is_some());
        assert_eq!(tlb.get(VirtAddr::ZERO, 1), None);
        assert_eq!(tlb.get(VirtAddr::new(SLOTS as u64 * PAGE_SIZE), 0), None);
    }

    #[test]
    fn the_sequence_wraps_without_becoming_unwritten() {
        let tlb = Tlb::new();
        tlb.slots[0].sequence.store(u32::MAX - 1, Ordering::Relaxed);
        tlb.insert(VirtAddr::ZERO, 0, translation(0x5000));
        assert_eq!(tlb.get(VirtAddr::ZERO, 0).unwrap().at, PhysAddr::new(0x5000));
    }
}

/// Interleavings of two writers and a reader of one slot with up to three preemptions:
/// `RUSTFLAGS="--cfg loom" cargo test -p vmi-core --release --lib tlb`.
#[cfg(all(test, loom))]
mod interleavings {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    fn translation(page: u64) -> Translation {
        Translation { at: PhysAddr::new(page << 32), page_shift: 12, access: Access::default() }
    }

    #[test]
    fn a_reader_sees_whole_entries_only() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let tlb = Arc::new(Tlb::new());
            let writers: Vec<_> = [1u64, 2]
                .map(|page| {
                    let tlb = Arc::clone(&tlb);
                    thread::spawn(move || tlb.insert(VirtAddr::new(page * PAGE_SIZE), page, translation(page)))
                })
                .into();
            for page in [1u64, 2] {
                if let Some(got) = tlb.get(VirtAddr::new(page * PAGE_SIZE), page) {
                    assert_eq!(got, translation(page));
                }
            }
            for writer in writers {
                writer.join().unwrap();
            }
        });
    }
}
