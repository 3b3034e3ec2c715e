//! A guest that stands still for a while.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use vmi::owned;

use crate::errors::Raise;

/// The guest stands still while this lives: a context manager. Pauses nest.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct Paused {
    guard: Mutex<Option<owned::Paused>>,
}

impl Paused {
    pub(crate) fn new(py: Python<'_>, machine: &owned::Machine) -> PyResult<Self> {
        let paused = py.detach(|| machine.pause()).raise(py)?;
        Ok(Self { guard: Mutex::new(Some(paused)) })
    }
}

#[pymethods]
impl Paused {
    /// Lets the guest run on, unless other pauses hold it. A second call does nothing.
    fn resume(&self, py: Python<'_>) {
        py.detach(|| drop(self.guard.lock().unwrap_or_else(PoisonError::into_inner).take()));
    }

    /// Whether this still holds the guest.
    #[getter]
    fn holds(&self) -> bool {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) {
        self.resume(py);
    }
}
