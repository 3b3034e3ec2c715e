//! Core of the vmi workspace: what every back end provides and every operating-system layer builds on.
//!
//! - [`Driver`] is a source of guest-physical memory; further abilities are small traits on top of it.
//! - [`Vmi`] is the handle on one machine, [`AddressSpace`] one set of page tables in it. Both are [`Memory`].
//! - [`Symbols`] and [`TypeSource`] say what is known of the kernel inside.
//! - [`Guest`] and its rows are what all operating systems share.
//!
//! ```
//! use vmi_core::{Memory, PhysAddr, Vmi, synthetic::SyntheticDriver};
//!
//! # fn main() -> vmi_core::Result<()> {
//! let vmi = Vmi::new(SyntheticDriver::new([(PhysAddr::new(0x1000), b"swapper/0\0".to_vec())]));
//! assert_eq!(vmi.read_c_string(PhysAddr::new(0x1000), 16)?, b"swapper/0");
//! # Ok(())
//! # }
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]

mod address;
mod address_space;
mod cursor;
mod driver;
mod error;
mod event;
mod guest;
pub mod list;
pub mod live;
mod lossy;
mod mapping;
mod memory;
mod memory_map;
mod page_cache;
mod profile;
pub mod search;
#[cfg(target_os = "linux")]
mod snapshot;
mod strings;
mod survey;
pub mod synthetic;
mod tlb;
mod translate;
mod vmi;
mod windows_dump;

pub use address::{Address, Gfn, PAGE_SIZE, PhysAddr, VirtAddr};
pub use address_space::AddressSpace;
pub use cursor::Cursor;
pub use driver::{Control, Driver, Liveness, MachineInfo, Note, ReadOp, VcpuId, Vcpus, WriteMemory, WriteVcpus};
pub use error::{Capability, Error, ErrorKind, Result};
pub use event::{
    AccessOrigin, Accesses, Action, Cause, Emulation, Event, EventAbilities, EventAbility, EventSession, EventSource, Events,
    Injector, MemoryAccess, MemoryWatch, Occurrence, Place, Reply, Trap, TrapId, TrapKind, ViewId, Views, What,
};
pub use guest::{Guest, LogRecord, MemoryArea, Module, Process, Rows, State, Thread};
#[cfg(target_os = "linux")]
pub use mapping::Window;
pub use mapping::{GuestMapping, LivePiece, MappedFile, MappedRange, Piece, PieceError, RawPiece, SharedRam, Store};
pub use memory::Memory;
pub use memory_map::{MemoryMap, Region};
pub use page_cache::PageCacheCounters;
pub use profile::{
    Field, Isf, IsfError, IsfPdb, IsfStructure, IsfSummary, IsfType, IsfWriteError, IsfWriter, KernelField, Member, Structure,
    Symbol, Symbols, SymbolsBuilder, Type, TypeId, TypeSource,
};
#[cfg(target_os = "linux")]
pub use snapshot::{Snapshot, SnapshotReport};
pub use survey::{ProcessSurvey, ProcessView, SeenProcess, Sightings};
pub use translate::{Access, Architecture, Fault, FaultKind, Paging, Translation};
pub use vmi::{Held, Paused, Vmi};
pub use windows_dump::{TriageDump, WindowsDump, WindowsDumpKind};
