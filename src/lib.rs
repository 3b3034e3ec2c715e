//! Virtual machine introspection: look into a machine from outside.
//!
//! A machine is a memory image or a running guest. [`open()`] makes a [`Vmi`] of whatever a [`Target`] names, through which
//! guest-physical memory is read; an operating-system layer attaches to it with no profile, no symbol file and no network:
//!
//! ```
//! # let image = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/debian-6.12.raw.zst");
//! use vmi::linux::Linux;
//!
//! let vmi = vmi::open(image)?; // "guest.lime", "guest.elf", "guest.raw.zst", ...
//! let linux = Linux::attach(&vmi)?; // symbols and types come out of guest memory
//! for task in linux.processes() {
//!     let task = task?;
//!     println!("{:>6} {:>6} {}", task.pid()?, task.parent_pid()?, task.name()?);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A tool that serves every operating system asks [`attach()`] which one is inside, and gets a [`Guest`]:
//!
//! ```no_run
//! let vmi = vmi::open("guest.lime")?;
//! let guest = vmi::attach(&vmi)?;
//! println!("{} with {} symbols", guest.version(), guest.symbols().len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What is where:
//!
//! - the root holds what every back end and operating system shares (the crate [`vmi_core`]), and the choices at run time:
//!   [`Target`], [`open()`], [`AnyDriver`], [`attach()`];
//! - [`owned`] holds the same things without lifetimes, for programs that keep them side by side, in threads or behind another language;
//! - [`x86`] holds registers, paging modes and page walks;
//! - [`file`](mod@file) holds the memory image formats, for reading and writing;
//! - [`kvm`] holds running guests of QEMU: how they are found, read, written, stopped and trapped;
//! - `xen`, with the cargo feature of that name, holds domains of Xen;
//! - [`linux`] holds Linux guests: discovery, symbols, types, and the objects in depth;
//! - [`windows`] holds Windows guests: the same, and symbol files.
#![forbid(unsafe_code)]
// The workspace's lint table is for libraries; in this package it would bind the examples too.
#![deny(
    missing_docs,
    missing_debug_implementations,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]

mod any_driver;
mod attach;
mod attach_options;
mod causes;
mod open;
mod options;
pub mod owned;
mod system;
mod target;
mod targets;
mod type_name;

pub use any_driver::AnyDriver;
pub use attach::{AttachError, Attempt, attach, attach_system, attach_with};
pub use attach_options::{AttachOptions, SymbolsError};
pub use causes::with_causes;
pub use open::{OpenError, open, open_with};
pub use options::Options;
pub use system::{System, of_process};
pub use target::{BackEnd, Target};
pub use targets::{FoundGuest, targets};
pub use type_name::type_name;
pub use vmi_arch_x86 as x86;
#[doc(no_inline)]
pub use vmi_core::*;
pub use vmi_driver_file as file;
pub use vmi_driver_kvm as kvm;
#[cfg(feature = "xen")]
pub use vmi_driver_xen as xen;
pub use vmi_os_linux as linux;
pub use vmi_os_windows as windows;

/// What a tool usually imports: the traits whose methods it calls, and the types they speak of.
pub mod prelude {
    pub use vmi_core::{Driver, Guest, Memory, PhysAddr, VirtAddr, Vmi};

    pub use crate::AnyDriver;
}

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
