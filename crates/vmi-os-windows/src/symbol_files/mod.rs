//! Symbols and types from files: program databases, Volatility symbol files, and the cache that both leave behind.
//!
//! Whatever the file was, what comes out is a [`SymbolFile`]: one run of bytes in the form of the cache, which is read where it is. Making one of a
//! program database or a symbol file takes some 20 to 300 ms; reading it back takes a few.

mod cabinet;
mod cache;
mod compact;
mod error;
mod pdb;
#[cfg(test)]
mod tests;

pub use cache::SymbolCache;
pub use error::SymbolFileError;

use core::fmt;
use std::io::Read;
use std::path::Path;

use vmi_core::{Isf, Result, Symbols, SymbolsBuilder, Type, TypeId, TypeSource, VirtAddr};

use crate::PdbIdentity;
use compact::Compact;
pub(crate) use pdb::{Signature as PdbSignature, is_pdb};

/// The longest symbol file that is read, in bytes. The kernel's program database has 10 to 30 MB.
pub(crate) const MAX_LEN: u64 = 512 << 20;

/// More types than any file has; kernels have some 5,000 with all of their arrays and pointers.
const MAX_TYPES: u32 = 1 << 22;

/// The symbols and types of one Windows image.
pub struct SymbolFile {
    compact: Compact,
    identity: Option<PdbIdentity>,
    origin: String,
}

impl SymbolFile {
    /// Reads a symbol file of any kind: a program database, also in a cabinet (`.pd_`), a Volatility symbol file (packed or not), or a file of the cache.
    ///
    /// # Errors
    /// [`SymbolFileError`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SymbolFileError> {
        let path = path.as_ref();
        Ok(Self::parse(&read(path)?)?.with_origin(path.display().to_string()))
    }

    /// As [`SymbolFile::open`], of bytes.
    ///
    /// # Errors
    /// [`SymbolFileError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, SymbolFileError> {
        let unpacked = cabinet::unpack(bytes)?;
        let bytes = unpacked.as_deref().unwrap_or(bytes);
        if is_pdb(bytes) {
            Self::from_pdb(bytes)
        } else if compact::is_compact(bytes) {
            Self::from_cache(bytes.to_vec())
        } else {
            Self::from_isf(&Isf::parse(bytes)?)
        }
    }

    /// Reads a program database (`.pdb`). How it is named it does not know itself: its [`SymbolFile::identity`] has no name.
    ///
    /// # Errors
    /// [`SymbolFileError`]: [`SymbolFileError::Pdb`] or [`SymbolFileError::TooMany`].
    pub fn from_pdb(bytes: &[u8]) -> Result<Self, SymbolFileError> {
        Self::from_pdb_of(bytes, &PdbSignature::read(bytes)?.identity())
    }

    /// As [`SymbolFile::from_pdb`], of a database that is known to have this identity.
    pub(crate) fn from_pdb_of(bytes: &[u8], identity: &PdbIdentity) -> Result<Self, SymbolFileError> {
        let pdb = pdb::parse(bytes)?;
        Self::new(compact::encode(&pdb.types, &pdb.symbols, pdb.pointer_size, Some(identity))?, "program database")
    }

    /// Takes over what a Volatility symbol file says.
    ///
    /// # Errors
    /// [`SymbolFileError::TooMany`].
    pub fn from_isf(isf: &Isf) -> Result<Self, SymbolFileError> {
        let types: Vec<Type> = (0..MAX_TYPES).map_while(|id| isf.get(TypeId(id)).ok()).collect();
        let symbols = isf.symbols(0);
        // What is further than 4 GiB from the start of the image is not in it.
        let symbols: Vec<_> =
            symbols.iter().filter_map(|symbol| Some((symbol.name, u32::try_from(symbol.address.get()).ok()?))).collect();
        let identity = isf.pdb().and_then(|pdb| PdbIdentity::from_key(&pdb.database, &format!("{}{:X}", pdb.guid, pdb.age)));
        Self::new(compact::encode(&types, &symbols, isf.pointer_size(), identity.as_ref())?, "symbol file")
    }

    /// Takes the bytes of a file of the cache.
    ///
    /// # Errors
    /// [`SymbolFileError::Cache`] if they are damaged or of another version.
    pub fn from_cache(bytes: Vec<u8>) -> Result<Self, SymbolFileError> {
        Self::new(bytes, "cache of symbols")
    }

    fn new(bytes: Vec<u8>, origin: &str) -> Result<Self, SymbolFileError> {
        let compact = Compact::new(bytes)?;
        let identity = compact.identity();
        Ok(Self { compact, identity, origin: origin.to_owned() })
    }

    /// Says where the file came from, for messages.
    #[must_use]
    pub fn with_origin(mut self, origin: impl Into<String>) -> Self {
        self.origin = origin.into();
        self
    }

    /// The program database that the symbols come from; `None` if the file does not tell.
    pub fn identity(&self) -> Option<&PdbIdentity> {
        self.identity.as_ref()
    }

    /// The symbols of the image when it starts at `base`.
    pub fn symbols(&self, base: VirtAddr) -> Symbols {
        let mut builder = SymbolsBuilder::default();
        builder.reserve(self.compact.symbols().len());
        for (name, offset) in self.compact.symbols() {
            builder.push(name, base.wrapping_add(offset.into()), b'?');
        }
        builder.build()
    }

    /// Names and offsets in the image of all symbols, ascending by offset.
    pub fn offsets(&self) -> impl ExactSizeIterator<Item = (&str, u32)> {
        self.compact.symbols()
    }

    /// The bytes that [`SymbolFile::from_cache`] takes.
    pub fn as_bytes(&self) -> &[u8] {
        self.compact.bytes()
    }
}

impl TypeSource for SymbolFile {
    fn find(&self, name: &str) -> Option<TypeId> {
        self.compact.structure(name)
    }

    fn find_enumeration(&self, name: &str) -> Option<TypeId> {
        self.compact.enumeration(name)
    }

    fn get(&self, id: TypeId) -> Result<Type> {
        self.compact.get(id).ok_or_else(|| {
            let why = format!("{} has no type of this number, or is damaged there", self.origin);
            vmi_core::ErrorKind::NoType { name: format!("type {}", id.0), why }.into()
        })
    }

    fn pointer_size(&self) -> u64 {
        self.compact.pointer_size()
    }

    fn origin(&self) -> String {
        self.origin.clone()
    }

    fn structures(&self) -> Box<dyn Iterator<Item = String> + '_> {
        Box::new(self.compact.structures().map(str::to_owned))
    }
}

impl fmt::Debug for SymbolFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("SymbolFile");
        debug.field("origin", &self.origin).field("identity", &self.identity);
        debug.field("symbols", &self.compact.symbols().len()).field("bytes", &self.compact.bytes().len()).finish()
    }
}

/// The bytes of a file that is not longer than any real one; of a cabinet, what is in it.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, SymbolFileError> {
    let io = |source| SymbolFileError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(MAX_LEN.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_LEN {
        return Err(SymbolFileError::TooLong { path: path.to_owned(), limit: MAX_LEN });
    }
    Ok(cabinet::unpack(&bytes)?.unwrap_or(bytes))
}

/// The length of the file in a cabinet, for tests on hostile bytes; `None` if it is none, or damaged.
#[doc(hidden)]
pub fn exercise_cabinet(bytes: &[u8]) -> Option<usize> {
    cabinet::unpack(bytes).ok()?.map(|file| file.len())
}

/// Asks a parsed file everything, for tests on hostile bytes. Returns how many types and symbols were seen.
#[doc(hidden)]
pub fn exercise(file: &SymbolFile) -> usize {
    let types: &dyn TypeSource = file;
    let mut seen = file.symbols(VirtAddr::new(0xffff_f800_0000_0000)).len();
    for name in types.structures().take(4096) {
        for member in types.structure(&name).map(|structure| structure.members).unwrap_or_default().iter().take(4096) {
            let _ = (types.field(&name, &member.name), types.size_of(member.ty));
            seen = seen.saturating_add(1);
        }
    }
    let _ = (types.field("_EPROCESS", "Pcb.DirectoryTableBase"), types.constant("_POOL_TYPE", "NonPagedPool"));
    seen
}
