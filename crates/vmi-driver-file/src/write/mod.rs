//! Making images: the memory of any machine, written to a file.
//!
//! A file appears under its final name only when it is whole; until then it has a temporary name beside it and is readable by its
//! owner alone. Pages of zeros become holes of the file. Where memory is mapped and frozen, it is written from where it is.
//!
//! ```
//! use vmi_core::{Memory, PhysAddr, Vmi, synthetic::SyntheticDriver};
//! use vmi_driver_file::{Format, ImageDriver, write};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("guest.lime");
//! let vmi = Vmi::new(SyntheticDriver::new([(PhysAddr::new(0x10_0000), vec![7; 8192])]));
//! let summary = write::image(&vmi, &path, Format::Lime, |_done, _total| ())?;
//! assert!(summary.unreadable.is_empty());
//! let copy = Vmi::new(ImageDriver::open(&path)?);
//! assert_eq!(copy.read::<u8>(PhysAddr::new(0x10_0000))?, 7);
//! # Ok(())
//! # }
//! ```

mod elf;
mod kdump;
mod layout;
mod pages;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use vmi_core::{Driver, Region, Vmi};

pub use self::kdump::PagePacking;
use crate::Format;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of guest memory in the image.
    pub memory: u64,
    /// Bytes of it that take room in the file; the others are holes that read as zero.
    pub stored: u64,
    /// Memory that the memory map has but that could not be read: zero in the image. Ascending and apart.
    pub unreadable: Vec<Region>,
}

impl Summary {
    /// How many bytes could not be read.
    pub fn unreadable_bytes(&self) -> u64 {
        self.unreadable.iter().fold(0, |sum, region| region.len().saturating_add(sum))
    }
}

/// An image that could not be written. Nothing is left under its name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The file cannot be written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The path is a directory, a pipe or a device: images have holes, which takes a regular file.
    #[error("{}: not a regular file", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// The guest's memory cannot be read, for another reason than not being there.
    #[error("cannot read the guest's memory: {0}")]
    Guest(#[from] vmi_core::Error),
    /// The format cannot hold this machine, or is not written here.
    #[error("{}: the {format} format cannot be written: {why}", path.display())]
    Format {
        /// The image.
        path: PathBuf,
        /// The format.
        format: Format,
        /// Why.
        why: &'static str,
    },
}

impl pages::Failure {
    fn at(self, path: &Path) -> WriteError {
        match self {
            Self::Io(source) => WriteError::Io { path: path.to_owned(), action: "write", source },
            Self::Guest(error) => error.into(),
        }
    }
}

/// Writes all memory of the machine to `path`, over a file that may be there. `progress` is called with the bytes of
/// memory that are done, and of all.
///
/// Raw images have memory at its physical address; ranges without memory are holes. LiME and ELF images have one range or segment for each
/// region of the memory map, kdump images one packed page for each page that is not zero. ELF and kdump images have VMCOREINFO in a note if the
/// machine's notes have it, and machine x86-64 whatever the guest is.
///
/// # Errors
/// Why the image could not be written: see [`WriteError`]. Memory that is absent is no error: see [`Summary::unreadable`].
pub fn image<D: Driver>(
    vmi: &Vmi<D>,
    path: impl AsRef<Path>,
    format: Format,
    progress: impl FnMut(u64, u64),
) -> Result<Summary, WriteError> {
    file(vmi, path.as_ref(), format, PagePacking::default(), progress)
}

/// Writes a kdump file as [`image()`], its pages packed with `packing`.
///
/// # Errors
/// As [`image()`].
pub fn kdump<D: Driver>(
    vmi: &Vmi<D>,
    path: impl AsRef<Path>,
    packing: PagePacking,
    progress: impl FnMut(u64, u64),
) -> Result<Summary, WriteError> {
    file(vmi, path.as_ref(), Format::Kdump, packing, progress)
}

/// Writes a kdump file to `stream`, such as a pipe, in makedumpfile's flattened form.
///
/// # Errors
/// As [`image()`]; `stream` may have taken a part of the image then.
pub fn kdump_stream<D: Driver>(
    vmi: &Vmi<D>,
    stream: &mut dyn Write,
    packing: PagePacking,
    mut progress: impl FnMut(u64, u64),
) -> Result<Summary, WriteError> {
    let written = kdump::Flattened::new(stream)
        .map_err(pages::Failure::Io)
        .and_then(|target| kdump::write(vmi, target, packing, &mut progress));
    written.map_err(|failure| failure.at(Path::new("the stream")))
}

fn file<D: Driver>(
    vmi: &Vmi<D>,
    path: &Path,
    format: Format,
    packing: PagePacking,
    mut progress: impl FnMut(u64, u64),
) -> Result<Summary, WriteError> {
    let io = |action| move |source| WriteError::Io { path: path.to_owned(), action, source };
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(WriteError::NotRegular { path: path.to_owned() });
    }
    // A link stays a link: its target is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".image-").tempfile_in(directory).map_err(io("create a file beside it"))?;
    let written = if format == Format::Kdump {
        kdump::write(vmi, file.as_file(), packing, &mut progress)
    } else {
        let layout = layout::of(vmi.machine(), format).ok_or_else(|| WriteError::Format {
            path: path.to_owned(),
            format,
            why: "an address or length does not fit",
        })?;
        pages::write(vmi, file.as_file(), &layout, &mut progress)
    };
    let summary = written.map_err(|failure| failure.at(path))?;
    file.persist(&target).map_err(|error| io("rename it from its temporary name")(error.error))?;
    Ok(summary)
}
