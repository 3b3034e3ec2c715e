//! Where the cells of a hive come from, and what can be wrong with them.

use std::borrow::Cow;

/// The most bytes that a cell is read of. A value of the registry has at most some MiB: larger ones are split since version 1.4 of the format.
pub(crate) const MAX_CELL: usize = 16 << 20;
/// A reference to no cell.
pub(crate) const NO_CELL: u32 = u32::MAX;

/// The cells of a hive: of a file, or of the kernel's memory.
pub trait Cells {
    /// The index of the cell of the root key.
    ///
    /// # Errors
    /// [`RegistryError`] if it cannot be read.
    fn root(&self) -> Result<u32, RegistryError>;

    /// Whether there are volatile cells, which exist in memory only. Without them what a key says of volatile subkeys means nothing: files keep
    /// what was in memory when they were written.
    fn has_volatile(&self) -> bool {
        false
    }

    /// The content of the allocated cell `index`, without the size in front of it.
    ///
    /// # Errors
    /// [`RegistryError::Memory`] if its memory is not there, [`RegistryError::Corrupt`] if there is no such cell, it is a free one, or its size
    /// cannot be.
    fn cell(&self, index: u32) -> Result<Cow<'_, [u8]>, RegistryError>;
}

impl<C: Cells + ?Sized> Cells for &C {
    fn root(&self) -> Result<u32, RegistryError> {
        (**self).root()
    }

    fn has_volatile(&self) -> bool {
        (**self).has_volatile()
    }

    fn cell(&self, index: u32) -> Result<Cow<'_, [u8]>, RegistryError> {
        (**self).cell(index)
    }
}

/// Why a part of the registry could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The bytes are no hive.
    #[error("not a registry hive: {why}")]
    NotAHive {
        /// What was looked for and not found.
        why: String,
    },
    /// The memory of a cell is not there: paged out, or not part of the image.
    #[error("cell {cell:#x} of the hive cannot be read: {source}")]
    Memory {
        /// The cell.
        cell: u32,
        /// What stopped the read.
        #[source]
        source: vmi_core::Error,
    },
    /// A cell that contradicts itself or the one that names it.
    #[error("cell {cell:#x} of the hive: {what}")]
    Corrupt {
        /// The cell.
        cell: u32,
        /// What was found, in words.
        what: String,
    },
    /// More elements than the bound that protects the reader.
    #[error("{what} has more than {limit} elements")]
    Limit {
        /// The list or tree.
        what: String,
        /// The bound.
        limit: usize,
    },
    /// No such key.
    #[error("no key `{path}`")]
    NoKey {
        /// The path that was asked for, up to the first part that does not exist.
        path: String,
    },
    /// The guest's structures around the hive could not be read.
    #[error(transparent)]
    Guest(#[from] vmi_core::Error),
}

impl RegistryError {
    #[cold]
    pub(crate) fn corrupt(cell: u32, what: impl Into<String>) -> Self {
        Self::Corrupt { cell, what: what.into() }
    }
}

/// The number of bytes behind the size of an allocated cell, given that size and the bytes from there to the end of the storage.
pub(crate) fn content_len(index: u32, size: i32, rest: u64) -> Result<usize, RegistryError> {
    if size >= 0 {
        return Err(RegistryError::corrupt(index, "is a free cell, or none"));
    }
    let size = u64::from(size.unsigned_abs());
    let len = size.checked_sub(4).filter(|_| size <= rest && size % 8 == 0);
    match len.and_then(|len| usize::try_from(len).ok()) {
        Some(len) if len <= MAX_CELL => Ok(len),
        _ => {
            Err(RegistryError::corrupt(index, format!("its size of {size} bytes cannot be, with {rest} to the end of the hive")))
        }
    }
}
