//! Running QEMU/KVM guests for the vmi workspace: stock QEMU, as the distribution built it, from user space alone.
//!
//! [`QemuDriver::connect`] opens a guest by its QMP socket, [`QemuDriver::attach`] by its process, [`QemuDriver::gdb`] by its gdb stub. Memory is read by the best
//! [`Road`] that works:
//!
//! | road | needs | a read is |
//! |---|---|---|
//! | [`Road::Shared`] | RAM that is shared: `-object memory-backend-memfd,id=ram,size=SIZE,share=on -machine memory-backend=ram` | a load |
//! | [`Road::Process`] | the same user, or root; any guest | a system call, also for a thousand ranges |
//! | [`Road::PmemAccess`] | a QEMU with LibVMI's patch | two messages over a socket |
//! | [`Road::Gdb`] | a gdb stub, or a monitor that can open one | a stop of the guest and a message for each 2 KiB |
//!
//! ```no_run
//! use vmi_core::{Memory, PhysAddr, Vmi};
//! use vmi_driver_kvm::{Options, QemuDriver};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let vmi = Vmi::new(QemuDriver::connect("/run/guest.qmp", &Options::new())?);
//! let first: u64 = vmi.read(PhysAddr::new(0x1000))?; // the guest runs on
//! let paused = vmi.pause()?; // it stands still ...
//! let second: u64 = vmi.read(PhysAddr::new(0x1000))?;
//! drop(paused); // ... and runs on
//! # let _ = (first, second);
//! # Ok(())
//! # }
//! ```
//!
//! Versions: QEMU 7.2 and 10.0 were tried under TCG, and under KVM on emulated processors. What another version prints in an unknown form is an
//! error that shows it, never a guess.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]

mod deadline;
mod driver;
mod events;
mod execution;
mod failure;
pub mod gdb;
mod gdb_stub;
mod guardian;
pub mod human_registers;
pub mod libvirt;
pub mod memory;
pub mod memory_tree;
mod open;
mod options;
pub mod pmemaccess;
pub mod processes;
pub mod qmp;
mod ram_layout;

pub use driver::QemuDriver;
pub use open::{OpenError, RoadAttempt, RoadError};
pub use options::{Options, Road, UnknownRoad};
pub use ram_layout::LayoutError;
#[doc(hidden)]
pub use ram_layout::exercise as exercise_layout;
