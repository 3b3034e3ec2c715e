//! Exceptions: one class for each kind of the Rust errors, below `vmi.Error`.

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyType;
use vmi::ErrorKind;
use vmi::owned::SessionError;

create_exception!(vmi, Error, PyException, "Anything that this library reports. `done` bytes of a read were good before it.");
create_exception!(vmi, AbsentError, Error, "The memory is not there: a hole or a page fault. `zread` pads over it.");
create_exception!(vmi, HoleError, AbsentError, "No memory at this guest-physical `address`.");
create_exception!(
    vmi,
    FaultError,
    AbsentError,
    "The page tables do not map the `address`: see `root`, `level`, `entry_address`, `entry`, `reason`."
);
create_exception!(vmi, PagedOutError, AbsentError, "The page at `address` is not in memory: `why`.");
create_exception!(vmi, ReadOnlyError, Error, "Memory at `address` can be read but not written.");
create_exception!(vmi, OutOfRangeError, Error, "A range of `length` bytes at `address` leaves the address range.");
create_exception!(vmi, UnterminatedError, Error, "The string at `address` has no end within `limit` bytes.");
create_exception!(vmi, CorruptError, Error, "A structure of the guest at `address` contradicts itself: `what`.");
create_exception!(vmi, LimitError, Error, "`what` has more than `limit` elements.");
create_exception!(vmi, NoSymbolError, Error, "No symbol `name`.");
create_exception!(vmi, NoTypeError, Error, "No type or member `name`: `why`.");
create_exception!(vmi, NoObjectError, Error, "No such object in the guest: `what`.");
create_exception!(vmi, ChangingError, Error, "`what` kept changing while it was read, `attempts` times.");
create_exception!(vmi, GoneError, Error, "`what` went away while it was read.");
create_exception!(vmi, UnsupportedError, Error, "The `back_end` does not have the `capability`.");
create_exception!(vmi, EndedError, Error, "The `machine` is gone: `why`.");
create_exception!(vmi, DriverError, Error, "The `back_end` failed in its `action`: `cause`.");
create_exception!(vmi, OpenError, Error, "The target could not be opened.");
create_exception!(vmi, AttachError, Error, "No operating system was recognised.");
create_exception!(vmi, WriteImageError, Error, "The image could not be written.");
create_exception!(vmi, WriteIsfError, Error, "No symbol file of this kernel could be written.");
create_exception!(
    vmi,
    StateError,
    Error,
    "The object cannot do this now: an event that was answered, a session that holds an event."
);
create_exception!(vmi, ClosedError, StateError, "The machine or session was closed.");

/// Adds the classes to the module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    macro_rules! add {
        ($($class:ident),*) => { $(module.add(stringify!($class), py.get_type::<$class>())?;)* };
    }
    add!(
        Error,
        AbsentError,
        HoleError,
        FaultError,
        PagedOutError,
        ReadOnlyError,
        OutOfRangeError,
        UnterminatedError,
        CorruptError,
        LimitError,
        NoSymbolError,
        NoTypeError,
        NoObjectError,
        ChangingError,
        GoneError,
        UnsupportedError,
        EndedError,
        DriverError,
        OpenError,
        AttachError,
        WriteImageError,
        WriteIsfError,
        StateError,
        ClosedError
    );
    let base = py.get_type::<Error>();
    base.setattr("done", 0)?;
    base.setattr("address", py.None())
}

/// What an exception carries besides its message.
struct Attributes<'py> {
    instance: Bound<'py, PyAny>,
}

impl<'py> Attributes<'py> {
    fn new(class: Bound<'py, PyType>, message: String) -> PyResult<Self> {
        Ok(Self { instance: class.call1((message,))? })
    }

    fn with(self, name: &str, value: impl IntoPyObject<'py>) -> PyResult<Self> {
        self.instance.setattr(name, value)?;
        Ok(self)
    }
}

/// The exception for an error of the library.
pub(crate) fn exception(py: Python<'_>, error: &vmi::Error) -> PyErr {
    match instance(py, error) {
        Ok(instance) => PyErr::from_value(instance),
        Err(failed) => failed,
    }
}

fn instance<'py>(py: Python<'py>, error: &vmi::Error) -> PyResult<Bound<'py, PyAny>> {
    let message = error.to_string();
    let new = |class: Bound<'py, PyType>| Attributes::new(class, message.clone());
    let made = match error.kind() {
        ErrorKind::Hole { .. } => new(py.get_type::<HoleError>())?,
        ErrorKind::ReadOnly { .. } => new(py.get_type::<ReadOnlyError>())?,
        ErrorKind::Fault(fault) => new(py.get_type::<FaultError>())?
            .with("root", fault.root.get())?
            .with("level", fault.level)?
            .with("entry_address", fault.entry_at.get())?
            .with("entry", fault.entry)?
            .with("reason", fault.kind.to_string())?,
        ErrorKind::PagedOut { why, .. } => new(py.get_type::<PagedOutError>())?.with("why", why)?,
        ErrorKind::OutOfRange { len, .. } => new(py.get_type::<OutOfRangeError>())?.with("length", *len)?,
        ErrorKind::Unterminated { limit, .. } => new(py.get_type::<UnterminatedError>())?.with("limit", *limit)?,
        ErrorKind::Corrupt { what, .. } => new(py.get_type::<CorruptError>())?.with("what", what)?,
        ErrorKind::Limit { what, limit } => new(py.get_type::<LimitError>())?.with("what", what)?.with("limit", *limit)?,
        ErrorKind::NoSymbol { name } => new(py.get_type::<NoSymbolError>())?.with("name", name)?,
        ErrorKind::NoType { name, why } => new(py.get_type::<NoTypeError>())?.with("name", name)?.with("why", why)?,
        ErrorKind::NoObject { what } => new(py.get_type::<NoObjectError>())?.with("what", what)?,
        ErrorKind::Changing { what, attempts, last } => {
            new(py.get_type::<ChangingError>())?.with("what", what)?.with("attempts", *attempts)?.with("last", last)?
        }
        ErrorKind::Gone { what } => new(py.get_type::<GoneError>())?.with("what", what)?,
        ErrorKind::Unsupported { capability, back_end } => {
            new(py.get_type::<UnsupportedError>())?.with("capability", capability.to_string())?.with("back_end", back_end)?
        }
        ErrorKind::Ended { machine, why } => new(py.get_type::<EndedError>())?.with("machine", machine)?.with("why", why)?,
        ErrorKind::Driver { back_end, action, source } => new(py.get_type::<DriverError>())?
            .with("back_end", back_end)?
            .with("action", action)?
            .with("cause", source.to_string())?,
        _ => new(py.get_type::<Error>())?,
    };
    let made = match error.kind().address() {
        Some(at) => made.with("address", at)?,
        None => made,
    };
    Ok(made.with("done", error.done())?.instance)
}

/// Turns the library's results into Python's.
pub(crate) trait Raise<T> {
    /// The value, or the exception for the error.
    fn raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> Raise<T> for vmi::Result<T> {
    #[inline]
    fn raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| exception(py, &error))
    }
}

impl<T: Send> Raise<T> for Result<T, SessionError> {
    fn raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| match error {
            SessionError::Guest(error) => exception(py, &error),
            SessionError::Closed => PyErr::new::<ClosedError, _>(error.to_string()),
            SessionError::Thread(_) => PyErr::new::<DriverError, _>(error.to_string()),
            _ => PyErr::new::<StateError, _>(error.to_string()),
        })
    }
}
