//! The bytes of a file that images are read from.

use core::fmt;
use std::borrow::Cow;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use vmi_core::Store;
use zerocopy::FromBytes;

use crate::FormatError;

/// A file's content: mapped, or within a container that is unpacked piece by piece. Cloning is cheap.
#[derive(Clone)]
pub(crate) enum Source {
    /// All of it is in memory.
    Mapped(Store),
    /// Ranges of it are made when they are read.
    Indexed(Arc<dyn RandomAccess>),
}

/// Bytes that can be read anywhere, at a cost.
pub(crate) trait RandomAccess: Send + Sync + fmt::Debug {
    /// How many bytes there are.
    fn len(&self) -> u64;

    /// Fills `buf` with the bytes at `offset`. The caller has checked that they are within the length.
    ///
    /// # Errors
    /// What is damaged.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FormatError>;
}

impl Source {
    /// The content of `store`.
    pub(crate) fn mapped(store: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self::Mapped(Arc::new(store))
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Mapped(store) => (**store).as_ref().len() as u64,
            Self::Indexed(access) => access.len(),
        }
    }

    /// The first bytes, at most `len`.
    pub(crate) fn head(&self, len: u64) -> Result<Cow<'_, [u8]>, FormatError> {
        self.get(0, len.min(self.len()), "the start of the file")
    }

    /// `len` bytes at `offset`, copied only if they are not in memory. For headers and tables: their length must be bounded by the caller.
    ///
    /// # Errors
    /// [`FormatError::Truncated`] with the name `what` if the file ends before them; else what is damaged.
    pub(crate) fn get(&self, offset: u64, len: u64, what: &str) -> Result<Cow<'_, [u8]>, FormatError> {
        let end = offset.saturating_add(len);
        if end > self.len() {
            let missing = end.saturating_sub(self.len().max(offset));
            return Err(FormatError::Truncated { what: what.to_owned(), missing });
        }
        // Within the file, so within the address range for what is mapped.
        let (start, end, len) = (offset as usize, end as usize, len as usize);
        match self {
            Self::Mapped(store) => Ok(Cow::Borrowed((**store).as_ref().get(start..end).unwrap_or_default())),
            Self::Indexed(access) => {
                let mut bytes = vec![0; len];
                access.read_at(offset, &mut bytes)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// As [`Source::get`].
    pub(crate) fn read_at(&self, offset: u64, buf: &mut [u8], what: &str) -> Result<(), FormatError> {
        match self {
            Self::Mapped(_) => {
                buf.copy_from_slice(&self.get(offset, buf.len() as u64, what)?);
                Ok(())
            }
            Self::Indexed(access) if offset.saturating_add(buf.len() as u64) <= access.len() => access.read_at(offset, buf),
            Self::Indexed(_) => self.get(offset, buf.len() as u64, what).map(drop),
        }
    }

    /// The structure `T` at `offset`.
    ///
    /// # Errors
    /// As [`Source::get`].
    pub(crate) fn read<T: FromBytes>(&self, offset: u64, what: &str) -> Result<T, FormatError> {
        let bytes = self.get(offset, size_of::<T>() as u64, what)?;
        T::read_from_bytes(&bytes).map_err(|_| FormatError::Malformed { offset, what: format!("{what} has another length") })
    }

    /// A reader over all bytes, from the first one on.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { source: self, at: 0 }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mapped(_) => f.debug_struct("Mapped").field("len", &self.len()).finish(),
            Self::Indexed(access) => f.debug_tuple("Indexed").field(access).finish(),
        }
    }
}

/// Reads a source from one place to the next.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    source: &'a Source,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.source.len().saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = left.min(buf.len());
        let (now, _) = buf.split_at_mut(len);
        self.source.read_at(self.at, now, "the file").map_err(io::Error::other)?;
        self.at = self.at.saturating_add(len as u64);
        Ok(len)
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(distance) => self.source.len().checked_add_signed(distance),
            SeekFrom::Current(distance) => self.at.checked_add_signed(distance),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
