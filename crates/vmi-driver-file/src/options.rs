//! How an image is opened, where the defaults do not do.

use core::fmt;
use std::path::{Path, PathBuf};

use crate::source::Source;
use crate::{Format, ImageDriver, OpenError, RawMap};

/// Called while a packed image is unpacked: bytes of the packed file that are done, and in total.
pub(crate) type Progress = Box<dyn FnMut(u64, u64) + Send>;

/// What [`ImageDriver::open`] cannot know by itself.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use vmi_driver_file::OpenOptions;
/// // 4 GiB of a QEMU i440fx machine, its RAM written end to end
/// let image = OpenOptions::new().raw_map("0x0-0xc0000000,0x100000000-0x140000000".parse()?).open("ram.bin")?;
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct OpenOptions {
    pub(crate) format: Option<Format>,
    pub(crate) raw_map: Option<RawMap>,
    pub(crate) temp_dir: Option<PathBuf>,
    pub(crate) max_unpacked: Option<u64>,
    pub(crate) allow_truncated: bool,
    /// What lies below the image, the nearest first.
    pub(crate) bases: Vec<PathBuf>,
    pub(crate) snapshot: Option<String>,
    pub(crate) progress: Option<Progress>,
}

impl OpenOptions {
    /// The defaults: everything is found out from the content.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the file for this format, whatever its content looks like. Packed files are unpacked nevertheless.
    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    /// Takes the file for a raw image in which memory lies as `map` says.
    #[must_use]
    pub fn raw_map(mut self, map: RawMap) -> Self {
        self.raw_map = Some(map);
        self.format(Format::Raw)
    }

    /// Unpacks packed images in this directory instead of [`std::env::temp_dir`]. It takes as much room as the image has non-zero
    /// pages; none where the container tells where its blocks are, as then only what is read is unpacked, in memory.
    #[must_use]
    pub fn temp_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.temp_dir = Some(directory.into());
        self
    }

    /// Refuses packed images of more than this many bytes of content. By default that is 64 GiB where the content must be unpacked as a whole; what
    /// of it is not zero can never take more than the free space of the file system.
    #[must_use]
    pub fn max_unpacked(mut self, bytes: u64) -> Self {
        self.max_unpacked = Some(bytes);
        self
    }

    /// Opens images that are cut short with what there is of them; what is missing is a hole then. By default they are refused.
    #[must_use]
    pub fn allow_truncated(mut self, allow: bool) -> Self {
        self.allow_truncated = allow;
        self
    }

    /// Lays the image over the one at `base`, as a differential snapshot over the full one: what the image has no memory for is read from
    /// the base. Called again, it names what lies below that one.
    ///
    /// Of memory that is stored in a file as it is (raw, Firecracker's snapshots), only what is stored speaks: a hole of the file (`lseek`,
    /// `SEEK_DATA`) is memory of the base. So such a file must be copied with its holes (`cp --sparse=auto`, `rsync --sparse`).
    /// Registers are those of the image, not those of a base. An image of packed memory can be a base, but not lie over one.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use vmi_driver_file::OpenOptions;
    /// let image = OpenOptions::new().base("full/memory").open("differential/state")?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn base(mut self, base: impl Into<PathBuf>) -> Self {
        self.bases.push(base.into());
        self
    }

    /// Reads the snapshot of this name, or else of this number, of a disk image that has several ([`Format::Qcow2`]). By default that is the newest one with
    /// memory. Files of other formats are refused then.
    #[must_use]
    pub fn snapshot(mut self, name: impl Into<String>) -> Self {
        self.snapshot = Some(name.into());
        self
    }

    /// Calls `progress` while a packed image is unpacked, with how many bytes of the packed file are done, and how many there are.
    #[must_use]
    pub fn progress(mut self, progress: impl FnMut(u64, u64) + Send + 'static) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }

    /// Opens `path` with these options.
    ///
    /// # Errors
    /// As [`ImageDriver::open`].
    pub fn open(self, path: impl AsRef<Path>) -> Result<ImageDriver, OpenError> {
        ImageDriver::open_with(path.as_ref(), self)
    }

    /// Opens an image that is in memory, such as one a program carries. `name` stands for the path in messages.
    ///
    /// # Errors
    /// As [`ImageDriver::open`].
    pub fn open_bytes(self, name: impl AsRef<Path>, bytes: Vec<u8>) -> Result<ImageDriver, OpenError> {
        ImageDriver::open_source(name.as_ref(), None, Source::mapped(bytes), self)
    }
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("format", &self.format)
            .field("raw_map", &self.raw_map)
            .field("temp_dir", &self.temp_dir)
            .field("max_unpacked", &self.max_unpacked)
            .field("allow_truncated", &self.allow_truncated)
            .field("bases", &self.bases)
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}
