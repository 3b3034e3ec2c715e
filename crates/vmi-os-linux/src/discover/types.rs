//! Type information in the kernel's image.

use std::sync::Arc;

use vmi_arch_x86::X86Driver;
use vmi_core::{ErrorKind, Paging, Result, Symbols, Type, TypeId, TypeSource, Vmi};

use super::image::KernelImage;

/// A kernel without type information.
#[derive(Debug)]
struct NoTypes {
    pointer_size: u64,
}

impl TypeSource for NoTypes {
    fn find(&self, _name: &str) -> Option<TypeId> {
        None
    }

    fn get(&self, id: TypeId) -> Result<Type> {
        Err(ErrorKind::NoType { name: format!("type {}", id.0), why: self.origin() }.into())
    }

    fn pointer_size(&self) -> u64 {
        self.pointer_size
    }

    fn origin(&self) -> String {
        "this kernel carries no type information (BTF); give its vmlinux with DWARF or a symbol file".to_owned()
    }

    fn structures(&self) -> Box<dyn Iterator<Item = String> + '_> {
        Box::new(std::iter::empty())
    }
}

/// The types that the image holds.
pub(super) fn in_image<D: X86Driver>(
    _vmi: &Vmi<D>,
    image: &KernelImage,
    _symbols: &Symbols,
    remarks: &mut Vec<String>,
) -> Arc<dyn TypeSource> {
    let none = NoTypes { pointer_size: image.mode.pointer_size() as u64 };
    remarks.push(none.origin());
    Arc::new(none)
}
