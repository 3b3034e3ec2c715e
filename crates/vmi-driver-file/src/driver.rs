//! The driver over an opened image.

use std::fs::{File, FileType};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use vmi_arch_x86::{Registers, X86};
use vmi_core::{
    Capability, Driver, Error, ErrorKind, GuestMapping, Liveness, MachineInfo, MappedFile, MemoryMap, PhysAddr, Result, VcpuId,
    Vcpus,
};

use crate::{Compression, Format, FormatError, OpenError, OpenOptions, unpack};

/// A machine's memory in a file: frozen, mapped, read in place.
///
/// The file must keep its length and contents as long as this lives: see [`MappedFile`].
#[derive(Debug)]
pub struct ImageDriver {
    machine: MachineInfo,
    mapping: GuestMapping,
    /// Memory that is zero without being in the file.
    zeros: MemoryMap,
    registers: Vec<Registers>,
    format: Format,
    compression: Option<Compression>,
}

impl ImageDriver {
    /// Opens the image at `path`, of any supported format, packed or not.
    ///
    /// # Errors
    /// Why this is no image that can be read: see [`OpenError`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_with(path.as_ref(), OpenOptions::default())
    }

    pub(crate) fn open_with(path: &Path, options: OpenOptions) -> Result<Self, OpenError> {
        let io = |action| move |source| OpenError::Io { path: path.to_owned(), action, source };
        // Looked at before it is opened: opening a pipe waits for a writer.
        let metadata = path.metadata().map_err(io("open"))?;
        if let Some(what) = not_regular(metadata.file_type()) {
            return Err(OpenError::NotRegular { path: path.to_owned(), what });
        }
        let store = File::open(path).and_then(|file| MappedFile::new(&file)).map_err(io("open"))?;
        Self::unpack(path, store, options)
    }

    /// The image in `store`, packed or not.
    pub(crate) fn unpack<B>(path: &Path, store: B, mut options: OpenOptions) -> Result<Self, OpenError>
    where
        B: AsRef<[u8]> + Send + Sync + 'static,
    {
        match Compression::of(store.as_ref()) {
            None => Self::parse(path, store, &options, None),
            Some(compression) => {
                let unpacked = unpack::unpack(path, store.as_ref(), compression, &mut options)?;
                Self::parse(path, unpacked, &options, Some(compression))
            }
        }
    }

    fn parse<B>(path: &Path, store: B, options: &OpenOptions, compression: Option<Compression>) -> Result<Self, OpenError>
    where
        B: AsRef<[u8]> + Send + Sync + 'static,
    {
        let bytes = store.as_ref();
        if bytes.is_empty() {
            return Err(OpenError::Empty { path: path.to_owned() });
        }
        let format = match options.format {
            Some(format) => format,
            None => Format::of(bytes).map_err(|foreign| OpenError::NotSupported {
                path: path.to_owned(),
                format: foreign.name,
                advice: foreign.advice,
            })?,
        };
        let wrong = |source| OpenError::Image { path: path.to_owned(), format, source };
        let image = format.parse()(bytes, options).map_err(wrong)?;
        let mapping = GuestMapping::frozen(Arc::new(store), &image.pieces).map_err(|error| wrong(error.into()))?;
        let zeros = MemoryMap::new(image.zeros);
        let memory = MemoryMap::new(mapping.memory_map().regions().iter().chain(zeros.regions()).copied());
        if memory.regions().is_empty() {
            return Err(wrong(FormatError::NoMemory));
        }
        let packed = compression.map(|compression| format!(" ({compression})")).unwrap_or_default();
        let name = format!("{format} image {}{packed}", path.display());
        let machine = MachineInfo { name, memory, liveness: Liveness::Frozen, notes: image.notes };
        Ok(Self { machine, mapping, zeros, registers: image.registers, format, compression })
    }

    /// The format of the image.
    pub fn format(&self) -> Format {
        self.format
    }

    /// How the file is packed; `None` if it is not.
    pub fn compression(&self) -> Option<Compression> {
        self.compression
    }
}

/// What `kind` is, if no regular file.
fn not_regular(kind: FileType) -> Option<&'static str> {
    match kind {
        kind if kind.is_file() => None,
        kind if kind.is_dir() => Some("a directory"),
        kind if kind.is_fifo() => Some("a pipe"),
        kind if kind.is_socket() => Some("a socket"),
        kind if kind.is_block_device() => Some("a block device"),
        _ => Some("a character device"),
    }
}

impl Driver for ImageDriver {
    type Arch = X86;

    fn machine(&self) -> &MachineInfo {
        &self.machine
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        let mut done = 0usize;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let here = at.checked_add(done as u64).ok_or_else(|| vmi_core::Address::out_of_range(at, rest.len()).after(done))?;
            let Err(hole) = self.mapping.read_into(here, rest) else { break };
            let mapped = hole.done();
            let zero_at = here.wrapping_add(mapped as u64);
            let Some(zero) = self.zeros.region_at(zero_at) else { return Err(hole.after(done)) };
            let len = usize::try_from(zero.end().get().saturating_sub(zero_at.get())).unwrap_or(usize::MAX);
            let gap = rest.iter_mut().skip(mapped).take(len);
            done = done.saturating_add(mapped).saturating_add(gap.len());
            gap.for_each(|byte| *byte = 0);
        }
        Ok(())
    }

    fn mapping(&self) -> Option<&GuestMapping> {
        Some(&self.mapping)
    }

    fn vcpus(&self) -> Option<&dyn Vcpus<Arch = X86>> {
        if self.registers.is_empty() { None } else { Some(self) }
    }
}

impl Vcpus for ImageDriver {
    fn vcpu_count(&self) -> u32 {
        u32::try_from(self.registers.len()).unwrap_or(u32::MAX)
    }

    /// The registers of `vcpu`; [`ErrorKind::Unsupported`] if the image holds none at all.
    fn registers(&self, vcpu: VcpuId) -> Result<Registers> {
        if self.registers.is_empty() {
            return Err(Error::unsupported(Capability::Vcpus, &self.machine.name));
        }
        let found = usize::try_from(vcpu.0).ok().and_then(|index| self.registers.get(index));
        found.copied().ok_or_else(|| ErrorKind::NoObject { what: vcpu.to_string() }.into())
    }
}
