//! The formats, one module each: `matches` says whether a file has it, `parse` reads it.

pub(crate) mod cloud_hypervisor;
pub(crate) mod elf;
pub(crate) mod firecracker;
pub(crate) mod foreign;
mod kvm;
pub(crate) mod lime;
pub(crate) mod raw;
pub(crate) mod vmware;
pub(crate) mod xen_core;
