//! x86 for the vmi workspace: registers, paging, descriptor tables. No I/O of its own.
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
