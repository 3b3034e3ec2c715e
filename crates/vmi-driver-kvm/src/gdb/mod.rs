//! The gdb remote serial protocol, as QEMU's gdb stub speaks it (GDB manual, appendix "GDB Remote Serial Protocol"; QEMU's gdbstub, versions 7.2
//! and 10.0).
//!
//! [`GdbClient`] is a debugger's end of it: registers, memory, traps, steps and QEMU's monitor, for guests of which nothing else can
//! be had, or none of these. It blocks, and each wait has a deadline.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use vmi_core::{VcpuId, VirtAddr};
//! use vmi_driver_kvm::gdb::{GdbClient, GdbOptions, TrapKind};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut gdb = GdbClient::connect(&"localhost:1234".parse()?, &GdbOptions::default())?; // the guest stands still
//! println!("{}", gdb.registers(VcpuId(0))?);
//! gdb.insert(TrapKind::Hardware, VirtAddr::new(0xffff_ffff_8110_0000), 1)?;
//! gdb.resume()?;
//! if let Some(stop) = gdb.wait(Duration::from_secs(10))? {
//!     println!("{stop:?}");
//! }
//! gdb.detach()?; // the guest runs, its code as it was
//! # Ok(())
//! # }
//! ```

mod address;
mod client;
mod connection;
mod detach;
mod error;
mod exchange;
mod handover;
mod layout;
mod memory;
mod options;
mod packet;
mod registers;
mod reply;
mod run;
mod vcpu_registers;

pub use address::{AddressError, GdbAddress};
pub use client::GdbClient;
pub use detach::LastWords;
pub use error::{GdbCause, GdbError};
pub use layout::{Layout, Place};
pub use memory::GdbRead;
pub use options::GdbOptions;
pub use packet::{Decoder, Item, encode};
pub use reply::{Features, Stop, StopReason, StopReply, ThreadId, TrapKind, thread_list};
pub use run::Trap;
pub use vcpu_registers::RegistersWritten;
