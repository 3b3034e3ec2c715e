//! The driver over an opened image.

use std::fs::{File, FileType};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use vmi_arch_x86::{Registers, X86};
use vmi_core::{
    Capability, Driver, Error, ErrorKind, GuestMapping, Liveness, MachineInfo, MappedFile, MemoryMap, PhysAddr, Piece,
    PieceError, Region, Result, VcpuId, Vcpus,
};

use crate::image::Part;
use crate::loaded::Loaded;
use crate::machine_frames::MachineFrames;
use crate::packed_memory::PackedMemory;
use crate::source::Source;
use crate::{Compression, Format, FormatError, OpenError, OpenOptions, directory};

/// A machine's memory in a file: frozen, mapped and read in place, or unpacked where it is read.
///
/// The file must keep its length and contents as long as this lives: see [`MappedFile`].
#[derive(Debug)]
pub struct ImageDriver {
    machine: MachineInfo,
    mapping: GuestMapping,
    /// Memory in containers that are not mapped: first address, by which they are sorted, and where it is.
    indexed: Vec<(Piece, Source)>,
    packed: Option<PackedMemory>,
    /// Memory that is zero without being in the file.
    zeros: MemoryMap,
    /// All memory but the packed one.
    plain: MemoryMap,
    registers: Vec<Registers>,
    frames: Option<MachineFrames>,
    format: Format,
    compression: Option<Compression>,
}

impl ImageDriver {
    /// Opens the image at `path`, of any supported format, packed or not. A directory is opened if it has one snapshot of a hypervisor
    /// that writes several files: see [`OpenError::Directory`].
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
        if metadata.is_dir() {
            return Self::open_with(&directory::image(path)?, options);
        }
        if let Some(what) = not_regular(metadata.file_type()) {
            return Err(OpenError::NotRegular { path: path.to_owned(), what });
        }
        let store = File::open(path).and_then(|file| MappedFile::new(&file)).map_err(io("open"))?;
        Self::open_source(path, Some(path), Source::mapped(store), options)
    }

    /// The image in `source`, packed or not. `name` stands in messages, `path` is where other files of the image are.
    pub(crate) fn open_source(name: &Path, path: Option<&Path>, source: Source, options: OpenOptions) -> Result<Self, OpenError> {
        Self::of(name, Loaded::load(name, path, source, options)?)
    }

    fn of(name: &Path, loaded: Loaded) -> Result<Self, OpenError> {
        let Loaded { format, compression, image } = loaded;
        let wrong = |source| OpenError::Image { path: name.to_owned(), format, source };
        let packing = compression.map(|compression| format!(" ({compression})")).unwrap_or_default();
        let machine_name = format!("{format} image {}{packing}", name.display());

        let (mapping, indexed) = locate(&image.parts).map_err(wrong)?;
        let zeros = MemoryMap::new(image.zeros);
        let (below, packed) =
            image.packed.map(|blocks| (blocks.memory(), PackedMemory::new(blocks, machine_name.clone()))).unzip();
        let mapped = mapping.memory_map();
        let regions = mapped.regions().iter().chain(zeros.regions()).copied();
        let plain = MemoryMap::new(regions.chain(indexed.iter().map(|(piece, _)| piece.region)));
        let memory = match below {
            None => plain.clone(),
            Some(below) if plain.regions().is_empty() => below,
            Some(below) => MemoryMap::new(plain.regions().iter().chain(below.regions()).copied()),
        };
        if memory.regions().is_empty() {
            return Err(wrong(FormatError::NoMemory));
        }
        let machine = MachineInfo { name: machine_name, memory, liveness: Liveness::Frozen, notes: image.notes };
        let (registers, frames) = (image.registers, image.frames);
        Ok(Self { machine, mapping, indexed, packed, zeros, plain, registers, frames, format, compression })
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

impl ImageDriver {
    /// Fills the start of `buf`, at least one byte of it, and says how much.
    fn read_run(&self, at: PhysAddr, buf: &mut [u8]) -> Result<usize> {
        let wanted = buf.len();
        let run = |region: Region| usize::try_from(region.end().get().saturating_sub(at.get())).unwrap_or(usize::MAX).min(wanted);
        let hole = match self.mapping.read_into(at, buf) {
            Ok(()) => return Ok(buf.len()),
            Err(error) if error.done() > 0 => return Ok(error.done()),
            Err(hole) => hole,
        };
        if let Some((piece, source)) = self.indexed_at(at) {
            let len = run(piece.region);
            let offset = piece.offset.saturating_add(at.get().saturating_sub(piece.region.start().get()));
            let (now, _) = buf.split_at_mut(len);
            source.read_at(offset, now, "memory").map_err(|error| self.damaged(at, error))?;
            return Ok(len);
        }
        if let Some(region) = self.zeros.region_at(at) {
            let len = run(region);
            buf.iter_mut().take(len).for_each(|byte| *byte = 0);
            return Ok(len);
        }
        // Up to where other memory speaks again.
        let next = self.plain.regions().partition_point(|region| region.start() <= at);
        let limit = self.plain.regions().get(next).map_or(u64::MAX, |region| region.start().get().saturating_sub(at.get()));
        let (now, _) = buf.split_at_mut(usize::try_from(limit).unwrap_or(usize::MAX).min(wanted));
        match self.packed.as_ref().map(|packed| packed.read(at, now)) {
            None => Err(hole),
            Some(Ok(())) => Ok(now.len()),
            Some(Err(error)) if error.is_absent() && error.done() > 0 => Ok(error.done()),
            Some(Err(error)) => Err(error),
        }
    }

    fn indexed_at(&self, at: PhysAddr) -> Option<&(Piece, Source)> {
        let index = self.indexed.partition_point(|(piece, _)| piece.region.end() <= at);
        self.indexed.get(index).filter(|(piece, _)| piece.region.contains(at))
    }

    #[cold]
    fn damaged(&self, at: PhysAddr, error: FormatError) -> Error {
        let action = format!("unpacking the memory at {at}");
        ErrorKind::Driver { back_end: self.machine.name.clone(), action, source: error.into() }.into()
    }
}

/// What of `parts` is mapped, and the rest in the order of addresses.
fn locate(parts: &[Part]) -> Result<(GuestMapping, Vec<(Piece, Source)>), FormatError> {
    let (mut stores, mut indexed) = (Vec::new(), Vec::new());
    for part in parts {
        match &part.source {
            Source::Mapped(store) => stores.push((Arc::clone(store), part.pieces.as_slice())),
            source @ Source::Indexed(_) => indexed.extend(part.pieces.iter().map(|&piece| (piece, source.clone()))),
        }
    }
    indexed.sort_by_key(|(piece, _)| piece.region.start());
    let mut end = PhysAddr::ZERO;
    for (piece, source) in &indexed {
        if piece.region.start() < end {
            return Err(PieceError::Overlap { at: piece.region.start() }.into());
        }
        if piece.offset.checked_add(piece.region.len()).is_none_or(|end| end > source.len()) {
            return Err(PieceError::Beyond { piece: *piece, store: source.len() }.into());
        }
        end = piece.region.end();
    }
    Ok((GuestMapping::frozen_stores(&stores)?, indexed))
}

/// What `kind` is, if no regular file.
fn not_regular(kind: FileType) -> Option<&'static str> {
    match kind {
        kind if kind.is_file() => None,
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
            done = done.saturating_add(self.read_run(here, rest).map_err(|error| error.after(done))?);
        }
        Ok(())
    }

    fn mapping(&self) -> Option<&GuestMapping> {
        // A mapping is the last word on memory, and `Vmi` caches pages only where there is none.
        (self.packed.is_none() && self.indexed.is_empty()).then_some(&self.mapping)
    }

    fn page_tables_name_others(&self) -> bool {
        self.frames.is_some()
    }

    fn resolve_frame(&self, named: PhysAddr) -> PhysAddr {
        self.frames.as_ref().map_or(named, |frames| frames.page_of(named))
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
