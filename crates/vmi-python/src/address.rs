//! What Python passes as an address.

use pyo3::prelude::*;
use pyo3::types::PyString;
use vmi::owned::{self, Place};

use crate::errors::{NoSymbolError, Raise};

/// A number, or anything that Python takes for an index: numpy's integers, [`Pointer`](crate::values::Pointer).
pub(crate) fn number(at: &Bound<'_, PyAny>) -> PyResult<u64> {
    at.extract()
}

/// The address that a number or a symbol of the guest names.
pub(crate) fn place(py: Python<'_>, guest: &owned::Guest, at: &Bound<'_, PyAny>) -> PyResult<u64> {
    let Some(text) = text(at)? else { return number(at) };
    let place = Place::parse(&text).map_err(|error| PyErr::new::<NoSymbolError, _>(error.to_string()))?;
    Ok(py.detach(|| guest.address(place)).raise(py)?.get())
}

/// The text of a symbol, if it is one.
fn text<'a>(at: &'a Bound<'_, PyAny>) -> PyResult<Option<std::borrow::Cow<'a, str>>> {
    match at.cast::<PyString>() {
        Ok(text) => Ok(Some(text.to_cow()?)),
        Err(_) => Ok(None),
    }
}
