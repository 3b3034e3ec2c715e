//! Something that a vCPU did, and how it is answered.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use vmi::x86::Registers as Values;
use vmi::{Emulation, Reply, ViewId, What, owned};

use crate::errors::Raise;
use crate::registers::Registers;
use crate::watch;

/// Something that a vCPU did. It stands still until this is answered, or nothing refers to it any more.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct Event(pub(crate) owned::Event);

impl Event {
    /// Lets the guest go on, if that was not said yet.
    pub(crate) fn let_go(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.let_go()).raise(py)
    }

    fn answer(
        &self,
        py: Python<'_>,
        reply: Reply<Values>,
        registers: Option<&Bound<'_, Registers>>,
        view: Option<u16>,
    ) -> PyResult<()> {
        let reply = Reply { registers: registers.map(|registers| registers.get().copy()), view: view.map(ViewId), ..reply };
        py.detach(|| self.0.reply(reply)).raise(py)
    }
}

#[pymethods]
impl Event {
    /// The vCPU that did it.
    #[getter]
    fn vcpu(&self) -> u32 {
        self.0.vcpu().0
    }

    /// The registers of that vCPU: a copy.
    #[getter]
    fn registers(&self) -> Registers {
        Registers::new(*self.0.registers())
    }

    /// What it did: "software breakpoint", "hardware breakpoint", "write watchpoint", "read watchpoint", "access watchpoint", "memory access", "step", "stop";
    /// or what belongs to the processor: "control register", "msr", "cpuid" and so on.
    #[getter]
    fn kind(&self) -> String {
        match self.0.what() {
            What::Trapped { place, .. } => place.kind.to_string(),
            What::Stepped => "step".to_owned(),
            What::Memory(_) => "memory access".to_owned(),
            What::Processor(incident) => incident.name().to_owned(),
            _ => "stop".to_owned(),
        }
    }

    /// The address of the instruction, or of the memory that was touched (of a "memory access" the guest-physical one); `None` for others.
    #[getter]
    fn address(&self) -> Option<u64> {
        match self.0.what() {
            What::Trapped { at, .. } => Some(at.get()),
            What::Memory(access) => Some(access.at.get()),
            _ => None,
        }
    }

    /// What else is known of it, by its kind: of a "control register" `register`, `new` and `old`; of an "msr" `index`, `new` and `old`; of "cpuid" `leaf` and `subleaf`; of
    /// a "memory access" `access`, `linear`, `origin` and `view`. Empty for kinds that have no more.
    #[getter]
    fn details<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        match self.0.what() {
            What::Memory(access) => watch::of_access(py, &access),
            What::Processor(incident) => watch::of_incident(py, &incident),
            _ => Ok(PyDict::new(py)),
        }
    }

    /// The instruction pointer: behind the instruction that touched watched virtual memory, at the instruction of all others.
    #[getter]
    fn instruction(&self) -> u64 {
        self.0.registers().rip
    }

    /// The number of the trap that was sprung.
    #[getter]
    fn trap(&self) -> Option<u64> {
        self.0.trap().map(|trap| trap.0)
    }

    /// Whether it was answered, and the guest went on.
    #[getter]
    fn answered(&self) -> bool {
        self.0.is_answered()
    }

    /// Lets the guest go on, with `registers` in the vCPU and in the view of memory `view` if they are given.
    #[pyo3(signature = (registers=None, *, view=None))]
    fn resume(&self, py: Python<'_>, registers: Option<&Bound<'_, Registers>>, view: Option<u16>) -> PyResult<()> {
        self.answer(py, Reply::resume(), registers, view)
    }

    /// Lets the vCPU run one instruction, after which there is an event of kind "step".
    #[pyo3(signature = (registers=None, *, view=None))]
    fn step(&self, py: Python<'_>, registers: Option<&Bound<'_, Registers>>, view: Option<u16>) -> PyResult<()> {
        self.answer(py, Reply::step(), registers, view)
    }

    /// Lets the guest go on without what caused the event: the register keeps its value.
    #[pyo3(signature = (registers=None, *, view=None))]
    fn deny(&self, py: Python<'_>, registers: Option<&Bound<'_, Registers>>, view: Option<u16>) -> PyResult<()> {
        self.answer(py, Reply::deny(), registers, view)
    }

    /// Gives the breakpoint or exception to the guest, even where it came from a trap.
    #[pyo3(signature = (registers=None, *, view=None))]
    fn reinject(&self, py: Python<'_>, registers: Option<&Bound<'_, Registers>>, view: Option<u16>) -> PyResult<()> {
        self.answer(py, Reply::reinject(), registers, view)
    }

    /// Has the hypervisor emulate the instruction: `without_writes`, `reading` these bytes in place of what it reads of memory, or with these 16 bytes in place of the
    /// `instruction` itself. At most one of the three.
    #[pyo3(signature = (*, without_writes=false, reading=None, instruction=None, view=None))]
    fn emulate(
        &self,
        py: Python<'_>,
        without_writes: bool,
        reading: Option<Vec<u8>>,
        instruction: Option<[u8; 16]>,
        view: Option<u16>,
    ) -> PyResult<()> {
        let how = match (without_writes, reading, instruction) {
            (false, None, None) => Emulation::Plain,
            (true, None, None) => Emulation::WithoutWrites,
            (false, Some(bytes), None) => Emulation::Reading(bytes),
            (false, None, Some(bytes)) => Emulation::Instruction(bytes),
            _ => return Err(PyValueError::new_err("at most one of without_writes, reading and instruction")),
        };
        self.answer(py, Reply::emulate(how), None, view)
    }

    /// The attributes as a dictionary, those of `details` among them.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("vcpu", self.vcpu())?;
        dict.set_item("kind", self.kind())?;
        dict.set_item("address", self.address())?;
        dict.set_item("instruction", self.instruction())?;
        dict.set_item("trap", self.trap())?;
        dict.update(self.details(py)?.as_mapping())?;
        Ok(dict)
    }

    fn __repr__(&self) -> String {
        format!("<event {} on vCPU {} at {:#x}>", self.kind(), self.vcpu(), self.instruction())
    }
}
