//! The handle on one machine.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyMemoryView, PyString, PyTuple};
use vmi::file::{Format, OpenOptions};
use vmi::{AnyDriver, Capability, Driver as _, Liveness, Options, Target, VcpuId, Vcpus as _, Vmi, owned};

use crate::errors::{AttachError, ClosedError, OpenError, Raise, UnsupportedError, WriteImageError};
use crate::events::Events;
use crate::guest::Guest;
use crate::memory::Memory;
use crate::pause::Paused;
use crate::registers::Registers;
use crate::snapshot::SnapshotReport;

/// A machine, as all that reads it shares it.
pub(crate) struct Shared {
    pub(crate) machine: owned::Machine,
    /// Its guest-physical memory.
    pub(crate) physical: owned::Memory,
    /// Whether memory is mapped into this process: short reads are a copy and need not let other threads of Python run.
    pub(crate) mapped: bool,
    report: Option<Py<SnapshotReport>>,
}

impl Shared {
    pub(crate) fn vmi(&self) -> &Vmi<AnyDriver> {
        self.machine.vmi()
    }
}

/// The way of every object to its machine, until that is closed.
#[derive(Clone)]
pub(crate) struct Handle(Arc<RwLock<Option<Arc<Shared>>>>);

impl Handle {
    fn new(shared: Shared) -> Self {
        Self(Arc::new(RwLock::new(Some(Arc::new(shared)))))
    }

    /// The machine.
    #[inline]
    pub(crate) fn get(&self) -> PyResult<Arc<Shared>> {
        let open = self.0.read().unwrap_or_else(PoisonError::into_inner);
        open.clone().ok_or_else(|| PyErr::new::<ClosedError, _>("the machine was closed"))
    }

    /// Nothing if the machine is open.
    pub(crate) fn check(&self) -> PyResult<()> {
        self.get().map(drop)
    }

    fn close(&self) -> Option<Arc<Shared>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A run of guest-physical memory.
#[pyclass(frozen, get_all, eq, hash, module = "vmi")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Region {
    /// First address.
    start: u64,
    /// First address behind it.
    end: u64,
}

impl From<vmi::Region> for Region {
    fn from(region: vmi::Region) -> Self {
        Self { start: region.start().get(), end: region.end().get() }
    }
}

#[pymethods]
impl Region {
    fn __len__(&self) -> PyResult<usize> {
        Ok(usize::try_from(self.end.wrapping_sub(self.start))?)
    }

    fn __contains__(&self, at: u64) -> bool {
        (self.start..self.end).contains(&at)
    }

    fn __repr__(&self) -> String {
        format!("Region({:#x}, {:#x})", self.start, self.end)
    }

    /// The attributes as a dictionary.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("start", self.start)?;
        dict.set_item("end", self.end)?;
        Ok(dict)
    }
}

/// Opens a memory image, compressed or not, or a running guest: "guest.lime", "qemu:/run/guest.qmp".
///
/// raw_map: where the memory of a raw image lies, as "0x0-0xc0000000,0x100000000-0x140000000".
/// allow_truncated: read what there is of an image that is cut short.
/// base: lay the image over this one, as a differential snapshot over the full one.
/// snapshot: read the snapshot of this name, or number, of a disk image with several; by default the newest with memory.
/// road: read a running guest in this way or not at all: "shared", "process", "pmemaccess", "gdb".
#[pyfunction]
#[pyo3(signature = (target, *, raw_map=None, allow_truncated=false, base=None, snapshot=None, road=None))]
pub(crate) fn open(
    py: Python<'_>,
    target: &Bound<'_, PyAny>,
    raw_map: Option<&str>,
    allow_truncated: bool,
    base: Option<PathBuf>,
    snapshot: Option<String>,
    road: Option<&str>,
) -> PyResult<Machine> {
    let target: Target = match target.cast::<PyString>() {
        Ok(text) => Target::from(&*text.to_cow()?),
        Err(_) => Target::from(target.extract::<PathBuf>()?),
    };
    let mut image = OpenOptions::new().allow_truncated(allow_truncated);
    if let Some(map) = raw_map {
        image = image.raw_map(map.parse().map_err(|error| PyValueError::new_err(format!("raw_map: {error}")))?);
    }
    if let Some(base) = base {
        image = image.base(base);
    }
    if let Some(name) = snapshot {
        image = image.snapshot(name);
    }
    let mut qemu = ::vmi::kvm::Options::new();
    if let Some(road) = road {
        qemu = qemu.road(road.parse().map_err(|error: ::vmi::kvm::UnknownRoad| PyValueError::new_err(error.to_string()))?);
    }
    #[allow(clippy::needless_update, reason = "features of the facade add fields")]
    let options = Options { image, qemu, ..Options::default() };
    let opened = py.detach(|| ::vmi::open_with(target, options).map_err(|error| ::vmi::with_causes(&error)));
    Ok(Machine::new(owned::Machine::new(opened.map_err(PyErr::new::<OpenError, _>)?), None))
}

/// One machine: a memory image, a snapshot or a running guest. A context manager that closes it.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct Machine {
    handle: Handle,
    memory: Memory,
}

impl Machine {
    fn new(machine: owned::Machine, report: Option<Py<SnapshotReport>>) -> Self {
        let mapped = machine.vmi().driver().mapping().is_some();
        let handle = Handle::new(Shared { physical: machine.memory(), machine, mapped, report });
        Self { memory: Memory::physical(handle.clone()), handle }
    }
}

#[pymethods]
impl Machine {
    /// The back end and the guest, in words.
    #[getter]
    fn name(&self) -> PyResult<String> {
        Ok(self.handle.get()?.vmi().machine().name.clone())
    }

    /// Whether memory never changes: an image or a snapshot.
    #[getter]
    fn frozen(&self) -> PyResult<bool> {
        Ok(self.handle.get()?.vmi().machine().liveness == Liveness::Frozen)
    }

    /// Where guest-physical memory is, ascending; what lies between is a hole.
    #[getter]
    fn memory_map(&self) -> PyResult<Vec<Region>> {
        let shared = self.handle.get()?;
        Ok(shared.vmi().machine().memory.regions().iter().map(|region| Region::from(*region)).collect())
    }

    /// Bytes of memory in all regions.
    #[getter]
    fn memory_size(&self) -> PyResult<u64> {
        Ok(self.handle.get()?.vmi().machine().memory.total())
    }

    /// First address behind the highest region.
    #[getter]
    fn memory_end(&self) -> PyResult<u64> {
        Ok(self.handle.get()?.vmi().machine().memory.end().get())
    }

    /// How many vCPUs the source shows; 0 if it shows none.
    #[getter]
    fn vcpu_count(&self) -> PyResult<u32> {
        Ok(self.handle.get()?.vmi().driver().vcpu_count())
    }

    /// What the source can do: some of "write_memory", "vcpus", "write_vcpus", "control", "events".
    #[getter]
    fn capabilities(&self) -> PyResult<Vec<&'static str>> {
        let shared = self.handle.get()?;
        let name = |capability| match capability {
            Capability::WriteMemory => Some("write_memory"),
            Capability::Vcpus => Some("vcpus"),
            Capability::WriteVcpus => Some("write_vcpus"),
            Capability::Control => Some("control"),
            Capability::Events => Some("events"),
            _ => None,
        };
        Ok(shared.machine.capabilities().into_iter().filter_map(name).collect())
    }

    /// How the snapshot was made; `None` if this is none.
    #[getter]
    fn snapshot_report(&self, py: Python<'_>) -> PyResult<Option<Py<SnapshotReport>>> {
        Ok(self.handle.get()?.report.as_ref().map(|report| report.clone_ref(py)))
    }

    /// Whether the machine is still there; raises EndedError if not. Mapped memory stays readable after its guest has ended.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        let shared = self.handle.get()?;
        py.detach(|| shared.vmi().driver().check()).raise(py)
    }

    /// Guest-physical memory, with all ways of reading it.
    #[getter]
    fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// The memory that the page tables at `root` map. `mode`: "32-bit", "pae", "4-level" or "5-level".
    #[pyo3(signature = (root, mode="4-level"))]
    fn address_space(&self, root: u64, mode: &str) -> PyResult<Memory> {
        Memory::of_tables(&self.handle, root, mode)
    }

    /// Reads `length` bytes of guest-physical memory.
    fn read<'py>(&self, py: Python<'py>, at: &Bound<'py, PyAny>, length: usize) -> PyResult<Bound<'py, PyBytes>> {
        self.memory.read(py, at, length)
    }

    /// Fills a writable buffer with guest-physical memory.
    fn read_into(&self, py: Python<'_>, at: &Bound<'_, PyAny>, buffer: &Bound<'_, PyAny>) -> PyResult<()> {
        self.memory.read_into(py, at, buffer)
    }

    /// Reads guest-physical memory with zeros for what is not there: the bytes, and the padded ranges as (start, end) offsets.
    #[allow(clippy::type_complexity, reason = "Python's tuple")]
    fn zread<'py>(
        &self,
        py: Python<'py>,
        at: &Bound<'py, PyAny>,
        length: usize,
    ) -> PyResult<(Bound<'py, PyBytes>, Vec<(usize, usize)>)> {
        self.memory.zread(py, at, length)
    }

    /// Writes guest-physical memory.
    fn write(&self, py: Python<'_>, at: &Bound<'_, PyAny>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        self.memory.write(py, at, data)
    }

    /// Lends frozen guest-physical memory without copying it.
    fn view<'py>(&self, py: Python<'py>, at: &Bound<'py, PyAny>, length: usize) -> PyResult<Bound<'py, PyMemoryView>> {
        self.memory.view(py, at, length)
    }

    /// The registers of one vCPU.
    #[pyo3(signature = (vcpu=0))]
    fn registers(&self, py: Python<'_>, vcpu: u32) -> PyResult<Registers> {
        let shared = self.handle.get()?;
        let registers = py.detach(|| shared.vmi().registers(VcpuId(vcpu))).raise(py)?;
        Ok(Registers::new(registers))
    }

    /// Sets the registers of one vCPU. The guest must stand still.
    fn set_registers(&self, py: Python<'_>, vcpu: u32, registers: &Bound<'_, Registers>) -> PyResult<()> {
        let shared = self.handle.get()?;
        let registers = registers.get().copy();
        py.detach(|| shared.vmi().set_registers(VcpuId(vcpu), &registers)).raise(py)
    }

    /// Stops the guest until the context ends.
    fn pause(&self, py: Python<'_>) -> PyResult<Paused> {
        Paused::new(py, &self.handle.get()?.machine)
    }

    /// A frozen copy of all memory and registers, of one moment.
    fn snapshot(&self, py: Python<'_>) -> PyResult<Self> {
        let shared = self.handle.get()?;
        let (frozen, report) = py.detach(|| shared.machine.snapshot()).raise(py)?;
        let report = Py::new(py, SnapshotReport::new(&report))?;
        Ok(Self::new(frozen, Some(report)))
    }

    /// Opens an event session.
    fn events(&self, py: Python<'_>) -> PyResult<Events> {
        Events::new(py, self.handle.clone())
    }

    /// Writes all memory to an image file: "raw", "lime", "avml", "elf" or "kdump". Returns the regions that could not be read and are
    /// zero in it.
    #[pyo3(signature = (path, format="lime"))]
    fn write_image(&self, py: Python<'_>, path: PathBuf, format: &str) -> PyResult<Vec<Region>> {
        let format = match format {
            "raw" => Format::Raw,
            "lime" => Format::Lime,
            "avml" => Format::Avml,
            "elf" => Format::Elf,
            "kdump" => Format::Kdump,
            other => return Err(PyValueError::new_err(format!("no image format `{other}`: raw, lime, avml, elf, kdump"))),
        };
        let shared = self.handle.get()?;
        let written = py.detach(|| {
            ::vmi::file::write::image(shared.vmi(), path, format, |_, _| {}).map_err(|error| ::vmi::with_causes(&error))
        });
        let summary = written.map_err(PyErr::new::<WriteImageError, _>)?;
        Ok(summary.unreadable.into_iter().map(Region::from).collect())
    }

    /// Finds the operating system inside. `symbols`: files that describe a kernel which does not describe itself. `download`: fetch symbol
    /// files of Windows that are nowhere on this host from the servers that _NT_SYMBOL_PATH names, or from Microsoft's.
    #[pyo3(signature = (*, symbols=Vec::new(), download=false))]
    fn attach(&self, py: Python<'_>, symbols: Vec<PathBuf>, download: bool) -> PyResult<Guest> {
        let shared = self.handle.get()?;
        if download && !cfg!(feature = "download") {
            return Err(PyErr::new::<UnsupportedError, _>("this module was built without the feature `download`"));
        }
        let handle = self.handle.clone();
        py.detach(|| Guest::attach(handle, &shared.machine, &symbols, download)).map_err(PyErr::new::<AttachError, _>)
    }

    /// Whether it was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.handle.check().is_err()
    }

    /// Closes the machine: every later use of it and of what came from it raises ClosedError. A second call does nothing.
    fn close(&self, py: Python<'_>) {
        let shared = self.handle.close();
        py.detach(|| drop(shared));
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) {
        self.close(py);
    }

    fn __repr__(&self) -> String {
        match self.handle.get() {
            Ok(shared) => format!("<vmi.Machine {}>", shared.vmi().machine().name),
            Err(_) => "<vmi.Machine, closed>".to_owned(),
        }
    }
}
