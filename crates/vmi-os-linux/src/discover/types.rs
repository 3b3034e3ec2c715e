//! Type information in the kernel's image.

use std::sync::Arc;

use vmi_arch_x86::X86Driver;
use vmi_core::{ErrorKind, Paging, Result, Symbols, Type, TypeId, TypeSource, Vmi};

use super::image::{self, KernelImage};
use crate::btf::{self, Btf};

/// Places in one range that look like the start of BTF and are looked at.
const MAX_HEADERS: usize = 64;

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

/// No types: what asks for one is told what to supply.
pub(super) fn none(image: &KernelImage) -> Arc<dyn TypeSource> {
    Arc::new(NoTypes { pointer_size: image.mode.pointer_size() as u64 })
}

/// The types that the image holds.
pub(super) fn in_image<D: X86Driver>(
    vmi: &Vmi<D>,
    image: &KernelImage,
    symbols: &Symbols,
    remarks: &mut Vec<String>,
) -> Option<Arc<dyn TypeSource>> {
    let btf = btf_by_name(vmi, image, symbols, remarks).or_else(|| btf_by_content(vmi, image))?;
    Some(Arc::new(btf.with_origin("BTF in guest memory")))
}

/// The BTF that the symbols name.
fn btf_by_name<D: X86Driver>(vmi: &Vmi<D>, image: &KernelImage, symbols: &Symbols, remarks: &mut Vec<String>) -> Option<Btf> {
    let start = symbols.find("__start_BTF")?.address;
    let len = symbols.find("__stop_BTF")?.address.offset_from(start).filter(|&len| len <= btf::MAX_LEN as u64)?;
    let bytes = image::bytes(vmi, image.locate(start)?, len);
    match Btf::parse(&*bytes, image.mode.pointer_size() as u64) {
        Ok(btf) => Some(btf),
        Err(error) => {
            remarks.push(format!("the BTF at __start_BTF ({start}) is broken: {error}"));
            None
        }
    }
}

/// The largest BTF among the image's constants, for kernels whose symbols name code only.
fn btf_by_content<D: X86Driver>(vmi: &Vmi<D>, image: &KernelImage) -> Option<Btf> {
    image.constants_first().iter().filter(|range| !range.write).find_map(|range| {
        let bytes = range.bytes(vmi);
        let mut found: Vec<_> = btf::find_headers(&bytes).take(MAX_HEADERS).collect();
        found.sort_by_key(|candidate| core::cmp::Reverse(candidate.len));
        found.into_iter().find_map(|candidate| {
            let end = candidate.offset.checked_add(candidate.len)?;
            Btf::parse(bytes.get(candidate.offset..end)?, image.mode.pointer_size() as u64).ok()
        })
    })
}
