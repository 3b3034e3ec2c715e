//! Raw images: the bare bytes of memory. A file offset is the guest-physical address, unless a map says otherwise.
//!
//! Over a base, only what the file stores speaks, and not its holes.
//!
//! There is no header, so nothing tells a raw image from any other file: it is what remains when no other format matches.

use vmi_core::{PhysAddr, Piece, Region};

use crate::FormatError;
use crate::image::{Image, Input};

/// Every file can be a raw image.
pub(crate) fn matches(_: &[u8]) -> bool {
    true
}

/// One piece from address zero, or the pieces of the map.
pub(crate) fn parse(input: Input<'_>) -> Result<Image, FormatError> {
    let mut pieces = Vec::new();
    match &input.options.raw_map {
        Some(map) => {
            for piece in map.pieces() {
                let what = || format!("memory at {}-{:#x}", piece.region.start(), piece.region.end());
                let len = input.present(piece.offset, piece.region.len(), what)?;
                pieces.extend(Region::new(piece.region.start(), len).map(|region| Piece { region, ..*piece }));
            }
        }
        None => pieces.extend(Region::new(PhysAddr::ZERO, input.source.len()).map(|region| Piece { region, offset: 0 })),
    }
    Ok(Image::of(input, input.stored(input.path, input.source, pieces)?))
}
