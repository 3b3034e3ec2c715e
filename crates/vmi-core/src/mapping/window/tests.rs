use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::AtomicBool;

use nix::sys::memfd::{MFdFlags, memfd_create};
use proptest::prelude::*;

use super::*;
use crate::{ErrorKind, Region};

/// A guest's memory: a file of which each word is its own number and a generation above it, mapped into the window as a back end would.
struct Guest {
    file: OwnedFd,
    window: Arc<Window>,
    memory: GuestMapping,
}

fn word(generation: u64, number: u64) -> u64 {
    generation << 48 | number << 8 | 0xa5
}

impl Guest {
    fn new(pages: u64) -> Self {
        let file = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
        let guest = File::from(file.try_clone().unwrap());
        guest.set_len(pages * PAGE_SIZE).unwrap();
        let window = Window::reserve(pages * PAGE_SIZE).unwrap();
        let memory =
            GuestMapping::window(Arc::clone(&window), MemoryMap::new([Region::new(PhysAddr::ZERO, pages * PAGE_SIZE).unwrap()]));
        let guest = Self { file, window, memory };
        guest.fill(0..pages, 0);
        guest
    }

    fn fill(&self, pages: Range<u64>, generation: u64) {
        let words = PAGE_SIZE / 8;
        let bytes: Vec<u8> =
            (pages.start * words..pages.end * words).flat_map(|number| word(generation, number).to_le_bytes()).collect();
        let written = nix::sys::uio::pwrite(&self.file, &bytes, (pages.start * PAGE_SIZE) as i64).unwrap();
        assert_eq!(written, bytes.len());
    }

    /// Maps pages in their place, step by step as a foreign mapping is: the place is empty in between, and those that `there` denies stay without memory.
    fn map(&self, pages: Range<u64>, there: impl Fn(u64) -> bool) {
        let place = self.window.place(&pages).unwrap();
        let len = (pages.end - pages.start) as usize * PAGE;
        let map = |place: *mut u8, len: usize, protection, offset: u64| {
            // SAFETY: the place is that of pages that nobody has been shown.
            let got = unsafe {
                let flags = libc::MAP_SHARED | libc::MAP_FIXED;
                libc::mmap(place.cast(), len, protection, flags, self.file.as_raw_fd(), offset as libc::off_t)
            };
            assert_eq!(got, place.cast());
        };
        map(place.as_ptr(), len, libc::PROT_NONE, pages.start * PAGE_SIZE);
        for (index, page) in pages.clone().enumerate().filter(|(_, page)| there(*page)) {
            map(place.as_ptr().wrapping_add(index * PAGE), PAGE, libc::PROT_READ, page * PAGE_SIZE);
        }
        // SAFETY: just mapped, and the tests take away what they have shown only.
        unsafe { self.window.show(pages.start, pages.map(there)) };
    }

    fn word(&self, at: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.memory.read_into(PhysAddr::new(at), &mut bytes).ok().map(|()| u64::from_le_bytes(bytes))
    }
}

#[test]
#[cfg_attr(miri, ignore = "maps files")]
fn shown_pages_are_read_and_others_are_holes() {
    let guest = Guest::new(64);
    assert_eq!((guest.word(0), guest.word(0x8000)), (None, None));
    guest.map(8..24, |page| page != 13);
    assert_eq!((guest.word(8 * PAGE_SIZE), guest.word(9 * PAGE_SIZE + 8)), (Some(word(0, 8 * 512)), Some(word(0, 9 * 512 + 1))));
    assert!(
        guest.window.is_shown(8) && !guest.window.is_shown(13) && !guest.window.is_shown(64) && !guest.window.is_shown(u64::MAX)
    );
    let mut bytes = vec![0; 16 * PAGE];
    let error = guest.memory.read_into(PhysAddr::new(8 * PAGE_SIZE + 3), &mut bytes).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == 13 * PAGE_SIZE), "{error}");
    assert_eq!(error.done(), 5 * PAGE - 3);
    assert_eq!(guest.memory.memory_map().total(), 64 * PAGE_SIZE, "what is not shown is memory too");
    assert!(guest.memory.slice(PhysAddr::new(8 * PAGE_SIZE), 8).is_none(), "live memory is lent to nobody");
    // Words that are not aligned, and the end of the window.
    assert_eq!(guest.word(9 * PAGE_SIZE - 4).unwrap() as u32, (word(0, 9 * 512 - 1) >> 32) as u32);
    for at in [64 * PAGE_SIZE, 64 * PAGE_SIZE - 4, u64::MAX - 3, u64::MAX - 7] {
        assert_eq!(guest.word(at), None, "{at:#x}");
    }
    assert!(
        guest.memory.range(Region::new(PhysAddr::new(8 * PAGE_SIZE), 8).unwrap()).is_err(),
        "what may go is mapped for nobody"
    );
    guest.window.take_away(&[8..16, 16..24]).unwrap();
    assert_eq!((guest.word(8 * PAGE_SIZE), guest.word(20 * PAGE_SIZE)), (None, None));
    guest.fill(8..9, 7);
    guest.map(8..9, |_| true);
    assert_eq!(guest.word(8 * PAGE_SIZE), Some(word(7, 8 * 512)));
}

#[test]
#[cfg_attr(miri, ignore = "maps files")]
fn places_are_within_the_window() {
    let window = Window::reserve(5 * PAGE_SIZE - 1).unwrap();
    assert_eq!(window.pages(), 5);
    assert!(window.place(&(0..5)).is_some() && window.place(&(4..5)).is_some());
    for pages in [0..6, 5..6, 3..3, u64::MAX - 1..u64::MAX] {
        assert!(window.place(&pages).is_none(), "{pages:?}");
    }
    assert!(Window::reserve(0).is_err() && Window::reserve(u64::MAX).is_err());
    // What is lost is not used again, nor unmapped in the end.
    let place = window.place(&(2..3)).unwrap();
    window.reserve_again(&(2..3));
    assert!(window.place(&(2..3)).is_none() && window.place(&(1..4)).is_none() && window.place(&(3..5)).is_some());
    drop(window);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let holds = |line: &str| {
        let (start, end) = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).unwrap();
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        (number(start)..number(end)).contains(&(place.as_ptr() as usize))
    };
    assert!(maps.lines().any(holds), "{place:?} in {maps}");
    // SAFETY: the page of the window that was left to nobody.
    unsafe { libc::munmap(place.as_ptr().cast(), PAGE) };
}

/// A window of a domain of a terabyte takes next to no memory.
#[test]
#[cfg_attr(miri, ignore = "maps memory")]
fn large_windows_take_no_memory() {
    let resident = || {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * PAGE_SIZE
    };
    let before = resident();
    let window = Window::reserve(1 << 40).unwrap();
    assert!(!window.is_shown(12345) && !window.is_shown((1 << 28) - 1));
    let taken = resident().saturating_sub(before);
    assert!(taken < 64 << 20, "{taken} bytes");
}

/// Some threads read words and runs while others take memory away and map it again with other contents. Nobody is ended by a fault, and each word that is read is
/// one that was there at its place.
#[test]
#[cfg_attr(miri, ignore = "maps files")]
fn memory_comes_and_goes_under_readers() {
    const PAGES: u64 = 256;
    let guest = Guest::new(PAGES);
    let stop = AtomicBool::new(false);
    let is_right = |value: u64, number: u64| value & 0xffff_ffff_ffff == word(0, number);
    let (mut seen, mut missed, mut rounds) = (0u64, 0u64, 0u64);
    std::thread::scope(|scope| {
        let (guest, stop) = (&guest, &stop);
        let readers: Vec<_> = (0..3u64)
            .map(|thread| {
                scope.spawn(move || {
                    let (mut seen, mut missed, mut at) = (0u64, 0u64, thread * 0x1238);
                    let mut run = vec![0; 5 * PAGE];
                    while !stop.load(Ordering::Relaxed) {
                        for _ in 0..1000 {
                            at = at.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                            at = (at % (PAGES * PAGE_SIZE)) & !7;
                            match guest.word(at) {
                                Some(value) => {
                                    assert!(is_right(value, at / 8), "{value:#x} at {at:#x}");
                                    seen += 1;
                                }
                                None => missed += 1,
                            }
                        }
                        let start = (at % ((PAGES - 5) * PAGE_SIZE)) & !7;
                        let done = guest.memory.read_shown(PhysAddr::new(start), &mut run);
                        for (value, number) in run[..done].chunks_exact(8).zip(start / 8..) {
                            let value = u64::from_le_bytes(value.try_into().unwrap());
                            assert!(is_right(value, number), "{value:#x} in a run at {:#x}", number * 8);
                        }
                    }
                    (seen, missed)
                })
            })
            .collect();
        // Two who map, each with a half of the memory.
        let mappers: Vec<_> = [0..PAGES / 2, PAGES / 2..PAGES]
            .into_iter()
            .map(|half| {
                scope.spawn(move || {
                    let mut rounds = 0;
                    while rounds < 400 {
                        // Some pages with holes between, or a whole group and the first pages of the next.
                        let (first, len) = if rounds % 3 == 0 { (half.start, 70) } else { (half.start + rounds * 7 % 100, 8) };
                        guest.fill(first..first + len, rounds);
                        guest.map(first..first + len, |page| len == 70 || page % 5 != 3);
                        std::thread::sleep(std::time::Duration::from_micros(rounds % 200));
                        guest.window.take_away(&[first + 3..first + len, first..first + 3]).unwrap();
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        rounds = mappers.into_iter().map(|mapper| mapper.join().unwrap()).sum();
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            let (more_seen, more_missed) = reader.join().unwrap();
            (seen, missed) = (seen + more_seen, missed + more_missed);
        }
    });
    assert_eq!(rounds, 800);
    assert!(seen > 0 && missed > 0, "{seen} words seen, {missed} not there");
}

/// Threads come and go, and flags are used again.
#[test]
#[cfg_attr(miri, ignore = "maps files")]
fn short_lived_threads_read_too() {
    let guest = Guest::new(4);
    guest.map(0..4, |_| true);
    for round in 0..50 {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(guest.word(0x1008), Some(word(0, 513))));
            }
        });
        if round % 10 == 0 {
            guest.window.take_away(&[2..3, 3..4]).unwrap();
            guest.map(2..4, |_| true);
        }
    }
}

proptest! {
    /// Whatever is shown: a read gives the memory's bytes up to the first page that is not.
    #[test]
    #[cfg_attr(miri, ignore = "maps files")]
    fn reads_end_where_nothing_is_shown(shown in proptest::collection::vec(any::<bool>(), 24), start in 0..26 * PAGE_SIZE, len in 0..10 * PAGE) {
        let guest = Guest::new(24);
        guest.map(0..24, |page| shown[page as usize]);
        let there = |at: u64| shown.get((at / PAGE_SIZE) as usize).copied().unwrap_or(false);
        let good = (start..start + len as u64).take_while(|at| there(*at)).count();
        let mut bytes = vec![0; len];
        match guest.memory.read_into(PhysAddr::new(start), &mut bytes) {
            Ok(()) => prop_assert_eq!(good, len),
            Err(error) => {
                prop_assert_eq!(error.done(), good);
                let hole = matches!(error.kind(), ErrorKind::Hole { at } if at.get() == start + good as u64);
                prop_assert!(hole, "{}", error);
            }
        }
        for (byte, at) in bytes[..good].iter().zip(start..) {
            prop_assert_eq!(*byte, (word(0, at / 8) >> (at % 8 * 8)) as u8);
        }
    }
}
