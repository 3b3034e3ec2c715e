//! The operating system inside a machine.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use self_cell::self_cell;
use vmi::linux::{Linux, discover, symbol_files};
use vmi::{AnyDriver, PhysAddr, TypeId, TypeSource, VcpuId, VirtAddr};

use crate::address;
use crate::errors::{NoTypeError, Raise, with_causes};
use crate::layouts::Layout;
use crate::machine::{Handle, Shared};
use crate::memory::{Memory, Source, Translation};
use crate::process::Process;
use crate::rows::{Row, Rows};
use crate::symbols::Symbols;
use crate::types::Types;
use crate::values::{Scope, Struct};

/// The systems that are told apart: a new one is a variant here, and a line in each of the methods.
pub(crate) enum System<'v> {
    Linux(Box<Linux<'v, AnyDriver>>),
}

impl<'v> System<'v> {
    fn attach(shared: &'v Shared, symbols: &[PathBuf]) -> Result<Self, String> {
        let vmi = &shared.vmi;
        let linux = || -> Result<Linux<'v, AnyDriver>, Box<dyn std::error::Error + Send + Sync>> {
            let mut options = discover::Options::default();
            for path in symbols {
                let file = symbol_files::open(path)?;
                options.symbols = file.symbols.map(Arc::new).or(options.symbols);
                options.types = file.types.or(options.types);
            }
            Ok(Linux::with_kernel(vmi, discover::find_with(vmi, &options)?)?)
        };
        let failed = match linux() {
            Ok(linux) => return Ok(Self::Linux(Box::new(linux))),
            Err(error) => format!("Linux: {}", with_causes(&*error)),
        };
        Err(format!("{}: no operating system was recognised\n{failed}", vmi.machine().name))
    }

    /// The guest, if it is a Linux one.
    pub(crate) fn linux(&self) -> Option<&Linux<'v, AnyDriver>> {
        match self {
            Self::Linux(linux) => Some(linux),
        }
    }

    fn guest(&self) -> &dyn vmi::Guest {
        match self {
            Self::Linux(linux) => &**linux,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Linux(_) => "linux",
        }
    }

    fn types(&self) -> Option<&dyn TypeSource> {
        match self {
            Self::Linux(linux) => Some(linux.types()),
        }
    }

    /// The structure of a process and of a thread.
    fn structures(&self) -> (&'static str, &'static str) {
        match self {
            Self::Linux(_) => ("task_struct", "task_struct"),
        }
    }
}

self_cell!(
    struct Cell {
        owner: Arc<Shared>,
        #[covariant]
        dependent: System,
    }
);

/// A guest together with the machine that it borrows.
pub(crate) struct Attached {
    pub(crate) handle: Handle,
    cell: Cell,
    /// Layouts of structures that were asked for: a program asks for few, again and again.
    pub(crate) layouts: Mutex<HashMap<TypeId, Arc<Layout>>>,
}

impl Attached {
    pub(crate) fn system(&self) -> &System<'_> {
        self.cell.borrow_dependent()
    }

    pub(crate) fn guest(&self) -> &dyn vmi::Guest {
        self.system().guest()
    }

    pub(crate) fn types(&self) -> Option<&dyn TypeSource> {
        self.system().types()
    }

    pub(crate) fn structure_of_process(&self) -> &'static str {
        self.system().structures().0
    }

    pub(crate) fn structure_of_thread(&self) -> &'static str {
        self.system().structures().1
    }

    /// The guest's types.
    pub(crate) fn require_types(&self) -> PyResult<&dyn TypeSource> {
        let missing = || PyErr::new::<NoTypeError, _>("nothing describes the types of this guest");
        self.types().ok_or_else(missing)
    }

    /// The address that a number or a symbol names.
    pub(crate) fn place(&self, py: Python<'_>, at: &Bound<'_, PyAny>) -> PyResult<u64> {
        self.handle.check()?;
        let Some(text) = address::text(at)? else { return address::number(at) };
        let (name, offset) = address::symbol_and_offset(&text)?;
        let symbol = py.detach(|| self.guest().symbols().address(name)).raise(py)?;
        Ok(symbol.wrapping_add(offset).get())
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
    pub(crate) fn attach(handle: Handle, shared: Arc<Shared>, symbols: &[PathBuf]) -> Result<Self, String> {
        let cell = Cell::try_new(shared, |shared| System::attach(shared, symbols))?;
        let attached = Arc::new(Attached { handle: handle.clone(), cell, layouts: Mutex::default() });
        Ok(Self { kernel: Memory::new(handle, Source::Kernel(attached.clone())), attached })
    }

    /// The system, if the machine is open.
    fn open(&self) -> PyResult<&dyn vmi::Guest> {
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
    /// The system: "linux".
    #[getter]
    fn system(&self) -> PyResult<&'static str> {
        self.attached.handle.check()?;
        Ok(self.attached.system().name())
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
        self.attached.require_types()?;
        Ok(Types::new(self.attached.clone()))
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
        let found = py.detach(|| {
            let mut failed = None;
            for row in self.attached.guest().processes() {
                match row {
                    Ok(process) if process.pid == pid => return Ok(process),
                    Ok(_) => {}
                    Err(error) => failed = Some(error),
                }
            }
            Err(failed.unwrap_or_else(|| vmi::ErrorKind::NoObject { what: format!("process {pid}") }.into()))
        });
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
        let field = self.attached.require_types()?.field(name, member).raise(py)?;
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
