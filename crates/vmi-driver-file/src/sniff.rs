//! Which format a file has, decided by its content alone.
//!
//! A new format is one file under `format/`, one variant of [`Format`] and one line in [`Format::recipe`]; if it has no magic number
//! at a fixed place, its `matches` may look at the whole file.

use core::fmt;

use crate::format::{elf, foreign, lime, raw};
use crate::image::Parse;

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
}

impl Format {
    /// All formats with a magic number, and the raw one, which has none, last.
    const ALL: [Self; 3] = [Self::Lime, Self::Elf, Self::Raw];

    /// How this format is recognised and read.
    const fn recipe(self) -> (fn(&[u8]) -> bool, Parse) {
        match self {
            Self::Lime => (lime::matches, lime::parse),
            Self::Elf => (elf::matches, elf::parse),
            Self::Raw => (raw::matches, raw::parse),
        }
    }

    /// How this format is read.
    pub(crate) const fn parse(self) -> Parse {
        self.recipe().1
    }

    /// Finds the format of `bytes`, or says what else they are.
    pub(crate) fn of(bytes: &[u8]) -> Result<Self, &'static foreign::Foreign> {
        let matches = |format: &Self| (format.recipe().0)(bytes);
        match Self::ALL.into_iter().find(matches) {
            Some(Self::Raw) | None => foreign::identify(bytes).map_or(Ok(Self::Raw), Err),
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
        })
    }
}
