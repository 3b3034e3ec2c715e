//! Windows guests: the kernel, its symbols and types found in raw memory, and the objects inside.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]

mod builtin;
mod kernel;
mod layout;
mod pdb_identity;
pub mod pe;
pub mod symbol_files;
pub mod symbol_store;
mod windows;

pub use builtin::{BuildMatch, BuiltIn, Disagreement};
pub use kernel::Kernel;
pub use pdb_identity::PdbIdentity;
pub use symbol_files::{SymbolCache, SymbolFile, SymbolFileError};
pub use symbol_store::{Missing, SymbolStore, Wanted};
pub use windows::{AttachError, Windows};
