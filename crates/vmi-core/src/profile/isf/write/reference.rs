//! Types where they are used, and the structures and enumerations that have to be written for it.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::{Serialize, Serializer};

use super::names::{Names, Numbers};
use super::{IsfStructure, IsfSummary, IsfType, IsfWriteError, Json, TOLD};
use crate::{Member, Structure, Type, TypeId, TypeSource};

/// Aliases, pointers and arrays of each other in one type. Kernels have below ten; JSON readers take 128 at most.
const DEPTH: usize = 32;
/// Members of a structure, those of anonymous members included, that a reader is made to unfold.
const UNFOLDED: u32 = 1 << 16;

/// A name in the file, kept once for all that refer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shared(Arc<str>);

impl<T: Into<Arc<str>>> From<T> for Shared {
    fn from(name: T) -> Self {
        Self(name.into())
    }
}

impl Serialize for Shared {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

/// A type where it is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum Reference {
    Base {
        name: Shared,
    },
    Struct {
        name: Shared,
    },
    Union {
        name: Shared,
    },
    Enum {
        name: Shared,
    },
    Pointer {
        subtype: Box<Reference>,
    },
    Array {
        count: u64,
        subtype: Box<Reference>,
    },
    Bitfield {
        bit_position: u64,
        bit_length: u32,
        #[serde(rename = "type")]
        of: Box<Reference>,
    },
    Function,
}

impl Reference {
    pub(super) fn void() -> Self {
        Self::Base { name: "void".into() }
    }
}

#[derive(Serialize)]
struct Field {
    #[serde(rename = "type")]
    ty: Reference,
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    anonymous: Option<bool>,
}

#[derive(Serialize)]
struct UserType {
    size: u64,
    kind: &'static str,
    #[serde(serialize_with = "entries")]
    fields: Vec<(String, Field)>,
}

#[derive(Serialize)]
struct Enumeration {
    size: u64,
    base: String,
    constants: BTreeMap<String, i64>,
}

fn entries<S: Serializer>(fields: &[(String, Field)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(fields.iter().map(|(name, field)| (name, field)))
}

/// A type of one of the sources.
type Key = (usize, TypeId);

/// What stands at the end of pointers and arrays.
enum Leaf {
    Void,
    Function,
    Number(String, u64, bool),
    Structure(Structure),
    Enumeration { name: String, size: u64, values: Vec<(String, i64)> },
}

#[derive(Clone, Copy)]
enum Layer {
    Pointer,
    Array(u64),
}

pub(super) struct Types<'t> {
    sources: Vec<&'t dyn TypeSource>,
    made: &'t FxHashMap<&'t str, IsfStructure<'t>>,
    pub(super) numbers: Numbers,
    pub(super) summary: IsfSummary,
    structure_names: Names,
    enumeration_names: Names,
    /// What was referred to before.
    known: FxHashMap<Key, Reference>,
    /// What was referred to and is not written yet.
    structures: VecDeque<(Key, Shared)>,
    enumerations: VecDeque<(Key, Shared)>,
    /// Tags of structures that have none of their own.
    given: FxHashMap<Key, &'t str>,
    made_structures: Vec<&'t str>,
    made_known: FxHashMap<&'t str, Shared>,
    /// How many members a structure has, those of its anonymous members included; `u32::MAX` for too many.
    unfolded: FxHashMap<Key, u32>,
}

impl<'t> Types<'t> {
    pub(super) fn new(sources: Vec<&'t dyn TypeSource>, made: &'t FxHashMap<&'t str, IsfStructure<'t>>) -> Self {
        let pointer_size = sources.first().map_or(8, |types| types.pointer_size());
        Self {
            sources,
            made,
            numbers: Numbers::new(pointer_size),
            summary: IsfSummary::default(),
            structure_names: Names::default(),
            enumeration_names: Names::default(),
            known: FxHashMap::default(),
            structures: VecDeque::new(),
            enumerations: VecDeque::new(),
            given: FxHashMap::default(),
            made_structures: Vec::new(),
            made_known: FxHashMap::default(),
            unfolded: FxHashMap::default(),
        }
    }

    /// The name of a structure without a tag, unless another has it.
    pub(super) fn give_tag(&mut self, ty: TypeId, name: &'t str) {
        let taken = self.sources.iter().any(|types| types.find(name).is_some())
            || self.made.contains_key(name)
            || self.given.values().any(|given| *given == name);
        if !taken
            && let Some((key, structure)) = self.structure_at((0, ty))
            && structure.name.is_empty()
        {
            self.given.insert(key, name);
        }
    }

    /// The type of a variable that a source tells.
    pub(super) fn variable(&mut self, name: &str) -> Result<Option<Reference>, IsfWriteError> {
        let found = self.sources.iter().enumerate().find_map(|(source, types)| Some((source, types.variable(name)?)));
        found.map(|key| self.reference(key)).transpose()
    }

    /// A type that is said by its tag; `None` if there is none of this tag.
    pub(super) fn declared(&mut self, ty: &IsfType<'t>) -> Result<Option<Reference>, IsfWriteError> {
        Ok(Some(match ty {
            IsfType::Void => Reference::void(),
            IsfType::Number(name) => Reference::Base { name: self.numbers.standard(name)?.into() },
            IsfType::Structure(tag) => {
                let found = self.sources.iter().enumerate().find_map(|(source, types)| Some((source, types.find(tag)?)));
                return match found {
                    Some(key) => self.reference(key).map(Some),
                    None => self.made_reference(tag),
                };
            }
            IsfType::Pointer(target) => match self.declared(target)? {
                Some(target) => Reference::Pointer { subtype: Box::new(target) },
                None => return Ok(None),
            },
            IsfType::Array(element, count) => match self.declared(element)? {
                Some(element) => Reference::Array { count: *count, subtype: Box::new(element) },
                None => return Ok(None),
            },
        }))
    }

    fn made_reference(&mut self, tag: &str) -> Result<Option<Reference>, IsfWriteError> {
        let Some((&tag, _)) = self.made.get_key_value(tag) else { return Ok(None) };
        if let Some(name) = self.made_known.get(tag) {
            return Ok(Some(Reference::Struct { name: name.clone() }));
        }
        self.structure_names.take(tag)?;
        let name: Shared = tag.into();
        self.made_known.insert(tag, name.clone());
        self.made_structures.push(tag);
        Ok(Some(Reference::Struct { name }))
    }

    /// Has the structure of this tag written, if there is one.
    pub(super) fn root(&mut self, source: usize, tag: &str) -> Result<(), IsfWriteError> {
        let found = self.sources.get(source).and_then(|types| types.find(tag));
        found.map_or(Ok(()), |id| self.reference((source, id)).map(drop))
    }

    /// Has the enumeration of this tag written, if there is one.
    pub(super) fn root_enumeration(&mut self, source: usize, tag: &str) -> Result<(), IsfWriteError> {
        let found = self.sources.get(source).and_then(|types| types.find_enumeration(tag));
        found.map_or(Ok(()), |id| self.reference((source, id)).map(drop))
    }

    /// A type where it is used. What it leads to is written later.
    fn reference(&mut self, key: Key) -> Result<Reference, IsfWriteError> {
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let (layers, leaf, end) = self.leaf(key);
        let known = end.and_then(|end| self.known.get(&end).cloned());
        let mut reference = match (known, leaf) {
            (Some(known), _) => known,
            (None, Leaf::Void) => Reference::void(),
            (None, Leaf::Function) => Reference::Function,
            (None, Leaf::Number(name, size, signed)) => Reference::Base { name: self.numbers.name(&name, size, signed)?.into() },
            (None, Leaf::Structure(structure)) => self.name_structure(end.unwrap_or(key), &structure)?,
            (None, Leaf::Enumeration { name, .. }) => self.name_enumeration(end.unwrap_or(key), &name)?,
        };
        if let Some(end) = end {
            self.known.insert(end, reference.clone());
        }
        // Pointers and arrays are put together anew each time: a guest may have many, and long ones.
        if layers.is_empty() {
            self.known.insert(key, reference.clone());
        }
        for layer in layers.into_iter().rev() {
            let subtype = Box::new(reference);
            reference = match layer {
                Layer::Pointer => Reference::Pointer { subtype },
                Layer::Array(count) => Reference::Array { count, subtype },
            };
        }
        Ok(reference)
    }

    /// Pointers and arrays, what they end at, and where that is. What cannot be made out is `void`.
    fn leaf(&mut self, (source, mut id): Key) -> (Vec<Layer>, Leaf, Option<Key>) {
        let mut layers = Vec::new();
        let Some(types) = self.sources.get(source).copied() else { return (layers, Leaf::Void, None) };
        for _ in 0..DEPTH {
            let leaf = match types.get(id) {
                Ok(Type::Alias { target }) => {
                    id = target;
                    continue;
                }
                Ok(Type::Pointer { target }) => {
                    layers.push(Layer::Pointer);
                    id = target;
                    continue;
                }
                Ok(Type::Array { element, count }) => {
                    layers.push(Layer::Array(count));
                    id = element;
                    continue;
                }
                Ok(Type::Number { name, size, signed }) => Leaf::Number(name, size, signed),
                Ok(Type::Structure(structure)) => Leaf::Structure(structure),
                Ok(Type::Enumeration { name, size, values }) => Leaf::Enumeration { name, size, values },
                Ok(Type::Function) => Leaf::Function,
                Ok(Type::Void) => Leaf::Void,
                Err(error) => {
                    self.tell(error.to_string());
                    Leaf::Void
                }
            };
            return (layers, leaf, Some((source, id)));
        }
        self.tell(format!("type {} of {}: pointers and aliases of each other without end", id.0, types.origin()));
        (layers, Leaf::Void, None)
    }

    fn name_structure(&mut self, key: Key, structure: &Structure) -> Result<Reference, IsfWriteError> {
        let (source, id) = key;
        let tag = structure.name.as_str();
        let sources = &self.sources;
        let owner = sources.iter().enumerate().find_map(|(index, types)| Some((index, types.find(tag)?)));
        let name = match owner.filter(|_| !tag.is_empty()) {
            Some(owner) if owner == key => {
                self.structure_names.take(tag)?;
                tag.to_owned()
            }
            // A source continues the first one's types, or describes the same kernel.
            Some(owner) if owner.0 < source && alike(sources, owner, structure) => return self.reference(owner),
            None if self.given.contains_key(&key) => {
                let name = self.given.get(&key).copied().unwrap_or_default();
                self.structure_names.take(name)?;
                name.to_owned()
            }
            _ => {
                let (made, given) = (self.made, &self.given);
                let given = |name: &str| given.values().any(|given| *given == name);
                let known =
                    |name: &str| made.contains_key(name) || given(name) || sources.iter().any(|types| types.find(name).is_some());
                self.structure_names.make(tag, known)?
            }
        };
        let name: Shared = name.into();
        self.structures.push_back(((source, id), name.clone()));
        Ok(if structure.union { Reference::Union { name } } else { Reference::Struct { name } })
    }

    fn name_enumeration(&mut self, key: Key, tag: &str) -> Result<Reference, IsfWriteError> {
        let sources = &self.sources;
        let owner = sources.iter().enumerate().find_map(|(index, types)| Some((index, types.find_enumeration(tag)?)));
        let name = match owner.filter(|_| !tag.is_empty()) {
            Some(owner) if owner == key => {
                self.enumeration_names.take(tag)?;
                tag.to_owned()
            }
            _ => self.enumeration_names.make(tag, |name| sources.iter().any(|types| types.find_enumeration(name).is_some()))?,
        };
        let name: Shared = name.into();
        self.enumerations.push_back((key, name.clone()));
        Ok(Reference::Enum { name })
    }

    /// Writes all structures that were referred to, and those that they refer to.
    pub(super) fn write_structures<W: Write>(&mut self, json: &mut Json<W>) -> Result<(), IsfWriteError> {
        while let Some(tag) = self.made_structures.pop() {
            let Some(made) = self.made.get(tag) else { continue };
            let mut fields = Vec::new();
            for (name, offset, ty) in &made.members {
                if let Some(ty) = self.declared(ty)? {
                    fields.push(((*name).to_owned(), Field { ty, offset: *offset, anonymous: None }));
                }
            }
            json.entry(tag, &UserType { size: made.size, kind: "struct", fields })?;
            self.summary.structures = self.summary.structures.saturating_add(1);
        }
        while let Some((key, name)) = self.structures.pop_front() {
            let Leaf::Structure(structure) = self.leaf(key).1 else { continue };
            let fields = self.fields(key.0, &structure)?;
            let kind = if structure.union { "union" } else { "struct" };
            json.entry(&name.0, &UserType { size: structure.size, kind, fields })?;
            self.summary.structures = self.summary.structures.saturating_add(1);
        }
        Ok(())
    }

    /// Writes all enumerations that were referred to.
    pub(super) fn write_enumerations<W: Write>(&mut self, json: &mut Json<W>) -> Result<(), IsfWriteError> {
        while let Some((key, name)) = self.enumerations.pop_front() {
            let Leaf::Enumeration { size, values, .. } = self.leaf(key).1 else { continue };
            let signed = values.iter().any(|(_, value)| *value < 0);
            let base = self.numbers.integer(size, signed)?;
            json.entry(&name.0, &Enumeration { size, base, constants: values.into_iter().collect() })?;
            self.summary.enumerations = self.summary.enumerations.saturating_add(1);
        }
        Ok(())
    }

    fn fields(&mut self, source: usize, structure: &Structure) -> Result<Vec<(String, Field)>, IsfWriteError> {
        let mut fields = Vec::with_capacity(structure.members.len());
        for (index, member) in structure.members.iter().enumerate() {
            let ty = self.reference((source, member.ty))?;
            let (ty, offset) = match member.bit_width {
                Some(width) => self.bitfield(source, member, width, ty),
                None => (ty, member.bit_offset / 8),
            };
            // A reader unfolds these, and may do so without asking how deep they go.
            let anonymous =
                (member.name.is_empty() && member.bit_width.is_none() && self.unfolds((source, member.ty))).then_some(true);
            let name = if member.name.is_empty() { format!("unnamed_field_{index:x}") } else { member.name.clone() };
            fields.push((name, Field { ty, offset, anonymous }));
        }
        Ok(fields)
    }

    /// A bitfield and the offset in bytes of the number that it is a part of, which is aligned to its size if the bits lie within it so.
    fn bitfield(&self, source: usize, member: &Member, width: u32, ty: Reference) -> (Reference, u64) {
        let size = self.sources.get(source).and_then(|types| types.size_of(member.ty).ok()).unwrap_or(1).clamp(1, 16);
        let bits = size.saturating_mul(8);
        let aligned = member.bit_offset.checked_div(bits).unwrap_or(0).saturating_mul(size);
        let position = member.bit_offset.checked_rem(bits).unwrap_or(0);
        let (offset, bit_position) = match position.saturating_add(width.into()) {
            end if end <= bits => (aligned, position),
            _ => (member.bit_offset / 8, member.bit_offset % 8),
        };
        (Reference::Bitfield { bit_position, bit_length: width, of: Box::new(ty) }, offset)
    }

    /// Whether this is a structure whose members can be taken for those of the one around it: their number is bounded.
    fn unfolds(&mut self, key: Key) -> bool {
        let Some(start) = self.structure_at(key).map(|(key, _)| key) else { return false };
        let mut open = vec![(start, None)];
        while let Some((key, inner)) = open.pop() {
            let total = match inner {
                None if self.unfolded.contains_key(&key) => continue,
                None => {
                    // Until it is known: a structure that contains itself has no end.
                    self.unfolded.insert(key, u32::MAX);
                    let members = self.structure_at(key).map(|(_, structure)| structure.members).unwrap_or_default();
                    let own = u32::try_from(members.len()).unwrap_or(u32::MAX);
                    let unnamed = members.iter().filter(|member| member.name.is_empty());
                    let inner: Vec<Key> = unnamed.filter_map(|member| Some(self.structure_at((key.0, member.ty))?.0)).collect();
                    open.push((key, Some((own, inner.clone()))));
                    open.extend(inner.into_iter().map(|key| (key, None)));
                    continue;
                }
                Some((own, inner)) => {
                    let count = |total: u32, key: &Key| total.saturating_add(self.unfolded.get(key).copied().unwrap_or(0));
                    inner.iter().fold(own, count)
                }
            };
            self.unfolded.insert(key, if total > UNFOLDED { u32::MAX } else { total });
        }
        self.unfolded.get(&start).is_some_and(|&total| total <= UNFOLDED)
    }

    /// The structure behind all aliases, and its own number.
    fn structure_at(&self, (source, mut id): Key) -> Option<(Key, Structure)> {
        let types = self.sources.get(source)?;
        for _ in 0..DEPTH {
            match types.get(id) {
                Ok(Type::Alias { target }) => id = target,
                Ok(Type::Structure(structure)) => return Some(((source, id), structure)),
                _ => return None,
            }
        }
        None
    }

    fn tell(&mut self, what: String) {
        self.summary.broken = self.summary.broken.saturating_add(1);
        if self.summary.incomplete.len() < TOLD {
            self.summary.incomplete.push(what);
        }
    }
}

/// Whether the structure of a source has the size and the members, each at its place, of this one.
fn alike(sources: &[&dyn TypeSource], (source, id): Key, other: &Structure) -> bool {
    let Some(Ok(Type::Structure(structure))) = sources.get(source).map(|types| types.get(id)) else { return false };
    let place = |member: &Member, other: &Member| {
        (&member.name, member.bit_offset, member.bit_width) == (&other.name, other.bit_offset, other.bit_width)
    };
    (structure.size, structure.union, structure.members.len()) == (other.size, other.union, other.members.len())
        && structure.members.iter().zip(&other.members).all(|(member, other)| place(member, other))
}
