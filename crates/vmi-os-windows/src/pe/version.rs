//! The version resource of an image.

use core::fmt;

use object::LittleEndian as LE;
use object::pe::{
    IMAGE_DIRECTORY_ENTRY_RESOURCE, ImageResourceDataEntry, ImageResourceDirectory, ImageResourceDirectoryEntry, RT_VERSION,
};
use vmi_core::{Memory, Result, VirtAddr};

use super::{PeImage, corrupt};

/// Entries of one level that are looked at. The kernel has some ten.
const MAX_ENTRIES: u32 = 4096;

/// Bytes of the version resource in which the fixed part is looked for: it stands within the first hundred.
const MAX_LEN: u32 = 4096;

/// `VS_FIXEDFILEINFO.dwSignature`.
const SIGNATURE: [u8; 4] = 0xfeef_04bd_u32.to_le_bytes();

/// Subdirectories and data are told apart by the highest bit of their offset.
const IS_DIRECTORY: u32 = 1 << 31;

/// A file version: 10.0.19041.804 is build 19041, revision 804.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileVersion {
    /// First number.
    pub major: u16,
    /// Second number.
    pub minor: u16,
    /// Third number; of Windows' own files the build.
    pub build: u16,
    /// Fourth number; of Windows' own files the servicing level.
    pub revision: u16,
}

impl fmt::Display for FileVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.major, self.minor, self.build, self.revision)
    }
}

/// Type, name and language are the three levels; the first name and language are taken.
pub(super) fn read<M: Memory<Addr = VirtAddr> + ?Sized>(image: &PeImage<'_, M>) -> Result<Option<FileVersion>> {
    let Some(directory) = image.headers.directory(IMAGE_DIRECTORY_ENTRY_RESOURCE) else { return Ok(None) };
    let start = u64::from(directory.offset);
    let mut at = 0;
    for level in 0..3 {
        let Some(next) = entry(image, start, at, (level == 0).then_some(u32::from(RT_VERSION)))? else { return Ok(None) };
        if (next & IS_DIRECTORY != 0) != (level < 2) {
            return Err(corrupt(image.base, "the version resource is not at the third level of the resources"));
        }
        at = next & !IS_DIRECTORY;
    }
    let data: ImageResourceDataEntry = image.read(start.saturating_add(at.into()), "the version resource's entry")?;
    let len = data.size.get(LE).min(MAX_LEN);
    let at = image.address(data.offset_to_data.get(LE).into(), len.into(), "the version resource")?;
    Ok(fixed_part(&image.memory.read_vec(at, len as usize)?))
}

/// The entry of this number in the directory at `at`, or its first one.
fn entry<M: Memory<Addr = VirtAddr> + ?Sized>(
    image: &PeImage<'_, M>,
    start: u64,
    at: u32,
    number: Option<u32>,
) -> Result<Option<u32>> {
    let at = start.saturating_add(at.into());
    let head: ImageResourceDirectory = image.read(at, "a resource directory")?;
    let count = u32::from(head.number_of_named_entries.get(LE)).saturating_add(head.number_of_id_entries.get(LE).into());
    for index in 0..count.min(MAX_ENTRIES) {
        let position = (size_of::<ImageResourceDirectory>() as u64).saturating_add(u64::from(index).saturating_mul(8));
        let entry: ImageResourceDirectoryEntry = image.read(at.saturating_add(position), "an entry of a resource directory")?;
        if number.is_none_or(|number| entry.name_or_id.get(LE) == number) {
            return Ok(Some(entry.offset_to_data_or_directory.get(LE)));
        }
    }
    Ok(None)
}

/// `VS_VERSIONINFO` holds a `VS_FIXEDFILEINFO` on a 4-byte boundary behind its key.
fn fixed_part(bytes: &[u8]) -> Option<FileVersion> {
    let (words, _) = bytes.as_chunks::<4>();
    let at = words.iter().position(|word| *word == SIGNATURE)?;
    let word = |index: usize| words.get(at.checked_add(index)?).copied().map(u32::from_le_bytes);
    let (high, low) = (word(2)?, word(3)?);
    Some(FileVersion { major: (high >> 16) as u16, minor: high as u16, build: (low >> 16) as u16, revision: low as u16 })
}
