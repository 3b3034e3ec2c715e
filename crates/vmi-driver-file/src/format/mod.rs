//! The formats, one module each: `matches` says whether a file has it, `parse` reads it.

pub(crate) mod avml;
pub(crate) mod elf;
pub(crate) mod foreign;
pub(crate) mod hiberfil;
pub(crate) mod libvirt_save;
pub(crate) mod lime;
pub(crate) mod qemu;
pub(crate) mod raw;
pub(crate) mod windows_dump;
