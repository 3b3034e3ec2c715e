//! The debug directory: which program database belongs to an image.

use object::LittleEndian as LE;
use object::pe::{IMAGE_DEBUG_TYPE_CODEVIEW, IMAGE_DIRECTORY_ENTRY_DEBUG, ImageDebugDirectory};
use vmi_core::{Memory, Result, VirtAddr};

use super::{PeImage, corrupt};
use crate::PdbIdentity;
use crate::pdb_identity::MAX_RECORD;

/// Entries of a debug directory. Real images have up to six.
const MAX_ENTRIES: u64 = 64;

pub(super) fn read<M: Memory<Addr = VirtAddr> + ?Sized>(image: &PeImage<'_, M>) -> Result<Option<PdbIdentity>> {
    let Some(directory) = image.headers.directory(IMAGE_DIRECTORY_ENTRY_DEBUG) else { return Ok(None) };
    let size = size_of::<ImageDebugDirectory>() as u64;
    let entries = u64::from(directory.size).checked_div(size).unwrap_or_default();
    if entries > MAX_ENTRIES {
        return Err(corrupt(
            image.base,
            format!("the debug directory is said to have {entries} entries; real ones have fewer than {MAX_ENTRIES}"),
        ));
    }
    for index in 0..entries {
        let rva = u64::from(directory.offset).saturating_add(index.saturating_mul(size));
        let entry: ImageDebugDirectory = image.read(rva, "an entry of the debug directory")?;
        // A record that is not mapped has no address: it is in the file only.
        let rva = u64::from(entry.address_of_raw_data.get(LE));
        if entry.typ.get(LE) != IMAGE_DEBUG_TYPE_CODEVIEW || rva == 0 {
            continue;
        }
        let len = u64::from(entry.size_of_data.get(LE)).min(MAX_RECORD as u64);
        let at = image.address(rva, len, "the CodeView record")?;
        let record = image.memory.read_vec(at, len as usize)?;
        // Programs of the nineties have other records (NB10), whose databases have no GUID.
        if let Some(identity) = PdbIdentity::from_codeview(&record) {
            return Ok(Some(identity));
        }
    }
    Ok(None)
}
