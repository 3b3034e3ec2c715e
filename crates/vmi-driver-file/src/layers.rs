//! An image over another: what the upper one has no memory for is read from the lower one.

use vmi_core::{PhysAddr, Piece, Region};

use crate::FormatError;
use crate::claims::Claims;
use crate::image::{Image, Part};

/// Lays `upper` over `lower`. Registers are those of the upper one: those of the lower one are of another time.
///
/// # Errors
/// [`FormatError::Base`] if the memory of the upper one is packed.
pub(crate) fn lay(upper: Image, lower: Image) -> Result<Image, FormatError> {
    if upper.packed.is_some() {
        return Err(FormatError::Base(
            "an image of packed memory cannot lie over another; write it as LiME or raw first".to_owned(),
        ));
    }
    let mut claims = Claims::default();
    let stored = upper.parts.iter().flat_map(|part| part.pieces.iter().map(|piece| piece.region));
    let mut above: Vec<Region> = stored.chain(upper.zeros.iter().copied()).collect();
    above.sort_by_key(|region| region.start());
    for region in above {
        claims.claim(region);
    }
    let mut image = Image { registers: upper.registers, frames: upper.frames, layout: upper.layout, ..Image::default() };
    image.notes = if upper.notes.is_empty() { lower.notes } else { upper.notes };
    image.parts = upper.parts;
    image.zeros = upper.zeros;
    for part in lower.parts {
        let pieces = part.pieces.into_iter().flat_map(|piece| below(&mut claims, piece)).collect();
        image.parts.push(Part { source: part.source, pieces });
    }
    image.zeros.extend(lower.zeros.into_iter().flat_map(|region| claims.claim(region)));
    // Where others have memory too, they speak before the packed one: nothing to cut.
    image.packed = lower.packed;
    Ok(image)
}

/// What of `piece` nobody above has.
fn below(claims: &mut Claims, piece: Piece) -> Vec<Piece> {
    let offset = |start: PhysAddr| start.get().saturating_sub(piece.region.start().get()).saturating_add(piece.offset);
    let free = claims.claim(piece.region).into_iter();
    free.map(|region| Piece { region, offset: offset(region.start()) }).collect()
}
