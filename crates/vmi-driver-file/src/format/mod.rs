//! The formats, one module each: `matches` says whether a file has it, `parse` reads it.

pub(crate) mod elf;
pub(crate) mod foreign;
pub(crate) mod kdump;
pub(crate) mod lime;
pub(crate) mod raw;
