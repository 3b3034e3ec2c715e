//! Members of structures by name, anonymous ones resolved, as reading by attribute needs them.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use vmi::{ErrorKind, Structure, Type, TypeId, TypeSource};

use crate::guest::Attached;

/// Anonymous structures within each other beyond this are an error.
const DEPTH: usize = 32;
/// Members of one structure beyond this are an error: real ones have some hundred.
const MEMBERS: usize = 1 << 16;

/// Where a member is.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) bit_offset: u64,
    pub(crate) bit_width: Option<u32>,
    pub(crate) ty: TypeId,
}

/// A structure or union, ready to be read.
pub(crate) struct Layout {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) union: bool,
    /// In the order of the source.
    pub(crate) names: Vec<String>,
    places: HashMap<String, Place>,
}

impl Layout {
    fn new(types: &dyn TypeSource, structure: Structure) -> vmi::Result<Self> {
        let Structure { name, size, union, members: _ } = &structure;
        let mut layout = Self { name: name.clone(), size: *size, union: *union, names: Vec::new(), places: HashMap::new() };
        layout.add(types, &structure, 0, DEPTH)?;
        Ok(layout)
    }

    fn add(&mut self, types: &dyn TypeSource, structure: &Structure, base: u64, depth: usize) -> vmi::Result<()> {
        let limit = |limit| vmi::Error::from(ErrorKind::Limit { what: format!("the structure {}", structure.name), limit });
        let depth = depth.checked_sub(1).ok_or_else(|| limit(DEPTH))?;
        for member in &structure.members {
            let bit_offset = base.saturating_add(member.bit_offset);
            if self.names.len() > MEMBERS {
                return Err(limit(MEMBERS));
            }
            if !member.name.is_empty() {
                let place = Place { bit_offset, bit_width: member.bit_width, ty: member.ty };
                // The first one of a name counts, as in C there is no second.
                if !self.places.contains_key(&member.name) {
                    self.names.push(member.name.clone());
                    self.places.insert(member.name.clone(), place);
                }
            } else if let Type::Structure(inner) = types.resolve(member.ty)? {
                self.add(types, &inner, bit_offset, depth)?;
            }
        }
        Ok(())
    }

    pub(crate) fn place(&self, name: &str) -> Option<Place> {
        self.places.get(name).copied()
    }

    /// `struct task_struct`, `union (anonymous)`.
    pub(crate) fn title(&self) -> String {
        let kind = if self.union { "union" } else { "struct" };
        let name = if self.name.is_empty() { "(anonymous)" } else { &self.name };
        format!("{kind} {name}")
    }
}

impl Attached {
    /// The layout of a structure, whose number it is behind all aliases.
    pub(crate) fn layout(&self, types: &dyn TypeSource, id: TypeId) -> vmi::Result<Option<Arc<Layout>>> {
        let known = |layouts: &HashMap<TypeId, Arc<Layout>>| layouts.get(&id).cloned();
        if let Some(layout) = known(&self.layouts.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(Some(layout));
        }
        let Type::Structure(structure) = types.resolve(id)? else { return Ok(None) };
        let layout = Arc::new(Layout::new(types, structure)?);
        self.layouts.lock().unwrap_or_else(PoisonError::into_inner).insert(id, layout.clone());
        Ok(Some(layout))
    }
}
