//! A kernel made from C: a real PE file and a real program database.

use std::collections::BTreeMap;

/// The files and what the linker says about them.
#[derive(Clone, Debug)]
pub struct CompiledKernel {
    /// The PE file.
    pub pe: Vec<u8>,
    /// The program database.
    pub pdb: Vec<u8>,
    /// Symbols relative to the image's base, from the linker's map.
    pub symbols: BTreeMap<String, u64>,
}

impl CompiledKernel {
    pub(crate) fn image(&self) -> crate::kernel_image::Image {
        todo!()
    }
}
