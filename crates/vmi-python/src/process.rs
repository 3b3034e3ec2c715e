//! Processes and threads.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use vmi::{Guest as _, VirtAddr};

use crate::errors::Raise;
use crate::guest::{Attached, collect};
use crate::memory::Memory;
use crate::rows::{Row, Rows, datetime};
use crate::values::{Scope, Struct};

/// A process, as it was when it was listed. What its methods read is read when they are called.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct Process {
    guest: Arc<Attached>,
    row: vmi::Process,
    memory: Memory,
}

impl Process {
    pub(crate) fn new(guest: Arc<Attached>, row: vmi::Process) -> Self {
        let memory = Memory::of(guest.handle.clone(), guest.guest().process_memory(row.pid));
        Self { guest, row, memory }
    }

    /// What was listed.
    pub(crate) fn row(&self) -> &vmi::Process {
        &self.row
    }

    pub(crate) fn roots(&self, py: Python<'_>) -> PyResult<Vec<vmi::PhysAddr>> {
        self.guest.handle.check()?;
        Ok(py.detach(|| self.guest.guest().page_tables(&self.row)))
    }
}

#[pymethods]
impl Process {
    /// Process id.
    #[getter]
    fn pid(&self) -> u32 {
        self.row.pid
    }

    /// Id of the parent process.
    #[getter]
    fn parent_pid(&self) -> Option<u32> {
        self.row.parent_pid
    }

    /// Short name.
    #[getter]
    fn name(&self) -> &str {
        &self.row.name
    }

    /// What it is doing, as the letter that ps prints.
    #[getter]
    fn state(&self) -> Option<char> {
        self.row.state.map(vmi::State::letter)
    }

    /// Effective user id.
    #[getter]
    fn uid(&self) -> Option<u32> {
        self.row.uid
    }

    /// Effective group id.
    #[getter]
    fn gid(&self) -> Option<u32> {
        self.row.gid
    }

    /// Whether it is a kernel thread.
    #[getter]
    fn kernel(&self) -> bool {
        self.row.kernel
    }

    /// When it started, as an aware datetime.
    #[getter]
    fn started<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        datetime(py, self.row.started)
    }

    /// Arguments, the first being the program; `None` if they cannot be read.
    #[getter]
    fn command_line(&self) -> Option<Vec<String>> {
        self.row.command_line.clone()
    }

    /// Root of its page tables.
    #[getter]
    fn page_table(&self) -> Option<u64> {
        self.row.page_table.map(vmi::PhysAddr::get)
    }

    /// Where its structure is in kernel memory.
    #[getter]
    fn object(&self) -> u64 {
        self.row.object.get()
    }

    /// The roots of all page tables that it runs on: with page-table isolation two, for a kernel thread none.
    #[getter]
    fn page_tables(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        Ok(self.roots(py)?.into_iter().map(vmi::PhysAddr::get).collect())
    }

    /// Its memory.
    #[getter]
    fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// Its structure in kernel memory: task_struct of a Linux guest, _EPROCESS of a Windows one.
    #[getter(r#struct)]
    fn structure(&self, py: Python<'_>) -> PyResult<Struct> {
        let scope = Scope { guest: self.guest.clone(), memory: self.guest.kernel() };
        Struct::named(py, &scope, self.guest.structure_of_process(), self.row.object.get())
    }

    /// Its memory areas, ascending.
    #[pyo3(signature = (*, on_error=None))]
    fn memory_areas(&self, py: Python<'_>, on_error: Option<Py<PyAny>>) -> PyResult<Rows> {
        self.guest.handle.check()?;
        let rows = py.detach(|| collect(self.guest.guest().memory_areas(self.row.pid), Row::MemoryArea));
        Ok(Rows::new(self.guest.clone(), rows, on_error))
    }

    /// Its threads.
    #[pyo3(signature = (*, on_error=None))]
    fn threads(&self, py: Python<'_>, on_error: Option<Py<PyAny>>) -> PyResult<Rows> {
        self.guest.handle.check()?;
        let pid = self.row.pid;
        let rows = py.detach(|| {
            let ours = |row: &vmi::Result<vmi::Thread>| row.as_ref().map_or(true, |thread| thread.pid == pid);
            self.guest.guest().threads().filter(ours).map(|row| row.map(Row::Thread)).collect()
        });
        Ok(Rows::new(self.guest.clone(), rows, on_error))
    }

    /// The environment, "NAME=value" each: under Linux the one that it was started with. None for a process without.
    fn environment(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.guest.handle.check()?;
        py.detach(|| self.guest.guest().environment(&self.row)).raise(py)
    }

    /// Path of the program that it runs, as the kernel knows it; `None` if it has none.
    fn executable(&self, py: Python<'_>) -> PyResult<Option<String>> {
        self.guest.handle.check()?;
        py.detach(|| self.guest.guest().executable(&self.row)).raise(py)
    }

    /// The attributes as a dictionary.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("pid", self.pid())?;
        dict.set_item("parent_pid", self.parent_pid())?;
        dict.set_item("name", self.name())?;
        dict.set_item("state", self.state())?;
        dict.set_item("uid", self.uid())?;
        dict.set_item("gid", self.gid())?;
        dict.set_item("kernel", self.kernel())?;
        dict.set_item("started", self.started(py))?;
        dict.set_item("command_line", self.command_line())?;
        dict.set_item("page_table", self.page_table())?;
        dict.set_item("object", self.object())?;
        Ok(dict)
    }

    fn __repr__(&self) -> String {
        format!("<process {} {:?}>", self.row.pid, self.row.name)
    }
}

/// A thread, as it was when it was listed.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct Thread {
    guest: Arc<Attached>,
    row: vmi::Thread,
}

impl Thread {
    pub(crate) fn new(guest: Arc<Attached>, row: vmi::Thread) -> Self {
        Self { guest, row }
    }
}

#[pymethods]
impl Thread {
    /// Thread id.
    #[getter]
    fn tid(&self) -> u32 {
        self.row.tid
    }

    /// Id of its process.
    #[getter]
    fn pid(&self) -> u32 {
        self.row.pid
    }

    /// Short name.
    #[getter]
    fn name(&self) -> &str {
        &self.row.name
    }

    /// What it is doing, as the letter that ps prints.
    #[getter]
    fn state(&self) -> Option<char> {
        self.row.state.map(vmi::State::letter)
    }

    /// Where its structure is in kernel memory.
    #[getter]
    fn object(&self) -> u64 {
        self.row.object.get()
    }

    /// Its structure in kernel memory: task_struct of a Linux guest, _ETHREAD of a Windows one.
    #[getter(r#struct)]
    fn structure(&self, py: Python<'_>) -> PyResult<Struct> {
        let scope = Scope { guest: self.guest.clone(), memory: self.guest.kernel() };
        let at: VirtAddr = self.row.object;
        Struct::named(py, &scope, self.guest.structure_of_thread(), at.get())
    }

    /// The attributes as a dictionary.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("tid", self.tid())?;
        dict.set_item("pid", self.pid())?;
        dict.set_item("name", self.name())?;
        dict.set_item("state", self.state())?;
        dict.set_item("object", self.object())?;
        Ok(dict)
    }

    fn __repr__(&self) -> String {
        format!("<thread {} of process {} {:?}>", self.row.tid, self.row.pid, self.row.name)
    }
}
