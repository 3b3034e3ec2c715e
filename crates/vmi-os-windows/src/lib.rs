//! Windows guests: the kernel, its symbols and types found in raw memory, and the objects inside.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]

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
mod object;
mod object_directory;
mod object_layout;
mod object_name;
mod object_state;
mod object_type;
mod pdb_identity;
pub mod pe;
mod pool_scan;
mod process;
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
mod unicode_string;
mod version;
mod windows;

pub use builtin::{BuildMatch, BuiltIn, Disagreement};
pub use handle::Handle;
pub use handle_table::{EntryFormat, HandleEntries, HandleEntry, HandleTable};
pub use hidden::{ProcessSurvey, ProcessViews, SeenProcess};
pub use kernel::Kernel;
pub use kernel_module::KernelModule;
pub use object::Object;
pub use object_directory::{NamedObject, ObjectTree};
pub use object_type::ObjectType;
pub use pdb_identity::PdbIdentity;
pub use pool_scan::{PoolProcess, PoolThread};
pub use process::Process;
pub use protection::Protection;
pub use service_table::Service;
pub use symbol_files::{SymbolCache, SymbolFile, SymbolFileError};
pub use symbol_store::{Missing, SymbolStore, Wanted};
pub use thread::{Thread, ThreadState, WaitReason};
pub use windows::{AttachError, Windows};
