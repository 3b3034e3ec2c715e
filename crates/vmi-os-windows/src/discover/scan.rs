//! One pass over memory, for everything that can only be found so.

use std::borrow::Cow;

use memchr::memmem::Finder;
use rayon::prelude::*;
use vmi_arch_x86::X86Driver;
use vmi_core::{GuestMapping, Memory, PAGE_SIZE, PhysAddr, Region, Vmi};

use super::image::{self, Header};
use super::page_tables::{self, Tables};
use crate::PdbIdentity;

/// Bytes that one thread searches at a time: they stay in the processor's cache while each pattern is looked for.
const CHUNK: u64 = 256 << 10;
/// Bytes behind a chunk that are looked at with it: a CodeView record across its border.
const OVERLAP: u64 = 4096;
/// Hits of one kind in one chunk, and in all, that are kept; more are a trap.
const MAX_HITS: usize = 64;
const MAX_ALL: usize = 4096;

/// What was found in physical memory, ascending.
#[derive(Debug, Default)]
pub(super) struct Hits {
    /// Pages that may be page tables.
    pub(super) tables: Vec<(PhysAddr, Tables)>,
    /// CodeView records of kernels.
    pub(super) code_views: Vec<(PhysAddr, PdbIdentity)>,
    /// First pages of images of kernels.
    pub(super) images: Vec<(PhysAddr, Header)>,
}

/// Part of memory that is scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Hits {
    /// Scans what of the memory lies in `part`.
    pub(super) fn scan<D: X86Driver>(vmi: &Vmi<D>, part: Part) -> Self {
        let record = Finder::new(b"RSDS");
        let mut found: Vec<Self> = chunks(vmi, part)
            .into_par_iter()
            .map(|(at, len)| {
                let mut hits = Self::default();
                let bytes = bytes(vmi, at, len.saturating_add(OVERLAP));
                let own = bytes.get(..usize::try_from(len).unwrap_or_default().min(bytes.len())).unwrap_or_default();
                for (index, page) in own.as_chunks().0.iter().enumerate() {
                    hits.look_at(at.wrapping_add((index as u64).wrapping_mul(PAGE_SIZE)), page);
                }
                for offset in record.find_iter(own).take(MAX_HITS) {
                    let rest = bytes.get(offset..).unwrap_or_default();
                    let identity = image::parse_code_view(rest.get(..rest.len().min(512)).unwrap_or_default());
                    let kernel = |pdb: &PdbIdentity| image::DATABASES.iter().any(|name| pdb.name.eq_ignore_ascii_case(name));
                    if let Some(identity) = identity.filter(kernel) {
                        hits.code_views.push((at.wrapping_add(offset as u64), identity));
                    }
                }
                hits
            })
            .collect();
        let mut all = Self::default();
        for hits in &mut found {
            all.tables.append(&mut hits.tables);
            all.code_views.append(&mut hits.code_views);
            all.images.append(&mut hits.images);
        }
        all.tables.truncate(MAX_ALL.saturating_mul(4));
        all.code_views.truncate(MAX_HITS);
        all.images.truncate(MAX_HITS);
        all
    }

    fn look_at(&mut self, at: PhysAddr, page: &[u8; PAGE_SIZE as usize]) {
        page_tables::look_at(at, page, |tables| {
            if self.tables.len() < MAX_ALL {
                self.tables.push((at, tables));
            }
        });
        if page.starts_with(b"MZ")
            && self.images.len() < MAX_HITS
            && let Some(header) = Header::parse(page).filter(Header::has_pool_code)
        {
            self.images.push((at, header));
        }
    }
}

/// The memory in `part` in chunks of whole pages.
pub(super) fn chunks<D: X86Driver>(vmi: &Vmi<D>, part: Part) -> Vec<(PhysAddr, u64)> {
    // Where memory is mapped, only that: all else reads as zeros, of which a lying file may claim any amount.
    let memory = vmi.driver().mapping().map_or_else(|| vmi.machine().memory.clone(), GuestMapping::memory_map);
    let clipped = |region: &Region| {
        let start = region.start().get().max(part.from).checked_next_multiple_of(PAGE_SIZE)?;
        let end = region.end().get().min(part.to);
        Some((start, end.checked_sub(start).filter(|&len| len != 0)?))
    };
    let regions: Vec<_> = memory.regions().iter().filter_map(clipped).collect();
    regions
        .into_iter()
        .flat_map(|(start, len)| {
            (0..len.div_ceil(CHUNK)).map(move |index| {
                let offset = index.saturating_mul(CHUNK);
                (PhysAddr::new(start.saturating_add(offset)), len.saturating_sub(offset).min(CHUNK))
            })
        })
        .collect()
}

/// `len` bytes at `at`, fewer where memory ends: lent where memory is frozen and mapped, else copied, with zeros for what is absent.
/// The caller bounds `len`.
pub(super) fn bytes<D: X86Driver>(vmi: &Vmi<D>, at: PhysAddr, len: u64) -> Cow<'_, [u8]> {
    if let Some(slice) = usize::try_from(len).ok().and_then(|len| vmi.slice(at, len)) {
        return Cow::Borrowed(slice);
    }
    let end = vmi.driver().mapping().map_or_else(|| vmi.machine().memory.end(), |mapping| mapping.memory_map().end());
    let len = usize::try_from(len.min(end.get().saturating_sub(at.get()))).unwrap_or_default();
    let mut copy = vec![0; len];
    if let Err(error) = vmi.read_lossy(at, &mut copy) {
        tracing::warn!(%error, %at, len, "guest memory could not be read");
    }
    Cow::Owned(copy)
}
