//! The table's structures as a description of types.

use rustc_hash::FxHashMap;
use vmi_core::{ErrorKind, Member, Result, Structure, Type, TypeId, TypeSource};

use super::BuiltIn;
use super::table::{self, Places};

/// Types by number, and structures by name.
#[derive(Clone, Debug)]
pub(super) struct Types {
    types: Vec<Type>,
    structures: FxHashMap<&'static str, TypeId>,
    pub(super) pointer_size: u64,
}

/// Numbers of the types that need no name.
const VOID: TypeId = TypeId(0);
const POINTER: TypeId = TypeId(1);

impl Types {
    pub(super) fn new(is_64_bit: bool, build: u32, structures: FxHashMap<&'static str, Places>) -> Self {
        let pointer_size = if is_64_bit { 8 } else { 4 };
        let types = vec![Type::Void, Type::Pointer { target: VOID }];
        let mut new = Self { types, structures: FxHashMap::default(), pointer_size };
        let kinds = table::kinds(is_64_bit);
        let mut structures: Vec<_> = structures.into_iter().collect();
        structures.sort_unstable_by_key(|(name, _)| *name);
        // All names first: members are of structures.
        for (name, places) in &structures {
            new.declare(name, places.size.unwrap_or_default());
        }
        let fixed: Vec<_> = table::fixed(is_64_bit).filter(|(name, ..)| !new.structures.contains_key(name)).collect();
        for (name, size, _) in &fixed {
            new.declare(name, *size);
        }
        for (name, places) in &structures {
            for &(member, offset) in &places.members {
                let kind = kinds.get(&(*name, member)).copied().filter(|_| !unlike_others(build, is_64_bit, member));
                new.add(name, member, offset, kind.unwrap_or("any"));
            }
        }
        for (name, _, members) in &fixed {
            for member in members {
                new.add(name, member.name, member.offset, member.kind);
            }
        }
        new
    }

    fn declare(&mut self, name: &'static str, size: u64) {
        let id = self.push(Type::Structure(Structure { name: name.to_owned(), size, union: false, members: Vec::new() }));
        self.structures.insert(name, id);
    }

    fn add(&mut self, structure: &str, member: &str, offset: u64, kind: &str) {
        let bits = kind.strip_prefix("bits:").and_then(|bits| bits.split_once('+'));
        let bits = bits.and_then(|(lowest, width)| Some((lowest.parse().ok()?, width.parse().ok()?)));
        let (bit_offset, bit_width, ty) = match bits {
            Some((lowest, width)) => (lowest, Some(width), self.number(4, false)),
            None => (offset.saturating_mul(8), None, self.kind(kind)),
        };
        let member = Member { name: member.to_owned(), bit_offset, bit_width, ty };
        let id = self.structures.get(structure).copied().unwrap_or(VOID);
        if let Some(Type::Structure(structure)) = self.types.get_mut(id.0 as usize) {
            // Where the size is not known, the last member bounds it from below.
            structure.size = structure.size.max(offset);
            structure.members.push(member);
        }
    }

    fn kind(&mut self, kind: &str) -> TypeId {
        if let Some((element, count)) = kind.strip_suffix(']').and_then(|kind| kind.split_once('[')) {
            let (element, count) = (self.kind(element), count.parse().unwrap_or_default());
            return self.once(Type::Array { element, count });
        }
        match kind {
            "pointer" => POINTER,
            "word" => self.number(self.pointer_size, false),
            "u8" => self.number(1, false),
            "u16" => self.number(2, false),
            "u32" => self.number(4, false),
            "u64" => self.number(8, false),
            "i32" => self.number(4, true),
            // Structures that this kernel's entry does not have are of unknown type, as is `any`.
            name => self.structures.get(name).copied().unwrap_or(VOID),
        }
    }

    fn number(&mut self, size: u64, signed: bool) -> TypeId {
        let letter = if signed { 'i' } else { 'u' };
        self.once(Type::Number { name: format!("{letter}{}", size.saturating_mul(8)), size, signed })
    }

    fn once(&mut self, ty: Type) -> TypeId {
        match self.types.iter().position(|known| *known == ty) {
            Some(index) => TypeId(index as u32),
            None => self.push(ty),
        }
    }

    fn push(&mut self, ty: Type) -> TypeId {
        self.types.push(ty);
        TypeId(self.types.len().saturating_sub(1) as u32)
    }
}

/// Windows 8 on x64 packs handle table entries in its own way, which no symbol file here describes: the place is known, the bits are not.
fn unlike_others(build: u32, is_64_bit: bool, member: &str) -> bool {
    build == 9200 && is_64_bit && member == "ObjectPointerBits"
}

impl TypeSource for BuiltIn {
    fn find(&self, name: &str) -> Option<TypeId> {
        self.types.structures.get(name).copied()
    }

    fn get(&self, id: TypeId) -> Result<Type> {
        self.types.types.get(id.0 as usize).cloned().ok_or_else(|| {
            let why = "the built-in table has no type of this number".to_owned();
            ErrorKind::NoType { name: format!("type {}", id.0), why }.into()
        })
    }

    fn pointer_size(&self) -> u64 {
        self.types.pointer_size
    }

    fn origin(&self) -> String {
        format!("the built-in table ({})", self.names.join(", "))
    }

    fn structures(&self) -> Box<dyn Iterator<Item = String> + '_> {
        Box::new(self.types.structures.keys().map(|&name| name.to_owned()))
    }
}
