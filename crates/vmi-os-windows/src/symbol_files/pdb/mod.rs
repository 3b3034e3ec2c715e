//! Program databases (`.pdb`): public symbols and types.
//!
//! The container, the identity and the symbol records are read by the crate `pdb`, types ([`records`]) and section tables ([`sections`]) here. The reason is
//! what was measured on 3,000 damaged copies of a real database: `pdb` 0.8 panicked in its type records 15 times (`unreachable!` on records in the wrong place),
//! its fork `pdb2` 0.11 ended the process, asking for 17 GB for the members of one record; both take 1.6 ms for the undamaged file. What is used of `pdb` allocates only
//! for whole streams, and those are bounded by [`Bounded`].

mod records;
mod sections;
mod types;

use std::fmt;
use std::io;

use pdb::{FallibleIterator, MachineType, PDB, Source, SourceSlice, SourceView, StreamIndex, SymbolData};
use vmi_core::Type;

use super::SymbolFileError;
use crate::PdbIdentity;

/// What a program database says.
pub(super) struct Parsed {
    pub(super) pointer_size: u64,
    pub(super) types: Vec<Type>,
    /// Names and offsets in the image.
    pub(super) symbols: Vec<(String, u32)>,
}

/// More public symbols than any image has; kernels have some 40,000.
const MAX_SYMBOLS: usize = 1 << 22;

/// Streams of a program database at fixed numbers (llvm.org/docs/PDB/MsfFile.html).
const TYPES: StreamIndex = StreamIndex(2);
const DEBUG: StreamIndex = StreamIndex(3);

const S_PUB32: u16 = 0x110e;

pub(crate) fn is_pdb(bytes: &[u8]) -> bool {
    bytes.starts_with(b"Microsoft C/C++ ")
}

fn damaged(what: impl Into<String>) -> SymbolFileError {
    SymbolFileError::Pdb { what: what.into() }
}

impl From<pdb::Error> for SymbolFileError {
    fn from(error: pdb::Error) -> Self {
        damaged(error.to_string())
    }
}

/// Which program database this is, without its symbols and types.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signature {
    guid: u128,
    /// Of the debug stream: what the linker wrote, and what the image names.
    age: u32,
    /// Of the stream of information: it goes up with every tool that writes, such as the one that strips private symbols.
    written: u32,
}

impl Signature {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, SymbolFileError> {
        let mut pdb = PDB::open(Bounded { bytes })?;
        let information = pdb.pdb_information()?;
        let age = pdb.debug_information()?.age().unwrap_or(information.age);
        Ok(Self { guid: information.guid.as_u128(), age, written: information.age })
    }

    pub(crate) fn fits(self, identity: &PdbIdentity) -> bool {
        self.guid == identity.guid && [self.age, self.written].contains(&identity.age)
    }

    /// How the file is named, a database does not know itself.
    pub(crate) fn identity(self) -> PdbIdentity {
        PdbIdentity { name: String::new(), guid: self.guid, age: self.age }
    }
}

pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, SymbolFileError> {
    let mut pdb = PDB::open(Bounded { bytes })?;
    let pointer_size = match pdb.debug_information()?.machine_type()? {
        MachineType::X86 => 4,
        _ => 8,
    };
    let sections = match pdb.raw_stream(DEBUG)? {
        Some(stream) => sections::Sections::read(&mut pdb, stream.as_slice())?,
        None => sections::Sections::default(),
    };
    let mut symbols = Vec::new();
    if let Ok(table) = pdb.global_symbols() {
        let mut records = table.iter();
        while let Some(record) = records.next()? {
            if record.raw_kind() != S_PUB32 {
                continue;
            }
            let SymbolData::Public(public) = record.parse()? else { continue };
            // Absolute symbols have no section.
            let Some(offset) = sections.offset_in_image(public.offset.section, public.offset.offset) else { continue };
            if symbols.len() >= MAX_SYMBOLS {
                return Err(SymbolFileError::TooMany { what: "symbols", limit: MAX_SYMBOLS });
            }
            symbols.push((undecorated(&public.name.to_string(), pointer_size).to_owned(), offset));
        }
    }
    let types = match pdb.raw_stream(TYPES)? {
        Some(stream) => types::read(stream.as_slice(), pointer_size)?,
        None => vec![Type::Void],
    };
    Ok(Parsed { pointer_size, types, symbols })
}

/// The name in the source of a C symbol: on 32-bit x86 `_name` (cdecl), `_name@8` (stdcall) and `@name@8` (fastcall) are `name`
/// (learn.microsoft.com/cpp/build/reference/decorated-names). C++ names stay as they are.
fn undecorated(name: &str, pointer_size: u64) -> &str {
    let Some(rest) = name.strip_prefix(['_', '@']).filter(|_| pointer_size == 4) else { return name };
    match rest.rsplit_once('@') {
        Some((plain, bytes)) if !plain.is_empty() && !bytes.is_empty() && bytes.bytes().all(|byte| byte.is_ascii_digit()) => {
            plain
        }
        _ => rest,
    }
}

/// A file in memory from which no stream is larger than itself: pages of real streams do not repeat, and a list of them that does
/// would make a small file ask for terabytes.
struct Bounded<'b> {
    bytes: &'b [u8],
}

impl fmt::Debug for Bounded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounded").field("len", &self.bytes.len()).finish()
    }
}

#[derive(Debug)]
struct Copied(Vec<u8>);

impl SourceView<'_> for Copied {
    fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl<'b> Source<'b> for Bounded<'b> {
    fn view(&mut self, slices: &[SourceSlice]) -> Result<Box<dyn SourceView<'b>>, io::Error> {
        let beyond = || io::Error::new(io::ErrorKind::UnexpectedEof, "a stream goes beyond the file");
        let len = slices.iter().fold(0usize, |len, slice| len.saturating_add(slice.size));
        if len > self.bytes.len() {
            return Err(beyond());
        }
        let mut copy = Vec::with_capacity(len);
        for slice in slices {
            let start = usize::try_from(slice.offset).map_err(|_| beyond())?;
            let piece = start.checked_add(slice.size).and_then(|end| self.bytes.get(start..end));
            copy.extend_from_slice(piece.ok_or_else(beyond)?);
        }
        Ok(Box::new(Copied(copy)))
    }
}
