//! A window on a guest: address space for all of its memory, in which parts are mapped and unmapped while others read.
//!
//! A guest-physical address is found at one place for ever, so a read is a comparison, a look at the page's presence and a copy. The back end maps pages in their place
//! and [shows](Window::show) them; [`Window::take_away`] unmaps them, and waits for who still reads there (see [`readers`]). What is not shown is never touched, so a mapping may be
//! made in place step by step, and pages of it that are not there (holes) are simply not shown.
#![allow(unsafe_code)]

use core::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

use super::readers::{self, Reader};
use super::{GuestMapping, MappedRegion, Shared, copy, is_word};
use crate::{Liveness, MemoryMap, PAGE_SIZE, PhysAddr};

const PAGE: usize = PAGE_SIZE as usize;

/// Pages whose presence is one word: a bit for each, which is set while the page may be read. A byte says whether all are set: for nearly every read, that is all there is to look at.
const GROUP: u64 = 64;
const ALL: u8 = 1;

/// Bytes that are copied at most with the flag up, so that nobody waits for a reader long.
const SECTION: usize = 64 << 10;

/// The largest window: 16 TiB of the 128 TiB that a process has.
const LARGEST: u64 = 16 << 40;

/// Commands of membarrier(2) (linux/membarrier.h).
const BARRIER: libc::c_int = 1 << 3;
const REGISTER_BARRIER: libc::c_int = 1 << 4;

/// Makes every thread of this process pass a memory barrier, or prepares for that.
fn membarrier(command: libc::c_int) -> io::Result<()> {
    // SAFETY: the system call takes three integers and touches no memory of this process.
    Errno::result(unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }).map(drop).map_err(io::Error::from)
}

/// The bit of a page in its group.
#[inline(always)]
fn bit(page: u64) -> u64 {
    1u64.wrapping_shl((page % GROUP) as u32)
}

/// What a read needs to know of a window.
#[derive(Clone, Copy)]
pub(super) struct View {
    base: *const u8,
    presence: *const AtomicU64,
    whole: *const AtomicU8,
    /// How many bytes the window has: whole pages.
    len: u64,
}

// SAFETY: the pointers are to mappings of the process that live as long as the window does, which whoever has a view keeps. Memory of the guest is only read by volatile loads, and only
// while it cannot be taken away; presence is atomic.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// Of no window: no address is within.
    pub(super) const NONE: Self = Self { base: core::ptr::null(), presence: core::ptr::null(), whole: core::ptr::null(), len: 0 };

    /// Fills `buf` if it is an aligned word of a page that is there; else does nothing and says `false`.
    #[inline(always)]
    pub(super) fn read_word(&self, at: PhysAddr, buf: &mut [u8]) -> bool {
        let offset = at.get();
        if !is_word(at, buf.len()) || offset >= self.len {
            return false;
        }
        let Some(reader) = readers::current() else { return false };
        // Where it reads tells one time from another.
        let host = self.base.wrapping_add(offset as usize);
        reader.enter(host as usize);
        // SAFETY: the comparison says that the offset lies in the window.
        let there = unsafe { self.is_there(offset as usize) };
        if there {
            // SAFETY: the page was there after the flag was raised, so it stays mapped until the flag is lowered; the word is aligned and begins in it, so it lies in it.
            unsafe { copy::copy_word(host, buf) };
        }
        reader.leave();
        there
    }

    /// Whether the page at this offset may be read.
    ///
    /// # Safety
    /// The offset lies in the window.
    #[inline(always)]
    unsafe fn is_there(&self, offset: usize) -> bool {
        let page = offset / PAGE;
        let group = page >> GROUP.trailing_zeros();
        // SAFETY: the window has a byte and a word for each group of pages; the offset lies in it.
        let (whole, bits) = unsafe { (&*self.whole.wrapping_add(group), &*self.presence.wrapping_add(group)) };
        whole.load(Ordering::Acquire) == ALL || bits.load(Ordering::Acquire) & bit(page as u64) != 0
    }

    /// Fills `buf` from `at` as far as pages are there; how many bytes that are.
    pub(super) fn read_run(&self, at: PhysAddr, buf: &mut [u8]) -> usize {
        let len = self.len;
        // No read from a window, and an ending thread, which has no flag any more.
        if at.get() >= len {
            return 0;
        }
        let Some(reader) = readers::current().or_else(readers::register) else { return 0 };
        // Below the window's length, which is a length in this process.
        let start = at.get() as usize;
        let fits = (len as usize).wrapping_sub(start).min(buf.len());
        let (buf, _) = buf.split_at_mut(fits);
        let mut done = 0usize;
        for part in buf.chunks_mut(SECTION) {
            let copied = self.read_section(reader, start.wrapping_add(done), part);
            done = done.saturating_add(copied);
            if copied < part.len() {
                break;
            }
        }
        done
    }

    /// Copies with the flag up. All of `part` lies in the window.
    #[inline(always)]
    fn read_section(&self, reader: &Reader, start: usize, part: &mut [u8]) -> usize {
        let host = self.base.wrapping_add(start);
        reader.enter(host as usize);
        let mut there = 0usize;
        while there < part.len() {
            let at = start.wrapping_add(there);
            // SAFETY: all of `part` lies in the window.
            if !unsafe { self.is_there(at) } {
                break;
            }
            there = there.saturating_add(PAGE.wrapping_sub(at % PAGE));
        }
        let copied = there.min(part.len());
        let (part, _) = part.split_at_mut(copied);
        // SAFETY: each of these pages was there after the flag was raised, so they stay mapped until it is lowered. Other machines may write them: volatile loads.
        unsafe { copy::copy_volatile(host, part) };
        reader.leave();
        copied
    }
}

/// Address space for all memory of a guest, from guest-physical address zero on. Pages are mapped into it, and taken away again, while others read.
///
/// For back ends that can map memory of a running guest, but not all of it, or not for ever. What [`GuestMapping::window`] makes of it is read at nearly the speed of a mapping that stays;
/// what it does not show is asked of [`Driver::read`](crate::Driver::read), which may map it.
///
/// A signal handler must not read from a window.
pub struct Window {
    view: View,
    base: NonNull<u8>,
    pages: u64,
    presence: MmapRaw,
    whole: MmapRaw,
    /// Held while presence changes, so that byte and word of a group agree.
    changing: Mutex<()>,
    /// Pages whose address space was lost in a failed call: it may be somebody else's now.
    lost: Mutex<Vec<Range<u64>>>,
}

// SAFETY: as for `View`; the address space belongs to the process and not to a thread.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Reserves address space for guest-physical memory up to `end`, in bytes. It takes no memory, but a bit for each page that is ever shown (by pages of those).
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for nothing and for more than 16 TiB; what `mmap` and `membarrier` report: [`io::ErrorKind::Unsupported`] by kernels before 4.14.
    pub fn reserve(end: u64) -> io::Result<Arc<Self>> {
        let refuse = || io::Error::new(io::ErrorKind::InvalidInput, format!("a window of {end:#x} bytes"));
        let len = Some(end).filter(|end| *end <= LARGEST).and_then(|end| end.checked_next_multiple_of(PAGE_SIZE));
        let size = len.and_then(|len| NonZeroUsize::new(usize::try_from(len).ok()?)).ok_or_else(refuse)?;
        membarrier(REGISTER_BARRIER)?;
        membarrier(BARRIER)?;
        let pages = size.get() as u64 / PAGE_SIZE;
        let groups = pages.div_ceil(GROUP) as usize;
        let zeros = |len: usize| MmapOptions::new().len(len).no_reserve_swap().map_anon().map(MmapRaw::from);
        let presence = zeros(groups.saturating_mul(size_of::<AtomicU64>()))?;
        let whole = zeros(groups)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let base = unsafe { mmap_anonymous(None, size, ProtFlags::PROT_NONE, flags)? }.cast::<u8>();
        let len = size.get() as u64;
        let view = View { base: base.as_ptr(), presence: presence.as_ptr().cast(), whole: whole.as_ptr().cast(), len };
        Ok(Arc::new(Self { view, base, pages, presence, whole, changing: Mutex::default(), lost: Mutex::default() }))
    }

    /// How many pages it has.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Where these pages are to be mapped; `None` if they are not all in the window, or their place was lost.
    pub fn place(&self, pages: &Range<u64>) -> Option<NonNull<u8>> {
        let inside = pages.start < pages.end && pages.end <= self.pages;
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if !inside || lost.iter().any(|lost| lost.start < pages.end && pages.start < lost.end) {
            return None;
        }
        // Within the reservation.
        NonNull::new(self.base.as_ptr().wrapping_add((pages.start as usize).wrapping_mul(PAGE)))
    }

    /// The presence of the group of a page: whether all are there, and which.
    fn presence(&self, page: u64) -> Option<(&AtomicU8, &AtomicU64)> {
        let index = usize::try_from(page / GROUP).ok().filter(|_| page < self.pages)?;
        // SAFETY: the page lies in the window, so the mapping has a byte for its group; it lives as long as `self` and is only ever used as atomic bytes.
        let whole = unsafe { &*self.whole.as_ptr().cast::<AtomicU8>().add(index) };
        // SAFETY: the same of words, which are aligned as the mapping is.
        let bits = unsafe { &*self.presence.as_ptr().cast::<AtomicU64>().add(index) };
        Some((whole, bits))
    }

    /// Whether this page can be read now.
    pub fn is_shown(&self, page: u64) -> bool {
        self.presence(page).is_some_and(|(_, bits)| bits.load(Ordering::Acquire) & bit(page) != 0)
    }

    /// Lets pages be read, from page number `first` on: those for which `there` says yes.
    ///
    /// # Safety
    /// Each such page is mapped at its [place](Window::place), readable, and stays so until [`Window::take_away`] is called for it or the window is dropped. Nobody has a reference to its memory, and
    /// nobody takes it away while this is called.
    pub unsafe fn show(&self, first: u64, there: impl IntoIterator<Item = bool>) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        for (page, there) in (first..).zip(there) {
            if there && let Some((whole, bits)) = self.presence(page) {
                // Release: the mapping is seen by whoever sees this.
                let before = bits.fetch_or(bit(page), Ordering::AcqRel);
                if before | bit(page) == u64::MAX {
                    whole.store(ALL, Ordering::Release);
                }
            }
        }
    }

    /// Unmaps what is mapped at the places of these pages, after all who read there have ended. They can be mapped again.
    ///
    /// # Errors
    /// What `mmap` reports. The pages are not shown any more, but what was mapped stays mapped; their place is not used again.
    pub fn take_away(&self, pages: &[Range<u64>]) -> io::Result<()> {
        {
            let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            for page in pages.iter().cloned().flatten() {
                if let Some((whole, bits)) = self.presence(page) {
                    whole.store(0, Ordering::Release);
                    bits.fetch_and(!bit(page), Ordering::Release);
                }
            }
        }
        let mut failed = Ok(());
        readers::wait_for_readers(|| {
            // It has worked when the window was made, and the kernel names no way in which it could fail then (membarrier(2)).
            if let Err(error) = membarrier(BARRIER) {
                tracing::error!(%error, "readers of a guest's memory cannot be waited for");
                failed = Err(error);
            }
        });
        if let Err(error) = failed {
            pages.iter().for_each(|pages| self.lose(pages));
            return Err(error);
        }
        for pages in pages {
            let Some(place) = self.place(pages) else { continue };
            if let Err(error) = reserve_at(place, pages, libc::MAP_FIXED) {
                self.lose(pages);
                failed = Err(error);
            }
        }
        failed
    }

    /// Reserves the place of these pages again after a call that failed to map there and has unmapped the place instead. Nothing may be shown or mapped there.
    pub fn reserve_again(&self, pages: &Range<u64>) {
        let Some(place) = self.place(pages) else { return };
        // Somebody else may have got the place meanwhile: it is not taken from them.
        if reserve_at(place, pages, libc::MAP_FIXED_NOREPLACE).is_err() {
            self.lose(pages);
        }
    }

    fn lose(&self, pages: &Range<u64>) {
        tracing::warn!(?pages, "a part of a guest's memory cannot be mapped by this handle any more");
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).push(pages.clone());
    }
}

/// Makes address space without memory of what is at `place`, in one step.
fn reserve_at(place: NonNull<u8>, pages: &Range<u64>, how: libc::c_int) -> io::Result<()> {
    let len = (pages.end.saturating_sub(pages.start) as usize).saturating_mul(PAGE);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | how;
    // SAFETY: the place is that of pages of a window, and no part of it that was lost. Where it is replaced, nobody reads there any more: see `take_away`. Else nothing is replaced.
    let got = unsafe { libc::mmap(place.as_ptr().cast(), len, libc::PROT_NONE, flags, -1, 0) };
    if got == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    if got == place.as_ptr().cast() {
        return Ok(());
    }
    // Kernels before 4.17 take the place for a wish (mmap(2), MAP_FIXED_NOREPLACE).
    // SAFETY: it has just been made and nobody knows of it.
    unsafe { libc::munmap(got, len) };
    Err(Errno::EEXIST.into())
}

impl Drop for Window {
    fn drop(&mut self) {
        let mut lost = std::mem::take(&mut *self.lost.lock().unwrap_or_else(PoisonError::into_inner));
        lost.sort_by_key(|pages| pages.start);
        let mut start = 0u64;
        for gap in lost.into_iter().chain(std::iter::once(self.pages..self.pages)) {
            let (from, len) = (start as usize, gap.start.saturating_sub(start) as usize);
            if len > 0 {
                let place = self.base.as_ptr().wrapping_add(from.wrapping_mul(PAGE));
                // SAFETY: this part of the reservation was not lost, and nobody reads any more: whoever reads has the window.
                let unmapped = unsafe { libc::munmap(place.cast(), len.wrapping_mul(PAGE)) };
                if unmapped != 0 {
                    tracing::error!(error = %io::Error::last_os_error(), "memory of a guest stays mapped");
                }
            }
            start = start.max(gap.end);
        }
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window").field("base", &self.base).field("pages", &self.pages).finish_non_exhaustive()
    }
}

impl GuestMapping {
    /// Live memory through a window. `memory` is where the guest has memory, whether it is shown or not.
    pub fn window(window: Arc<Window>, memory: MemoryMap) -> Self {
        let view = window.view;
        let shared = Shared { regions: Vec::new(), liveness: Liveness::Live, keep_alive: window, behind: Some(memory) };
        Self { largest: MappedRegion::NONE, view, shared: Arc::new(shared) }
    }
}

#[cfg(test)]
mod tests;
