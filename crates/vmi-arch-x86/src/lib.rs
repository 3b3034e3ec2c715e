//! x86 for the vmi workspace: registers, paging, descriptor tables. No I/O of its own.
//!
//! ```
//! use vmi_arch_x86::{PagingMode, X86};
//! use vmi_core::{PhysAddr, VirtAddr, Vmi, synthetic::SyntheticDriver};
//!
//! # fn main() -> vmi_core::Result<()> {
//! // Two tables: the entry of the first names the second, whose entry is a page of 1 GiB.
//! let mut tables = vec![0; 0x3000];
//! tables[0x1000..0x1008].copy_from_slice(&0x2007u64.to_le_bytes());
//! tables[0x2000..0x2008].copy_from_slice(&0x4000_0087u64.to_le_bytes());
//! let vmi = Vmi::new(SyntheticDriver::<X86>::with_arch([(PhysAddr::ZERO, tables)]));
//! let space = vmi.address_space(PhysAddr::new(0x1000), PagingMode::Level4);
//! let found = space.translate(VirtAddr::new(0x1234))?;
//! assert_eq!((found.at, found.page_size()), (PhysAddr::new(0x4000_1234), 1 << 30));
//! // What is not mapped says at which level, and which entry.
//! println!("{}", space.translate(VirtAddr::new(1 << 30)).unwrap_err());
//! # Ok(())
//! # }
//! ```
//!
//! - [`PagingMode`] walks the page tables of every mode: [`Walk`] has all entries that were used, [`Mappings`] all that an address space maps.
//! - [`Registers`] are those of a vCPU; [`Table`] and [`Descriptor`] lead from them to segments and interrupt gates.
//! - [`xen`] has the vCPU records of Xen, which a live domain and a core have alike.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]

mod descriptor;
mod event;
mod paging;
mod registers;
mod segment;
mod vcpu_tables;
pub mod xen;

pub use descriptor::{Descriptor, Gate, GateKind};
pub use event::{ControlRegister, DescriptorTable, Incident, Injection, Watch};
pub use paging::{Mapping, Mappings, PageRun, PageTableEntry, PageTableFlags, PagingMode, RepeatedTable, Walk};
pub use registers::{CodeMode, Registers, Table};
pub use segment::{Segment, SegmentAttributes, SegmentKind, Segments};
pub use vcpu_tables::a_vcpu_runs_on;

use vmi_core::{Architecture, Driver, EventAbility, PhysAddr};

/// The x86 architecture: 32- and 64-bit processors of Intel, AMD and others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct X86;

impl Architecture for X86 {
    type Registers = Registers;
    type Paging = PagingMode;
    type Watch = Watch;
    type Incident = Incident;
    type Injection = Injection;

    fn runs_on(registers: &Registers, root: PhysAddr) -> Option<bool> {
        registers.runs_on(root)
    }

    fn springs(watch: &Watch, incident: &Incident) -> bool {
        event::springs(watch, incident)
    }

    fn ability(watch: &Watch) -> EventAbility {
        event::ability(watch)
    }
}

/// A back end that shows x86 guests: a short name for the bound that the operating-system layers need.
pub trait X86Driver: Driver<Arch = X86> {}

impl<D: Driver<Arch = X86> + ?Sized> X86Driver for D {}
