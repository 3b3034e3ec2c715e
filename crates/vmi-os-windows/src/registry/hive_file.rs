//! A hive in a file: `regf`.

use std::borrow::Cow;

use super::bytes::{u32_at, u64_at, utf16};
use super::cells::{Cells, NO_CELL, RegistryError, content_len};

/// Bytes of the base block, before the first bin.
const BASE_BLOCK: usize = 0x1000;
/// The bytes of the base block that its checksum covers.
const CHECKED: usize = 508;

/// The bytes of a hive file.
///
/// What transaction logs beside it hold is not applied: [`HiveFile::is_dirty`] says whether there may be some.
#[derive(Clone, Copy, Debug)]
pub struct HiveFile<'b> {
    base: &'b [u8],
    /// The bins.
    cells: &'b [u8],
}

impl<'b> HiveFile<'b> {
    /// Reads the base block.
    ///
    /// # Errors
    /// [`RegistryError::NotAHive`] if it is not there.
    pub fn parse(bytes: &'b [u8]) -> Result<Self, RegistryError> {
        let why = |why: &str| RegistryError::NotAHive { why: why.to_owned() };
        let (base, cells) = bytes.split_at_checked(BASE_BLOCK).ok_or_else(|| why("shorter than a base block of 4096 bytes"))?;
        if !base.starts_with(b"regf") {
            return Err(why("the bytes do not start with `regf`"));
        }
        // A file may be longer than its bins, or cut off before their end.
        let len = u32_at(base, 0x28).and_then(|len| usize::try_from(len).ok()).unwrap_or(0);
        Ok(Self { base, cells: cells.get(..len).unwrap_or(cells) })
    }

    fn number(&self, at: usize) -> u32 {
        u32_at(self.base, at).unwrap_or(0)
    }

    /// Whether the file was being written: changes may be in its logs only.
    pub fn is_dirty(&self) -> bool {
        self.number(4) != self.number(8)
    }

    /// Whether the base block has the checksum that it names.
    pub fn has_checksum(&self) -> bool {
        let words = self.base.get(..CHECKED).unwrap_or_default().as_chunks::<4>().0;
        let sum = match words.iter().fold(0, |sum, word| sum ^ u32::from_le_bytes(*word)) {
            0 => 1,
            u32::MAX => u32::MAX.wrapping_sub(1),
            sum => sum,
        };
        sum == self.number(CHECKED)
    }

    /// Version of the format, major and minor: 1 and 3 to 6.
    pub fn version(&self) -> (u32, u32) {
        (self.number(0x14), self.number(0x18))
    }

    /// When it was last written, as FILETIME: units of 100 ns since the year 1601.
    pub fn last_write(&self) -> u64 {
        u64_at(self.base, 0xc).unwrap_or(0)
    }

    /// The end of the path of the file, as the kernel noted it.
    pub fn name(&self) -> String {
        let name = utf16(self.base.get(0x30..0x70).unwrap_or_default());
        name.split('\0').next().unwrap_or_default().to_owned()
    }
}

impl Cells for HiveFile<'_> {
    fn root(&self) -> Result<u32, RegistryError> {
        match self.number(0x24) {
            NO_CELL => Err(RegistryError::NotAHive { why: "the base block names no root key".to_owned() }),
            root => Ok(root),
        }
    }

    fn cell(&self, index: u32) -> Result<Cow<'_, [u8]>, RegistryError> {
        let past = || RegistryError::corrupt(index, format!("lies behind the {} bytes of the hive", self.cells.len()));
        let start = usize::try_from(index).ok().filter(|start| start % 8 == 0);
        let start = start.ok_or_else(|| RegistryError::corrupt(index, "is not at a multiple of 8"))?;
        let rest = self.cells.get(start..).ok_or_else(past)?;
        let (size, content) = rest.split_first_chunk().ok_or_else(past)?;
        let len = content_len(index, i32::from_le_bytes(*size), rest.len() as u64)?;
        content.get(..len).map(Cow::Borrowed).ok_or_else(past)
    }
}
