//! The list by which a PV domain tells the machine frame of each of its pages (p2m), and the way back (m2p).
//!
//! A PV domain counts its pages from zero (pseudo-physical frames) and keeps the machine frame of each in a list of its own, whose place it tells in the page that
//! it shares with Xen (xen/include/public/arch-x86/xen.h, `arch_shared_info`). Its page tables hold machine frames.
//!
//! All of it is the guest's word. A frame that is not the domain's cannot be mapped, Xen sees to that; the rest is bounded here.

use vmi_core::PAGE_SIZE;

/// `struct shared_info` of a 64-bit domain: 32 `vcpu_info` of 64 bytes, two bitmaps of 64 words, the wall clock of 16 bytes, then `arch_shared_info`.
const ARCH: usize = 32 * 64 + 2 * 64 * 8 + 16;

/// Words in a page.
const WORDS: u64 = PAGE_SIZE / 8;

/// What stands in the list for a page that is none has its high bits set, as have pages that belong to others or to the machine
/// (Linux, arch/x86/include/asm/xen/page.h: INVALID_P2M_ENTRY, FOREIGN_FRAME_BIT, IDENTITY_FRAME_BIT). Frames have 40 bits: 52 of an address.
const MAX_FRAME: u64 = 1 << 40;

/// The address of a frame in a page-table entry.
const ENTRY_FRAME: u64 = 0x000f_ffff_ffff_f000;

/// A page of the machine.
pub(crate) type Page = [u8; PAGE_SIZE as usize];

/// Reads machine frames of one domain.
pub(crate) trait MachineFrames {
    /// Gives `visit` the index and the content of each frame that can be read.
    ///
    /// # Errors
    /// If none can be read at all.
    fn read(&self, frames: &[u64], visit: &mut dyn FnMut(usize, &Page)) -> vmi_core::Result<()>;
}

/// Why a list could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum P2mError {
    /// The domain has not told where its list is.
    #[error(
        "the domain has not told Xen where its list of machine frames is: its kernel has not come so far yet, or does not do that"
    )]
    NotTold,
    /// More pages than the domain can have.
    #[error("the domain says that it has {pages} pages, of which {limit} are believed")]
    TooLong {
        /// What it says.
        pages: u64,
        /// The bound.
        limit: u64,
    },
    /// A frame of the list, or of what leads to it, cannot be read.
    #[error("machine frame {frame:#x}, which is part of {what}, cannot be read: it is not the domain's")]
    Unreadable {
        /// The frame.
        frame: u64,
        /// What it should be.
        what: &'static str,
    },
    /// A frame cannot be mapped for another reason.
    #[error(transparent)]
    Map(vmi_core::Error),
}

/// Where the list is, as the domain says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    /// Pages in the list.
    pub(crate) pages: u64,
    /// Frame of the list of lists of frames.
    lists: u64,
    /// Page tables that map the list, as a machine address; zero if there are none.
    root: u64,
    /// Where they map it.
    address: u64,
    /// How often its mapping was changed.
    pub(crate) generation: u64,
}

impl Anchor {
    /// From the page that the domain shares with Xen.
    pub(crate) fn of(shared: &Page) -> Self {
        let word = |index: usize| {
            let bytes = shared.get(ARCH.wrapping_add(index.wrapping_mul(8))..).and_then(<[u8]>::first_chunk);
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        Self { pages: word(0), lists: word(1), root: word(3), address: word(4), generation: word(5) }
    }
}

/// The list as it was read.
#[derive(Clone, Debug, Default)]
pub(crate) struct P2m {
    /// The machine frames that hold the list, 512 pages each.
    pub(crate) list: Vec<u64>,
    /// The machine frame of each page; all ones for none.
    frames: Vec<u64>,
    /// Machine frame and page, ascending.
    back: Vec<(u64, u64)>,
    pub(crate) generation: u64,
}

/// All ones: no frame.
pub(crate) const NONE: u64 = u64::MAX;

impl P2m {
    /// Reads the list of a domain that has `pages` pages by Xen's word.
    pub(crate) fn read(memory: &impl MachineFrames, anchor: &Anchor, pages: u64) -> Result<Self, P2mError> {
        // A domain may have been given less memory than it could take later, so its list is longer than its memory; Xen tells no bound but the memory.
        let limit = pages.saturating_mul(64).max(1 << 20);
        if anchor.pages > limit {
            return Err(P2mError::TooLong { pages: anchor.pages, limit });
        }
        let count = anchor.pages.div_ceil(WORDS);
        let list = match (anchor.root, anchor.lists) {
            (0, 0 | NONE) => return Err(P2mError::NotTold),
            (0, lists) => by_lists(memory, lists, count)?,
            (root, _) => by_page_tables(memory, root, anchor.address, count)?,
        };
        // At most 64 times the domain's pages: the bound above.
        let mut frames = vec![NONE; usize::try_from(anchor.pages).unwrap_or_default()];
        for (first, part) in (0..).step_by(BATCH).zip(list.chunks(BATCH)) {
            // What the list has no page for is none.
            let there: Vec<(usize, u64)> = part.iter().copied().enumerate().filter(|(_, frame)| *frame != NONE).collect();
            let named: Vec<u64> = there.iter().map(|(_, frame)| *frame).collect();
            let mut visit = |index: usize, page: &Page| {
                let Some((within, _)) = there.get(index) else { return };
                let start = usize::saturating_add(first, *within).saturating_mul(WORDS as usize);
                for (place, frame) in frames.iter_mut().skip(start).zip(words(page)) {
                    *place = if frame < MAX_FRAME { frame } else { NONE };
                }
            };
            memory.read(&named, &mut visit).map_err(P2mError::Map)?;
        }
        let mut back: Vec<(u64, u64)> =
            frames.iter().zip(0..).filter(|(frame, _)| **frame != NONE).map(|(frame, page)| (*frame, page)).collect();
        back.sort_unstable();
        Ok(Self { list, frames, back, generation: anchor.generation })
    }

    /// The machine frame of a page.
    #[cfg(test)]
    pub(crate) fn frame(&self, page: u64) -> u64 {
        usize::try_from(page).ok().and_then(|page| self.frames.get(page)).copied().unwrap_or(NONE)
    }

    /// The page that a machine frame is.
    pub(crate) fn page(&self, frame: u64) -> Option<u64> {
        let index = self.back.partition_point(|(here, _)| *here < frame);
        self.back.get(index).filter(|(here, _)| *here == frame).map(|(_, page)| *page)
    }

    /// Runs of pages that have frames: first page and how many.
    pub(crate) fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (page, _) in (0u64..).zip(&self.frames).filter(|(_, frame)| **frame != NONE) {
            match runs.last_mut() {
                Some((first, count)) if first.saturating_add(*count) == page => *count = count.saturating_add(1),
                _ => runs.push((page, 1)),
            }
        }
        runs
    }

    /// The frames of a part of a page of the list, which was read anew.
    pub(crate) fn entries(page: &Page, first: usize, count: usize) -> impl Iterator<Item = u64> + '_ {
        words(page).skip(first).take(count).map(|frame| if frame < MAX_FRAME { frame } else { NONE })
    }
}

/// Frames that are read at once.
const BATCH: usize = 512;

/// The words of a page.
fn words(page: &Page) -> impl Iterator<Item = u64> + '_ {
    page.chunks_exact(8).map(|bytes| bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)))
}

/// A frame that has to be there.
fn one(memory: &impl MachineFrames, frame: u64, what: &'static str) -> Result<Box<Page>, P2mError> {
    let mut content = None;
    memory.read(&[frame], &mut |_, page| content = Some(Box::new(*page))).map_err(P2mError::Map)?;
    content.ok_or(P2mError::Unreadable { frame, what })
}

/// The frames of the list: a frame of frames of frames of it (three levels, as Xen's tools of old have it).
fn by_lists(memory: &impl MachineFrames, lists: u64, count: u64) -> Result<Vec<u64>, P2mError> {
    let top = one(memory, lists, "the list of lists of its machine frames")?;
    let mut list = Vec::new();
    for middle in words(&top) {
        let missing = count.saturating_sub(list.len() as u64);
        if missing == 0 {
            break;
        }
        let middle = one(memory, middle, "the lists of its machine frames")?;
        list.extend(words(&middle).take(usize::try_from(missing).unwrap_or(usize::MAX)));
    }
    Ok(list)
}

/// The frames of the list, as four levels of page tables map it from `address` on.
fn by_page_tables(memory: &impl MachineFrames, root: u64, address: u64, count: u64) -> Result<Vec<u64>, P2mError> {
    const WHAT: &str = "the page tables that map its list of machine frames";
    let mut list = Vec::with_capacity(usize::try_from(count).unwrap_or_default());
    // The table of each level below the top that was used last: the next page of the list mostly is in the same.
    let top = one(memory, root / PAGE_SIZE, WHAT)?;
    let mut last: [Option<(u64, Box<Page>)>; 3] = [None, None, None];
    for index in 0..count {
        let at = address.wrapping_add(index.wrapping_mul(PAGE_SIZE));
        let mut entry = entry_of(&top, at, 39);
        for (slot, shift) in last.iter_mut().zip([30, 21, 12]) {
            if entry & 1 == 0 {
                break;
            }
            let frame = (entry & ENTRY_FRAME) / PAGE_SIZE;
            if slot.as_ref().is_none_or(|(held, _)| *held != frame) {
                *slot = Some((frame, one(memory, frame, WHAT)?));
            }
            entry = slot.as_ref().map_or(0, |(_, table)| entry_of(table, at, shift));
        }
        list.push(if entry & 1 == 0 { NONE } else { (entry & ENTRY_FRAME) / PAGE_SIZE });
    }
    Ok(list)
}

/// The entry of a table that maps `at`.
fn entry_of(table: &Page, at: u64, shift: u32) -> u64 {
    let index = (at >> shift) % WORDS;
    words(table).nth(index as usize).unwrap_or(0)
}

#[cfg(all(test, not(loom)))]
mod tests;
