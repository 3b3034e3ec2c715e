//! The form of the cache: tables of fixed records and one run of names, in little-endian order, read where they are.
//!
//! A file is a head ([`Head`]), then types, members, enumeration values, symbols (ascending by offset), the numbers of structures and
//! enumerations (each ascending by name), and the names. A checksum over everything behind it finds accidents. It does not make a file true, so
//! that every reference is checked when it is followed.

use vmi_core::{Member, Structure, Type, TypeId};
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::SymbolFileError;
use crate::PdbIdentity;

const MAGIC: [u8; 8] = *b"VMIWSYM\0";

/// Goes up whenever the meaning of a byte changes: files of other versions are not read.
const VERSION: u32 = 1;

/// Types, members, symbols: more of one kind than this is refused.
const MAX_RECORDS: usize = 1 << 23;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: U32,
    pointer_size: U32,
    /// Of everything behind this number.
    checksum: U64,
    /// As it is written, its highest digits first; zero if it is not known.
    guid: [u8; 16],
    age: U32,
    database: Text,
    types: U32,
    members: U32,
    values: U32,
    symbols: U32,
    structures: U32,
    enumerations: U32,
    names: U32,
}

/// Where the checksum ends and what it covers begins.
const CHECKED_FROM: usize = 24;

/// A text within the names.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Text {
    start: U32,
    len: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct TypeRecord {
    kind: u8,
    /// A number: whether it is signed. A structure: whether it is a union.
    flag: u8,
    unused: [u8; 2],
    name: Text,
    /// First member or value; of a pointer, array or alias the other type.
    first: U32,
    /// Members or values.
    count: U32,
    /// Bytes; elements of an array.
    size: U64,
}

const VOID: u8 = 0;
const NUMBER: u8 = 1;
const POINTER: u8 = 2;
const ARRAY: u8 = 3;
const STRUCTURE: u8 = 4;
const ENUMERATION: u8 = 5;
const ALIAS: u8 = 6;
const FUNCTION: u8 = 7;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MemberRecord {
    name: Text,
    bit_offset: U64,
    /// `NO_BITS` if it is no bitfield.
    bit_width: U32,
    ty: U32,
}

const NO_BITS: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ValueRecord {
    name: Text,
    value: I64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SymbolRecord {
    name: Text,
    offset: U32,
}

/// Bytes of the form, their head checked and their tables within them.
pub(super) struct Compact {
    bytes: Vec<u8>,
    head: Head,
}

pub(super) fn is_compact(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// A mixing function over words: fast, and no accident leaves it as it was. It is no protection against intent.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let sum = words.iter().fold(bytes.len() as u64, |sum, word| mix(sum, u64::from_le_bytes(*word)));
    rest.iter().fold(sum, |sum, byte| mix(sum, u64::from(*byte)))
}

/// The names, and where the next one goes. Each text is stored once as long as it follows itself.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    known: rustc_hash::FxHashMap<Box<str>, Text>,
}

impl Names {
    fn add(&mut self, text: &str) -> Result<Text, SymbolFileError> {
        if let Some(known) = self.known.get(text) {
            return Ok(*known);
        }
        let placed = self.add_new(text)?;
        self.known.insert(text.into(), placed);
        Ok(placed)
    }

    /// As [`Names::add`], of a text that is hardly there yet.
    fn add_new(&mut self, text: &str) -> Result<Text, SymbolFileError> {
        let placed = Text { start: small(self.bytes.len(), "bytes of names")?, len: small(text.len(), "bytes in one name")? };
        self.bytes.extend_from_slice(text.as_bytes());
        Ok(placed)
    }
}

fn small(number: usize, what: &'static str) -> Result<U32, SymbolFileError> {
    match u32::try_from(number) {
        Ok(number) => Ok(number.into()),
        Err(_) => Err(SymbolFileError::TooMany { what, limit: u32::MAX as usize }),
    }
}

fn count(number: usize, what: &'static str) -> Result<U32, SymbolFileError> {
    match number {
        0..=MAX_RECORDS => small(number, what),
        _ => Err(SymbolFileError::TooMany { what, limit: MAX_RECORDS }),
    }
}

/// Writes types and symbols in this form. Symbols are names and offsets from the start of the image.
pub(super) fn encode(
    types: &[Type],
    symbols: &[(impl AsRef<str>, u32)],
    pointer_size: u64,
    identity: Option<&PdbIdentity>,
) -> Result<Vec<u8>, SymbolFileError> {
    let mut names = Names::default();
    let mut records = Vec::with_capacity(types.len());
    let mut members = Vec::new();
    let mut values = Vec::new();
    let mut structures: Vec<(&str, u32)> = Vec::new();
    let mut enumerations: Vec<(&str, u32)> = Vec::new();
    for (id, ty) in types.iter().enumerate() {
        let mut record = TypeRecord {
            kind: VOID,
            flag: 0,
            unused: [0; 2],
            name: Text::default(),
            first: 0.into(),
            count: 0.into(),
            size: 0.into(),
        };
        match ty {
            Type::Void => {}
            Type::Number { name, size, signed } => {
                record =
                    TypeRecord { kind: NUMBER, flag: (*signed).into(), name: names.add(name)?, size: (*size).into(), ..record };
            }
            Type::Pointer { target } => record = TypeRecord { kind: POINTER, first: target.0.into(), ..record },
            Type::Array { element, count } => {
                record = TypeRecord { kind: ARRAY, first: element.0.into(), size: (*count).into(), ..record };
            }
            Type::Alias { target } => record = TypeRecord { kind: ALIAS, first: target.0.into(), ..record },
            Type::Structure(structure) => {
                structures.push((&structure.name, id as u32));
                let name = names.add(&structure.name)?;
                let first = count(members.len(), "members")?;
                for member in &structure.members {
                    members.push(MemberRecord {
                        name: names.add(&member.name)?,
                        bit_offset: member.bit_offset.into(),
                        bit_width: member.bit_width.unwrap_or(NO_BITS).into(),
                        ty: member.ty.0.into(),
                    });
                }
                let count = count(structure.members.len(), "members")?;
                record = TypeRecord {
                    kind: STRUCTURE,
                    flag: structure.union.into(),
                    name,
                    first,
                    count,
                    size: structure.size.into(),
                    ..record
                };
            }
            Type::Enumeration { name, size, values: constants } => {
                enumerations.push((name, id as u32));
                let name = names.add(name)?;
                let first = count(values.len(), "enumeration values")?;
                for (name, value) in constants {
                    values.push(ValueRecord { name: names.add(name)?, value: (*value).into() });
                }
                let count = count(constants.len(), "enumeration values")?;
                record = TypeRecord { kind: ENUMERATION, name, first, count, size: (*size).into(), ..record };
            }
            _ => record.kind = FUNCTION,
        }
        records.push(record);
    }
    let mut placed = Vec::with_capacity(symbols.len());
    for (name, offset) in symbols {
        placed.push(SymbolRecord { name: names.add_new(name.as_ref())?, offset: (*offset).into() });
    }
    placed.sort_by_key(|symbol| symbol.offset.get());
    let index = |mut named: Vec<(&str, u32)>| {
        // Stable: of several with one name, the first is found.
        named.retain(|(name, _)| !name.is_empty());
        named.sort_by_key(|(name, _)| *name);
        named.dedup_by_key(|(name, _)| *name);
        named.into_iter().map(|(_, id)| U32::new(id)).collect::<Vec<_>>()
    };
    let (structures, enumerations) = (index(structures), index(enumerations));
    let database = identity.map(|identity| names.add(&identity.name)).transpose()?.unwrap_or_default();
    let mut head = Head {
        magic: MAGIC,
        version: VERSION.into(),
        pointer_size: (pointer_size as u32).into(),
        checksum: 0.into(),
        guid: identity.map_or(0, |identity| identity.guid).to_be_bytes(),
        age: identity.map_or(0, |identity| identity.age).into(),
        database,
        types: count(records.len(), "types")?,
        members: count(members.len(), "members")?,
        values: count(values.len(), "enumeration values")?,
        symbols: count(placed.len(), "symbols")?,
        structures: count(structures.len(), "structures")?,
        enumerations: count(enumerations.len(), "enumerations")?,
        names: small(names.bytes.len(), "bytes of names")?,
    };
    let mut bytes = Vec::new();
    let tables = [
        records.as_bytes(),
        members.as_bytes(),
        values.as_bytes(),
        placed.as_bytes(),
        structures.as_bytes(),
        enumerations.as_bytes(),
    ];
    for part in [head.as_bytes()].into_iter().chain(tables).chain([names.bytes.as_slice()]) {
        bytes.extend_from_slice(part);
    }
    head.checksum = checksum(bytes.get(CHECKED_FROM..).unwrap_or_default()).into();
    if let Some(start) = bytes.get_mut(..size_of::<Head>()) {
        start.copy_from_slice(head.as_bytes());
    }
    Ok(bytes)
}

/// The tables, in the order of the file.
struct Tables<'a> {
    types: &'a [TypeRecord],
    members: &'a [MemberRecord],
    values: &'a [ValueRecord],
    symbols: &'a [SymbolRecord],
    structures: &'a [U32],
    enumerations: &'a [U32],
    names: &'a [u8],
}

/// The next `count` records of `bytes`.
fn take<'a, T: FromBytes + Immutable + KnownLayout + Unaligned>(bytes: &mut &'a [u8], count: U32) -> Option<&'a [T]> {
    let (records, rest) = <[T]>::ref_from_prefix_with_elems(bytes, count.get() as usize).ok()?;
    *bytes = rest;
    Some(records)
}

impl Compact {
    pub(super) fn new(bytes: Vec<u8>) -> Result<Self, SymbolFileError> {
        let wrong = |what| SymbolFileError::Cache { what };
        let (head, _) = Head::read_from_prefix(&bytes).map_err(|_| wrong("it is too short"))?;
        if head.magic != MAGIC {
            return Err(wrong("it does not start as one"));
        }
        if head.version.get() != VERSION {
            return Err(wrong("another version of this library wrote it"));
        }
        if !matches!(head.pointer_size.get(), 4 | 8) {
            return Err(wrong("its pointers are neither of 4 nor of 8 bytes"));
        }
        if head.checksum.get() != checksum(bytes.get(CHECKED_FROM..).unwrap_or_default()) {
            return Err(wrong("its checksum does not fit: it is damaged or was cut off"));
        }
        let compact = Self { bytes, head };
        match compact.tables() {
            Some(tables) if tables.symbols.iter().all(|symbol| tables.text(symbol.name).is_some()) => Ok(compact),
            Some(_) => Err(wrong("a symbol's name is not within it, or no text")),
            None => Err(wrong("its tables are longer than it is")),
        }
    }

    fn tables(&self) -> Option<Tables<'_>> {
        let head = &self.head;
        let mut rest = self.bytes.get(size_of::<Head>()..)?;
        let rest = &mut rest;
        let (types, members) = (take(rest, head.types)?, take(rest, head.members)?);
        let (values, symbols) = (take(rest, head.values)?, take(rest, head.symbols)?);
        let (structures, enumerations) = (take(rest, head.structures)?, take(rest, head.enumerations)?);
        let names = rest.get(..head.names.get() as usize).filter(|names| names.len() == rest.len())?;
        Some(Tables { types, members, values, symbols, structures, enumerations, names })
    }

    pub(super) fn identity(&self) -> Option<PdbIdentity> {
        let guid = u128::from_be_bytes(self.head.guid);
        let name = self.tables()?.text(self.head.database)?.to_owned();
        (guid != 0).then(|| PdbIdentity { name, guid, age: self.head.age.get() })
    }

    pub(super) fn pointer_size(&self) -> u64 {
        self.head.pointer_size.get().into()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn symbols(&self) -> impl ExactSizeIterator<Item = (&str, u32)> {
        let (symbols, names) =
            self.tables().map_or((Default::default(), Default::default()), |tables| (tables.symbols, tables.names));
        symbols.iter().map(move |symbol| (text(names, symbol.name).unwrap_or_default(), symbol.offset.get()))
    }

    pub(super) fn structures(&self) -> impl Iterator<Item = &str> {
        self.tables().into_iter().flat_map(|tables| tables.structures.iter().filter_map(move |id| tables.name(*id)))
    }

    pub(super) fn structure(&self, name: &str) -> Option<TypeId> {
        let tables = self.tables()?;
        tables.find(tables.structures, name)
    }

    pub(super) fn enumeration(&self, name: &str) -> Option<TypeId> {
        let tables = self.tables()?;
        tables.find(tables.enumerations, name)
    }

    pub(super) fn get(&self, id: TypeId) -> Option<Type> {
        let tables = self.tables()?;
        let record = tables.types.get(id.0 as usize)?;
        let (first, count) = (record.first.get() as usize, record.count.get() as usize);
        let (other, range) = (TypeId(record.first.get()), first..first.checked_add(count)?);
        let name = || tables.text(record.name).map(str::to_owned);
        let size = record.size.get();
        Some(match record.kind {
            VOID => Type::Void,
            NUMBER => Type::Number { name: name()?, size, signed: record.flag != 0 },
            POINTER => Type::Pointer { target: other },
            ARRAY => Type::Array { element: other, count: size },
            ALIAS => Type::Alias { target: other },
            FUNCTION => Type::Function,
            STRUCTURE => {
                let members = tables.members.get(range)?.iter().map(|member| tables.member(member)).collect::<Option<_>>()?;
                Type::Structure(Structure { name: name()?, size, union: record.flag != 0, members })
            }
            ENUMERATION => {
                let value = |value: &ValueRecord| Some((tables.text(value.name)?.to_owned(), value.value.get()));
                Type::Enumeration {
                    name: name()?,
                    size,
                    values: tables.values.get(range)?.iter().map(value).collect::<Option<_>>()?,
                }
            }
            _ => return None,
        })
    }
}

fn text(names: &[u8], text: Text) -> Option<&str> {
    let start = text.start.get() as usize;
    core::str::from_utf8(names.get(start..start.checked_add(text.len.get() as usize)?)?).ok()
}

impl<'a> Tables<'a> {
    fn text(&self, at: Text) -> Option<&'a str> {
        text(self.names, at)
    }

    fn name(&self, id: U32) -> Option<&'a str> {
        self.text(self.types.get(id.get() as usize)?.name)
    }

    fn find(&self, index: &[U32], name: &str) -> Option<TypeId> {
        // An index that is not in order does not find, and nothing worse.
        let found = index.binary_search_by(|id| self.name(*id).unwrap_or_default().cmp(name)).ok()?;
        index.get(found).map(|id| TypeId(id.get()))
    }

    fn member(&self, record: &MemberRecord) -> Option<Member> {
        Some(Member {
            name: self.text(record.name)?.to_owned(),
            bit_offset: record.bit_offset.get(),
            bit_width: Some(record.bit_width.get()).filter(|&width| width != NO_BITS),
            ty: TypeId(record.ty.get()),
        })
    }
}
