//! Windows guests: the kernel, its symbols and types found in raw memory, and the objects inside.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]

mod file_time;
mod guest;
mod kernel;
mod kernel_module;
mod layout;
mod pdb_identity;
mod process;
mod process_memory;
mod protection;
mod running;
mod thread;
mod unicode_string;
mod vad;
mod version;
mod windows;

pub use kernel::Kernel;
pub use kernel_module::KernelModule;
pub use pdb_identity::PdbIdentity;
pub use process::Process;
pub use process_memory::{Page, ProcessMemory};
pub use protection::Protection;
pub use thread::{Thread, ThreadState, WaitReason};
pub use vad::{PageProtection, Vad, VadKind};
pub use windows::{AttachError, Windows};
