//! The handle on one machine.

use core::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmi_arch_x86::PagingMode;
use vmi_core::{Capability, Driver as _, PhysAddr, Result, SnapshotReport, Vmi};

use super::{Events, Guest, Memory, Paused, SessionError};
use crate::{AnyDriver, AttachError, AttachOptions, OpenError, Options, Target};

/// One machine: a memory image, a snapshot or a running guest. A clone is a handle on the same one, which is closed with the last of them, and with the last of all
/// that came from it.
#[derive(Clone)]
pub struct Machine(Arc<Shared>);

struct Shared {
    vmi: Vmi<AnyDriver>,
    /// Whether an event session is open: two on one machine would take each other's events.
    in_session: AtomicBool,
}

impl Machine {
    /// Opens whatever `target` names, as [`open()`](crate::open()).
    ///
    /// # Errors
    /// As [`open()`](crate::open()).
    pub fn open(target: impl Into<Target>) -> Result<Self, OpenError> {
        crate::open(target).map(Self::new)
    }

    /// Opens it with what it does not tell of itself, as [`open_with`](crate::open_with).
    ///
    /// # Errors
    /// As [`open()`](crate::open()).
    pub fn open_with(target: impl Into<Target>, options: impl Into<Options>) -> Result<Self, OpenError> {
        crate::open_with(target, options).map(Self::new)
    }

    /// A machine that is open already.
    pub fn new(vmi: Vmi<AnyDriver>) -> Self {
        Self(Arc::new(Shared { vmi, in_session: AtomicBool::new(false) }))
    }

    /// The machine itself, with all that this library does with one.
    #[inline]
    pub fn vmi(&self) -> &Vmi<AnyDriver> {
        &self.0.vmi
    }

    /// What its back end can do beyond reading memory.
    pub fn capabilities(&self) -> Vec<Capability> {
        let driver = self.vmi().driver();
        let all = [
            (Capability::WriteMemory, driver.write_memory().is_some()),
            (Capability::Vcpus, driver.vcpus().is_some()),
            (Capability::WriteVcpus, driver.write_vcpus().is_some()),
            (Capability::Control, driver.control().is_some()),
            (Capability::Events, driver.events().is_some()),
        ];
        all.into_iter().filter(|(_, has)| *has).map(|(capability, _)| capability).collect()
    }

    /// Its guest-physical memory.
    pub fn memory(&self) -> Memory {
        Memory::physical(self.clone())
    }

    /// What the page tables at `root` map.
    pub fn address_space(&self, root: PhysAddr, mode: PagingMode) -> Memory {
        Memory::of_tables(self.clone(), root, mode)
    }

    /// Finds the operating system inside, as [`attach()`](crate::attach()).
    ///
    /// # Errors
    /// As [`attach()`](crate::attach()).
    pub fn attach(&self) -> Result<Guest, AttachError> {
        self.attach_with(&AttachOptions::default())
    }

    /// Finds it with what is known beforehand, as [`attach_with`](crate::attach_with).
    ///
    /// # Errors
    /// As [`attach()`](crate::attach()).
    pub fn attach_with(&self, options: &AttachOptions) -> Result<Guest, AttachError> {
        Guest::attach(self.clone(), options)
    }

    /// Stops the guest until the guard is dropped.
    ///
    /// # Errors
    /// As [`Control::pause`](vmi_core::Control::pause).
    pub fn pause(&self) -> Result<Paused> {
        Paused::new(self.clone())
    }

    /// A frozen copy of all memory and registers, of one moment, and how it was made. The copy is a machine of its own, which outlives this one.
    ///
    /// # Errors
    /// As [`Vmi::snapshot`].
    pub fn snapshot(&self) -> Result<(Self, SnapshotReport)> {
        let frozen = self.vmi().snapshot()?;
        let report = frozen.driver().report().clone();
        Ok((Self::new(Vmi::new(AnyDriver::new(frozen.into_driver()))), report))
    }

    /// Opens an event session, one at a time.
    ///
    /// # Errors
    /// [`SessionError::Busy`] if there is one already; else why the back end has none.
    pub fn events(&self) -> Result<Events, SessionError> {
        Events::begin(self.clone())
    }

    /// Whether this is the one that begins a session.
    pub(super) fn begin_session(&self) -> bool {
        !self.0.in_session.swap(true, Ordering::AcqRel)
    }

    pub(super) fn end_session(&self) {
        self.0.in_session.store(false, Ordering::Release);
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Machine").field(&self.vmi().machine().name).finish()
    }
}
