//! The same things without lifetimes and type parameters: what they borrow, they own.
//!
//! A [`vmi_core::Vmi`] lends itself to the systems, memories, pauses and event sessions that are made of it, which costs nothing and is checked when a program
//! is compiled. A program that keeps them side by side in one structure, in several threads or behind another language's handles cannot name those lifetimes. Here a
//! [`Machine`] is counted, and everything that comes from it holds it:
//!
//! ```no_run
//! use vmi::owned::{Guest, Machine, Memory};
//! use vmi::{Guest as _, Memory as _, VirtAddr};
//!
//! struct Window {
//!     guest: Guest,
//!     memory: Memory,
//! }
//!
//! fn open(target: &str, pid: u32) -> Result<Window, Box<dyn std::error::Error>> {
//!     let guest = Machine::open(target)?.attach()?;
//!     Ok(Window { memory: guest.process_memory(pid), guest })
//! }
//!
//! let window = open("guest.lime", 1)?;
//! println!("{}", window.guest.version());
//! let thread = std::thread::spawn(move || window.memory.read::<u64>(VirtAddr::new(0x7ff0_0000_0000).into()));
//! println!("{:x}", thread.join().unwrap()?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! All of them are `Send + Sync + 'static` and may be used by several threads at once. Clones are handles on the same thing. Where a borrow is at hand
//! ([`Machine::vmi`], [`Guest::with`]), everything else of this library is as well.

mod address;
mod events;
mod guest;
mod machine;
mod memory;
mod pause;
mod session;
#[cfg(test)]
mod tests;

pub use address::{AnyAddr, NoOffset, Place};
pub use events::{Event, Events, SessionError};
pub use guest::Guest;
pub use machine::Machine;
pub use memory::Memory;
pub use pause::Paused;
