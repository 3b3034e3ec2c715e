//! LiME images: ranges of physical memory, each behind a header of 32 bytes, in any order.
//!
//! Layout: LiME, `doc/README.md`, "Format Specification". AVML writes the same as its version 1.
//!
//! The last address of a range is inclusive. Some writers put the first address behind the range there; what follows the range tells.

use vmi_core::{PAGE_SIZE, PhysAddr, Piece, Region};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::FormatError;
use crate::format::avml;
use crate::image::{Image, Input};
use crate::sparse::is_zero;

/// `LiME` as the first four bytes spell it on a little-endian machine.
pub(crate) const MAGIC: u32 = 0x4c69_4d45;
/// The only version of the format.
pub(crate) const VERSION: u32 = 1;

/// What is before each range.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) magic: U32,
    pub(crate) version: U32,
    /// First address.
    pub(crate) start: U64,
    /// Last address, inclusive.
    pub(crate) last: U64,
    /// Meaningless; some writers leave garbage here.
    pub(crate) reserved: U64,
}

impl Header {
    /// Whether memory follows as it is.
    pub(crate) fn is_plain(&self) -> bool {
        (self.magic.get(), self.version.get()) == (MAGIC, VERSION)
    }

    /// Whether AVML has packed what follows.
    pub(crate) fn is_packed(&self) -> bool {
        (self.magic.get(), self.version.get()) == (avml::MAGIC, avml::VERSION)
    }

    /// The memory behind this header, which is at `offset`.
    ///
    /// # Errors
    /// [`FormatError::Malformed`] if there can be no such memory.
    pub(crate) fn region(&self, offset: u64) -> Result<Region, FormatError> {
        let (start, last) = (self.start.get(), self.last.get());
        let len = last.checked_sub(start).and_then(|distance| distance.checked_add(1));
        len.and_then(|len| Region::new(PhysAddr::new(start), len)).ok_or_else(|| FormatError::Malformed {
            offset,
            what: format!("a range from {start:#x} to {last:#x}, which cannot be"),
        })
    }

    /// As [`Header::region`], where memory follows as it is: without the last byte if that is the first one of a page, unless the next range or the end of
    /// the file is where it should be.
    pub(crate) fn region_of_plain(&self, input: Input<'_>, offset: u64) -> Result<Region, FormatError> {
        let region = self.region(offset)?;
        let end = offset.saturating_add(size_of::<Self>() as u64).saturating_add(region.len());
        let next = input.source.get(end, 8, "the next header").unwrap_or_default();
        let is_exact = end == input.source.len() || matches(&next) || avml::matches(&next);
        let one_more = region.len() % PAGE_SIZE == 1 && self.last.get().is_multiple_of(PAGE_SIZE);
        let shorter = Region::new(region.start(), region.len().wrapping_sub(1));
        let is_there = end <= input.source.len().saturating_add(1);
        Ok(shorter.filter(|_| one_more && !is_exact && is_there).unwrap_or(region))
    }
}

/// Magic number and version of the first header.
pub(crate) fn matches(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC.to_le_bytes()) && bytes.get(4..8) == Some(&VERSION.to_le_bytes())
}

/// Walks the headers to the end of the file.
pub(crate) fn parse(input: Input<'_>) -> Result<Image, FormatError> {
    const LEN: u64 = size_of::<Header>() as u64;
    let mut pieces = Vec::new();
    let mut offset = 0u64;
    while offset < input.source.len() && !is_padding(input, offset)? {
        let malformed = |what| FormatError::Malformed { offset, what };
        if input.present(offset, LEN, || format!("the header of range {}", pieces.len()))? < LEN {
            break;
        }
        let header: Header = input.source.read(offset, "the header")?;
        if header.is_packed() {
            // AVML may mix its two versions.
            return avml::parse(input);
        }
        if !header.is_plain() {
            return Err(malformed(format!("no LiME header of version {VERSION} where range {} should start", pieces.len())));
        }
        let region = header.region_of_plain(input, offset)?;
        let (start, last) = (header.start.get(), header.last.get());
        let data = offset.saturating_add(LEN);
        let len = input.present(data, region.len(), || format!("range {} ({start:#x}-{last:#x})", pieces.len()))?;
        pieces.extend(Region::new(region.start(), len).map(|region| Piece { region, offset: data }));
        offset = data.saturating_add(len);
    }
    Ok(Image::of(input, pieces))
}

/// Whether there is nothing but zeros from `offset` on: the padding that block-wise copies leave behind.
pub(crate) fn is_padding(input: Input<'_>, mut offset: u64) -> Result<bool, FormatError> {
    const STEP: u64 = 1 << 16;
    while let Some(left @ 1..) = input.source.len().checked_sub(offset) {
        let len = left.min(STEP);
        if !is_zero(&input.source.get(offset, len, "the rest of the file")?) {
            return Ok(false);
        }
        offset = offset.saturating_add(len);
    }
    Ok(true)
}
