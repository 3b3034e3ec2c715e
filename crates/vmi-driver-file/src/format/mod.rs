//! The formats, one module each: `matches` says whether a file has it, `parse` reads it.

pub(crate) mod avml;
pub(crate) mod cloud_hypervisor;
pub(crate) mod elf;
pub(crate) mod firecracker;
pub(crate) mod foreign;
pub(crate) mod hiberfil;
pub(crate) mod kdump;
mod kvm;
pub(crate) mod libvirt_save;
pub(crate) mod lime;
pub(crate) mod qcow2;
pub(crate) mod qemu;
pub(crate) mod raw;
pub(crate) mod vmware;
pub(crate) mod windows_dump;
pub(crate) mod xen_core;
