//! Windows guests: the kernel, its symbols and types found in raw memory, and the objects inside.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]

mod builtin;
pub mod discover;
mod kernel;
mod layout;
mod pdb_identity;
pub mod shape;
mod windows;

pub use builtin::{BuildMatch, BuiltIn, Disagreement};
pub use kernel::Kernel;
pub use pdb_identity::PdbIdentity;
pub use windows::{AttachError, Windows};
