//! Making images: the memory of any machine, written to a file or a pipe.
//!
//! Memory is read, and packed where the format is, on all processors, while what was read before is written in order. A file appears under
//! its final name only when it is whole; until then it has a temporary name beside it and is readable by its owner alone. Pages of zeros
//! become holes of the file. Where memory is mapped and frozen, it is written from where it is.
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

mod avml;
mod elf;
mod kdump;
mod layout;
mod output;
mod pipeline;
mod plain;
mod verify;

use core::any::Any;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use vmi_arch_x86::Registers;
use vmi_core::{Driver, Liveness, MachineInfo, MemoryMap, Note, Region, VcpuId, Vmi};

pub use self::kdump::PagePacking;
use self::output::Output;
use self::pipeline::{Failure, Pipeline};
use crate::{Format, OpenError, OpenOptions};

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of guest memory in the image.
    pub memory: u64,
    /// Bytes of the image that take room. Zeros are holes in a file, and in a packed format there is less of everything.
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
    /// The path is a directory, a device or a socket.
    #[error("{}: neither a regular file nor a pipe", path.display())]
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
    /// The image was written, but could not be opened for verification.
    #[error("the image that was written does not open: {0}")]
    Unreadable(#[from] Box<OpenError>),
    /// The image was written, but verification found other bytes in it.
    #[error("{}: what was written differs from memory at {}", path.display(), regions(differing))]
    Differs {
        /// The image.
        path: PathBuf,
        /// Where. Ascending and apart.
        differing: Vec<Region>,
    },
    /// A pipe cannot be read again, so nothing that went into one can be verified.
    #[error("{}: a pipe cannot be verified", path.display())]
    VerifiedPipe {
        /// The pipe.
        path: PathBuf,
    },
}

/// The first of `regions`, and how many there are.
fn regions(regions: &[Region]) -> String {
    const SHOWN: usize = 4;
    let mut text: Vec<_> = regions.iter().take(SHOWN).map(|region| format!("{}-{}", region.start(), region.end())).collect();
    text.extend(regions.len().checked_sub(SHOWN).filter(|&more| more > 0).map(|more| format!("{more} more ranges")));
    text.join(", ")
}

/// Writes all memory of the machine to `path`, over a file that may be there. `progress` is called with the bytes of
/// memory that are done, and of all.
///
/// Raw images have memory at its physical address; ranges without memory are holes. LiME and ELF images have one range or segment for each
/// region of the memory map, AVML images (version 2, packed with Snappy) one block for each 16 MiB that are not all zero, kdump images each page packed by itself.
/// ELF and kdump images have VMCOREINFO and the vCPUs' registers in notes if the machine tells them, and machine x86-64 whatever the guest is.
///
/// A named pipe is written to as a stream: see [`stream()`].
///
/// # Errors
/// Why the image could not be written: see [`WriteError`]. Memory that is absent is no error: see [`Summary::unreadable`].
pub fn image<D: Driver>(
    vmi: &Vmi<D>,
    path: impl AsRef<Path>,
    format: Format,
    progress: impl FnMut(u64, u64),
) -> Result<Summary, WriteError> {
    Options::new().image(vmi, path, format, progress)
}

/// Writes all memory of the machine to `stream`, such as a pipe: as [`image()`], with zeros for holes, and kdump in makedumpfile's flattened form.
///
/// # Errors
/// As [`image()`]; `stream` may have taken a part of the image then.
pub fn stream<D: Driver>(
    vmi: &Vmi<D>,
    stream: &mut dyn Write,
    format: Format,
    progress: impl FnMut(u64, u64),
) -> Result<Summary, WriteError> {
    Options::new().stream(vmi, stream, format, progress)
}

/// How an image is written, where the defaults do not do.
#[derive(Clone, Debug, Default)]
pub struct Options {
    verify: bool,
    packing: PagePacking,
    notes: Vec<Note>,
}

impl Options {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Packs the pages of kdump images so.
    #[must_use]
    pub fn packing(mut self, packing: PagePacking) -> Self {
        self.packing = packing;
        self
    }

    /// What else is known of the guest, for formats that have notes; what the machine says of itself goes before it. Tools that read kdump and ELF images want VMCOREINFO, which the
    /// guest's own memory has: see [`Guest::dump_notes`](vmi_core::Guest::dump_notes).
    #[must_use]
    pub fn notes(mut self, notes: Vec<Note>) -> Self {
        self.notes = notes;
        self
    }

    /// Reads the image again before it gets its name, and compares all of it: byte by byte with a machine that is frozen, else with digests that were taken while
    /// writing. Then `progress` counts all memory twice.
    #[must_use]
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Writes an image as [`image()`].
    ///
    /// # Errors
    /// As [`image()`], and [`WriteError::Differs`] if verification finds anything.
    pub fn image<D: Driver>(
        &self,
        vmi: &Vmi<D>,
        path: impl AsRef<Path>,
        format: Format,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Summary, WriteError> {
        let path = path.as_ref();
        let io = |action| move |source| WriteError::Io { path: path.to_owned(), action, source };
        match fs::metadata(path).map(|metadata| metadata.file_type()) {
            Ok(kind) if kind.is_fifo() && self.verify => return Err(WriteError::VerifiedPipe { path: path.to_owned() }),
            Ok(kind) if kind.is_fifo() => {
                let mut pipe = File::options().write(true).open(path).map_err(io("open"))?;
                return self.stream(vmi, &mut pipe, format, progress);
            }
            Ok(kind) if !kind.is_file() => return Err(WriteError::NotRegular { path: path.to_owned() }),
            _ => {}
        }
        // A link stays a link: its target is replaced.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new().prefix(".image-").tempfile_in(directory).map_err(io("create a file beside it"))?;

        let memory_len = vmi.machine().memory.total();
        let total = if self.verify { memory_len.saturating_mul(2) } else { memory_len };
        let mut written = |done| progress(done, total);
        let digests = self.verify && vmi.machine().liveness == Liveness::Live;
        let mut memory = Pipeline::new(vmi, digests, &mut written);
        let summary = self.fill(vmi, &mut memory, Output::file(file.as_file()), format, path)?;
        if self.verify {
            let digests = memory.digests;
            let copy = OpenOptions::new().format(format).open(file.path()).map_err(Box::new)?;
            let mut compared = |done: u64| progress(memory_len.saturating_add(done), total);
            let differing = verify::differences(vmi, &Vmi::new(copy), format, &digests, &mut compared)?;
            if !differing.is_empty() {
                return Err(WriteError::Differs { path: path.to_owned(), differing });
            }
        }
        file.persist(&target).map_err(|error| io("rename it from its temporary name")(error.error))?;
        Ok(summary)
    }

    /// Writes an image as [`stream()`]. Nothing is verified.
    ///
    /// # Errors
    /// As [`stream()`].
    pub fn stream<D: Driver>(
        &self,
        vmi: &Vmi<D>,
        stream: &mut dyn Write,
        format: Format,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Summary, WriteError> {
        let total = vmi.machine().memory.total();
        let mut progress = |done| progress(done, total);
        let mut memory = Pipeline::new(vmi, false, &mut progress);
        self.fill(vmi, &mut memory, Output::stream(stream), format, Path::new("the stream"))
    }

    /// Writes an image to `output`, which is called `path`.
    fn fill<D: Driver>(
        &self,
        vmi: &Vmi<D>,
        memory: &mut Pipeline<'_, '_, D>,
        mut output: Output<'_>,
        format: Format,
        path: &Path,
    ) -> Result<Summary, WriteError> {
        let written = match format {
            Format::Avml => avml::write(memory, &mut output),
            Format::Kdump => kdump::write(memory, &self.machine(vmi), &registers(vmi), self.packing, &mut output),
            _ => {
                let registers = if format == Format::Elf { registers(vmi) } else { Vec::new() };
                let layout = layout::of(&self.machine(vmi), &registers, format);
                let layout = layout.map_err(|why| WriteError::Format { path: path.to_owned(), format, why })?;
                plain::write(memory, &layout, &mut output)
            }
        };
        let stored = output.stored();
        written.and_then(|()| Ok(output.finish()?)).map_err(|failure| match failure {
            Failure::Io(source) => WriteError::Io { path: path.to_owned(), action: "write", source },
            Failure::Guest(error) => error.into(),
        })?;
        // As a map, gaps that touch are one.
        let unreadable = MemoryMap::new(memory.unreadable.drain(..)).regions().to_vec();
        Ok(Summary { memory: vmi.machine().memory.total(), stored, unreadable })
    }

    /// The machine with all that is known of it.
    fn machine<D: Driver>(&self, vmi: &Vmi<D>) -> MachineInfo {
        let mut machine = vmi.machine().clone();
        let known = |note: &Note| matches!(note, Note::VmCoreInfo(_));
        if !machine.notes.iter().any(known) {
            machine.notes.extend(self.notes.iter().cloned());
        }
        machine
    }
}

/// The registers of all vCPUs in order; empty if the machine does not tell all of them, or is no x86.
fn registers<D: Driver>(vmi: &Vmi<D>) -> Vec<Registers> {
    let Some(vcpus) = vmi.driver().vcpus() else { return Vec::new() };
    let one = |vcpu| vcpus.registers(VcpuId(vcpu)).map(|registers| (&registers as &dyn Any).downcast_ref().copied());
    let all: Result<Option<Vec<Registers>>, _> = (0..vcpus.vcpu_count()).map(one).collect();
    all.unwrap_or_else(|error| {
        tracing::warn!(%error, "the image will have no registers");
        None
    })
    .unwrap_or_default()
}
