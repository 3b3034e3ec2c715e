//! LiME images: ranges of physical memory, each behind a header of 32 bytes, in any order.
//!
//! Layout: LiME, `doc/README.md`, "Format Specification". AVML writes the same as its version 1.

use vmi_core::{PhysAddr, Piece, Region};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::FormatError;
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
        if (header.magic.get(), header.version.get()) != (MAGIC, VERSION) {
            return Err(malformed(format!("no LiME header of version {VERSION} where range {} should start", pieces.len())));
        }
        let (start, last) = (header.start.get(), header.last.get());
        let region = last
            .checked_sub(start)
            .and_then(|distance| Region::new(PhysAddr::new(start), distance.checked_add(1)?))
            .ok_or_else(|| malformed(format!("range {} is from {start:#x} to {last:#x}, which cannot be", pieces.len())))?;
        let data = offset.saturating_add(LEN);
        let len = input.present(data, region.len(), || format!("range {} ({start:#x}-{last:#x})", pieces.len()))?;
        pieces.extend(Region::new(region.start(), len).map(|region| Piece { region, offset: data }));
        offset = data.saturating_add(len);
    }
    Ok(Image::of(input, pieces))
}

/// Whether there is nothing but zeros from `offset` on: the padding that block-wise copies leave behind.
fn is_padding(input: Input<'_>, mut offset: u64) -> Result<bool, FormatError> {
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
