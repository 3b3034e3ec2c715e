//! What vCPUs do, as it happens.
//!
//! In Rust an event borrows its session, which borrows the machine. Here the session lives on the stack of a thread of its own: Python's
//! objects hold the ends of channels. An event that Python lets go of closes its channel, and the thread lets the guest go on.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use vmi::x86::{Registers as Values, X86};
use vmi::{PhysAddr, Reply, TrapId, VirtAddr};

type Trap = vmi::Trap<X86>;
type What = vmi::What<X86>;

use crate::errors::{ClosedError, DriverError, Raise, StateError};
use crate::machine::{Handle, Shared};
use crate::process::Process;
use crate::registers::Registers;

/// How long to wait at a time: signals of Python (Ctrl-C) are looked at in between.
const TURN: Duration = Duration::from_millis(100);
/// The longest wait that is taken seriously; more means for ever.
const LONGEST: f64 = 1e9;

/// What Python asks of the session's thread.
enum Command {
    Set(Box<Trap>, Sender<vmi::Result<u64>>),
    Remove(u64, Sender<vmi::Result<()>>),
    Next(Duration, Sender<vmi::Result<Option<Occurred>>>),
    Look(Sender<Vec<(u64, Trap)>>, Sender<u64>),
}

/// An event on its way to Python.
struct Occurred {
    vcpu: u32,
    registers: Values,
    what: What,
    trap: Option<u64>,
    answer: Sender<Answer>,
}

/// How Python answers an event.
struct Answer {
    reply: Reply<Values>,
    done: Sender<vmi::Result<()>>,
}

/// The thread of a session.
fn serve(shared: &Shared, commands: &Receiver<Command>, ready: &Sender<vmi::Result<()>>) {
    let mut events = match shared.vmi.events() {
        Ok(events) => events,
        Err(error) => {
            _ = ready.send(Err(error));
            return;
        }
    };
    _ = ready.send(Ok(()));
    let mut ids: Vec<(u64, TrapId)> = Vec::new();
    let mut last = 0u64;
    // Nobody may wait for an answer any more: that is no failure.
    for command in commands {
        match command {
            Command::Set(trap, answer) => {
                let set = events.set(*trap).map(|id| {
                    last = last.saturating_add(1);
                    ids.push((last, id));
                    last
                });
                _ = answer.send(set);
            }
            Command::Remove(number, answer) => {
                let found = ids.iter().position(|(known, _)| *known == number).map(|index| ids.remove(index).1);
                _ = answer.send(found.map_or(Ok(()), |id| events.remove(id)));
            }
            Command::Look(traps, passed_over) => {
                let number = |id| ids.iter().find(|(_, known)| *known == id).map(|(number, _)| *number);
                _ = traps.send(events.traps().filter_map(|(id, trap)| Some((number(id)?, trap.clone()))).collect());
                _ = passed_over.send(events.passed_over());
            }
            Command::Next(limit, answer) => match events.next(limit) {
                Ok(Some(event)) => {
                    let (reply, replied) = channel();
                    let trap = event.trap().and_then(|id| ids.iter().find(|(_, known)| *known == id));
                    let occurred = Occurred {
                        vcpu: event.vcpu().0,
                        registers: *event.registers(),
                        what: event.what(),
                        trap: trap.map(|(number, _)| *number),
                        answer: reply,
                    };
                    _ = answer.send(Ok(Some(occurred)));
                    match replied.recv() {
                        Ok(Answer { reply, done }) => _ = done.send(event.reply(reply)),
                        Err(_) => drop(event),
                    }
                }
                Ok(None) => _ = answer.send(Ok(None)),
                Err(error) => _ = answer.send(Err(error)),
            },
        }
    }
}

/// The Python end of an event: gone when it was answered.
type Answering = Mutex<Option<Sender<Answer>>>;

fn answer(py: Python<'_>, answering: &Answering, reply: Reply<Values>) -> PyResult<()> {
    let taken = answering.lock().unwrap_or_else(PoisonError::into_inner).take();
    let answering = taken.ok_or_else(|| PyErr::new::<StateError, _>("the event was answered already"))?;
    let (done, result) = channel();
    let replied = py.detach(move || {
        answering.send(Answer { reply, done }).ok()?;
        result.recv().ok()
    });
    replied.unwrap_or(Ok(())).raise(py)
}

struct Session {
    commands: Sender<Command>,
    thread: JoinHandle<()>,
}

/// An event session. The guest runs on, and each trap that is sprung is an event of the iteration, until the context ends: then all traps are
/// gone.
///
/// While an event is held the vCPU that caused it stands still (with QEMU's gdb stub: all of them). It goes on when the event is answered,
/// when the next one is asked for, or when nothing refers to the event any more.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct Events {
    handle: Handle,
    session: Mutex<Option<Session>>,
    held: Mutex<Weak<Answering>>,
}

impl Events {
    pub(crate) fn new(py: Python<'_>, handle: Handle) -> PyResult<Self> {
        let shared = handle.get()?;
        if shared.in_session.swap(true, Ordering::AcqRel) {
            return Err(PyErr::new::<StateError, _>("this machine has an event session already: close that one first"));
        }
        let (commands, orders) = channel();
        let (ready, began) = channel();
        let of_thread = shared.clone();
        let serve = move || {
            serve(&of_thread, &orders, &ready);
            of_thread.in_session.store(false, Ordering::Release);
        };
        let spawned = std::thread::Builder::new().name("vmi events".to_owned()).spawn(serve);
        let thread = spawned.inspect_err(|_| shared.in_session.store(false, Ordering::Release))?;
        match py.detach(move || began.recv()) {
            Ok(began) => began.raise(py)?,
            Err(_) => return Err(PyErr::new::<DriverError, _>("the thread of the event session ended")),
        }
        Ok(Self { handle, session: Mutex::new(Some(Session { commands, thread })), held: Mutex::default() })
    }

    /// Asks the session's thread.
    fn ask<T: Send>(&self, py: Python<'_>, command: impl FnOnce(Sender<T>) -> Command) -> PyResult<T> {
        self.handle.check()?;
        let closed = || PyErr::new::<ClosedError, _>("the event session was closed");
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let commands = session.as_ref().ok_or_else(closed)?.commands.clone();
        drop(session);
        let (answer, answered) = channel();
        commands.send(command(answer)).map_err(|_| closed())?;
        drop(commands);
        py.detach(move || answered.recv()).map_err(|_| closed())
    }

    fn held(&self) -> Option<Arc<Answering>> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).upgrade()?;
        let unanswered = held.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        unanswered.then_some(held)
    }

    fn set(&self, py: Python<'_>, trap: Trap, within: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
        if self.held().is_some() {
            return Err(PyErr::new::<StateError, _>("answer the event first: traps are set while the guest runs"));
        }
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
        self.ask(py, |answer| Command::Set(Box::new(trap), answer))?.raise(py)
    }

    fn wait(&self, py: Python<'_>, limit: Option<Duration>) -> PyResult<Option<Event>> {
        if let Some(held) = self.held() {
            answer(py, &held, Reply::resume())?;
        }
        let began = Instant::now();
        loop {
            let left = limit.map_or(TURN, |limit| limit.saturating_sub(began.elapsed()));
            let next = self.ask(py, |answer| Command::Next(left.min(TURN), answer))?;
            if let Some(occurred) = next.raise(py)? {
                let event = Event::new(occurred);
                *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&event.answering);
                return Ok(Some(event));
            }
            py.check_signals()?;
            if limit.is_some_and(|limit| began.elapsed() >= limit) {
                return Ok(None);
            }
        }
    }

    fn end(&self) {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Session { commands, thread }) = session else { return };
        drop(commands);
        // Another thread of Python may just be getting an event: it is let go on as well.
        while !thread.is_finished() {
            if let Some(held) = self.held() {
                held.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        _ = thread.join();
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

    /// Removes a trap. One that is not set is none to remove.
    fn remove(&self, py: Python<'_>, trap: u64) -> PyResult<()> {
        if self.held().is_some() {
            return Err(PyErr::new::<StateError, _>("answer the event first: traps are removed while the guest runs"));
        }
        self.ask(py, |answer| Command::Remove(trap, answer))?.raise(py)
    }

    /// The traps that are set: number, kind, address, length.
    fn traps(&self, py: Python<'_>) -> PyResult<Vec<(u64, String, u64, u64)>> {
        if self.held().is_some() {
            return Err(PyErr::new::<StateError, _>("answer the event first"));
        }
        let traps = self.ask(py, |traps| Command::Look(traps, channel().0))?;
        let row = |(number, trap): (u64, Trap)| {
            let place = trap.place()?;
            Some((number, place.kind.to_string(), place.at.get(), place.len))
        };
        Ok(traps.into_iter().filter_map(row).collect())
    }

    /// How many events were let go on unseen, as they happened in other address spaces than asked for.
    #[getter]
    fn passed_over(&self, py: Python<'_>) -> PyResult<u64> {
        if self.held().is_some() {
            return Err(PyErr::new::<StateError, _>("answer the event first"));
        }
        self.ask(py, |passed_over| Command::Look(channel().0, passed_over))
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

/// Something that a vCPU did. It stands still until this is answered.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct Event {
    vcpu: u32,
    values: Values,
    what: What,
    trap: Option<u64>,
    answering: Arc<Answering>,
}

impl Event {
    fn new(occurred: Occurred) -> Self {
        let Occurred { vcpu, registers, what, trap, answer } = occurred;
        Self { vcpu, values: registers, what, trap, answering: Arc::new(Mutex::new(Some(answer))) }
    }

    /// Lets the guest go on, if that was not said yet.
    fn let_go(&self, py: Python<'_>) -> PyResult<()> {
        if self.answered() { Ok(()) } else { answer(py, &self.answering, Reply::resume()) }
    }

    fn reply_with(&self, py: Python<'_>, step: bool, registers: Option<&Bound<'_, Registers>>) -> PyResult<()> {
        let reply = if step { Reply::step() } else { Reply::resume() };
        let reply = match registers {
            Some(registers) => reply.with_registers(registers.get().copy()),
            None => reply,
        };
        answer(py, &self.answering, reply)
    }
}

#[pymethods]
impl Event {
    /// The vCPU that did it.
    #[getter]
    fn vcpu(&self) -> u32 {
        self.vcpu
    }

    /// The registers of that vCPU: a copy.
    #[getter]
    fn registers(&self) -> Registers {
        Registers::new(self.values)
    }

    /// What it did: "software breakpoint", "hardware breakpoint", "write watchpoint", "read watchpoint", "access watchpoint", "memory access", "step", "stop";
    /// or what belongs to the processor: "control register", "msr", "cpuid" and so on.
    #[getter]
    fn kind(&self) -> String {
        match self.what {
            What::Trapped { place, .. } => place.kind.to_string(),
            What::Stepped => "step".to_owned(),
            What::Memory(_) => "memory access".to_owned(),
            What::Processor(incident) => incident.name().to_owned(),
            _ => "stop".to_owned(),
        }
    }

    /// The address of the instruction, or of the memory that was touched; `None` for a step or a stop.
    #[getter]
    fn address(&self) -> Option<u64> {
        match self.what {
            What::Trapped { at, .. } => Some(at.get()),
            _ => None,
        }
    }

    /// The instruction pointer: at the instruction of a breakpoint, behind the one that touched watched memory.
    #[getter]
    fn instruction(&self) -> u64 {
        self.values.rip
    }

    /// The number of the trap that was sprung.
    #[getter]
    fn trap(&self) -> Option<u64> {
        self.trap
    }

    /// Whether it was answered, and the guest went on.
    #[getter]
    fn answered(&self) -> bool {
        self.answering.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Lets the guest go on, with `registers` in the vCPU if they are given.
    #[pyo3(signature = (registers=None))]
    fn resume(&self, py: Python<'_>, registers: Option<&Bound<'_, Registers>>) -> PyResult<()> {
        self.reply_with(py, false, registers)
    }

    /// Lets the vCPU run one instruction, after which there is an event of kind "step".
    #[pyo3(signature = (registers=None))]
    fn step(&self, py: Python<'_>, registers: Option<&Bound<'_, Registers>>) -> PyResult<()> {
        self.reply_with(py, true, registers)
    }

    fn __repr__(&self) -> String {
        format!("<event {} on vCPU {} at {:#x}>", self.kind(), self.vcpu, self.values.rip)
    }
}
