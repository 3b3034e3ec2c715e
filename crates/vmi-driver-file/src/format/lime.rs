//! LiME images: ranges of physical memory, each behind a header of 32 bytes, in any order.
//!
//! Layout: LiME, `doc/README.md`, "Format Specification". AVML writes the same as its version 1.

use vmi_core::{PhysAddr, Piece, Region};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::image::{Image, present};
use crate::{FormatError, OpenOptions};

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
pub(crate) fn parse(bytes: &[u8], options: &OpenOptions) -> Result<Image, FormatError> {
    let mut pieces = Vec::new();
    let mut at = 0usize;
    // A rest of zeros is the padding that block-wise copies leave behind.
    while let Some(rest) = bytes.get(at..).filter(|rest| rest.iter().any(|&byte| byte != 0)) {
        let offset = at as u64;
        let malformed = |what| FormatError::Malformed { offset, what };
        let Ok((header, _)) = Header::read_from_prefix(rest) else {
            let len = size_of::<Header>() as u64;
            present(options, bytes.len(), offset, len, || format!("the header of range {}", pieces.len()))?;
            break;
        };
        if (header.magic.get(), header.version.get()) != (MAGIC, VERSION) {
            return Err(malformed(format!("no LiME header of version {VERSION} where range {} should start", pieces.len())));
        }
        let (start, last) = (header.start.get(), header.last.get());
        let region = last
            .checked_sub(start)
            .and_then(|distance| Region::new(PhysAddr::new(start), distance.checked_add(1)?))
            .ok_or_else(|| malformed(format!("range {} is from {start:#x} to {last:#x}, which cannot be", pieces.len())))?;
        let data = offset.saturating_add(size_of::<Header>() as u64);
        let what = || format!("range {} ({start:#x}-{last:#x})", pieces.len());
        let len = present(options, bytes.len(), data, region.len(), what)?;
        pieces.extend(Region::new(region.start(), len).map(|region| Piece { region, offset: data }));
        // What is present ends within the file, so this does not wrap.
        at = usize::try_from(data.saturating_add(len)).unwrap_or(usize::MAX);
    }
    Ok(Image { pieces, ..Image::default() })
}
