//! The type description that inference yields: only the members that were found out.

use vmi_core::{ErrorKind, Member, Result, Structure, Type, TypeId, TypeSource};

/// What a member is, as far as a reader must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Pointer,
    /// An unsigned number of so many bytes.
    Number(u64),
    /// A structure that is described on its own.
    Structure(&'static str),
    /// An array of bytes.
    Bytes(u64),
    /// An array of numbers as wide as a pointer.
    Words(u64),
    /// An array of structures of known size.
    Structures(&'static str, u64),
    /// A bitfield in one byte: its lowest bit, and its width in bits.
    Bits(u8, u8),
}

/// The structures and members of a kernel that were inferred by shape, and the fixed ones that they are made of.
///
/// A structure is known only up to the end of its last known member: its size is a lower bound.
#[derive(Debug)]
pub struct InferredTypes {
    pointer_size: u64,
    types: Vec<Type>,
}

impl InferredTypes {
    pub(super) fn new(pointer_size: u64) -> Self {
        Self { pointer_size, types: Vec::new() }
    }

    /// Adds one member. The structure `Kind::Structure` names is described by the time all members are added.
    pub(super) fn add(&mut self, structure: &str, member: &str, offset: u64, kind: Kind) {
        let ty = self.kind(kind);
        let end = offset.saturating_add(self.size(kind));
        let (lowest, bit_width) = match kind {
            Kind::Bits(lowest, width) => (lowest, Some(u32::from(width))),
            _ => (0, None),
        };
        let bit_offset = offset.saturating_mul(8).saturating_add(lowest.into());
        let member = Member { name: member.to_owned(), bit_offset, bit_width, ty };
        let id = self.structure_id(structure);
        if let Some(Type::Structure(structure)) = self.types.get_mut(id.0 as usize) {
            structure.size = structure.size.max(end);
            structure.members.push(member);
        }
    }

    /// Bytes that a member of this kind takes.
    fn size(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Pointer => self.pointer_size,
            Kind::Bits(..) => 1,
            Kind::Number(size) | Kind::Bytes(size) => size,
            Kind::Words(count) => count.saturating_mul(self.pointer_size),
            Kind::Structure(name) => self.structure_size(name),
            Kind::Structures(name, count) => count.saturating_mul(self.structure_size(name)),
        }
    }

    fn structure_size(&self, name: &str) -> u64 {
        match self.find(name).map(|id| self.get(id)) {
            Some(Ok(Type::Structure(structure))) => structure.size,
            _ => 0,
        }
    }

    /// Sets the size of a structure, where it is known.
    pub(super) fn resize(&mut self, structure: &str, size: u64) {
        let id = self.structure_id(structure);
        if let Some(Type::Structure(structure)) = self.types.get_mut(id.0 as usize) {
            structure.size = size;
        }
    }

    fn structure_id(&mut self, name: &str) -> TypeId {
        match self.find(name) {
            Some(id) => id,
            None => self.push(Type::Structure(Structure { name: name.to_owned(), size: 0, union: false, members: Vec::new() })),
        }
    }

    fn kind(&mut self, kind: Kind) -> TypeId {
        let ty = match kind {
            Kind::Structure(name) => return self.structure_id(name),
            Kind::Pointer => Type::Pointer { target: self.push_once(Type::Void) },
            Kind::Bits(..) => number(1),
            Kind::Number(size) => number(size),
            Kind::Bytes(count) => Type::Array { element: self.push_once(number(1)), count },
            Kind::Structures(name, count) => Type::Array { element: self.structure_id(name), count },
            Kind::Words(count) => Type::Array { element: self.push_once(number(self.pointer_size)), count },
        };
        self.push_once(ty)
    }

    fn push_once(&mut self, ty: Type) -> TypeId {
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

fn number(size: u64) -> Type {
    Type::Number { name: format!("u{}", size.saturating_mul(8)), size, signed: false }
}

impl TypeSource for InferredTypes {
    fn find(&self, name: &str) -> Option<TypeId> {
        let named = |ty: &Type| matches!(ty, Type::Structure(structure) if structure.name == name);
        self.types.iter().position(named).map(|index| TypeId(index as u32))
    }

    fn get(&self, id: TypeId) -> Result<Type> {
        self.types.get(id.0 as usize).cloned().ok_or_else(|| {
            let why = "inference by shape knows no type of this number".to_owned();
            ErrorKind::NoType { name: format!("type {}", id.0), why }.into()
        })
    }

    fn pointer_size(&self) -> u64 {
        self.pointer_size
    }

    fn origin(&self) -> String {
        "inference by shape (the kernel carries no BTF)".to_owned()
    }

    fn structures(&self) -> Box<dyn Iterator<Item = String> + '_> {
        Box::new(self.types.iter().filter_map(|ty| match ty {
            Type::Structure(structure) => Some(structure.name.clone()),
            _ => None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_answer_by_path_with_their_size() {
        let mut types = InferredTypes::new(4);
        types.add("list_head", "next", 0, Kind::Pointer);
        types.add("list_head", "prev", 4, Kind::Pointer);
        types.add("task_struct", "tasks", 0x1a4, Kind::Structure("list_head"));
        types.add("task_struct", "comm", 0x360, Kind::Bytes(16));
        let types: &dyn TypeSource = &types;
        let prev = types.field("task_struct", "tasks.prev").unwrap();
        assert_eq!((prev.offset, prev.size), (0x1a8, 4));
        assert_eq!(types.field("task_struct", "comm").unwrap().size, 16);
        assert_eq!(types.structure("task_struct").unwrap().size, 0x370);
        let error = types.field("task_struct", "mm").unwrap_err().to_string();
        assert!(error.contains("task_struct.mm") && error.contains("inference"), "{error}");
    }
}
