//! Which format a file has, decided by its content alone.
//!
//! A new format is one file under `format/`, one variant of [`Format`] and one line in [`Format::recipe`].

use core::fmt;

use crate::format::{
    avml, cloud_hypervisor, elf, firecracker, foreign, hiberfil, kdump, libvirt_save, lime, qcow2, qemu, raw, vmware,
    windows_dump, xen_core,
};
use crate::image::{Input, Parse};
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
    /// A snapshot of a running machine in a qcow2 disk image (`savevm`, `virsh snapshot-create`): QEMU's migration stream in clusters.
    Qcow2,
    /// A domain saved by libvirt: QEMU's migration stream behind the domain's XML.
    LibvirtSave,
    /// The hibernation file of Windows 8 to 11.
    Hiberfil,
    /// A core of Xen (`xl dump-core`).
    XenCore,
    /// A suspended or snapshotted machine of VMware: `.vmss` or `.vmsn`, mostly with a `.vmem`.
    Vmware,
    /// A snapshot of Firecracker: a state file and a memory file.
    Firecracker,
    /// A snapshot of Cloud Hypervisor: `state.json` and `memory-ranges`.
    CloudHypervisor,
    /// kdump's compressed format, as makedumpfile and QEMU write it, and diskdump before them.
    Kdump,
}

impl Format {
    /// All formats with a magic number, and the raw one, which has none, last.
    const ALL: [Self; 14] = [
        Self::Lime,
        Self::Avml,
        Self::XenCore,
        Self::Elf,
        Self::Kdump,
        Self::WindowsDump,
        Self::Hiberfil,
        Self::QemuStream,
        Self::Qcow2,
        Self::LibvirtSave,
        Self::Vmware,
        Self::Firecracker,
        Self::CloudHypervisor,
        Self::Raw,
    ];

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
            Self::Qcow2 => (qcow2::matches, qcow2::parse),
            Self::LibvirtSave => (libvirt_save::matches, libvirt_save::parse),
            Self::Hiberfil => (hiberfil::matches, hiberfil::parse),
            Self::XenCore => (xen_core::matches, xen_core::parse),
            Self::Vmware => (vmware::matches, vmware::parse),
            Self::Firecracker => (firecracker::matches, firecracker::parse),
            Self::CloudHypervisor => (cloud_hypervisor::matches, cloud_hypervisor::parse),
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

impl Format {
    /// The format that the memory file of an image of several files belongs to, told by what is beside it: its own content is raw.
    pub(crate) fn of_memory_file(input: Input<'_>) -> Option<Self> {
        let told = [
            (vmware::owns(input), Self::Vmware),
            (cloud_hypervisor::owns(input), Self::CloudHypervisor),
            (firecracker::owns(input), Self::Firecracker),
        ];
        told.into_iter().find(|(owns, _)| *owns).map(|(_, format)| format)
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
            Self::Qcow2 => "qcow2 snapshot",
            Self::LibvirtSave => "libvirt save",
            Self::Hiberfil => "Windows hibernation file",
            Self::XenCore => "Xen core",
            Self::Vmware => "VMware",
            Self::Firecracker => "Firecracker",
            Self::CloudHypervisor => "Cloud Hypervisor",
            Self::Kdump => "kdump",
        })
    }
}
