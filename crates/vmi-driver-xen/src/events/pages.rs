//! Pages whose access rights are not the guest's own: those that are watched, and those with breakpoints.

use std::collections::BTreeMap;

use vmi_core::{Accesses, EventAbility, Gfn, MemoryWatch, PAGE_SIZE, PhysAddr, Place, Result, VcpuId};

use super::{XenEvents, decode, place};
use crate::breakpoints::INT3;
use crate::views::access;

/// More pages than a session watches at once.
const MOST_PAGES: u64 = 1 << 18;

/// The watches of each page.
#[derive(Debug, Default)]
pub(super) struct Pages(BTreeMap<u64, Vec<MemoryWatch>>);

impl Pages {
    /// The accesses of a page that are reported.
    pub(super) fn watched(&self, page: Gfn) -> Accesses {
        let watches = self.0.get(&page.get()).into_iter().flatten();
        watches.fold(Accesses::NONE, |all, watch| all.or(watch.on))
    }

    fn add(&mut self, page: u64, watch: MemoryWatch) {
        self.0.entry(page).or_default().push(watch);
    }

    fn remove(&mut self, page: u64, watch: MemoryWatch) {
        if let Some(watches) = self.0.get_mut(&page) {
            watches.retain(|other| *other != watch);
            if watches.is_empty() {
                self.0.remove(&page);
            }
        }
    }

    /// All of them, none of which is watched any more.
    pub(super) fn clear(&mut self) -> impl Iterator<Item = Gfn> {
        std::mem::take(&mut self.0).into_keys().map(Gfn::new)
    }
}

/// The frames that a watch touches; none if they are more than can be.
fn frames(watch: MemoryWatch) -> Option<std::ops::Range<u64>> {
    let end = watch.at.get().checked_add(watch.len)?.div_ceil(PAGE_SIZE);
    let first = watch.at.get() / PAGE_SIZE;
    (end.checked_sub(first)? <= MOST_PAGES).then_some(first..end)
}

impl XenEvents<'_> {
    /// How a page may be accessed without an event.
    pub(super) fn rights(&self, page: Gfn) -> Accesses {
        let hidden = if self.breakpoints.on(page).is_empty() { Accesses::NONE } else { Accesses::READ.or(Accesses::WRITE) };
        let denied = self.pages.watched(page).or(hidden);
        // Processors cannot allow writes without reads (Intel SDM, volume 3, section 29.3.3.1): who may not read may not write.
        let denied = if denied.read { denied.or(Accesses::WRITE) } else { denied };
        denied.inverted()
    }

    pub(super) fn set_rights(&self, page: Gfn, rights: Accesses) -> Result<()> {
        if !self.has(EventAbility::MemoryAccess) {
            return Ok(());
        }
        let set = self.ring.calls.set_access(page.get(), 1, access(rights));
        set.map_err(|error| self.failures.other(format!("allowing {rights} to page {:#x}", page.get()), error))
    }

    pub(super) fn arm_memory(&mut self, watch: MemoryWatch) -> Result<()> {
        let frames = frames(watch).ok_or_else(|| {
            let action = format!("watching {} bytes at {}", watch.len, watch.at);
            self.failures.other(action, format!("more than {MOST_PAGES} pages at once are not watched"))
        })?;
        for frame in frames {
            self.pages.add(frame, watch);
            self.set_rights(Gfn::new(frame), self.rights(Gfn::new(frame)))?;
        }
        Ok(())
    }

    pub(super) fn disarm_memory(&mut self, watch: MemoryWatch) -> Result<()> {
        let mut undone = Ok(());
        for frame in frames(watch).unwrap_or_default() {
            self.pages.remove(frame, watch);
            let page = Gfn::new(frame);
            let set = if self.is_open(page) { Ok(()) } else { self.set_rights(page, self.rights(page)) };
            undone = undone.and(set);
        }
        undone
    }

    fn is_open(&self, page: Gfn) -> bool {
        self.vcpus.values().any(|vcpu| vcpu.open.contains(&page))
    }

    /// The place is sprung by a breakpoint instruction on each page that the roots show there.
    pub(super) fn arm_breakpoint(&mut self, place: Place, roots: &[PhysAddr]) -> Result<()> {
        for at in place::bytes_of(self.driver, place.at, roots)? {
            let mut byte = [0];
            self.driver.read(at, &mut byte)?;
            if self.breakpoints.add(at, byte[0], place) {
                self.ring.note_breakpoints(self.breakpoints.bytes())?;
                let page = decode::frame(at);
                if !self.is_open(page) {
                    self.set_rights(page, self.rights(page))?;
                    self.driver.write(at, &[INT3])?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn disarm_breakpoint(&mut self, place: Place) -> Result<()> {
        let mut undone = Ok(());
        for at in self.breakpoints.of(place) {
            let Some(original) = self.breakpoints.remove(at, place) else { continue };
            let page = decode::frame(at);
            if !self.is_open(page) {
                undone = undone.and(self.driver.write(at, &[original])).and(self.set_rights(page, self.rights(page)));
            }
        }
        undone.and(self.ring.note_breakpoints(self.breakpoints.bytes()))
    }

    /// A page is as the guest has it, until the vCPU has stepped.
    pub(super) fn open_page(&mut self, vcpu: u32, page: Gfn) -> Result<()> {
        if !self.is_open(page) {
            for (at, original) in self.breakpoints.on(page) {
                self.driver.write(at, &[original])?;
            }
            self.set_rights(page, Accesses::ALL)?;
        }
        let open = &mut self.vcpus.entry(vcpu).or_default().open;
        if !open.contains(&page) {
            open.push(page);
        }
        Ok(())
    }

    /// The pages that were open for a step of the vCPU are as before.
    pub(super) fn close_pages(&mut self, vcpu: u32) -> Result<()> {
        let open = std::mem::take(&mut self.vcpus.entry(vcpu).or_default().open);
        let mut closed = Ok(());
        for page in open.into_iter().filter(|page| !self.is_open(*page)).collect::<Vec<_>>() {
            closed = closed.and(self.close_page(page));
        }
        closed
    }

    fn close_page(&mut self, page: Gfn) -> Result<()> {
        let mut written = false;
        for (at, original) in self.breakpoints.on(page) {
            // The guest may have written there.
            let mut now = [original];
            self.driver.read(at, &mut now)?;
            if now[0] != original {
                self.breakpoints.written(at, now[0]);
                written = true;
            }
        }
        if written {
            self.ring.note_breakpoints(self.breakpoints.bytes())?;
        }
        for (at, _) in self.breakpoints.on(page) {
            self.driver.write(at, &[INT3])?;
        }
        self.set_rights(page, self.rights(page))
    }

    /// Each instruction of a vCPU is an event, or no more.
    pub(super) fn step_always(&mut self, vcpu: VcpuId, always: bool) -> Result<()> {
        let waits = self.current.as_ref().is_some_and(|request| request.vcpu == vcpu.0);
        let known = self.vcpus.entry(vcpu.0).or_default();
        known.always = always;
        let steps = always || known.asked || known.back_to.is_some() || !known.open.is_empty();
        // A vCPU that waits for its answer gets it with that.
        if steps == known.steps || waits {
            return Ok(());
        }
        known.steps = steps;
        let stepped = self.ring.calls.single_step(vcpu.0, steps);
        stepped.map_err(|error| self.failures.other(format!("stepping {vcpu}"), error))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_watch_covers_the_pages_it_touches() {
        let watch = |at, len| MemoryWatch { at: PhysAddr::new(at), len, on: Accesses::READ };
        assert_eq!(frames(watch(0x1fff, 2)), Some(1..3));
        assert_eq!(frames(watch(0x1000, 0x1000)), Some(1..2));
        assert_eq!(frames(watch(0x1000, u64::MAX)), None);
        assert_eq!(frames(watch(0, (MOST_PAGES + 1) * PAGE_SIZE)), None);
    }

    #[test]
    fn watches_of_one_page_add_up() {
        let mut pages = Pages::default();
        let watch = |on| MemoryWatch { at: PhysAddr::new(0x1000), len: 8, on };
        pages.add(1, watch(Accesses::READ));
        pages.add(1, watch(Accesses::EXECUTE));
        assert_eq!(pages.watched(Gfn::new(1)), Accesses::READ.or(Accesses::EXECUTE));
        pages.remove(1, watch(Accesses::READ));
        assert_eq!(pages.watched(Gfn::new(1)), Accesses::EXECUTE);
        assert_eq!(pages.watched(Gfn::new(2)), Accesses::NONE);
    }
}
