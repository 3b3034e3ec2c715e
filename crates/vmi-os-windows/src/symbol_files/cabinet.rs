//! Cabinets (Microsoft Cabinet Format, [MS-CAB]): the form in which symbol stores keep compressed files, whose last letter is `_` then.

use std::io::{Cursor, Read};

use super::{MAX_LEN, SymbolFileError};

/// The signature of a cabinet ([MS-CAB] 2.3, CFHEADER).
const MAGIC: &[u8] = b"MSCF";

/// The file in a cabinet; `None` if `bytes` are none.
///
/// # Errors
/// [`SymbolFileError::Cabinet`] if it is damaged, holds other than one file, or one that is longer than any symbol file.
pub(super) fn unpack(bytes: &[u8]) -> Result<Option<Vec<u8>>, SymbolFileError> {
    if !bytes.starts_with(MAGIC) {
        return Ok(None);
    }
    let damaged = |error: std::io::Error| SymbolFileError::Cabinet { what: error.to_string() };
    // `cab` 0.6 panics on an offset behind the end; that of a file which is alone can only be zero.
    if only_file_offset(bytes) != Some(0) {
        return Err(SymbolFileError::Cabinet { what: "its first file does not begin where the data begin".to_owned() });
    }
    let mut cabinet = cab::Cabinet::new(Cursor::new(bytes)).map_err(damaged)?;
    let mut files = cabinet.folder_entries().flat_map(|folder| folder.file_entries());
    let (Some(file), None) = (files.next(), files.next()) else {
        return Err(SymbolFileError::Cabinet { what: "it holds other than one file".to_owned() });
    };
    let len = u64::from(file.uncompressed_size());
    if len > MAX_LEN {
        return Err(SymbolFileError::Cabinet {
            what: format!("its file has {len} bytes; real symbol files have at most some tens of millions"),
        });
    }
    let name = file.name().to_owned();
    let mut unpacked = Vec::new();
    cabinet.read_file(&name).map_err(damaged)?.take(len).read_to_end(&mut unpacked).map_err(damaged)?;
    if unpacked.len() as u64 != len {
        return Err(SymbolFileError::Cabinet { what: format!("of {len} bytes {} are there", unpacked.len()) });
    }
    Ok(Some(unpacked))
}

/// `uoffFolderStart` of the first CFFILE ([MS-CAB] 2.5), whose place CFHEADER tells.
fn only_file_offset(bytes: &[u8]) -> Option<u32> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?));
    word((word(16)? as usize).checked_add(4)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use cab::{CabinetBuilder, CompressionType};
    use proptest::prelude::*;

    use super::*;

    fn packed(names: &[&str], content: &[u8]) -> Vec<u8> {
        let mut builder = CabinetBuilder::new();
        let folder = builder.add_folder(CompressionType::MsZip);
        names.iter().for_each(|name| _ = folder.add_file(*name));
        let mut writer = builder.build(Cursor::new(Vec::new())).unwrap();
        while let Some(mut file) = writer.next_file().unwrap() {
            file.write_all(content).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    #[test]
    fn the_file_comes_out() {
        let content: Vec<u8> = (0..200_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
        let cabinet = packed(&["ntkrnlmp.pdb"], &content);
        assert!(cabinet.len() < content.len());
        assert_eq!(unpack(&cabinet).unwrap().unwrap(), content);
        assert_eq!(unpack(&content).unwrap(), None);
        for len in [5, 40, 100, cabinet.len() / 2, cabinet.len() - 1] {
            assert!(unpack(&cabinet[..len]).is_err(), "cut off at {len}");
        }
        assert!(unpack(&packed(&["a", "b"], b"x")).unwrap_err().to_string().contains("other than one file"));
    }

    proptest! {
        #[test]
        fn any_damage_is_an_error_or_none(at in 0usize..400, value: u8, rest in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut cabinet = packed(&["ntkrnlmp.pdb"], &[b"abc".repeat(500), rest].concat());
            let at = at % cabinet.len();
            cabinet[at] = value;
            let _ = unpack(&cabinet);
        }
    }
}
