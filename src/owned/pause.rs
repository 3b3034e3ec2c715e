//! A guest that stands still for a while.

use core::fmt;

use self_cell::self_cell;
use vmi_core::Result;

use super::Machine;
use crate::AnyDriver;

type Guard<'v> = vmi_core::Paused<'v, AnyDriver>;

self_cell!(
    struct Cell {
        owner: Machine,
        #[covariant]
        dependent: Guard,
    }
);

/// The guest stands still while this lives. Pauses nest.
#[must_use = "the guest runs on when this is dropped"]
pub struct Paused(Cell);

impl Paused {
    pub(super) fn new(machine: Machine) -> Result<Self> {
        Cell::try_new(machine, |machine| machine.vmi().pause()).map(Self)
    }

    /// The machine that stands still.
    pub fn machine(&self) -> &Machine {
        self.0.borrow_owner()
    }
}

impl fmt::Debug for Paused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Paused").field(self.machine()).finish()
    }
}
