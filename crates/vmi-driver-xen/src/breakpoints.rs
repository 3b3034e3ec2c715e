//! Breakpoint instructions in the guest's memory: which byte lies below each, and which pages they are on.

use std::collections::BTreeMap;

use vmi_core::{Gfn, PAGE_SIZE, PhysAddr, Place};

/// INT3.
pub(crate) const INT3: u8 = 0xcc;

/// A byte that is a breakpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Breakpoint {
    /// What was there, and is there as the guest sees it.
    pub(crate) original: u8,
    /// Who asked for it: several linear addresses may lead to one byte.
    pub(crate) places: Vec<Place>,
}

/// All breakpoints of a session, by where they are in guest-physical memory.
#[derive(Debug, Default)]
pub(crate) struct Breakpoints(BTreeMap<PhysAddr, Breakpoint>);

impl Breakpoints {
    pub(crate) fn get(&self, at: PhysAddr) -> Option<&Breakpoint> {
        self.0.get(&at)
    }

    /// Adds a place at a byte. Whether it is the first there, so that the instruction has to be written; `original` is what lies there then.
    pub(crate) fn add(&mut self, at: PhysAddr, original: u8, place: Place) -> bool {
        let first = !self.0.contains_key(&at);
        let breakpoint = self.0.entry(at).or_insert_with(|| Breakpoint { original, places: Vec::new() });
        if !breakpoint.places.contains(&place) {
            breakpoint.places.push(place);
        }
        first
    }

    /// Where a place has breakpoints.
    pub(crate) fn of(&self, place: Place) -> Vec<PhysAddr> {
        self.0.iter().filter(|(_, breakpoint)| breakpoint.places.contains(&place)).map(|(at, _)| *at).collect()
    }

    /// Removes a place from a byte. What lay there, if nobody else has a breakpoint there.
    pub(crate) fn remove(&mut self, at: PhysAddr, place: Place) -> Option<u8> {
        let breakpoint = self.0.get_mut(&at)?;
        breakpoint.places.retain(|other| *other != place);
        if !breakpoint.places.is_empty() {
            return None;
        }
        self.0.remove(&at).map(|breakpoint| breakpoint.original)
    }

    /// The guest wrote the byte below a breakpoint.
    pub(crate) fn written(&mut self, at: PhysAddr, original: u8) {
        if let Some(breakpoint) = self.0.get_mut(&at) {
            breakpoint.original = original;
        }
    }

    /// Where there are breakpoints on a page, and what lies below them.
    pub(crate) fn on(&self, page: Gfn) -> Vec<(PhysAddr, u8)> {
        let first = page.get().saturating_mul(PAGE_SIZE);
        let range = PhysAddr::new(first)..PhysAddr::new(first.saturating_add(PAGE_SIZE));
        self.0.range(range).map(|(at, breakpoint)| (*at, breakpoint.original)).collect()
    }

    /// All bytes, and what lies below them.
    pub(crate) fn bytes(&self) -> impl Iterator<Item = (PhysAddr, u8)> {
        self.0.iter().map(|(at, breakpoint)| (*at, breakpoint.original))
    }

    /// Puts what lies below the breakpoints into a copy of guest memory that begins at `at`: what the guest itself would read there.
    pub(crate) fn hide(&self, at: PhysAddr, copy: &mut [u8]) {
        let end = PhysAddr::new(at.get().saturating_add(copy.len() as u64));
        for (byte, breakpoint) in self.0.range(at..end) {
            let offset = byte.get().saturating_sub(at.get());
            if let Some(shown) = usize::try_from(offset).ok().and_then(|offset| copy.get_mut(offset)) {
                *shown = breakpoint.original;
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use vmi_core::{TrapKind, VirtAddr};

    use super::*;

    fn place(at: u64) -> Place {
        Place { kind: TrapKind::SoftwareBreakpoint, at: VirtAddr::new(at), len: 1 }
    }

    #[test]
    fn a_byte_goes_back_with_its_last_place() {
        let mut all = Breakpoints::default();
        let at = PhysAddr::new(0x1ff0);
        assert!(all.add(at, 0x55, place(1)));
        assert!(!all.add(at, INT3, place(2)));
        assert_eq!(all.get(at).unwrap().original, 0x55);
        assert_eq!(all.of(place(2)), [at]);
        assert_eq!(all.remove(at, place(1)), None);
        assert_eq!(all.remove(at, place(2)), Some(0x55));
        assert_eq!(all.remove(at, place(2)), None);
    }

    #[test]
    fn copies_show_what_the_guest_put_there() {
        let mut all = Breakpoints::default();
        for (at, byte) in [(0x0fff, 1), (0x1000, 2), (0x1003, 3), (0x1004, 4)] {
            all.add(PhysAddr::new(at), byte, place(at));
        }
        let mut copy = [INT3; 4];
        all.hide(PhysAddr::new(0x1000), &mut copy);
        assert_eq!(copy, [2, INT3, INT3, 3]);
        all.written(PhysAddr::new(0x1003), 9);
        all.hide(PhysAddr::new(0x1000), &mut copy);
        assert_eq!(copy, [2, INT3, INT3, 9]);
        assert_eq!(all.on(Gfn::new(1)).len(), 3);
    }
}
