//! The header and its sub-header, in all their widths.

use core::ops::Range;

use vmi_core::PAGE_SIZE;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::malformed;
use crate::FormatError;
use crate::image::Input;

/// kdump's signature, and diskdump's.
pub(super) const SIGNATURES: [&[u8; 8]; 2] = [SIGNATURE, b"DISKDUMP"];
/// What new files have.
pub(crate) const SIGNATURE: &[u8; 8] = b"KDUMP   ";
/// In [`Counts::status`]: the writer did not get to the end.
const INCOMPLETE: u32 = 8;
/// Physical addresses have at most 52 bits on x86 (Intel SDM, volume 3, section 4.1.4).
const MAX_PAGES: u64 = (1 << 52) / PAGE_SIZE;
/// VMCOREINFO has at most some pages (Linux: `VMCOREINFO_BYTES`).
const MAX_VMCOREINFO: u64 = 64 << 10;

/// What 32- and 64-bit headers start with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Start {
    pub(crate) signature: [u8; 8],
    pub(crate) version: U32,
    /// `struct new_utsname` of Linux: system, node, release, version, machine, domain.
    pub(crate) system: [[u8; 65]; 6],
}

/// What they end with, behind a time: at 412 or 424.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Counts {
    pub(crate) status: U32,
    pub(crate) block_size: U32,
    /// In blocks.
    pub(crate) sub_header: U32,
    /// Of both bitmaps, in blocks.
    pub(crate) bitmaps: U32,
    /// One more than the highest page's number, if 32 bits suffice.
    pub(crate) max_page: U32,
    pub(crate) ram_blocks: U32,
    pub(crate) device_blocks: U32,
    pub(crate) written_blocks: U32,
    pub(crate) current_cpu: U32,
    pub(crate) cpus: U32,
}

/// Where [`Counts`] is in a 64-bit header: behind a `struct timeval` of two aligned words.
pub(crate) const COUNTS_64: u64 = 424;
/// The same in a 32-bit header.
const COUNTS_32: u64 = 412;

/// The sub-header of 64-bit files. Later versions have added fields at its end.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Sub64 {
    pub(crate) phys_base: U64,
    pub(crate) dump_level: U32,
    /// Version 2.
    pub(crate) split: U32,
    pub(crate) start_page: U64,
    pub(crate) end_page: U64,
    /// Version 3.
    pub(crate) vmcoreinfo: [U64; 2],
    /// Version 4.
    pub(crate) notes: [U64; 2],
    /// Version 5.
    pub(crate) erased: [U64; 2],
    /// Version 6.
    pub(crate) start_page_64: U64,
    pub(crate) end_page_64: U64,
    pub(crate) max_page_64: U64,
}

/// What the headers say that is of use here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// One more than the number of the highest page.
    pub(super) pages: u64,
    /// Where the bitmap of the pages in the file is.
    pub(super) bitmap: u64,
    /// Where the descriptors are.
    pub(super) descriptors: u64,
    /// The writer says that it did not get to the end.
    pub(super) incomplete: bool,
    /// The pages that are in this part of a split dump.
    pub(super) range: Option<Range<u64>>,
    /// Offset and length of the notes.
    pub(super) notes: Option<(u64, u64)>,
    /// Offset and length of VMCOREINFO, which older versions have outside the notes.
    pub(super) vmcoreinfo: Option<(u64, u64)>,
    /// What tells one dump from another.
    pub(super) identity: Vec<u8>,
}

impl Header {
    /// Reads header and sub-header.
    pub(super) fn read(input: Input<'_>) -> Result<Self, FormatError> {
        let source = input.source;
        let start: Start = source.read(0, "the header")?;
        let version = start.version.get();
        let [.., machine, _] = &start.system;
        let machine = machine.split(|byte| *byte == 0).next().unwrap_or_default();
        if OTHER_MACHINES.iter().any(|other| machine.starts_with(other)) {
            return Err(malformed(272, format!("a dump of {}, which is no x86 machine", machine.escape_ascii())));
        }
        // 64-bit headers first: what stands at their place in a 32-bit header is counters that are zero or far from the size of a page.
        let (wide, counts, counts_at) = match source.read::<Counts>(COUNTS_64, "the header")? {
            counts if counts.sane() => (true, counts, COUNTS_64),
            wide => match source.read::<Counts>(COUNTS_32, "the header")? {
                counts if counts.sane() => (false, counts, COUNTS_32),
                _ => {
                    let (size, bitmaps) = (wide.block_size.get(), wide.bitmaps.get());
                    let what = format!("blocks of {size} bytes and {bitmaps} of them for bitmaps, which no x86 machine has");
                    return Err(malformed(COUNTS_64, what));
                }
            },
        };
        let diskdump = start.signature != *SIGNATURE;
        let version = if diskdump { 0 } else { version };
        let sub_header_end = PAGE_SIZE.saturating_mul(u64::from(counts.sub_header.get()).saturating_add(1));
        let sub = sub_header(input, wide, version, sub_header_end)?;

        // Files of version 6 may have more pages than 32 bits count.
        let pages = sub.max_page_64.get().max(u64::from(counts.max_page.get()));
        let bitmaps_len = u64::from(counts.bitmaps.get()).saturating_mul(PAGE_SIZE);
        if pages > MAX_PAGES {
            return Err(malformed(counts_at, format!("{pages:#x} pages, more than x86 can address")));
        }
        let bytes = pages.div_ceil(8);
        // Both bitmaps have the same length.
        let bitmap = match (bytes <= bitmaps_len / 2, bytes <= bitmaps_len) {
            (true, _) => sub_header_end.saturating_add(bitmaps_len / 2),
            (false, true) => sub_header_end,
            _ => return Err(malformed(counts_at, format!("{bitmaps_len:#x} bytes of bitmaps for {pages:#x} pages"))),
        };
        let range = match (sub.start_page_64.get()..sub.end_page_64.get(), sub.start_page.get()..sub.end_page.get()) {
            _ if sub.split.get() == 0 => None,
            (wide, narrow) => Some(if version >= 6 { wide } else { narrow }),
        };
        if range.as_ref().is_some_and(|range| range.start > range.end || range.end > pages) {
            return Err(malformed(PAGE_SIZE, format!("a part of a split dump with the pages {range:x?} of {pages:#x}")));
        }
        let there = |[offset, len]: [U64; 2]| Some((offset.get(), len.get())).filter(|(offset, len)| *offset != 0 && *len != 0);
        Ok(Self {
            pages,
            bitmap,
            descriptors: sub_header_end.saturating_add(bitmaps_len),
            incomplete: counts.status.get() & INCOMPLETE != 0,
            range,
            notes: there(sub.notes),
            vmcoreinfo: there(sub.vmcoreinfo).filter(|(_, len)| *len <= MAX_VMCOREINFO),
            identity: source.get(0, counts_at, "the header")?.into_owned(),
        })
    }
}

/// `uname -m` of machines that makedumpfile also knows.
const OTHER_MACHINES: [&[u8]; 9] = [b"aarch64", b"arm", b"ia64", b"loongarch", b"mips", b"ppc", b"riscv", b"s390", b"sparc"];

impl Counts {
    fn sane(&self) -> bool {
        let bits = u64::from(self.bitmaps.get()).saturating_mul(PAGE_SIZE).saturating_mul(8);
        u64::from(self.block_size.get()) == PAGE_SIZE
            && (1..=MAX_SUB_HEADER).contains(&self.sub_header.get())
            && self.bitmaps.get() != 0
            // Cut to 32 bits by some writers if it does not fit.
            && u64::from(self.max_page.get()) <= bits
    }
}

/// In blocks: notes of 8192 vCPUs and VMCOREINFO take less.
const MAX_SUB_HEADER: u32 = 16 << 10;

/// The sub-header of a file of this version; fields that it does not have are zero.
fn sub_header(input: Input<'_>, wide: bool, version: u32, end: u64) -> Result<Sub64, FormatError> {
    const AT: u64 = PAGE_SIZE;
    let what = "the sub-header";
    let mut sub = if wide {
        input.source.read(AT, what)?
    } else {
        let packed = sub_32(input, AT, &PACKED)?;
        // Other 32-bit machines align 64-bit fields by 8: then what is packed makes no sense, and neither writer leaves the sub-header.
        let fits = |[offset, len]: [U64; 2]| match (offset.get(), len.get()) {
            (0, 0) => true,
            (offset, len) => offset > AT && offset.checked_add(len).is_some_and(|note_end| note_end <= end),
        };
        if version >= 3 && !(fits(packed.vmcoreinfo) && (version < 4 || fits(packed.notes))) {
            sub_32(input, AT, &PADDED)?
        } else {
            packed
        }
    };
    if version < 2 {
        sub.split = U32::ZERO;
    }
    if version < 3 {
        sub.vmcoreinfo = [U64::ZERO; 2];
    }
    if version < 4 {
        sub.notes = [U64::ZERO; 2];
    }
    if version < 6 {
        sub.max_page_64 = U64::ZERO;
    }
    Ok(sub)
}

/// Where a 32-bit sub-header has its pairs of a 64-bit offset and a 32-bit length, and its page numbers of 64 bits.
struct Places {
    pairs: [u64; 3],
    pages_64: u64,
}

const PACKED: Places = Places { pairs: [20, 32, 44], pages_64: 56 };
const PADDED: Places = Places { pairs: [24, 40, 56], pages_64: 72 };

fn sub_32(input: Input<'_>, at: u64, places: &Places) -> Result<Sub64, FormatError> {
    let what = "the sub-header";
    let word = |place: u64| input.source.read::<U32>(at.saturating_add(place), what).map(|word| U64::new(word.get().into()));
    let long = |place: u64| input.source.read::<U64>(at.saturating_add(place), what);
    let pair = |place: u64| Ok::<_, FormatError>([long(place)?, word(place.saturating_add(8))?]);
    let [vmcoreinfo, notes, erased] = places.pairs;
    let page = |index: u64| long(places.pages_64.saturating_add(8u64.saturating_mul(index)));
    Ok(Sub64 {
        phys_base: word(0)?,
        dump_level: input.source.read(at.saturating_add(4), what)?,
        split: input.source.read(at.saturating_add(8), what)?,
        start_page: word(12)?,
        end_page: word(16)?,
        vmcoreinfo: pair(vmcoreinfo)?,
        notes: pair(notes)?,
        erased: pair(erased)?,
        start_page_64: page(0)?,
        end_page_64: page(1)?,
        max_page_64: page(2)?,
    })
}
