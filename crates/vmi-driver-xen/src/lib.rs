//! Xen domains for the vmi workspace.
//!
#![cfg_attr(feature = "xenctrl", doc = "```no_run")]
#![cfg_attr(not(feature = "xenctrl"), doc = "```ignore")]
//! use vmi_core::{Memory, PhysAddr, Vmi};
//! use vmi_driver_xen::{Options, XenDriver};
//!
//! let vmi = Vmi::new(XenDriver::open("web1", &Options::new())?); // in dom0, as root
//! println!("{:#x}", vmi.read::<u64>(PhysAddr::new(0x1000))?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! This crate is under GPL-3.0-only, as the crate `xenctrl` is through which it makes its control calls; the rest of the workspace is not. Xen's other libraries are opened at run time,
//! so that one program serves Xen 4.17 to 4.20.
//!
//! The feature `xenctrl` brings `XenDriver`; without it the crate has what needs no Xen: the decoding of what Xen tells.
//!
//! # What the crate xenctrl is used for
//! Pausing, unpausing, and the highest frame number: calls that take and give integers. The rest of it is not used, and why:
//!
//! | call | why not |
//! |---|---|
//! | `domain_getinfolist` | fills a structure of the release that it was built with |
//! | `domain_hvm_getcontext` | leaks its buffer, does not look at the result of the second call, follows a null pointer for a vCPU that is off |
//! | `monitor_write_ctrlreg`, `monitor_mov_to_msr` | pass fewer arguments than the functions of Xen 4.17 have |
//! | `get_request`, `put_response`, `get_event_type` | no memory barriers; end the program at events that they do not know |
//! | `set_mem_access`, `monitor_*` | lose `errno` |
//!
//! It opens the library by the name that only development packages bring, `libxenctrl.so`; where that is missing, the versioned library serves.
//!
//! # Versions
//! Xen 4.17 and 4.20 were tried; 4.18 and 4.19 are known from their headers.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]
#![cfg_attr(not(feature = "xenctrl"), allow(dead_code, unused_imports))]

mod breakpoints;
mod domain_info;
mod domains;
#[cfg(feature = "xenctrl")]
mod driver;
#[cfg(feature = "xenctrl")]
mod event_source;
mod events;
#[cfg(feature = "xenctrl")]
mod execution;
mod failure;
mod foreign_memory;
mod frames;
#[cfg(not(all(test, loom)))]
#[doc(hidden)]
pub mod fuzz;
mod guardian;
mod inject;
mod libraries;
mod memory_map;
mod monitor;
#[cfg(feature = "xenctrl")]
mod open;
mod open_error;
mod options;
mod p2m;
mod ring;
mod ring_lock;
mod views;
pub mod vm_event;

pub use domain_info::{DomainInfo, DomainKind};
pub use domains::{Domain, domains};
#[cfg(feature = "xenctrl")]
pub use driver::XenDriver;
pub use foreign_memory::MappingCounters;
pub use libraries::{CallError, InterfaceError, LibraryError};
pub use monitor::MonitorError;
pub use open_error::OpenError;
pub use options::Options;
pub use p2m::P2mError;
pub use ring::RingError;
