//! Linux guests: the kernel, its symbols and types found in raw memory, and the objects inside.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]

pub mod btf;
pub mod discover;
mod kernel;
pub mod shape;
pub mod symbol_files;

pub use kernel::Kernel;
