//! Types from the DWARF of an unstripped `vmlinux`, versions 2 to 5, with or without type units and compressed sections.
//!
//! Opening walks the top level of every unit once, in parallel, and keeps only where each structure and enumeration is described
//! first; everything else is decoded when it is asked for. A type's number is the offset of its entry in `.debug_info`; the
//! `.debug_types` section of DWARF 4 counts as its continuation.

mod decode;
mod index;
mod sections;
#[cfg(test)]
mod tests;
mod unit;

use core::fmt;

use rustc_hash::FxHashMap;
use vmi_core::{ErrorKind, Result, Type, TypeId, TypeSource};

pub use self::sections::Bytes;

use self::sections::Sections;
use self::unit::Span;
use crate::btf::names::Names;

/// Longest name that is believed. Names of C are below 100 bytes; those of Rust's generic types can have several hundred.
const MAX_NAME: usize = 1024;

/// Why a file is not a usable source of types.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DwarfError {
    /// Not an ELF file, or a broken one.
    #[error("not a usable ELF file: {0}")]
    Elf(#[from] object::Error),
    /// No `.debug_info`.
    #[error("the file has no DWARF (no .debug_info section); a distribution's debug package has a vmlinux with it")]
    NoDwarf,
    /// An object file, whose DWARF is not linked yet.
    #[error("the file is an object file or module (ET_REL): its DWARF needs relocation, give the vmlinux instead")]
    Relocatable,
    /// A machine whose numbers have the other byte order.
    #[error("the file is for a big-endian machine")]
    BigEndian,
    /// More DWARF than numbers of types can tell apart.
    #[error("the section {section} has {len} bytes; at most {limit} are supported")]
    TooLong {
        /// Name of the section.
        section: &'static str,
        /// Its length in bytes.
        len: u64,
        /// The bound in bytes.
        limit: u64,
    },
    /// A unit that cannot be read.
    #[error("the DWARF unit at {at:#x}: {source}")]
    Unit {
        /// Where it starts, in `.debug_info` and then `.debug_types`.
        at: u64,
        /// The cause.
        source: gimli::Error,
    },
    /// A symbol name that is too long, or more names than any kernel has.
    #[error("the symbol table has names of more than {limit} bytes in all, or one of more than 4096")]
    SymbolNames {
        /// The bound in bytes.
        limit: usize,
    },
    /// The file cannot be mapped.
    #[error("cannot map the file: {0}")]
    Io(#[from] std::io::Error),
}

/// The types of a `vmlinux` with DWARF.
///
/// Arrays of arrays come as one array of all elements. A structure that its unit only declares is an alias of the one that another
/// unit describes, if there is one.
pub struct Dwarf {
    sections: Sections,
    /// Ascending.
    units: Vec<Span>,
    names: Names,
    /// Types of type units by their signature.
    signatures: FxHashMap<u64, TypeId>,
    pointer_size: u64,
    origin: String,
}

impl Dwarf {
    /// Indexes the DWARF of an ELF file in memory.
    ///
    /// # Errors
    /// [`DwarfError`] if there is no DWARF that can be read.
    pub fn parse(file: Bytes) -> Result<Self, DwarfError> {
        let (sections, pointer_size) = Sections::load(file)?;
        let (units, signatures) = unit::spans(&sections.view())?;
        let names = index::names(&sections.view(), &units)?;
        Ok(Self { sections, units, names, signatures, pointer_size, origin: "DWARF".to_owned() })
    }

    /// Says where the DWARF came from, for messages; `DWARF` unless told.
    #[must_use]
    pub fn with_origin(mut self, origin: impl Into<String>) -> Self {
        self.origin = origin.into();
        self
    }

    /// The first complete type of this name among the structures or the enumerations.
    fn lookup(&self, name: &str, enumeration: bool) -> Option<TypeId> {
        let mut ids = self.names.all(name);
        ids.find(|&id| self.is_named(id, name, enumeration).unwrap_or(false)).map(TypeId)
    }
}

impl TypeSource for Dwarf {
    /// The structure or union of this tag; of several, the one that the file describes first.
    fn find(&self, name: &str) -> Option<TypeId> {
        self.lookup(name, false)
    }

    fn find_enumeration(&self, name: &str) -> Option<TypeId> {
        self.lookup(name, true)
    }

    fn get(&self, id: TypeId) -> Result<Type> {
        self.decode(id).map_err(|why| {
            let why = format!("{}: {why}", self.origin);
            ErrorKind::NoType { name: format!("type {:#x}", id.0), why }.into()
        })
    }

    fn pointer_size(&self) -> u64 {
        self.pointer_size
    }

    fn origin(&self) -> String {
        self.origin.clone()
    }

    fn structures(&self) -> Box<dyn Iterator<Item = String> + '_> {
        Box::new(self.names.ids().filter_map(|id| match self.get(TypeId(id)) {
            Ok(Type::Structure(structure)) => Some(structure.name),
            _ => None,
        }))
    }
}

impl fmt::Debug for Dwarf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dwarf").field("origin", &self.origin).field("units", &self.units.len()).finish_non_exhaustive()
    }
}
