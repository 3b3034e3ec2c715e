//! Xen domains for the vmi workspace.
//!
//! This crate is under GPL-3.0-only, as the crate `xenctrl` is through which it makes its control calls; the rest of the workspace is not. Xen's other libraries are opened at run time,
//! so that one program serves Xen 4.17 to 4.20.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]

mod breakpoints;
mod domain_info;
mod events;
mod inject;
mod libraries;
mod monitor;
pub mod registers;
mod ring;
mod ring_lock;
mod views;
pub mod vm_event;

pub use domain_info::{DomainInfo, DomainKind};
pub use libraries::{CallError, InterfaceError, LibraryError};
pub use monitor::MonitorError;
pub use ring::RingError;
