//! The operating system inside a machine.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use vmi::{AttachOptions, Guest as _, PhysAddr, TypeId, TypeSource, VcpuId, VirtAddr, owned, with_causes};

use crate::address;
use crate::errors::{Raise, WriteIsfError};
use crate::isf;
use crate::layouts::Layout;
use crate::machine::Handle;
use crate::memory::{Memory, Translation, mode_name};
use crate::process::Process;
use crate::rows::{Row, Rows};
use crate::survey::survey;
use crate::symbols::Symbols;
use crate::types::Types;
use crate::values::{Scope, Struct};
use crate::windows::Windows;

/// A guest, as all that reads it shares it.
pub(crate) struct Attached {
    pub(crate) handle: Handle,
    guest: owned::Guest,
    /// Layouts of structures that were asked for: a program asks for few, again and again.
    pub(crate) layouts: Mutex<HashMap<TypeId, Arc<Layout>>>,
}

impl Attached {
    pub(crate) fn guest(&self) -> &owned::Guest {
        &self.guest
    }

    pub(crate) fn types(&self) -> &dyn TypeSource {
        self.guest.types()
    }

    pub(crate) fn structure_of_process(&self) -> &'static str {
        self.guest.with(|system| system.structures().0)
    }

    pub(crate) fn structure_of_thread(&self) -> &'static str {
        self.guest.with(|system| system.structures().1)
    }

    /// The kernel's memory.
    pub(crate) fn kernel(&self) -> Memory {
        Memory::of(self.handle.clone(), self.guest.kernel_memory())
    }

    /// The address that a number or a symbol names.
    pub(crate) fn place(&self, py: Python<'_>, at: &Bound<'_, PyAny>) -> PyResult<u64> {
        self.handle.check()?;
        address::place(py, &self.guest, at)
    }
}

/// An operating system that was found in a machine.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct Guest {
    attached: Arc<Attached>,
    kernel: Memory,
}

impl Guest {
    /// Finds the system. A string says why there is none.
    #[cfg_attr(not(feature = "download"), allow(unused_variables, reason = "the caller has refused it"))]
    pub(crate) fn attach(handle: Handle, machine: &owned::Machine, symbols: &[PathBuf], download: bool) -> Result<Self, String> {
        let known = symbols.iter().try_fold(AttachOptions::new(), AttachOptions::symbols).map_err(|error| with_causes(&error))?;
        #[cfg(feature = "download")]
        let known = if download { known.download() } else { known };
        let guest = machine.attach_with(&known).map_err(|error| with_causes(&error))?;
        let attached = Arc::new(Attached { handle, guest, layouts: Mutex::default() });
        Ok(Self { kernel: attached.kernel(), attached })
    }

    /// The system, if the machine is open.
    fn open(&self) -> PyResult<&owned::Guest> {
        self.attached.handle.check()?;
        Ok(self.attached.guest())
    }

    fn list(
        &self,
        py: Python<'_>,
        on_error: Option<Py<PyAny>>,
        read: impl FnOnce(&Attached) -> Vec<vmi::Result<Row>> + Send,
    ) -> PyResult<Rows> {
        self.attached.handle.check()?;
        let rows = py.detach(|| read(&self.attached));
        Ok(Rows::new(self.attached.clone(), rows, on_error))
    }
}

/// Rows of one kind as rows of any kind.
pub(crate) fn collect<T>(rows: vmi::Rows<'_, T>, of: impl Fn(T) -> Row) -> Vec<vmi::Result<Row>> {
    rows.map(|row| row.map(&of)).collect()
}

#[pymethods]
impl Guest {
    /// The system: "linux" or "windows".
    #[getter]
    fn system(&self) -> PyResult<&'static str> {
        self.attached.handle.check()?;
        Ok(self.attached.guest().with(|system| system.name()))
    }

    /// The system and its version in one line.
    #[getter]
    fn version(&self) -> PyResult<String> {
        Ok(self.open()?.version())
    }

    /// What is remarkable about how this guest was read, one sentence each.
    #[getter]
    fn remarks(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.attached.handle.check()?;
        Ok(py.detach(|| self.attached.guest().remarks()))
    }

    /// The kernel's memory.
    #[getter]
    fn kernel(&self) -> Memory {
        self.kernel.clone()
    }

    /// Root of the kernel's own page tables; of a Windows guest those of the process System.
    #[getter]
    fn page_table(&self) -> PyResult<u64> {
        self.attached.handle.check()?;
        Ok(self.attached.guest().with(|system| system.page_tables()).0.get())
    }

    /// How the kernel's addresses are translated: "32-bit", "pae", "4-level" or "5-level".
    #[getter]
    fn paging_mode(&self) -> PyResult<&'static str> {
        self.attached.handle.check()?;
        Ok(mode_name(self.attached.guest().with(|system| system.page_tables()).1))
    }

    /// How far a Linux kernel was moved from where it was linked, in bytes (KASLR); `None` for Windows.
    #[getter]
    fn slide(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        self.attached.handle.check()?;
        py.detach(|| self.attached.guest().with(|system| system.slide())).raise(py)
    }

    /// Writes a Volatility 3 symbol file (ISF) of a Linux kernel, from its own memory: packed if the name ends with .xz. Returns what it
    /// lacks, one sentence each. The file gets its name when it is whole.
    fn write_isf(&self, py: Python<'_>, path: PathBuf) -> PyResult<Vec<String>> {
        self.attached.handle.check()?;
        let written = py.detach(|| isf::write(self.attached.guest(), &path));
        Ok(written.map_err(PyErr::new::<WriteIsfError, _>)?.incomplete)
    }

    /// The kernel's symbols, its modules' included.
    #[getter]
    fn symbols(&self, py: Python<'_>) -> PyResult<Symbols> {
        self.attached.handle.check()?;
        Ok(Symbols::new(py, self.attached.clone()))
    }

    /// Layouts of the kernel's structures.
    #[getter]
    fn types(&self) -> PyResult<Types> {
        self.attached.handle.check()?;
        Ok(Types::new(self.attached.clone()))
    }

    /// What only a Windows guest has: handles, tokens, the registry; `None` for other systems.
    #[getter]
    fn windows(&self) -> PyResult<Option<Windows>> {
        self.attached.handle.check()?;
        Ok(self.attached.guest().windows(|_| Windows::new(self.attached.clone())))
    }

    /// The processes, kernel ones included. `on_error` is called with the exception of a row that cannot be read, which else is raised
    /// in its place; the iteration can go on after it.
    #[pyo3(signature = (*, on_error=None))]
    fn processes(&self, py: Python<'_>, on_error: Option<Py<PyAny>>) -> PyResult<Rows> {
        self.list(py, on_error, |attached| collect(attached.guest().processes(), Row::Process))
    }

    /// All threads of all processes.
    #[pyo3(signature = (*, on_error=None))]
    fn threads(&self, py: Python<'_>, on_error: Option<Py<PyAny>>) -> PyResult<Rows> {
        self.list(py, on_error, |attached| collect(attached.guest().threads(), Row::Thread))
    }

    /// The processes by every view that the system has of them, which tells those that something hides. Of a running guest the views are of different
    /// moments: pause it. Errors of views come behind the processes.
    #[pyo3(signature = (*, on_error=None))]
    fn survey_processes(&self, py: Python<'_>, on_error: Option<Py<PyAny>>) -> PyResult<Rows> {
        self.list(py, on_error, |attached| survey(attached.guest()))
    }

    /// The loaded kernel modules.
    #[pyo3(signature = (*, on_error=None))]
    fn modules(&self, py: Python<'_>, on_error: Option<Py<PyAny>>) -> PyResult<Rows> {
        self.list(py, on_error, |attached| collect(attached.guest().modules(), Row::Module))
    }

    /// The memory areas of a process, ascending.
    #[pyo3(signature = (pid, *, on_error=None))]
    fn memory_areas(&self, py: Python<'_>, pid: u32, on_error: Option<Py<PyAny>>) -> PyResult<Rows> {
        self.list(py, on_error, move |attached| collect(attached.guest().memory_areas(pid), Row::MemoryArea))
    }

    /// The kernel's log, oldest record first.
    #[pyo3(signature = (*, on_error=None))]
    fn kernel_log(&self, py: Python<'_>, on_error: Option<Py<PyAny>>) -> PyResult<Rows> {
        self.list(py, on_error, |attached| collect(attached.guest().kernel_log(), Row::LogRecord))
    }

    /// The process with this id; NoObjectError if there is none.
    fn process(&self, py: Python<'_>, pid: u32) -> PyResult<Process> {
        self.attached.handle.check()?;
        let found = py.detach(|| self.attached.guest().process(pid));
        Ok(Process::new(self.attached.clone(), found.raise(py)?))
    }

    /// The process that a vCPU runs. Certain only while the guest stands still.
    #[pyo3(signature = (vcpu=0))]
    fn running_on(&self, py: Python<'_>, vcpu: u32) -> PyResult<Process> {
        self.attached.handle.check()?;
        let found = py.detach(|| self.attached.guest().running_on(VcpuId(vcpu))).raise(py)?;
        Ok(Process::new(self.attached.clone(), found))
    }

    /// The process whose page tables start at `root`; `None` if none does.
    fn process_of(&self, py: Python<'_>, root: u64) -> PyResult<Option<Process>> {
        self.attached.handle.check()?;
        let found = py.detach(|| self.attached.guest().process_of(PhysAddr::new(root))).raise(py)?;
        Ok(found.map(|process| Process::new(self.attached.clone(), process)))
    }

    /// Where a virtual address lies: in a process if `pid` names one, else in the kernel. Takes symbols too.
    #[pyo3(signature = (at, pid=None))]
    fn translate(&self, py: Python<'_>, at: &Bound<'_, PyAny>, pid: Option<u32>) -> PyResult<Translation> {
        let at = self.attached.place(py, at)?;
        let found = py.detach(|| self.attached.guest().translate(pid, VirtAddr::new(at)));
        Ok(found.raise(py)?.into())
    }

    /// The structure or union `name` at `at`, a number or a symbol, whose members are attributes. `memory` is the kernel's if not given.
    #[pyo3(name = "struct", signature = (name, at, memory=None))]
    fn structure(
        &self,
        py: Python<'_>,
        name: &str,
        at: &Bound<'_, PyAny>,
        memory: Option<&Bound<'_, Memory>>,
    ) -> PyResult<Struct> {
        let at = self.attached.place(py, at)?;
        let memory = memory.map_or_else(|| self.kernel.clone(), |memory| memory.get().clone());
        Struct::named(py, &Scope { guest: self.attached.clone(), memory }, name, at)
    }

    /// The structure `name` whose member `member` is at `at`, as C's container_of.
    fn container_of(&self, py: Python<'_>, at: &Bound<'_, PyAny>, name: &str, member: &str) -> PyResult<Struct> {
        let at = self.attached.place(py, at)?;
        let field = self.attached.types().field(name, member).raise(py)?;
        let start = VirtAddr::new(at).wrapping_sub(field.offset).get();
        Struct::named(py, &Scope { guest: self.attached.clone(), memory: self.kernel.clone() }, name, start)
    }

    fn __repr__(&self) -> String {
        match self.open() {
            Ok(guest) => format!("<vmi.Guest {}>", guest.version()),
            Err(_) => "<vmi.Guest, closed>".to_owned(),
        }
    }
}
