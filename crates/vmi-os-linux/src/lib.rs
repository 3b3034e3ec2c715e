//! Linux guests: the kernel, its symbols and types found in raw memory, and the objects inside.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]

pub mod btf;
#[cfg(test)]
mod changing_guest;
pub mod discover;
mod guest;
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
