//! Where the sections of the image are: symbols have a section and an offset in it.
//!
//! After the head of the debug stream and its substreams there is a list of further streams (llvm.org/docs/PDB/DbiStream.html, "Optional Debug Header"). An image whose
//! parts were moved after linking, as those of kernels up to Windows 7 were, has two section tables, the symbols count by the original one, and a table (OMAP) that
//! translates (llvm: `OMAP_DATA`; Microsoft's DIA: `IDiaAddressMap`).

use pdb::{PDB, Source, StreamIndex};

use super::SymbolFileError;

/// The debug stream's head: 64 bytes, with the lengths of the substreams from byte 24 on.
const HEAD: usize = 64;
const LENGTHS: [usize; 6] = [24, 28, 32, 36, 40, 52];

/// Numbers within the list of further streams.
const OMAP_FROM_SOURCE: usize = 4;
const SECTIONS: usize = 5;
const ORIGINAL_SECTIONS: usize = 10;

/// `IMAGE_SECTION_HEADER`, and where its `VirtualAddress` is.
const SECTION_LEN: usize = 40;
const VIRTUAL_ADDRESS: usize = 12;

#[derive(Debug, Default)]
pub(super) struct Sections {
    /// Where each section starts in the image for which the symbols were written.
    starts: Vec<u32>,
    /// From there to the image as it is: pairs of starts, ascending; a second one of 0 means that the part is gone.
    moved: Option<Vec<(u32, u32)>>,
}

impl Sections {
    pub(super) fn read<'s>(pdb: &mut PDB<'s, impl Source<'s> + 's>, debug: &[u8]) -> Result<Self, SymbolFileError> {
        let lengths = LENGTHS.iter().map(|&at| word(debug, at).map(|len| len as usize));
        let list =
            lengths.fold(Some(HEAD), |sum, len| sum?.checked_add(len?)).and_then(|start| debug.get(start..)).unwrap_or_default();
        let mut stream = |number: usize| -> Result<Option<Vec<u8>>, SymbolFileError> {
            let index =
                number.checked_mul(2).and_then(|at| list.get(at..)?.first_chunk()).map(|bytes| u16::from_le_bytes(*bytes));
            match index.filter(|&index| index != u16::MAX) {
                Some(index) => Ok(pdb.raw_stream(StreamIndex(index))?.map(|stream| stream.as_slice().to_vec())),
                None => Ok(None),
            }
        };
        let original = stream(ORIGINAL_SECTIONS)?;
        let moved = match &original {
            Some(_) => stream(OMAP_FROM_SOURCE)?.as_deref().map(pairs),
            None => None,
        };
        let table = match original {
            Some(table) => Some(table),
            None => stream(SECTIONS)?,
        };
        let starts =
            table.unwrap_or_default().chunks_exact(SECTION_LEN).filter_map(|section| word(section, VIRTUAL_ADDRESS)).collect();
        Ok(Self { starts, moved })
    }

    /// The offset in the image of a place in a section, whose number counts from 1.
    pub(super) fn offset_in_image(&self, section: u16, offset: u32) -> Option<u32> {
        let start = *self.starts.get(usize::from(section).checked_sub(1)?)?;
        let at = start.checked_add(offset)?;
        let Some(moved) = &self.moved else { return Some(at) };
        let above = moved.partition_point(|(from, _)| *from <= at);
        let (from, to) = *moved.get(above.checked_sub(1)?)?;
        if to == 0 { None } else { to.checked_add(at.checked_sub(from)?) }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

fn pairs(table: &[u8]) -> Vec<(u32, u32)> {
    table.chunks_exact(8).filter_map(|pair| Some((word(pair, 0)?, word(pair, 4)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moved_parts_are_followed_and_those_that_are_gone_are_not() {
        let moved = Some(vec![(0x1000, 0x5000), (0x1100, 0), (0x1200, 0x1000)]);
        let sections = Sections { starts: vec![0x1000, 0xffff_f000], moved };
        assert_eq!(sections.offset_in_image(1, 0x10), Some(0x5010));
        assert_eq!(sections.offset_in_image(1, 0x110), None, "gone");
        assert_eq!(sections.offset_in_image(1, 0x210), Some(0x1010));
        assert_eq!(sections.offset_in_image(0, 0x10), None, "absolute");
        assert_eq!(sections.offset_in_image(2, 0x1000), None, "beyond 4 GiB");
        assert_eq!(sections.offset_in_image(3, 0), None);
        let unmoved = Sections { starts: vec![0x1000], moved: None };
        assert_eq!(unmoved.offset_in_image(1, 0x10), Some(0x1010));
    }
}
