//! The Python module `vmi`: a thin layer over the facade crate of the same name.
//!
//! - Every object holds its machine by a counted reference and asks on each call whether the machine is still open: use after `close()` is an
//!   exception, and memory that Python still looks at stays mapped.
//! - Python's objects hold the owned ones of the facade (`vmi::owned`): machines, guests, memories, pauses, event sessions.
//! - Lists are read in one go with the interpreter's lock released, and handed out row by row: of a running guest that is the shortest time, and
//!   no iterator of Rust outlives a call.
//! - The one unsafe place is `frozen_view`: Python's buffer protocol speaks in pointers.
#![deny(unsafe_code)]

mod address;
mod errors;
mod event;
mod events;
mod frozen_view;
mod guest;
mod isf;
mod layouts;
mod machine;
mod memory;
mod pause;
mod process;
mod registers;
mod rows;
mod snapshot;
mod survey;
mod symbols;
mod targets;
mod types;
mod values;
mod watch;
mod windows;

use pyo3::prelude::*;

/// Virtual machine introspection: look into a machine from outside.
///
/// A machine is a memory image or a running guest. `vmi.open(target)` opens it, `Machine.attach()` finds the operating system inside:
/// symbols and types come out of guest memory.
#[pymodule(name = "vmi", gil_used = false)]
mod python_module {
    use super::*;

    #[pymodule_export]
    use super::event::Event;
    #[pymodule_export]
    use super::events::Events;
    #[pymodule_export]
    use super::frozen_view::FrozenView;
    #[pymodule_export]
    use super::guest::Guest;
    #[pymodule_export]
    use super::machine::{Machine, Region, open};
    #[pymodule_export]
    use super::memory::{Memory, Translation};
    #[pymodule_export]
    use super::pause::Paused;
    #[pymodule_export]
    use super::process::{Process, Thread};
    #[pymodule_export]
    use super::registers::Registers;
    #[pymodule_export]
    use super::rows::{LogRecord, MemoryArea, Module, Rows, to_dicts};
    #[pymodule_export]
    use super::snapshot::SnapshotReport;
    #[pymodule_export]
    use super::survey::SeenProcess;
    #[pymodule_export]
    use super::symbols::{Symbol, Symbols};
    #[pymodule_export]
    use super::targets::{FoundGuest, targets};
    #[pymodule_export]
    use super::types::Types;
    #[pymodule_export]
    use super::values::{Array, Pointer, Struct};
    #[pymodule_export]
    use super::windows::{Handle, Hive, RegistryKey, RegistryValue, SystemService, Token, Vad, Windows};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        errors::register(module)
    }
}
