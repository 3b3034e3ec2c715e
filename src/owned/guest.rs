//! The operating system inside a machine.

use core::fmt;
use std::sync::Arc;

use self_cell::self_cell;
use vmi_core::{ErrorKind, Guest as _, PhysAddr, Process, Result, Rows, Symbols, Translation, TypeSource, VcpuId, VirtAddr};
use vmi_os_linux::Linux;
use vmi_os_windows::Windows;

use super::memory::Kept;
use super::{Machine, Memory, Place};
use crate::{AnyDriver, AttachError, AttachOptions, System};

type Borrowed<'v> = System<'v, AnyDriver>;

self_cell!(
    struct Cell {
        owner: Machine,
        // The layers keep what borrows the machine behind locks.
        #[not_covariant]
        dependent: Borrowed,
    }
);

/// An operating system that was found in a machine. A clone is a handle on the same one: what was found and resolved once serves all.
///
/// It is a [`vmi_core::Guest`]. What only one system has is reached through [`Guest::with`], [`Guest::linux`] and [`Guest::windows`].
#[derive(Clone)]
pub struct Guest(Arc<Cell>);

impl Guest {
    pub(super) fn attach(machine: Machine, options: &AttachOptions) -> Result<Self, AttachError> {
        let cell = Cell::try_new(machine, |machine| crate::attach_system(machine.vmi(), options))?;
        Ok(Self(Arc::new(cell)))
    }

    /// The machine that it runs in.
    pub fn machine(&self) -> &Machine {
        self.0.borrow_owner()
    }

    /// Calls `action` with the system, as the type of its own layer.
    pub fn with<T>(&self, action: impl FnOnce(&System<'_, AnyDriver>) -> T) -> T {
        self.0.with_dependent(|_, system| action(system))
    }

    /// Calls `action` with the layer of Linux; `None` if this is another system.
    pub fn linux<T>(&self, action: impl FnOnce(&Linux<'_, AnyDriver>) -> T) -> Option<T> {
        self.with(|system| match system {
            System::Linux(linux) => Some(action(linux)),
            System::Windows(_) => None,
        })
    }

    /// Calls `action` with the layer of Windows; `None` if this is another system.
    ///
    /// ```no_run
    /// # let guest = vmi::owned::Machine::open("guest.dmp")?.attach()?;
    /// let services = guest.windows(|windows| windows.services().map(|services| services.len()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn windows<T>(&self, action: impl FnOnce(&Windows<'_, AnyDriver>) -> T) -> Option<T> {
        self.with(|system| match system {
            System::Linux(_) => None,
            System::Windows(windows) => Some(action(windows)),
        })
    }

    /// What all systems share.
    pub fn as_guest(&self) -> &dyn vmi_core::Guest {
        self.0.with_dependent(|_, system| system.guest())
    }

    /// What describes the kernel's types.
    pub fn types(&self) -> &dyn TypeSource {
        self.0.with_dependent(|_, system| system.types())
    }

    /// The process with this id.
    ///
    /// # Errors
    /// [`ErrorKind::NoObject`] if no process has it; if some could not be read, why not.
    pub fn process(&self, pid: u32) -> Result<Process> {
        let mut failed = None;
        for row in self.processes() {
            match row {
                Ok(process) if process.pid == pid => return Ok(process),
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| ErrorKind::NoObject { what: format!("process {pid}") }.into()))
    }

    /// The environment of a process.
    ///
    /// # Errors
    /// As [`System::environment`].
    pub fn environment(&self, process: &Process) -> Result<Vec<String>> {
        self.with(|system| system.environment(process))
    }

    /// The path of the program that a process runs.
    ///
    /// # Errors
    /// As [`System::executable`].
    pub fn executable(&self, process: &Process) -> Result<Option<String>> {
        self.with(|system| system.executable(process))
    }

    /// The address of a place in the kernel.
    ///
    /// # Errors
    /// [`ErrorKind::NoSymbol`] if there is no such symbol.
    pub fn address(&self, place: Place<'_>) -> Result<VirtAddr> {
        Ok(self.symbols().address(place.symbol)?.wrapping_add(place.offset))
    }

    /// The kernel's memory.
    pub fn kernel_memory(&self) -> Memory {
        Memory::of_kernel(self.clone())
    }

    /// The memory of the process with this id, which is looked for when it is used; in a running guest each time.
    pub fn process_memory(&self, pid: u32) -> Memory {
        Memory::of_process(self.clone(), pid)
    }

    /// The memory of a process of a frozen Linux guest, which may be kept: what was found there stays true.
    pub(super) fn lasting_memory(&self, pid: u32) -> Result<Kept<'_>> {
        if self.machine().vmi().machine().liveness == vmi_core::Liveness::Live {
            return Ok(None);
        }
        self.0.with_dependent(|_, system| match system {
            System::Linux(linux) => Ok(linux.process(pid)?.memory()?.map(Box::new)),
            System::Windows(_) => Ok(None),
        })
    }
}

impl vmi_core::Guest for Guest {
    fn version(&self) -> String {
        self.as_guest().version()
    }

    fn remarks(&self) -> Vec<String> {
        self.as_guest().remarks()
    }

    fn dump_notes(&self) -> Vec<vmi_core::Note> {
        self.as_guest().dump_notes()
    }

    fn processes(&self) -> Rows<'_, Process> {
        self.as_guest().processes()
    }

    fn survey_processes(&self) -> vmi_core::ProcessSurvey {
        self.as_guest().survey_processes()
    }

    fn threads(&self) -> Rows<'_, vmi_core::Thread> {
        self.as_guest().threads()
    }

    fn modules(&self) -> Rows<'_, vmi_core::Module> {
        self.as_guest().modules()
    }

    fn memory_areas(&self, pid: u32) -> Rows<'_, vmi_core::MemoryArea> {
        self.as_guest().memory_areas(pid)
    }

    fn kernel_log(&self) -> Rows<'_, vmi_core::LogRecord> {
        self.as_guest().kernel_log()
    }

    fn symbols(&self) -> &Symbols {
        self.as_guest().symbols()
    }

    fn running_on(&self, vcpu: VcpuId) -> Result<Process> {
        self.as_guest().running_on(vcpu)
    }

    fn process_of(&self, root: PhysAddr) -> Result<Option<Process>> {
        self.as_guest().process_of(root)
    }

    fn page_tables(&self, process: &Process) -> Vec<PhysAddr> {
        self.as_guest().page_tables(process)
    }

    fn translate(&self, pid: Option<u32>, at: VirtAddr) -> Result<Translation> {
        self.as_guest().translate(pid, at)
    }

    fn read_virtual(&self, pid: Option<u32>, at: VirtAddr, buf: &mut [u8]) -> Result<()> {
        self.as_guest().read_virtual(pid, at, buf)
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guest").field(&self.version()).finish()
    }
}
