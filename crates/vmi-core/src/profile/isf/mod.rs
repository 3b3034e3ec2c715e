//! Intermediate symbol files of Volatility 3: symbols and types in JSON, as `dwarf2json` and Volatility's own PDB converter write them.
//!
//! The format is that of Volatility's `schema-6.2.0.json` and the versions before it. Files are commonly packed with xz.

mod convert;
mod json;
#[cfg(test)]
mod tests;
mod write;

use core::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustc_hash::FxHashMap;

pub use self::write::{IsfStructure, IsfSummary, IsfType, IsfWriteError, IsfWriter};
use crate::{ErrorKind, Result, Symbols, SymbolsBuilder, Type, TypeId, TypeSource, VirtAddr};

/// The longest file that is read, in bytes, once unpacked. Those of whole Linux distributions' kernels have 10 to 35 MB.
const MAX_LEN: u64 = 512 << 20;

/// Memory that unpacking may take, in KiB. `xz -9` needs 65 MiB.
const UNPACK_KIB: u32 = 80 << 10;

const XZ_MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];

/// An intermediate symbol file.
pub struct Isf {
    symbols: Vec<IsfSymbol>,
    types: Vec<Type>,
    structures: FxHashMap<String, TypeId>,
    enumerations: FxHashMap<String, TypeId>,
    pointer_size: u64,
    pdb: Option<IsfPdb>,
    linux: bool,
    banner: Option<String>,
    origin: String,
}

#[derive(Debug)]
struct IsfSymbol {
    name: String,
    address: u64,
    ty: TypeId,
}

/// The program database that a Windows file was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsfPdb {
    /// Name: `ntkrnlmp.pdb`.
    pub database: String,
    /// Identifier, 32 hexadecimal digits.
    pub guid: String,
    /// How often it was written.
    pub age: u32,
}

/// Why a file is not a usable symbol file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IsfError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The packed data is broken, or needs more memory than 80 MiB.
    #[error("cannot unpack the xz data of this symbol file: {0}")]
    Xz(#[source] std::io::Error),
    /// The file is longer than any real one.
    #[error("the symbol file has more than {limit} bytes once unpacked; real ones have at most some tens of millions")]
    TooLong {
        /// The bound in bytes.
        limit: u64,
    },
    /// Not the JSON that is expected.
    #[error("not a Volatility 3 symbol file: {0}")]
    Json(#[from] serde_json::Error),
    /// A version of the format that is not known.
    #[error("the symbol file has format {format}; known are 4.0.0 to 6.x")]
    Format {
        /// The version it gives.
        format: String,
    },
    /// More types than can be numbered.
    #[error("the symbol file describes more types than can be numbered")]
    TooMany,
}

impl Isf {
    /// Reads a symbol file, packed with xz or not.
    ///
    /// # Errors
    /// [`IsfError`]: [`IsfError::Io`], or as [`Isf::parse`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, IsfError> {
        let path = path.as_ref();
        let io = |source| IsfError::Io { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        std::fs::File::open(path).map_err(io)?.take(MAX_LEN.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
        Ok(Self::parse(&bytes)?.with_origin(path.display().to_string()))
    }

    /// Parses the bytes of a symbol file, packed with xz or not.
    ///
    /// # Errors
    /// [`IsfError`] for data that cannot be unpacked, is too long, or is not what the schema says.
    pub fn parse(bytes: &[u8]) -> Result<Self, IsfError> {
        let too_long = |len: usize| len as u64 > MAX_LEN;
        if too_long(bytes.len()) {
            return Err(IsfError::TooLong { limit: MAX_LEN });
        }
        if !bytes.starts_with(&XZ_MAGIC) {
            return convert::isf(serde_json::from_slice(bytes)?);
        }
        let mut unpacked = Vec::new();
        let reader = lzma_rust2::XzReader::new_mem_limit(bytes, true, UNPACK_KIB);
        reader.take(MAX_LEN.saturating_add(1)).read_to_end(&mut unpacked).map_err(IsfError::Xz)?;
        if too_long(unpacked.len()) {
            return Err(IsfError::TooLong { limit: MAX_LEN });
        }
        convert::isf(serde_json::from_slice(&unpacked)?)
    }

    /// Says where the file came from, for messages; `symbol file` unless told.
    #[must_use]
    pub fn with_origin(mut self, origin: impl Into<String>) -> Self {
        self.origin = origin.into();
        self
    }

    /// The symbols, moved by `slide`: for Linux the kernel's address-space randomisation, for Windows the address of the image, whose
    /// symbols the file counts from zero.
    ///
    /// What the file does not tell is the letter of each symbol: all have `?`. Linux symbols below 16 MiB are offsets of per-CPU
    /// variables and absolute values; they stay where they are.
    pub fn symbols(&self, slide: u64) -> Symbols {
        let mut builder = SymbolsBuilder::default();
        builder.reserve(self.symbols.len());
        for symbol in &self.symbols {
            let moves = !self.linux || symbol.address >= 16 << 20;
            let address = if moves { symbol.address.wrapping_add(slide) } else { symbol.address };
            builder.push(&symbol.name, VirtAddr::new(address), b'?');
        }
        builder.build()
    }

    /// The banner of the Linux kernel that the file describes, without the line end.
    pub fn banner(&self) -> Option<&str> {
        self.banner.as_deref()
    }

    /// The program database that the file was made from, if it describes Windows.
    pub fn pdb(&self) -> Option<&IsfPdb> {
        self.pdb.as_ref()
    }
}

impl TypeSource for Isf {
    fn find(&self, name: &str) -> Option<TypeId> {
        self.structures.get(name).copied()
    }

    fn find_enumeration(&self, name: &str) -> Option<TypeId> {
        self.enumerations.get(name).copied()
    }

    fn get(&self, id: TypeId) -> Result<Type> {
        self.types.get(id.0 as usize).cloned().ok_or_else(|| {
            let why = format!("{} has no type of this number", self.origin);
            ErrorKind::NoType { name: format!("type {}", id.0), why }.into()
        })
    }

    fn pointer_size(&self) -> u64 {
        self.pointer_size
    }

    fn origin(&self) -> String {
        self.origin.clone()
    }

    fn structures(&self) -> Box<dyn Iterator<Item = String> + '_> {
        Box::new(self.structures.keys().cloned())
    }

    fn enumerations(&self) -> Box<dyn Iterator<Item = String> + '_> {
        Box::new(self.enumerations.keys().cloned())
    }

    /// Files give the type `void` to symbols of which they know none.
    fn variable(&self, name: &str) -> Option<TypeId> {
        let index = self.symbols.binary_search_by(|symbol| symbol.name.as_str().cmp(name)).ok()?;
        let ty = self.symbols.get(index)?.ty;
        self.types.get(ty.0 as usize).is_some_and(|ty| *ty != Type::Void).then_some(ty)
    }
}

impl fmt::Debug for Isf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Isf");
        debug.field("origin", &self.origin).field("symbols", &self.symbols.len()).field("types", &self.types.len());
        debug.finish_non_exhaustive()
    }
}
