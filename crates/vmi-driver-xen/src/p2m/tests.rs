use std::cell::Cell;
use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// A machine in which a domain keeps its list.
#[derive(Default)]
struct Machine {
    frames: HashMap<u64, Page>,
    read: Cell<u64>,
}

impl Machine {
    fn put(&mut self, frame: u64, index: usize, value: u64) {
        self.frames.entry(frame).or_insert([0; 4096])[index * 8..][..8].copy_from_slice(&value.to_le_bytes());
    }
}

impl MachineFrames for Machine {
    fn read(&self, frames: &[u64], visit: &mut dyn FnMut(usize, &Page)) -> vmi_core::Result<()> {
        self.read.set(self.read.get() + frames.len() as u64);
        for (index, frame) in frames.iter().enumerate() {
            if let Some(page) = self.frames.get(frame) {
                visit(index, page);
            }
        }
        Ok(())
    }
}

/// Where the kernel of Linux 6.1 has its list.
const ADDRESS: u64 = 0xffff_c900_0000_0000;

fn shared(pages: u64, lists: u64, root: u64, address: u64, generation: u64) -> Page {
    let mut page = [0; 4096];
    // Counted by hand in xen.h: vcpu_info up to 0x800, bitmaps up to 0xc00, the clock up to 0xc10.
    for (at, value) in [(0xc10, pages), (0xc18, lists), (0xc28, root), (0xc30, address), (0xc38, generation)] {
        page[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    page
}

/// A domain of 1,200 pages, page p in frame 0x5000 + 3p, but every hundredth is none.
fn frame(page: u64) -> u64 {
    if page.is_multiple_of(100) { u64::MAX } else { 0x5000 + 3 * page }
}

fn with_list() -> Machine {
    let mut machine = Machine::default();
    for page in 0..1200u64 {
        machine.put(0x900 + page / 512, (page % 512) as usize, frame(page));
    }
    machine
}

fn check(p2m: &P2m) {
    for page in 0..1200 {
        assert_eq!(p2m.frame(page), frame(page));
        if frame(page) != u64::MAX {
            assert_eq!(p2m.page(frame(page)), Some(page));
        }
    }
    assert_eq!((p2m.frame(1200), p2m.page(0x5001), p2m.page(u64::MAX)), (u64::MAX, None, None));
    assert_eq!(p2m.runs().len(), 12);
    assert_eq!(p2m.runs()[3], (301, 99));
}

#[test]
fn a_list_behind_page_tables_is_read() {
    let mut machine = with_list();
    let index = |shift: u32| (ADDRESS >> shift) as usize % 512;
    machine.put(0x100, index(39), 0x10_1067);
    machine.put(0x101, index(30), 0x10_2067);
    machine.put(0x102, index(21), 0x8000_0000_0010_3067);
    for page in 0..3 {
        machine.put(0x103, index(12) + page, 0x90_0067 + page as u64 * 0x1000);
    }
    let anchor = Anchor::of(&shared(1200, u64::MAX, 0x10_0000, ADDRESS, 6));
    let p2m = P2m::read(&machine, &anchor, 1188).unwrap();
    check(&p2m);
    assert_eq!((p2m.generation, p2m.list.as_slice()), (6, &[0x900, 0x901, 0x902][..]));
}

#[test]
fn a_list_behind_lists_is_read() {
    let mut machine = with_list();
    machine.put(0x200, 0, 0x201);
    for page in 0..3 {
        machine.put(0x201, page, 0x900 + page as u64);
    }
    check(&P2m::read(&machine, &Anchor::of(&shared(1200, 0x200, 0, 0, 0)), 1188).unwrap());
}

#[test]
fn what_the_domain_says_is_bounded() {
    let machine = Machine::default();
    let read = |shared: Page| P2m::read(&machine, &Anchor::of(&shared), 1000).unwrap_err();
    assert!(matches!(read(shared(1 << 40, 1, 0, 0, 0)), P2mError::TooLong { limit: 0x10_0000, .. }));
    assert!(matches!(read(shared(1200, 0, 0, 0, 0)), P2mError::NotTold));
    assert!(matches!(read(shared(1200, u64::MAX, 0, 0, 0)), P2mError::NotTold));
    assert!(matches!(read(shared(1200, 7, 0, 0, 0)), P2mError::Unreadable { frame: 7, .. }));
    assert!(matches!(read(shared(1200, 7, 0x8000, 0, 0)), P2mError::Unreadable { frame: 8, .. }));
}

proptest! {
    #[test]
    fn any_bytes_are_a_machine(start in proptest::collection::vec(any::<u8>(), 0..64), at in 0xc00..0xc20usize, pages in 0..20usize) {
        let mut bytes = vec![0; pages * 4096];
        for (to, from) in bytes.iter_mut().skip(at).zip(start) {
            *to = from;
        }
        let _ = crate::fuzz::p2m(&bytes);
    }

    /// Whatever the frames hold, reading comes to an end, reads a bounded number of frames, and each frame that it gives leads back.
    #[test]
    fn any_machine_is_read(
        words in proptest::collection::vec((0..40u64, 0..512usize, prop_oneof![0..40u64, (0..40u64).prop_map(|f| f << 12 | 1), any::<u64>()]), 0..400),
        pages in 0..20_000u64,
        root in prop_oneof![Just(0u64), (0..40u64).prop_map(|f| f << 12), any::<u64>()],
        lists in prop_oneof![Just(0u64), 0..40u64, any::<u64>()],
        address: u64,
    ) {
        let mut machine = Machine::default();
        for (frame, index, value) in words {
            machine.put(frame, index, value);
        }
        let read = P2m::read(&machine, &Anchor::of(&shared(pages, lists, root, address, 0)), 1000);
        prop_assert!(machine.read.get() <= 5 * pages.div_ceil(512) + 8);
        if let Ok(p2m) = read {
            for page in (0..pages).filter(|page| p2m.frame(*page) != u64::MAX) {
                let frame = p2m.frame(page);
                prop_assert_eq!(p2m.frame(p2m.page(frame).unwrap()), frame);
            }
            prop_assert!(p2m.runs().iter().all(|(first, count)| first + count <= pages));
        }
    }
}
