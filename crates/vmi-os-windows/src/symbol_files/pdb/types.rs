//! From type records to numbered types.

use rustc_hash::FxHashMap;
use vmi_core::{Member, Structure, Type, TypeId};

use super::records::{self, FIRST, Field, Reader, Record};
use super::{SymbolFileError, damaged};

/// More types than any image has; kernels have some 10,000.
const MAX_TYPES: usize = 1 << 22;

/// Members of all structures together; kernels have some 40,000. Many structures may share one list of fields in a file that was made to be large.
const MAX_MEMBERS: usize = 1 << 22;

/// Parts of one list of fields: each has up to 64 KiB.
const MAX_PARTS: usize = 256;

struct Types<'a> {
    records: Vec<&'a [u8]>,
    first: u32,
    pointer_size: u64,
    /// By name: what forward declarations stand for. Types without a name of their own are told apart by a unique name, if at all.
    definitions: FxHashMap<&'a [u8], u32>,
    types: Vec<Type>,
    /// Basic types by their number.
    basics: FxHashMap<u32, TypeId>,
    /// What is made for a record besides its own type: the type's name in the structure's place of a bitfield, the size of arrays.
    sizes: FxHashMap<u32, u64>,
    members: usize,
}

/// Types of the stream, `void` first; the type of record `first + n` has number `n + 1`.
pub(super) fn read(stream: &[u8], pointer_size: u64) -> Result<Vec<Type>, SymbolFileError> {
    // A database without types has an empty stream.
    if stream.is_empty() {
        return Ok(vec![Type::Void]);
    }
    let mut head = Reader(stream);
    let (_version, head_len, first) = match (head.u32(), head.u32(), head.u32()) {
        (Some(version), Some(len), Some(first)) => (version, len as usize, first),
        _ => return Err(damaged("the stream of types is too short for its head")),
    };
    if first < FIRST {
        return Err(damaged(format!("its first type has the number {first:#x}, which means a basic type")));
    }
    let mut rest = Reader(stream.get(head_len..).ok_or_else(|| damaged("the head of the types is longer than their stream"))?);
    let mut records = Vec::new();
    while !rest.0.is_empty() {
        let record = rest.u16().and_then(|len| rest.take(len.into()));
        records.push(record.ok_or_else(|| damaged("a type record is longer than the stream"))?);
        if records.len() > MAX_TYPES {
            return Err(SymbolFileError::TooMany { what: "types", limit: MAX_TYPES });
        }
    }
    let mut types = Types {
        records,
        first,
        pointer_size,
        definitions: FxHashMap::default(),
        types: vec![Type::Void],
        basics: FxHashMap::default(),
        sizes: FxHashMap::default(),
        members: 0,
    };
    types.define();
    let count = types.records.len();
    types.types.resize(count.saturating_add(1), Type::Void);
    for index in 0..count {
        let ty = types.make(index)?;
        if let Some(slot) = types.types.get_mut(index.saturating_add(1)) {
            *slot = ty;
        }
    }
    Ok(types.types)
}

/// Compilers have several names for what has none in the source.
fn is_anonymous(name: &[u8]) -> bool {
    name.is_empty() || name.starts_with(b"<unnamed-") || name.starts_with(b"<anonymous-") || name == b"__unnamed"
}

fn text(name: &[u8]) -> String {
    if is_anonymous(name) { String::new() } else { String::from_utf8_lossy(name).into_owned() }
}

impl<'a> Types<'a> {
    /// Finds the definitions that forward declarations stand for.
    fn define(&mut self) {
        for (index, bytes) in self.records.iter().enumerate() {
            let (name, unique_name) = match records::record(bytes) {
                Some(Record::Structure { forward: false, name, unique_name, .. }) => (name, unique_name),
                Some(Record::Enumeration { forward: false, name, unique_name, .. }) => (name, unique_name),
                _ => continue,
            };
            let number = self.first.saturating_add(index as u32);
            if let Some(unique_name) = unique_name {
                self.definitions.entry(unique_name).or_insert(number);
            }
            if !is_anonymous(name) {
                self.definitions.entry(name).or_insert(number);
            }
        }
    }

    fn record(&self, number: u32) -> Option<Record<'a>> {
        records::record(self.records.get(number.checked_sub(self.first)? as usize)?)
    }

    /// The number of the definition that a declaration stands for, or of the type itself.
    fn defined(&self, number: u32) -> u32 {
        let (name, unique_name) = match self.record(number) {
            Some(Record::Structure { forward: true, name, unique_name, .. }) => (name, unique_name),
            Some(Record::Enumeration { forward: true, name, unique_name, .. }) => (name, unique_name),
            _ => return number,
        };
        let by_unique_name = unique_name.and_then(|unique_name| self.definitions.get(unique_name));
        let definition = by_unique_name.or_else(|| if is_anonymous(name) { None } else { self.definitions.get(name) });
        definition.copied().unwrap_or(number)
    }

    /// The type of this number of the file.
    fn id(&mut self, number: u32) -> TypeId {
        if number >= FIRST {
            let index = self.defined(number).checked_sub(self.first).map(|index| index as usize);
            return match index.filter(|&index| index < self.records.len()) {
                Some(index) => TypeId(index.saturating_add(1) as u32),
                None => TypeId(0),
            };
        }
        if let Some(known) = self.basics.get(&number) {
            return *known;
        }
        let plain = match records::basic(number) {
            Some((name, size, signed)) => Type::Number { name: name.to_owned(), size, signed },
            None => Type::Void,
        };
        // The mode: none, or one of the kinds of pointers.
        let ty = match number >> 8 {
            0 => plain,
            _ => Type::Pointer { target: self.id(number & 0xff) },
        };
        let id = TypeId(self.types.len() as u32);
        self.types.push(ty);
        self.basics.insert(number, id);
        id
    }

    /// Bytes of an element of an array; 0 if that is not known.
    fn size(&mut self, number: u32, depth: usize) -> u64 {
        if number < FIRST {
            return match (number >> 8, records::basic(number)) {
                (0, Some((_, size, _))) => size,
                (0, None) => 0,
                _ => self.pointer_size,
            };
        }
        if let Some(known) = self.sizes.get(&number) {
            return *known;
        }
        let Some(depth) = depth.checked_sub(1) else { return 0 };
        let size = match self.record(self.defined(number)) {
            Some(Record::Modifier { of } | Record::Enumeration { of, .. }) => self.size(of, depth),
            Some(Record::Pointer { .. }) => self.pointer_size,
            Some(Record::Array { len, .. }) => len,
            Some(Record::Structure { size, .. }) => size,
            _ => 0,
        };
        self.sizes.insert(number, size);
        size
    }

    fn make(&mut self, index: usize) -> Result<Type, SymbolFileError> {
        let Some(bytes) = self.records.get(index).copied() else { return Ok(Type::Void) };
        let Some(record) = records::record(bytes) else {
            return Err(damaged(format!("the record of type {:#x} is cut off", self.first.saturating_add(index as u32))));
        };
        Ok(match record {
            Record::Modifier { of } => Type::Alias { target: self.id(of) },
            Record::Pointer { of } => Type::Pointer { target: self.id(of) },
            Record::Function => Type::Function,
            Record::Array { of, len } => {
                // The file has the length in bytes.
                let count = len.checked_div(self.size(of, 32)).unwrap_or_default();
                Type::Array { element: self.id(of), count }
            }
            // A bitfield is no type but a place in one; who has such a member makes it.
            Record::Bitfield { of, .. } => Type::Alias { target: self.id(of) },
            Record::Structure { union, forward, fields, size, name, .. } => {
                let members = if forward { Vec::new() } else { self.members(fields)? };
                // A declaration without a definition says nothing of the structure: it is not one that can be found.
                let name = if forward { String::new() } else { text(name) };
                Type::Structure(Structure { name, size, union, members })
            }
            Record::Enumeration { forward, of, fields, name, .. } => {
                let values = if forward { Vec::new() } else { self.constants(fields)? };
                let name = if forward { String::new() } else { text(name) };
                Type::Enumeration { name, size: self.size(of, 32), values }
            }
            Record::Fields(_) | Record::Other => Type::Void,
        })
    }

    /// All entries of the list of fields `number`.
    fn fields(&mut self, number: u32) -> Result<Vec<Field<'a>>, SymbolFileError> {
        let mut fields = Vec::new();
        let mut next = Some(number).filter(|&number| number != 0);
        let mut parts = 0usize;
        while let Some(number) = next.take() {
            parts = parts.saturating_add(1);
            let Some(Record::Fields(bytes)) = self.record(number).filter(|_| parts <= MAX_PARTS) else {
                return Err(damaged(format!("type {number:#x} is no list of fields, or one of too many parts")));
            };
            let mut reader = Reader(bytes);
            while !reader.0.is_empty() {
                match records::field(&mut reader) {
                    Some(Field::Continued { at }) => next = Some(at),
                    Some(Field::Other) => {}
                    Some(field) => fields.push(field),
                    None => {
                        return Err(damaged(format!("the list of fields {number:#x} has an entry that is cut off or unknown")));
                    }
                }
            }
        }
        self.members = self.members.saturating_add(fields.len());
        if self.members > MAX_MEMBERS {
            return Err(SymbolFileError::TooMany { what: "members", limit: MAX_MEMBERS });
        }
        Ok(fields)
    }

    fn members(&mut self, fields: u32) -> Result<Vec<Member>, SymbolFileError> {
        let mut members = Vec::new();
        for field in self.fields(fields)? {
            let (name, ty, offset) = match field {
                Field::Member { ty, offset, name } => (text(name), ty, offset),
                // A base class' members count as the structure's own.
                Field::Base { ty, offset } => (String::new(), ty, offset),
                _ => continue,
            };
            let start = offset.saturating_mul(8);
            members.push(match self.record(ty) {
                Some(Record::Bitfield { of, width, position }) => {
                    let bit_offset = start.saturating_add(position.into());
                    Member { name, bit_offset, bit_width: Some(width.into()), ty: self.id(of) }
                }
                _ => Member { name, bit_offset: start, bit_width: None, ty: self.id(ty) },
            });
        }
        Ok(members)
    }

    fn constants(&mut self, fields: u32) -> Result<Vec<(String, i64)>, SymbolFileError> {
        let constant = |field| match field {
            Field::Constant { value, name } => Some((String::from_utf8_lossy(name).into_owned(), value)),
            _ => None,
        };
        Ok(self.fields(fields)?.into_iter().filter_map(constant).collect())
    }
}
