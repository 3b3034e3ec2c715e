//! The text form of a physical map.

use core::str::FromStr;

use vmi_core::{PhysAddr, Piece, Region};

/// Which memory of the guest lies where in a raw image.
///
/// Its text form is a list of `start-end@offset`, separated by commas: guest-physical memory from `start` up to but not including `end`
/// lies at byte `offset` of the file. Numbers are hexadecimal with a leading `0x`, decimal without. Without `@offset` a piece
/// follows the one before it.
///
/// ```
/// use vmi_driver_file::RawMap;
/// // 3 GiB below the PCI hole, 1 GiB above it, one behind the other in the file
/// let map: RawMap = "0x0-0xc0000000@0,0x100000000-0x140000000@0xc0000000".parse()?;
/// assert_eq!(map, "0x0-0xc0000000,0x100000000-0x140000000".parse()?);
/// assert_eq!(map.pieces().len(), 2);
/// # Ok::<(), vmi_driver_file::RawMapError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawMap(Vec<Piece>);

/// A text that is no physical map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{part}` is no piece of a physical map; write start-end@offset, such as 0x100000000-0x140000000@0xc0000000")]
pub struct RawMapError {
    /// The piece that was not understood.
    part: String,
}

impl RawMap {
    /// A map of these pieces. That they do not overlap and lie within the file is checked when a file is opened with them.
    pub fn new(pieces: impl IntoIterator<Item = Piece>) -> Self {
        Self(pieces.into_iter().collect())
    }

    /// The pieces, in the order in which they were given.
    pub fn pieces(&self) -> &[Piece] {
        &self.0
    }
}

impl FromStr for RawMap {
    type Err = RawMapError;

    fn from_str(text: &str) -> Result<Self, RawMapError> {
        let mut pieces = Vec::new();
        let mut next_offset = 0u64;
        for part in text.split(',').map(str::trim) {
            let piece = piece(part, next_offset).ok_or_else(|| RawMapError { part: part.to_owned() })?;
            next_offset = piece.offset.saturating_add(piece.region.len());
            pieces.push(piece);
        }
        Ok(Self(pieces))
    }
}

fn piece(text: &str, next_offset: u64) -> Option<Piece> {
    let (range, offset) = match text.split_once('@') {
        Some((range, offset)) => (range, number(offset)?),
        None => (text, next_offset),
    };
    let (start, end) = range.split_once('-')?;
    let (start, end) = (number(start)?, number(end)?);
    Some(Piece { region: Region::new(PhysAddr::new(start), end.checked_sub(start)?)?, offset })
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok().map(PhysAddr::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_ranges_with_an_end_and_an_offset() {
        let map: RawMap = " 0x1000-0x3000 , 0x100000000-4294971392@ 0x9000".parse().unwrap();
        let piece = |start, len, offset| Piece { region: Region::new(PhysAddr::new(start), len).unwrap(), offset };
        assert_eq!(map.pieces(), [piece(0x1000, 0x2000, 0), piece(0x1_0000_0000, 0x1000, 0x9000)]);
        for text in ["", "0x1000", "0x2000-0x1000", "5-5", "0-0x1000@", "0-0x1000,", "0-0x1g"] {
            assert!(text.parse::<RawMap>().is_err(), "{text}");
        }
    }
}
