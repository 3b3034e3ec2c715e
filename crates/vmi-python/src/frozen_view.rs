//! Frozen memory lent to Python without a copy: the buffer protocol.
//!
//! This is the one place with unsafe code: a buffer is a pointer in a structure of Python's (PEP 3118).
#![allow(unsafe_code)]

use core::ffi::c_int;
use std::sync::Arc;

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;
use vmi::{Memory as _, PhysAddr};

use crate::machine::Shared;

/// A run of frozen guest memory. `memoryview(view)` and `numpy.frombuffer(view, dtype)` look at it where it is.
///
/// The memory stays mapped while a buffer of it lives, after the machine was closed too.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct FrozenView {
    shared: Arc<Shared>,
    start: PhysAddr,
    len: usize,
}

impl FrozenView {
    /// A view of `len` bytes at `start`; `None` if the machine does not lend them.
    fn new(shared: Arc<Shared>, start: PhysAddr, len: usize) -> Option<Self> {
        shared.vmi().slice(start, len)?;
        Some(Self { shared, start, len })
    }

    /// The same as Python's `memoryview`.
    pub(crate) fn memoryview(
        py: Python<'_>,
        shared: Arc<Shared>,
        start: PhysAddr,
        len: usize,
    ) -> PyResult<Bound<'_, PyMemoryView>> {
        let frozen = shared.vmi().machine().liveness == vmi::Liveness::Frozen;
        let Some(view) = Self::new(shared, start, len) else { return Err(not_lent(frozen)) };
        PyMemoryView::from(Bound::new(py, view)?.as_any())
    }
}

/// Why memory cannot be lent.
pub(crate) fn not_lent(frozen: bool) -> PyErr {
    PyBufferError::new_err(if frozen {
        "this source does not hold the range as one run of mapped memory: read() copies it"
    } else {
        "the memory of a running guest changes and is not lent: read() copies it, snapshot() freezes all of it"
    })
}

#[pymethods]
impl FrozenView {
    fn __len__(&self) -> usize {
        self.len
    }

    /// The guest-physical address of the first byte.
    #[getter]
    fn address(&self) -> u64 {
        self.start.get()
    }

    /// # Safety
    /// `view` is Python's, to be filled.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let Some(bytes) = this.shared.vmi().slice(this.start, this.len) else { return Err(not_lent(true)) };
        let len = ffi::Py_ssize_t::try_from(bytes.len()).map_err(|_| PyBufferError::new_err("too long"))?;
        // SAFETY: `view` is valid for writing as the interpreter calls this. The bytes are `len` of frozen memory, which no one changes
        // while it is mapped; `PyBuffer_FillInfo` takes a reference to `slf`, whose `shared` keeps the memory mapped until the buffer is
        // released. As read-only is said, a request for a writable buffer is refused there with an exception.
        let filled = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), bytes.as_ptr().cast_mut().cast(), len, 1, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}
