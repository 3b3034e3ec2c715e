//! Which format a file has, decided by its content alone.
//!
//! A new format is one file under `format/`, one variant of [`Format`] and one line in [`Format::recipe`].

use core::fmt;

use crate::format::{avml, elf, foreign, hiberfil, libvirt_save, lime, qemu, raw, windows_dump};
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
    /// Version 2 of AVML's format: ranges as in LiME, packed with Snappy.
    Avml,
    /// An ELF core file of a machine.
    Elf,
    /// A crash dump of Windows.
    WindowsDump,
    /// QEMU's migration stream, with `mapped-ram` or without.
    QemuStream,
    /// A domain saved by libvirt: QEMU's migration stream behind the domain's XML.
    LibvirtSave,
    /// The hibernation file of Windows 8 to 11.
    Hiberfil,
}

impl Format {
    /// All formats with a magic number, and the raw one, which has none, last.
    const ALL: [Self; 8] =
        [Self::Lime, Self::Avml, Self::Elf, Self::WindowsDump, Self::QemuStream, Self::LibvirtSave, Self::Hiberfil, Self::Raw];

    /// How many bytes at the start of a file the formats are told by. ISO 9660 has its magic number at 0x8001.
    const HEAD: u64 = 64 << 10;

    /// How this format is recognised by the start of a file, and read.
    const fn recipe(self) -> (fn(&[u8]) -> bool, Parse) {
        match self {
            Self::Lime => (lime::matches, lime::parse),
            Self::Avml => (avml::matches, avml::parse),
            Self::Elf => (elf::matches, elf::parse),
            Self::WindowsDump => (windows_dump::matches, windows_dump::parse),
            Self::QemuStream => (qemu::matches, qemu::parse),
            Self::LibvirtSave => (libvirt_save::matches, libvirt_save::parse),
            Self::Hiberfil => (hiberfil::matches, hiberfil::parse),
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
            Self::Avml => "AVML",
            Self::Elf => "ELF core",
            Self::WindowsDump => "Windows crash dump",
            Self::QemuStream => "QEMU migration stream",
            Self::LibvirtSave => "libvirt save",
            Self::Hiberfil => "Windows hibernation file",
        })
    }
}
