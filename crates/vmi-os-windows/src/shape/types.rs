//! The type description that inference yields: only the members that were found out.

use rustc_hash::FxHashMap;
use vmi_core::{ErrorKind, Result, Type, TypeId, TypeSource};

use crate::BuiltIn;
use crate::builtin::Places;

/// The members of a kernel's structures that were inferred by shape, and those that have one place in all known kernels.
///
/// A structure is known only up to its last known member: its size is a lower bound.
#[derive(Clone, Debug)]
pub struct InferredTypes {
    types: BuiltIn,
}

impl InferredTypes {
    pub(super) fn new(is_64_bit: bool, inferred: &FxHashMap<&'static str, Places>) -> Self {
        Self { types: BuiltIn::common(is_64_bit, inferred) }
    }
}

impl TypeSource for InferredTypes {
    fn find(&self, name: &str) -> Option<TypeId> {
        self.types.find(name)
    }

    fn get(&self, id: TypeId) -> Result<Type> {
        self.types.get(id).map_err(|_| {
            let why = "inference by shape knows no type of this number".to_owned();
            ErrorKind::NoType { name: format!("type {}", id.0), why }.into()
        })
    }

    fn pointer_size(&self) -> u64 {
        self.types.pointer_size()
    }

    fn origin(&self) -> String {
        "inference by shape (no symbol file of this kernel is at hand, and the built-in table does not have it)".to_owned()
    }

    fn structures(&self) -> Box<dyn Iterator<Item = String> + '_> {
        self.types.structures()
    }
}
