//! PE images as the loader laid them out in guest memory: the kernel, drivers, programs and libraries.
//!
//! The format is that of Microsoft's "PE Format" (learn.microsoft.com/windows/win32/debug/pe-format); its structures are those of the crate `object`. Everything in an
//! image is an attacker's: what contradicts itself is [`ErrorKind::Corrupt`], and what is paged out is the error of the read, never a guess.

mod codeview;
mod exports;
mod headers;
#[cfg(test)]
mod tests;
mod version;

pub use exports::{Export, ExportTarget, Exports, LostExport};
pub use headers::{DataDirectory, PeHeaders, Section};
pub use version::FileVersion;

use core::fmt;

use object::pod::{self, Pod};
use vmi_core::{ErrorKind, Memory, Result, VirtAddr};
use zerocopy::IntoBytes;

use crate::PdbIdentity;

/// A PE image in guest memory, with its headers read.
pub struct PeImage<'m, M: ?Sized> {
    memory: &'m M,
    base: VirtAddr,
    headers: PeHeaders,
}

impl<'m, M: Memory<Addr = VirtAddr> + ?Sized> PeImage<'m, M> {
    /// Reads the headers of the image that starts at `base`.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if there is no PE image, or one whose headers contradict themselves; the error of the read if they are not in memory.
    pub fn new(memory: &'m M, base: VirtAddr) -> Result<Self> {
        Ok(Self { memory, base, headers: PeHeaders::read(memory, base)? })
    }

    /// The first address of the image.
    pub fn base(&self) -> VirtAddr {
        self.base
    }

    /// What its headers say.
    pub fn headers(&self) -> &PeHeaders {
        &self.headers
    }

    /// The exported functions and variables; `None` if it exports nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] and [`ErrorKind::Limit`] for a directory that cannot be; the error of the read if the directory itself is not in memory. Parts of its tables
    /// that are not in memory are told export by export.
    pub fn exports(&self) -> Result<Option<Exports<'_, M>>> {
        Exports::read(self)
    }

    /// The program database of the image, as its CodeView record says; `None` if it names none.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for a debug directory that cannot be; the error of the read if it is not in memory.
    pub fn pdb(&self) -> Result<Option<PdbIdentity>> {
        codeview::read(self)
    }

    /// The version that its resources give; `None` if they give none.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for resources that cannot be; the error of the read if they are not in memory.
    pub fn file_version(&self) -> Result<Option<FileVersion>> {
        version::read(self)
    }

    /// The address of `rva`, where `len` bytes lie within the image.
    fn address(&self, rva: u64, len: u64, what: &str) -> Result<VirtAddr> {
        let end = rva.checked_add(len).filter(|&end| end <= u64::from(self.headers.size_of_image));
        match end.and_then(|_| self.base.checked_add(rva)) {
            Some(at) => Ok(at),
            None => Err(corrupt(
                self.base,
                format!(
                    "{what}, {len} bytes at offset {rva:#x}, is not within the image's {:#x} bytes",
                    self.headers.size_of_image
                ),
            )),
        }
    }

    /// Reads a structure within the image.
    fn read<T: Pod>(&self, rva: u64, what: &str) -> Result<T> {
        read(self.memory, self.address(rva, size_of::<T>() as u64, what)?)
    }
}

impl<M: ?Sized> fmt::Debug for PeImage<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeImage").field("base", &self.base).field("headers", &self.headers).finish_non_exhaustive()
    }
}

fn corrupt(at: VirtAddr, what: impl Into<String>) -> vmi_core::Error {
    ErrorKind::Corrupt { what: what.into(), at }.into()
}

/// Reads one of `object`'s structures.
fn read<T: Pod>(memory: &(impl Memory<Addr = VirtAddr> + ?Sized), at: VirtAddr) -> Result<T> {
    // Words, so that the bytes are aligned for whatever the structure asks for.
    let mut words = vec![0u64; size_of::<T>().div_ceil(8)];
    let bytes = words.as_mut_bytes().get_mut(..size_of::<T>()).unwrap_or_default();
    memory.read_into(at, bytes)?;
    match pod::from_bytes::<T>(bytes) {
        Ok((value, _)) => Ok(*value),
        Err(()) => Err(corrupt(at, "a structure of the crate `object` asks for an alignment above 8")),
    }
}

/// Walks all of the image at `base` and everything that can be asked of it, for tests on hostile bytes. Returns how many items were seen, at most some thousand.
#[doc(hidden)]
pub fn exercise(memory: &(impl Memory<Addr = VirtAddr> + ?Sized), base: VirtAddr) -> usize {
    let Ok(image) = PeImage::new(memory, base) else { return 0 };
    let _ = (image.pdb(), image.file_version());
    let Ok(Some(exports)) = image.exports() else { return image.headers.sections.len() };
    let _ = (exports.dll_name(), exports.find("NtBuildNumber"), exports.find(""), exports.by_ordinal(1));
    exports.iter().take(3000).count()
}
