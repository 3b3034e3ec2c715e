//! Boots guests by the scripts of `tests/lab`, drives them, and ends them.

mod checks;
mod guest;
mod inside;
mod libvirt;
mod qmp;
mod server;
mod shell;

pub(crate) use checks::{Check, run};
pub(crate) use guest::{LiveGuest, Machine, Memory, Qemu, Shape};
pub(crate) use inside::Inside;
#[cfg_attr(not(feature = "libvirt"), expect(unused_imports, reason = "for tests with the library"))]
pub(crate) use libvirt::Domain;
pub(crate) use libvirt::Libvirt;
#[allow(unused_imports, reason = "for tests of images")]
pub(crate) use qmp::ram_of;
pub(crate) use qmp::{Qmp, Range};
#[allow(unused_imports, reason = "for tests of images")]
pub(crate) use server::Server;
pub(crate) use server::Skip;
