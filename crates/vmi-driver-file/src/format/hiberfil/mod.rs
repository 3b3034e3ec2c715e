//! Hibernation files of Windows 8 to 11 (hiberfil.sys), of hibernation, hybrid sleep and fast startup.
//!
//! The header, `PO_MEMORY_IMAGE`, has another length in nearly every version, and is told by it ([`header`]). It leads to two restore sets, which
//! the boot loader and the kernel read back; each is a chain of compression sets of up to 16 pages ([`sets`]). Pages that Windows did not
//! need to save are holes.
//!
//! When Windows has resumed from the file it wipes the header, and nothing leads to the rest any more. Windows 7 and older write another format.
//!
//! Layout: Sylve, Marziale, Richard, "Modern Windows hibernation file analysis" (2016); LeechCore, device_hibr.c.

mod header;
mod lz77;
mod sets;

use crate::FormatError;
use crate::image::{Image, Input};

/// Magic numbers: of a file to resume from, of one from which Windows is resuming or has resumed, and the same of Windows 7 and older.
pub(crate) fn matches(bytes: &[u8]) -> bool {
    [b"HIBR", b"RSTR", b"WAKE", b"hibr", b"wake"].iter().any(|magic| bytes.starts_with(*magic))
}

/// Walks both restore sets. No memory is unpacked.
pub(crate) fn parse(input: Input<'_>) -> Result<Image, FormatError> {
    let header = header::read(input.source)?;
    let mut sets = sets::Builder::new(input, header.wide);
    for restore_set in header.restore_sets {
        sets.add(restore_set)?;
    }
    Ok(Image { packed: Some(Box::new(sets.finish())), ..Image::default() })
}
