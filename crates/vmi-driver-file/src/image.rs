//! What every format is brought to.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use vmi_arch_x86::Registers;
use vmi_core::{MappedFile, Note, Piece, Region};

use crate::machine_frames::MachineFrames;
use crate::packed_memory::Blocks;
use crate::source::Source;
use crate::{FormatError, OpenOptions, RawMap, directory, sparse};

/// A file that is to become an image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    /// Its content, unpacked.
    pub(crate) source: &'a Source,
    /// Where it is; `None` for bytes in memory. Formats of several files look beside it.
    pub(crate) path: Option<&'a Path>,
    /// What the user asked for.
    pub(crate) options: &'a OpenOptions,
}

/// A parsed image: where in its files the machine's memory is, and what else they tell.
#[derive(Debug, Default)]
pub(crate) struct Image {
    /// Memory whose bytes are in files as they are. Disjoint in the guest.
    pub(crate) parts: Vec<Part>,
    /// Memory that is declared without being stored: all zero. Disjoint from the parts.
    pub(crate) zeros: Vec<Region>,
    /// Memory that is packed. Where the others have memory too, they speak.
    pub(crate) packed: Option<Box<dyn Blocks>>,
    /// Registers of each vCPU in order; empty if the format keeps none.
    pub(crate) registers: Vec<Registers>,
    /// Of a guest whose page tables hold other frames than those of its memory: which is which.
    pub(crate) frames: Option<MachineFrames>,
    /// What else is known of the guest.
    pub(crate) notes: Vec<Note>,
    /// Where all memory of the machine is in a file of it, for a base that is such a file and cannot tell itself.
    pub(crate) layout: Option<RawMap>,
}

/// Memory in one file.
#[derive(Debug)]
pub(crate) struct Part {
    /// The file.
    pub(crate) source: Source,
    /// What of it is which memory.
    pub(crate) pieces: Vec<Piece>,
}

/// How a format's bytes become an [`Image`].
pub(crate) type Parse = fn(Input<'_>) -> Result<Image, FormatError>;

impl Image {
    /// Memory that is nowhere but in the opened file.
    pub(crate) fn of(input: Input<'_>, pieces: Vec<Piece>) -> Self {
        Self { parts: vec![Part { source: input.source.clone(), pieces }], ..Self::default() }
    }
}

impl Input<'_> {
    /// How many of the bytes `offset..offset + len` are there: all of them, or as many as exist if truncated files are allowed.
    ///
    /// # Errors
    /// [`FormatError::Truncated`].
    pub(crate) fn present(self, offset: u64, len: u64, what: impl FnOnce() -> String) -> Result<u64, FormatError> {
        let available = self.source.len().saturating_sub(offset);
        match len.checked_sub(available) {
            None | Some(0) => Ok(len),
            Some(missing) if self.options.allow_truncated => {
                tracing::warn!(what = what(), missing, "the image is cut short");
                Ok(available)
            }
            Some(missing) => Err(FormatError::Truncated { what: what(), missing }),
        }
    }

    /// Which of `pieces`, whose memory is in `source` as it is, speak: all of them, or what the file at `path` stores if the image lies
    /// over a base.
    ///
    /// # Errors
    /// [`FormatError::Beside`] if the file cannot be asked for its holes.
    pub(crate) fn stored(self, path: Option<&Path>, source: &Source, pieces: Vec<Piece>) -> Result<Vec<Piece>, FormatError> {
        let Some(path) = path.filter(|_| !self.options.bases.is_empty()) else { return Ok(pieces) };
        let beside = |why: String| FormatError::Beside { path: path.to_owned(), why };
        if path.metadata().map_err(|error| beside(error.to_string()))?.len() != source.len() {
            return Err(beside("packing has lost its holes, which say what is read from the base".to_owned()));
        }
        Ok(sparse::cut(&pieces, &sparse::data(path).map_err(|error| beside(error.to_string()))?))
    }

    /// The other files in the directory of this one that no option names, in the order of their names.
    pub(crate) fn neighbours(self) -> Vec<PathBuf> {
        let Some(path) = self.path else { return Vec::new() };
        let is_same = |other: &Path| other.file_name() == path.file_name() || self.options.bases.iter().any(|base| base == other);
        let files = directory::files(&directory::of(path)).unwrap_or_default();
        files.into_iter().filter(|other| !is_same(other)).collect()
    }

    /// The file that would be named `name` in the directory of this one; `None` if there is none.
    ///
    /// # Errors
    /// [`FormatError::Beside`] if it cannot be read.
    pub(crate) fn beside(self, name: impl AsRef<Path>) -> Result<Option<(PathBuf, Source)>, FormatError> {
        let Some(path) = self.path.map(|path| path.with_file_name(name.as_ref())).filter(|path| path.is_file()) else {
            return Ok(None);
        };
        let mapped = File::open(&path).and_then(|file| MappedFile::new(&file));
        match mapped {
            Ok(file) => Ok(Some((path, Source::mapped(file)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FormatError::Beside { path, why: error.to_string() }),
        }
    }
}
