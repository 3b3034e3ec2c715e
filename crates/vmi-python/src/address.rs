//! What Python passes as an address.

use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::errors::NoSymbolError;

/// A number, or anything that Python takes for an index: numpy's integers, [`Pointer`](crate::values::Pointer).
pub(crate) fn number(at: &Bound<'_, PyAny>) -> PyResult<u64> {
    at.extract()
}

/// Splits `name+offset`; the offset is hexadecimal with a leading `0x`, else decimal.
pub(crate) fn symbol_and_offset(text: &str) -> PyResult<(&str, u64)> {
    let Some((name, offset)) = text.split_once('+') else { return Ok((text, 0)) };
    let offset = offset.trim();
    let parsed = match offset.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => offset.parse(),
    };
    let wrong = |_| PyErr::new::<NoSymbolError, _>(format!("`{text}`: what is behind the plus is no number"));
    Ok((name.trim(), parsed.map_err(wrong)?))
}

/// The text of a symbol, if it is one.
pub(crate) fn text<'a>(at: &'a Bound<'_, PyAny>) -> PyResult<Option<std::borrow::Cow<'a, str>>> {
    match at.cast::<PyString>() {
        Ok(text) => Ok(Some(text.to_cow()?)),
        Err(_) => Ok(None),
    }
}
