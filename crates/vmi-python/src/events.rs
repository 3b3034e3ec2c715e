//! Event sessions: what vCPUs do, as it happens.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use vmi::x86::{Injection, Watch, X86};
use vmi::{PhysAddr, TrapId, VcpuId, ViewId, VirtAddr, owned};

use crate::errors::{ClosedError, Raise};
use crate::event::Event;
use crate::machine::Handle;
use crate::process::Process;
use crate::watch;

type Trap = vmi::Trap<X86>;

/// How long to wait at a time: signals of Python (Ctrl-C) are looked at in between.
const TURN: Duration = Duration::from_millis(100);
/// The longest wait that is taken seriously; more means for ever.
const LONGEST: f64 = 1e9;

/// An event session. The guest runs on, and each trap that is sprung is an event of the iteration, until the context ends: then all traps are
/// gone.
///
/// While an event is held the vCPU that caused it stands still (with QEMU's gdb stub: all of them). It goes on when the event is answered,
/// when the next one is asked for, or when nothing refers to the event any more.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct Events {
    handle: Handle,
    session: Mutex<Option<Arc<owned::Events>>>,
}

impl Events {
    pub(crate) fn new(py: Python<'_>, handle: Handle) -> PyResult<Self> {
        let shared = handle.get()?;
        let session = py.detach(|| shared.machine.events()).raise(py)?;
        Ok(Self { handle, session: Mutex::new(Some(Arc::new(session))) })
    }

    /// Asks the session.
    fn ask<T: Send>(
        &self,
        py: Python<'_>,
        question: impl FnOnce(&owned::Events) -> Result<T, owned::SessionError> + Send,
    ) -> PyResult<T> {
        self.handle.check()?;
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let session = session.ok_or_else(|| PyErr::new::<ClosedError, _>("the event session was closed"))?;
        py.detach(|| question(&session)).raise(py)
    }

    fn set(&self, py: Python<'_>, trap: Trap, within: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
        let roots = match within {
            None => Vec::new(),
            Some(within) => match within.cast::<Process>() {
                Ok(process) => {
                    let roots = process.get().roots(py)?;
                    if roots.is_empty() {
                        return Err(PyValueError::new_err("kernel threads have no memory of their own: they run in any"));
                    }
                    roots
                }
                Err(_) => within.extract::<Vec<u64>>()?.into_iter().map(PhysAddr::new).collect(),
            },
        };
        let trap = roots.into_iter().fold(trap, Trap::in_address_space);
        Ok(self.ask(py, |events| events.set(trap))?.0)
    }

    fn wait(&self, py: Python<'_>, limit: Option<Duration>) -> PyResult<Option<Event>> {
        let began = Instant::now();
        self.ask(py, owned::Events::let_go)?;
        loop {
            let left = limit.map_or(TURN, |limit| limit.saturating_sub(began.elapsed())).min(TURN);
            if let Some(event) = self.ask(py, |events| events.wait(left))? {
                return Ok(Some(Event(event)));
            }
            py.check_signals()?;
            if limit.is_some_and(|limit| began.elapsed() >= limit) {
                return Ok(None);
            }
        }
    }

    fn end(&self) {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(session) = session {
            session.end();
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.end();
    }
}

/// The seconds of Python as a limit.
fn seconds(limit: Option<f64>) -> PyResult<Option<Duration>> {
    match limit {
        None => Ok(None),
        Some(limit) if limit >= LONGEST => Ok(None),
        Some(limit) => Duration::try_from_secs_f64(limit.max(0.0))
            .map(Some)
            .map_err(|error| PyValueError::new_err(format!("timeout: {error}"))),
    }
}

#[pymethods]
impl Events {
    /// Sets a breakpoint: an event when the instruction at `at` is about to run. `hardware`: by a debug register, which changes no guest
    /// memory. `within`: only in this process, or on page tables with these roots. Returns the number of the trap.
    #[pyo3(signature = (at, *, hardware=false, within=None))]
    fn breakpoint(&self, py: Python<'_>, at: u64, hardware: bool, within: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
        let trap = Trap::breakpoint(VirtAddr::new(at));
        self.set(py, if hardware { trap.hardware() } else { trap }, within)
    }

    /// Sets a watchpoint: an event when any of `length` bytes at `at` is touched. `access`: "write", "read" or "access" (both). Returns the
    /// number of the trap.
    #[pyo3(signature = (at, length, access="write", *, within=None))]
    fn watchpoint(&self, py: Python<'_>, at: u64, length: u64, access: &str, within: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
        let at = VirtAddr::new(at);
        let trap = match access {
            "write" => Trap::write(at, length),
            "read" => Trap::read(at, length),
            "access" => Trap::access(at, length),
            other => return Err(PyValueError::new_err(format!("no access `{other}`: write, read, access"))),
        };
        self.set(py, trap, within)
    }

    /// Sets a trap on guest-physical memory: an event before any of `length` bytes at `at` is touched in one of the ways of `access`, some of "rwx". Returns the number of
    /// the trap.
    #[pyo3(signature = (at, length, access="w", *, within=None))]
    fn memory_access(
        &self,
        py: Python<'_>,
        at: u64,
        length: u64,
        access: &str,
        within: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<u64> {
        let on = watch::accesses(access)?;
        if on.is_none() {
            return Err(PyValueError::new_err("access: some of r, w, x"));
        }
        self.set(py, Trap::memory(PhysAddr::new(at), length, on), within)
    }

    /// Sets a trap on every instruction of a vCPU: each is an event of kind "step". Returns the number of the trap.
    #[pyo3(signature = (vcpu=0, *, within=None))]
    fn instructions(&self, py: Python<'_>, vcpu: u32, within: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
        self.set(py, Trap::instructions(VcpuId(vcpu)), within)
    }

    /// Sets a trap on writes of a control register: "cr0", "cr3", "cr4" or "xcr0". `on_change`: only if its value changes. Returns the number of the trap.
    #[pyo3(signature = (register, *, on_change=false, within=None))]
    fn control_register(
        &self,
        py: Python<'_>,
        register: &str,
        on_change: bool,
        within: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<u64> {
        let register = watch::control_register(register)?;
        self.set(py, Trap::processor(Watch::ControlRegister { register, on_change }), within)
    }

    /// Sets a trap on writes of a model-specific register. `on_change`: only if its value changes. Returns the number of the trap.
    #[pyo3(signature = (index, *, on_change=false, within=None))]
    fn msr(&self, py: Python<'_>, index: u32, on_change: bool, within: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
        self.set(py, Trap::processor(Watch::Msr { index, on_change }), within)
    }

    /// Sets a trap on what the processor does of its own, by the kind of the events: "cpuid", "debug exception", "own breakpoint", "descriptor table", "guest request",
    /// "privileged call", "emulation failure" or "exit". Returns the number of the trap.
    #[pyo3(signature = (kind, *, within=None))]
    fn watch(&self, py: Python<'_>, kind: &str, within: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
        self.set(py, Trap::processor(watch::watch(kind)?), within)
    }

    /// What the back end can report, and which answers it can carry out, for this guest: the names of methods and answers, "watchpoint", "msr", "deny" and others.
    #[getter]
    fn abilities(&self, py: Python<'_>) -> PyResult<Vec<&'static str>> {
        Ok(self.ask(py, owned::Events::abilities)?.iter().map(watch::ability).collect())
    }

    /// Makes a view: another arrangement of guest-physical memory, in which all of it may be accessed in the ways of `rights`, some of "rwx". Returns its number. It is
    /// gone at the end of the session.
    #[pyo3(signature = (rights="rwx"))]
    fn create_view(&self, py: Python<'_>, rights: &str) -> PyResult<u16> {
        let rights = watch::accesses(rights)?;
        Ok(self.ask(py, |events| events.create_view(rights))?.0)
    }

    /// Destroys a view; vCPUs in it go to view 0, the memory as it is.
    fn destroy_view(&self, py: Python<'_>, view: u16) -> PyResult<()> {
        self.ask(py, |events| events.destroy_view(ViewId(view)))
    }

    /// Says how the page at the guest-physical address `page` may be accessed in a view; what is not allowed is an event.
    fn allow(&self, py: Python<'_>, view: u16, page: u64, rights: &str) -> PyResult<()> {
        let rights = watch::accesses(rights)?;
        self.ask(py, |events| events.allow(ViewId(view), PhysAddr::new(page).gfn(), rights))
    }

    /// Shows the page at `instead` where `page` is, in a view; `None` shows the page itself again.
    fn remap(&self, py: Python<'_>, view: u16, page: u64, instead: Option<u64>) -> PyResult<()> {
        let instead = instead.map(|page| PhysAddr::new(page).gfn());
        self.ask(py, |events| events.remap(ViewId(view), PhysAddr::new(page).gfn(), instead))
    }

    /// All vCPUs go on in this view.
    fn switch_view(&self, py: Python<'_>, view: u16) -> PyResult<()> {
        self.ask(py, |events| events.switch_view(ViewId(view)))
    }

    /// Puts an external interrupt into a vCPU, which takes it when it goes on.
    fn inject_interrupt(&self, py: Python<'_>, vcpu: u32, vector: u8) -> PyResult<()> {
        self.ask(py, |events| events.inject(VcpuId(vcpu), Injection::Interrupt { vector }))
    }

    /// Puts an exception into a vCPU; the error code is for vectors that have one.
    #[pyo3(signature = (vcpu, vector, error_code=None))]
    fn inject_exception(&self, py: Python<'_>, vcpu: u32, vector: u8, error_code: Option<u32>) -> PyResult<()> {
        self.ask(py, |events| events.inject(VcpuId(vcpu), Injection::Exception { vector, error_code }))
    }

    /// Puts a page fault into a vCPU: CR2 becomes `at`.
    fn inject_page_fault(&self, py: Python<'_>, vcpu: u32, at: u64, error_code: u32) -> PyResult<()> {
        self.ask(py, |events| events.inject(VcpuId(vcpu), Injection::PageFault { at: VirtAddr::new(at), error_code }))
    }

    /// Removes a trap. One that is not set is none to remove.
    fn remove(&self, py: Python<'_>, trap: u64) -> PyResult<()> {
        self.ask(py, |events| events.remove(TrapId(trap)))
    }

    /// The traps on virtual addresses that are set: number, kind, address, length.
    fn traps(&self, py: Python<'_>) -> PyResult<Vec<(u64, String, u64, u64)>> {
        let traps = self.ask(py, owned::Events::traps)?;
        let row = |(number, trap): (TrapId, Trap)| {
            let place = trap.place()?;
            Some((number.0, place.kind.to_string(), place.at.get(), place.len))
        };
        Ok(traps.into_iter().filter_map(row).collect())
    }

    /// How many events were let go on unseen, as they happened in other address spaces than asked for.
    #[getter]
    fn passed_over(&self, py: Python<'_>) -> PyResult<u64> {
        self.ask(py, owned::Events::passed_over)
    }

    /// Waits for the next event, at most `timeout` seconds; `None` if there was none. An event that is still held is let go on first.
    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Event>> {
        self.wait(py, seconds(timeout)?)
    }

    /// Calls `handler` with each event, until `count` events or `timeout` seconds are over; returns how many there were. An event that the
    /// handler does not answer is let go on; what it raises ends this.
    #[pyo3(signature = (handler, *, count=None, timeout=None))]
    fn run(&self, py: Python<'_>, handler: &Bound<'_, PyAny>, count: Option<u64>, timeout: Option<f64>) -> PyResult<u64> {
        let (limit, began) = (seconds(timeout)?, Instant::now());
        let mut seen = 0u64;
        while count.is_none_or(|count| seen < count) {
            let left = limit.map(|limit| limit.saturating_sub(began.elapsed()));
            let Some(event) = self.wait(py, left)? else { break };
            seen = seen.saturating_add(1);
            let event = Bound::new(py, event)?;
            let handled = handler.call1((&event,));
            event.get().let_go(py)?;
            handled?;
        }
        Ok(seen)
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Event>> {
        self.wait(py, None)
    }

    /// Removes all traps and lets the guest run. A second call does nothing.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.end());
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) {
        self.close(py);
    }
}
