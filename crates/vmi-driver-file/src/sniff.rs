//! Which format a file has, decided by its content alone.
//!
//! A new format is one file under `format/`, one variant of [`Format`] and one line in [`Format::recipe`].

use core::fmt;

use crate::format::{elf, foreign, kdump, lime, raw};
use crate::image::Parse;
use crate::source::Source;

/// A format of memory images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// The bare bytes of guest-physical memory.
    Raw,
    /// The format of the Linux Memory Extractor, also written by AVML (version 1 of its format).
    Lime,
    /// An ELF core file of a machine.
    Elf,
    /// kdump's compressed format, as makedumpfile and QEMU write it, and diskdump before them.
    Kdump,
}

impl Format {
    /// All formats with a magic number, and the raw one, which has none, last.
    const ALL: [Self; 4] = [Self::Lime, Self::Elf, Self::Kdump, Self::Raw];

    /// How many bytes at the start of a file the formats are told by. ISO 9660 has its magic number at 0x8001.
    const HEAD: u64 = 64 << 10;

    /// How this format is recognised by the start of a file, and read.
    const fn recipe(self) -> (fn(&[u8]) -> bool, Parse) {
        match self {
            Self::Lime => (lime::matches, lime::parse),
            Self::Elf => (elf::matches, elf::parse),
            Self::Kdump => (kdump::matches, kdump::parse),
            Self::Raw => (raw::matches, raw::parse),
        }
    }

    /// How this format is read.
    pub(crate) const fn parse(self) -> Parse {
        self.recipe().1
    }

    /// Finds the format of `source`, or says what else it is.
    pub(crate) fn of(source: &Source) -> Result<Self, &'static foreign::Foreign> {
        // What cannot be read is told by whoever reads it next.
        let head = source.head(Self::HEAD).unwrap_or_default();
        let matches = |format: &Self| (format.recipe().0)(&head);
        match Self::ALL.into_iter().find(matches) {
            Some(Self::Raw) | None => foreign::identify(&head).map_or(Ok(Self::Raw), Err),
            Some(format) => Ok(format),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Lime => "LiME",
            Self::Elf => "ELF core",
            Self::Kdump => "kdump",
        })
    }
}
