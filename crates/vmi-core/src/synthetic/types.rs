//! Structures with members at made-up places.

use std::collections::BTreeMap;

use crate::{ErrorKind, Member, Result, Structure, Type, TypeId, TypeSource};

/// Types of a synthetic kernel: structures with members at made-up places. Pointers have 8 bytes.
///
/// ```
/// use vmi_core::TypeSource;
/// use vmi_core::synthetic::SyntheticTypes;
///
/// let mut types = SyntheticTypes::default();
/// types.member("task_struct", "tasks.next", 0x10, 8);
/// assert_eq!((&types as &dyn TypeSource).field("task_struct", "tasks.next")?.offset, 0x10);
/// # Ok::<(), vmi_core::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct SyntheticTypes {
    types: Vec<Type>,
    tags: BTreeMap<String, TypeId>,
}

impl SyntheticTypes {
    fn push(&mut self, ty: Type) -> TypeId {
        let id = TypeId(self.types.len() as u32);
        self.types.push(ty);
        id
    }

    /// The structure of this tag, which is made if there is none: of 256 bytes unless [`SyntheticTypes::size`] says otherwise.
    fn structure(&mut self, tag: &str) -> TypeId {
        if let Some(&id) = self.tags.get(tag) {
            return id;
        }
        let empty = Structure { name: tag.to_owned(), size: 0x100, union: false, members: Vec::new() };
        let id = self.push(Type::Structure(empty));
        self.tags.insert(tag.to_owned(), id);
        id
    }

    fn change(&mut self, id: TypeId, change: impl FnOnce(&mut Structure)) {
        if let Some(Type::Structure(structure)) = self.types.get_mut(id.0 as usize) {
            change(structure);
        }
    }

    fn add(&mut self, id: TypeId, name: &str, offset: u64, ty: TypeId) {
        self.change(id, |structure| {
            if !structure.members.iter().any(|other| other.name == name) {
                let bit_offset = offset.saturating_mul(8);
                structure.members.push(Member { name: name.to_owned(), bit_offset, bit_width: None, ty });
            }
        });
    }

    /// Adds the member at `path`, of `size` bytes at `offset`. A path `a.b` makes a nested structure `a` at offset zero. A member that is there already
    /// stays as it is.
    pub fn member(&mut self, structure: &str, path: &str, offset: u64, size: u64) {
        let mut id = self.structure(structure);
        let (outer, name) = path.rsplit_once('.').map_or((None, path), |(outer, name)| (Some(outer), name));
        let mut tag = structure.to_owned();
        for outer in outer.into_iter().flat_map(|outer| outer.split('.')) {
            tag = format!("{tag}.{outer}");
            let inner = self.structure(&tag);
            self.add(id, outer, 0, inner);
            id = inner;
        }
        let ty = self.push(Type::Number { name: String::new(), size, signed: false });
        self.add(id, name, offset, ty);
    }

    /// Says how many bytes a structure has.
    pub fn size(&mut self, structure: &str, bytes: u64) {
        let id = self.structure(structure);
        self.change(id, |structure| structure.size = bytes);
    }
}

impl TypeSource for SyntheticTypes {
    fn find(&self, name: &str) -> Option<TypeId> {
        self.tags.get(name).copied()
    }

    fn get(&self, id: TypeId) -> Result<Type> {
        self.types
            .get(id.0 as usize)
            .cloned()
            .ok_or_else(|| ErrorKind::NoType { name: format!("type {}", id.0), why: "the table ends before".to_owned() }.into())
    }

    fn pointer_size(&self) -> u64 {
        8
    }

    fn origin(&self) -> String {
        "a table".to_owned()
    }

    fn structures(&self) -> Box<dyn Iterator<Item = String> + '_> {
        Box::new(self.tags.keys().cloned())
    }
}
