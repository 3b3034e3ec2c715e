//! Layouts of structures, from whatever describes them: BTF, DWARF, a symbol file.

use core::fmt;

use crate::{ErrorKind, Result};

/// Number of a type within its [`TypeSource`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeId(pub u32);

/// A type.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Type {
    /// No value, or unknown.
    Void,
    /// An integer, character, boolean or floating-point number.
    Number {
        /// Name as in C.
        name: String,
        /// Size in bytes.
        size: u64,
        /// Whether negative values exist.
        signed: bool,
    },
    /// A pointer.
    Pointer {
        /// What it points at.
        target: TypeId,
    },
    /// An array.
    Array {
        /// Type of each element.
        element: TypeId,
        /// Number of elements; 0 for a flexible array.
        count: u64,
    },
    /// A structure or union.
    Structure(Structure),
    /// An enumeration.
    Enumeration {
        /// Name; empty if anonymous.
        name: String,
        /// Size in bytes.
        size: u64,
        /// Names and values.
        values: Vec<(String, i64)>,
    },
    /// Another name or a qualifier (`const`, `volatile`) of a type.
    Alias {
        /// The type that is meant.
        target: TypeId,
    },
    /// A function.
    Function,
}

/// A structure or union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Structure {
    /// Tag; empty if anonymous.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// All members share offset zero.
    pub union: bool,
    /// Members in the order of the source.
    pub members: Vec<Member>,
}

/// A member of a structure or union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Name; empty for an anonymous structure or union, whose members count as the outer one's.
    pub name: String,
    /// Offset in bits from the start of the structure.
    pub bit_offset: u64,
    /// Width in bits of a bitfield, else `None`.
    pub bit_width: Option<u32>,
    /// Type.
    pub ty: TypeId,
}

/// Where a member is, all nesting resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Offset in bytes from the start of the outermost structure; for a bitfield, of the byte that holds its first bit.
    pub offset: u64,
    /// Size in bytes; for a bitfield, of the bytes that hold all of its bits.
    pub size: u64,
    /// For a bitfield: the number of its lowest bit in the little-endian number at `offset`, and its width in bits.
    pub bits: Option<(u32, u32)>,
    /// Type.
    pub ty: TypeId,
}

/// Structures nested deeper than this, or aliases of aliases beyond it, are an error: real ones stay below ten.
const DEPTH: usize = 32;

/// A search for a member through more anonymous structures than this is an error: real structures hold a few dozen. It keeps a
/// description in which each of them holds the next several times from taking exponential time.
const ANONYMOUS: usize = 1024;

/// A description of a kernel's types.
pub trait TypeSource: fmt::Debug + Send + Sync {
    /// The structure or union of this tag.
    fn find(&self, name: &str) -> Option<TypeId>;

    /// The enumeration of this tag; `None` too if the source does not describe enumerations.
    fn find_enumeration(&self, name: &str) -> Option<TypeId> {
        let _ = name;
        None
    }

    /// The type of this number.
    ///
    /// # Errors
    /// [`ErrorKind::NoType`] if there is none, or if its description is broken.
    fn get(&self, id: TypeId) -> Result<Type>;

    /// Bytes in a pointer.
    fn pointer_size(&self) -> u64;

    /// Where the description came from, for messages: `BTF in guest memory`.
    fn origin(&self) -> String;

    /// The tags of all structures and unions, each once, in no particular order.
    fn structures(&self) -> Box<dyn Iterator<Item = String> + '_>;

    /// The tags of all enumerations, each once, in no particular order; none if the source cannot list them.
    fn enumerations(&self) -> Box<dyn Iterator<Item = String> + '_> {
        Box::new(core::iter::empty())
    }

    /// The type of the variable of this name, if the source describes variables.
    fn variable(&self, name: &str) -> Option<TypeId> {
        let _ = name;
        None
    }
}

impl dyn TypeSource + '_ {
    /// The structure or union of this tag.
    ///
    /// # Errors
    /// [`ErrorKind::NoType`] if there is none.
    pub fn structure(&self, name: &str) -> Result<Structure> {
        let found = if name.is_empty() { None } else { self.find(name) };
        match found.map(|id| self.get(id)).transpose()? {
            Some(Type::Structure(structure)) => Ok(structure),
            _ => Err(self.missing(name)),
        }
    }

    /// The member at `path` (names joined by dots: `se.sum_exec_runtime`) of the structure `structure`. Members of anonymous members
    /// count as the outer structure's own.
    ///
    /// # Errors
    /// [`ErrorKind::NoType`] if the structure or a member on the path does not exist.
    pub fn field(&self, structure: &str, path: &str) -> Result<Field> {
        let missing = || self.missing(&format!("{structure}.{path}"));
        let mut outer = self.structure(structure)?;
        let mut base = 0u64;
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            // Anonymous members have no name: the empty one means none of them.
            let found = if name.is_empty() { None } else { self.member(&outer, name, base, DEPTH, &mut { ANONYMOUS })? };
            let member = found.ok_or_else(missing)?;
            if names.peek().is_none() {
                return self.place(&member);
            }
            base = member.bit_offset;
            outer = match self.resolve(member.ty)? {
                Type::Structure(inner) => inner,
                _ => return Err(missing()),
            };
        }
        Err(missing())
    }

    /// The value of the constant `name` of the enumeration `enumeration`.
    ///
    /// # Errors
    /// [`ErrorKind::NoType`] if the enumeration or its constant does not exist.
    pub fn constant(&self, enumeration: &str, name: &str) -> Result<i64> {
        let constant = match self.find_enumeration(enumeration).map(|id| self.get(id)).transpose()? {
            Some(Type::Enumeration { values, .. }) => values.into_iter().find(|(other, _)| other == name),
            _ => None,
        };
        constant.map(|(_, value)| value).ok_or_else(|| self.missing(&format!("{enumeration}.{name}")))
    }

    /// The type behind all aliases and qualifiers.
    ///
    /// # Errors
    /// As [`TypeSource::get`]; [`ErrorKind::NoType`] if the aliases do not end.
    pub fn resolve(&self, id: TypeId) -> Result<Type> {
        let mut meant = id;
        for _ in 0..DEPTH {
            match self.get(meant)? {
                Type::Alias { target } => meant = target,
                other => return Ok(other),
            }
        }
        Err(self.missing(&format!("type {}", id.0)))
    }

    /// Size of a type in bytes; 0 for `void` and functions.
    ///
    /// # Errors
    /// As [`TypeSource::get`].
    pub fn size_of(&self, mut id: TypeId) -> Result<u64> {
        let mut elements = 1u64;
        for _ in 0..DEPTH {
            let size = match self.resolve(id)? {
                Type::Array { element, count } => {
                    elements = elements.saturating_mul(count);
                    id = element;
                    continue;
                }
                Type::Number { size, .. } | Type::Enumeration { size, .. } => size,
                Type::Structure(structure) => structure.size,
                Type::Pointer { .. } => self.pointer_size(),
                _ => 0,
            };
            return Ok(size.saturating_mul(elements));
        }
        Err(self.missing(&format!("type {}", id.0)))
    }

    /// The member of this name, with its offset counted from the outermost structure, `base` bits before `structure`.
    fn member(&self, structure: &Structure, name: &str, base: u64, depth: usize, left: &mut usize) -> Result<Option<Member>> {
        let (Some(depth), Some(fewer)) = (depth.checked_sub(1), left.checked_sub(1)) else { return Err(self.missing(name)) };
        *left = fewer;
        for member in &structure.members {
            let bit_offset = base.saturating_add(member.bit_offset);
            if member.name == name {
                return Ok(Some(Member { bit_offset, ..member.clone() }));
            }
            if member.name.is_empty()
                && let Type::Structure(inner) = self.resolve(member.ty)?
                && let Some(found) = self.member(&inner, name, bit_offset, depth, left)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn place(&self, member: &Member) -> Result<Field> {
        let offset = member.bit_offset / 8;
        Ok(match member.bit_width {
            Some(width) => {
                let lowest = (member.bit_offset % 8) as u32;
                let size = u64::from(lowest.saturating_add(width)).div_ceil(8);
                Field { offset, size, bits: Some((lowest, width)), ty: member.ty }
            }
            None => Field { offset, size: self.size_of(member.ty)?, bits: None, ty: member.ty },
        })
    }

    #[cold]
    fn missing(&self, name: &str) -> crate::Error {
        ErrorKind::NoType { name: name.to_owned(), why: format!("{} does not describe it", self.origin()) }.into()
    }
}

#[cfg(test)]
mod tests;
