//! Synthetic NT machines: memory images with the structures of Windows kernels, for tests.
//!
//! They are written by code of their own: nothing here is shared with what reads them, but the table of structure offsets.
//!
//! ```
//! use nt_machine::{Build, NtMachine, Options, ProcessSpec};
//!
//! let Some(build) = Build::named("win10_x64_19041") else { return };
//! let mut machine = NtMachine::new(build, Options::default());
//! let notepad = machine.add_process(ProcessSpec::new("notepad.exe", 4242, 3120));
//! machine.add_thread(notepad, 4246);
//! assert_eq!(machine.truth().processes[1].eprocess, machine.process(notepad).eprocess);
//! ```

#![allow(clippy::single_range_in_vec_init, reason = "runs of RAM: often there is one")]

pub mod build;
mod c_source;
pub mod compiled;
mod isf;
mod kdbg;
pub mod kernel_image;
pub mod layout;
pub mod live;
pub mod machine;
pub mod memory;
mod noise;
pub mod objects;
pub mod options;
pub mod paging;
mod pointers;
pub mod pool;
pub mod process;
mod state;
#[cfg(test)]
mod tests;
pub mod truth;
mod variables;

pub use build::Build;
pub use compiled::CompiledKernel;
pub use kernel_image::{KernelImage, Pdb};
pub use live::{Backing, GuestProcess, GuestTruth, LiveMachine, LiveOptions, Running};
pub use machine::NtMachine;
pub use noise::Random;
pub use objects::typical::System;
pub use options::{BrokenList, Kdbg, KvaShadow, Options};
pub use paging::Paging;
pub use pool::PoolKind;
pub use process::{FIRST_TIME, ProcessId, ProcessSpec};
pub use state::{Registers, small_pe};
pub use truth::{ModuleTruth, ProcessTruth, Truth};
