//! Linux guests: the kernel, its symbols and types found in raw memory, and the objects inside.
//!
//! ```
//! use vmi_core::Vmi;
//! use vmi_driver_file::ImageDriver;
//! use vmi_os_linux::Linux;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let image = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/debian-6.12.raw.zst");
//! let vmi = Vmi::new(ImageDriver::open(image)?); // "guest.lime", or any other driver
//! let linux = Linux::attach(&vmi)?; // symbols and types come out of guest memory
//! let init = linux.process(1)?;
//! println!("{} {:?}", init.name()?, init.command_line()?);
//! for area in init.memory_areas() {
//!     println!("{:?}", area?);
//! }
//! # assert_eq!(init.name()?, "init");
//! # Ok(())
//! # }
//! ```
//!
//! - [`discover`] finds the kernel by independent strategies, [`btf`] reads its types; [`shape`] infers them where the kernel tells nothing.
//! - [`Linux`] leads to processes and threads ([`Task`]), their memory ([`ProcessMemory`]), modules ([`Module`]), the kernel log and symbols.
//! - [`symbol_files`] reads System.map, vmlinux with DWARF, and Volatility symbol files, for whoever has them.
//!
//! Kernels from 4.4 to 7.3 were compared with their own /proc; which, says the lab's table (tests/lab/guests.tsv). Kernels with shuffled structures (`CONFIG_RANDSTRUCT`) need BTF.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]

pub mod btf;
#[cfg(test)]
mod changing_guest;
pub mod discover;
mod guest;
mod hidden;
mod id_table;
mod kernel;
mod kernel_log;
mod layout;
mod linux;
mod maple_tree;
mod memory_area;
mod module;
mod module_symbols;
mod module_types;
mod path;
mod process_memory;
mod running;
pub mod shape;
pub mod symbol_files;
mod task;
#[cfg(test)]
mod test_guest;
mod time;
mod vmcoreinfo;
mod write_isf;

pub use kernel::Kernel;
pub use linux::{AttachError, Linux};
pub use module::Module;
pub use process_memory::ProcessMemory;
pub use task::Task;
pub use write_isf::WriteIsfError;
