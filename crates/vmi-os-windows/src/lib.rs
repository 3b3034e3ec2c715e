//! Windows guests: the kernel, its symbols and types found in raw memory, and the objects inside.
//!
//! ```no_run
//! use vmi_core::Vmi;
//! use vmi_driver_file::ImageDriver;
//! use vmi_os_windows::Windows;
//!
//! let vmi = Vmi::new(ImageDriver::open("guest.dmp")?);
//! let windows = Windows::attach(&vmi)?; // symbols from the user's symbol path, else what the crate knows of the build
//! for process in windows.processes() {
//!     let process = process?;
//!     println!("{:>6} {:>6} {}", process.pid()?, process.parent_pid()?, process.name()?);
//!     for module in process.module_views()?.iter().filter(|module| !module.agree()) {
//!         println!("{module:?}"); // in one view of the process and not in another
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - [`discover`] finds the kernel, [`symbol_store`] and [`symbol_files`] its symbols; [`BuiltIn`] and [`shape`] help where there are none.
//! - [`Windows`] leads to processes, threads, modules, objects, handles, the registry and more.
//! - [`pe`] reads PE files in guest memory, [`registry`] hives, in memory or as files.
//!
//! What it was tested on: synthetic machines, a real triage dump and real symbol data; never a whole real Windows. Tests are named after that.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]
#![cfg_attr(test, allow(clippy::single_range_in_vec_init, reason = "runs of RAM: often there is one"))]

mod builtin;
pub mod discover;
mod file_time;
mod guest;
mod handle;
mod handle_table;
mod hidden;
mod kernel;
mod kernel_module;
mod layout;
mod loaded_module;
mod object;
mod object_directory;
mod object_layout;
mod object_name;
mod object_state;
#[cfg(test)]
mod object_tests;
mod object_type;
mod pdb_identity;
pub mod pe;
mod peb;
mod pool_scan;
mod process;
mod process_memory;
mod protection;
pub mod registry;
mod running;
mod service_table;
pub mod shape;
pub mod symbol_files;
pub mod symbol_store;
#[cfg(test)]
mod test_guest;
mod thread;
mod token;
mod triage;
mod unicode_string;
mod unloaded;
mod vad;
mod version;
mod windows;

pub use builtin::{BuildMatch, BuiltIn, Disagreement};
pub use file_time::moment;
pub use handle::Handle;
pub use handle_table::{EntryFormat, HandleEntries, HandleEntry, HandleTable};
pub use kernel::Kernel;
pub use kernel_module::KernelModule;
pub use loaded_module::{LoadedModule, ModuleOrder, ModuleViews};
pub use object::Object;
pub use object_directory::{NamedObject, ObjectTree};
pub use object_type::ObjectType;
pub use pdb_identity::PdbIdentity;
pub use peb::{Peb, arguments};
pub use pool_scan::{PoolProcess, PoolThread};
pub use process::Process;
pub use process_memory::{Page, ProcessMemory};
pub use protection::Protection;
pub use service_table::Service;
pub use symbol_files::{SymbolCache, SymbolFile, SymbolFileError};
pub use symbol_store::{Missing, SymbolStore, Wanted};
pub use thread::{Thread, ThreadState, WaitReason};
pub use token::{Group, Privilege, Sid, Token};
pub use triage::DumpedDriver;
pub use unloaded::UnloadedDriver;
pub use vad::{PageProtection, Vad, VadKind};
pub use windows::{AttachError, Windows};
