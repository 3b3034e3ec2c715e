//! What lists give: rows that are objects with attributes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::errors::exception;
use crate::guest::Attached;
use crate::process::{Process, Thread};
use crate::survey::SeenProcess;
use crate::windows;

/// A row of any list.
pub(crate) enum Row {
    Process(vmi::Process),
    Thread(vmi::Thread),
    Module(vmi::Module),
    MemoryArea(vmi::MemoryArea),
    LogRecord(vmi::LogRecord),
    Handle(windows::Handle),
    Vad(windows::Vad),
    Service(windows::SystemService),
    Hive(windows::Hive),
    SeenProcess(vmi::SeenProcess),
    Text(String),
    Value { name: String, kind: String, data: vmi::windows::registry::Data },
}

impl Row {
    fn object<'py>(self, py: Python<'py>, guest: &Arc<Attached>) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::Process(row) => Process::new(guest.clone(), row).into_bound_py_any(py),
            Self::Thread(row) => Thread::new(guest.clone(), row).into_bound_py_any(py),
            Self::Module(row) => Module::from(row).into_bound_py_any(py),
            Self::MemoryArea(row) => MemoryArea::from(row).into_bound_py_any(py),
            Self::LogRecord(row) => LogRecord::from(row).into_bound_py_any(py),
            Self::Handle(row) => row.into_bound_py_any(py),
            Self::Vad(row) => row.into_bound_py_any(py),
            Self::Service(row) => row.into_bound_py_any(py),
            Self::Hive(row) => row.into_bound_py_any(py),
            Self::SeenProcess(row) => SeenProcess::from(row).into_bound_py_any(py),
            Self::Text(row) => row.into_bound_py_any(py),
            Self::Value { name, kind, data } => windows::RegistryValue::new(py, name, kind, data)?.into_bound_py_any(py),
        }
    }
}

/// Rows of a list, one after another. A row that could not be read is raised in its place, unless there is `on_error`; the next call goes on
/// after it.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct Rows {
    guest: Arc<Attached>,
    rows: Mutex<std::vec::IntoIter<vmi::Result<Row>>>,
    on_error: Option<Py<PyAny>>,
}

impl Rows {
    pub(crate) fn new(guest: Arc<Attached>, rows: Vec<vmi::Result<Row>>, on_error: Option<Py<PyAny>>) -> Self {
        Self { guest, rows: Mutex::new(rows.into_iter()), on_error }
    }
}

#[pymethods]
impl Rows {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        loop {
            // Again behind `on_error`, which may have closed it.
            self.guest.handle.check()?;
            // Not held while Python runs: its callback may ask for the next row.
            let row = self.rows.lock().unwrap_or_else(PoisonError::into_inner).next();
            match (row, &self.on_error) {
                (None, _) => return Ok(None),
                (Some(Ok(row)), _) => return row.object(py, &self.guest).map(Some),
                (Some(Err(error)), None) => return Err(exception(py, &error)),
                (Some(Err(error)), Some(handler)) => {
                    handler.bind(py).call1((exception(py, &error).into_value(py),))?;
                }
            }
        }
    }

    fn __length_hint__(&self) -> usize {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The rows that are left, as a list of dictionaries: pandas.DataFrame takes it as it is.
    fn to_dicts<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyList>> {
        to_dicts(slf.as_any())
    }
}

/// Any iterable of objects that have `to_dict()`, as a list of dictionaries: pandas.DataFrame takes it as it is.
#[pyfunction]
pub(crate) fn to_dicts<'py>(iterable: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(iterable.py());
    for row in iterable.try_iter()? {
        list.append(row?.call_method0("to_dict")?)?;
    }
    Ok(list)
}

/// A time of the guest as an aware datetime; `None` where Python has none (before 1970, after 9999).
pub(crate) fn datetime<'py>(py: Python<'py>, time: Option<SystemTime>) -> Option<Bound<'py, PyAny>> {
    let time = time.filter(|time| time.duration_since(UNIX_EPOCH).is_ok())?;
    time.into_bound_py_any(py).ok()
}

/// A row of plain attributes, and how it is made of the library's if that is named.
macro_rules! plain_row {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* } from $row:ident: $of:ty => { $($value:expr,)* }) => {
        plain_row! { $(#[$doc])* $name { $($(#[$field_doc])* $field: $ty,)* } }

        impl From<$of> for $name {
            fn from($row: $of) -> Self {
                let ($($field,)*) = ($($value,)*);
                Self { $($field,)* }
            }
        }
    };
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[pyclass(frozen, get_all, eq, hash, module = "vmi")]
        #[derive(Clone, PartialEq, Eq, Hash)]
        pub(crate) struct $name { $($(#[$field_doc])* pub(crate) $field: $ty,)* }

        #[pymethods]
        impl $name {
            /// The attributes as a dictionary.
            fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
                let dict = PyDict::new(py);
                $(dict.set_item(stringify!($field), &self.$field)?;)*
                Ok(dict)
            }

            fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
                Ok(format!("{}({})", stringify!($name), self.to_dict(py)?.repr()?))
            }
        }
    };
}
pub(crate) use plain_row;

plain_row! {
    /// A loaded kernel module.
    Module {
        /// Name.
        name: String,
        /// First address.
        base: u64,
        /// Bytes of memory it takes, in all its parts.
        size: u64,
        /// How many hold a reference to it.
        references: Option<u32>,
        /// Where its structure is in kernel memory.
        object: u64,
    } from row: vmi::Module => { row.name, row.base.get(), row.size, row.references, row.object.get(), }
}

plain_row! {
    /// A run of a process's virtual memory with the same properties.
    MemoryArea {
        /// First address.
        start: u64,
        /// First address behind it.
        end: u64,
        /// The process may read it.
        read: bool,
        /// The process may write it.
        write: bool,
        /// The process may run code in it.
        execute: bool,
        /// Writes are seen by others that map the same.
        shared: bool,
        /// Offset into the mapped file in bytes.
        offset: u64,
        /// The mapped file's path, or the purpose in brackets.
        name: Option<String>,
    } from row: vmi::MemoryArea => {
        row.start.get(), row.end.get(), row.read, row.write, row.execute, row.shared, row.offset, row.name,
    }
}

plain_row! {
    /// One record of the kernel's log.
    LogRecord {
        /// Its number, counted from boot.
        sequence: u64,
        /// Nanoseconds since boot.
        nanoseconds: u64,
        /// Severity, 0 (emergency) to 7 (debug).
        level: u8,
        /// The text, without a final line end.
        text: String,
    } from row: vmi::LogRecord => { row.sequence, row.nanoseconds, row.level, row.text, }
}
