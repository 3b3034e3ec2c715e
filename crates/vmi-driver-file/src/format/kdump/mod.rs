//! kdump's compressed format, as makedumpfile and QEMU (`dump-guest-memory` with `kdump-zlib` and its siblings) write it; and diskdump, from which
//! it comes: each page is packed by itself, and pages that were not wanted are left out.
//!
//! Layout: makedumpfile, `IMPLEMENTATION` and the structures in `diskdump_mod.h`; QEMU, `include/system/dump.h`. In blocks of a page:
//! header, sub-header with notes, two bitmaps with a bit for each page of memory, one descriptor for each set bit of the second
//! bitmap, packed pages anywhere behind. The first bitmap has the memory that exists, the second the pages that are in the file; a file
//! with one bitmap has the latter. What is not in the file is a hole: the writer excluded it (makedumpfile's `-d`), and not all that it may exclude
//! is zero.
//!
//! Oddities: all pages of zeros share one packed page. A dump that was split (`makedumpfile --split`) has the whole bitmap in each part, but
//! descriptors only for a range of pages; the parts are looked for beside the one that is opened. A writer whose disk is full marks the file as incomplete and
//! leaves descriptors empty.

mod codec;
mod header;
mod page_set;
mod pages;
mod split;

pub(crate) use self::codec::{ZLIB, ZSTD};
use self::header::Header;
pub(crate) use self::header::{COUNTS_64, Counts, SIGNATURE, Start, Sub64};
use self::page_set::PageSet;
pub(crate) use self::pages::Descriptor;
use self::pages::{Pages, Part};
use super::elf::notes::Notes;
use crate::FormatError;
use crate::image::{Image, Input};

/// Either signature.
pub(crate) fn matches(bytes: &[u8]) -> bool {
    header::SIGNATURES.iter().any(|signature| bytes.starts_with(*signature))
}

/// Reads the headers and the bitmap. Descriptors and pages are left where they are.
pub(crate) fn parse(input: Input<'_>) -> Result<Image, FormatError> {
    let header = Header::read(input)?;
    let set = PageSet::read(input.source, header.bitmap, header.pages)?;
    let parts = match header.range {
        Some(_) => split::gather(input, &header)?,
        None => vec![(input.source.clone(), 0..header.pages)],
    };
    let parts = parts.into_iter().map(|(source, range)| Part::new(source, range, header.descriptors, &set)).collect();
    let pages = Pages::new(set, parts, header.incomplete, input.options.allow_truncated)?;

    let mut notes = Notes::default();
    if let Some((offset, len)) = header.notes {
        notes.read(input, offset, len)?;
    }
    if let Some((offset, len)) = header.vmcoreinfo {
        let len = input.present(offset, len, || "VMCOREINFO".to_owned())?;
        notes.vmcoreinfo(&input.source.get(offset, len, "VMCOREINFO")?);
    }
    let mut image = Image { packed: Some(Box::new(pages)), ..Image::default() };
    notes.give(&mut image);
    Ok(image)
}

fn malformed(offset: u64, what: impl Into<String>) -> FormatError {
    FormatError::Malformed { offset, what: what.into() }
}
