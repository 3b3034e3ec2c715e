//! Guests that libvirt manages.
//!
//! [`LibvirtTarget`] takes targets of the form `libvirt:NAME` apart and is always there. All else needs the feature `libvirt`, which links
//! libvirt's client library (LGPL): `LibvirtDomain` is one running domain and its monitor, `domains` lists them.

#[cfg(feature = "libvirt")]
mod call;
#[cfg(feature = "libvirt")]
mod domain;
#[cfg(feature = "libvirt")]
mod error;
mod target;

#[cfg(feature = "libvirt")]
pub use domain::{DomainRow, LibvirtDomain, domains};
#[cfg(feature = "libvirt")]
pub use error::LibvirtError;
pub use target::{LibvirtTarget, LibvirtTargetError};
