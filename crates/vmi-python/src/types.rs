//! Layouts of the kernel's structures.

use std::sync::Arc;

use pyo3::prelude::*;
use vmi::TypeSource;

use crate::errors::Raise;
use crate::guest::Attached;

/// Layouts of the kernel's structures, from whatever describes them.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct Types {
    guest: Arc<Attached>,
}

impl Types {
    pub(crate) fn new(guest: Arc<Attached>) -> Self {
        Self { guest }
    }

    fn types(&self) -> PyResult<&dyn TypeSource> {
        self.guest.handle.check()?;
        Ok(self.guest.types())
    }
}

#[pymethods]
impl Types {
    /// Where the description came from.
    #[getter]
    fn origin(&self) -> PyResult<String> {
        Ok(self.types()?.origin())
    }

    /// Bytes in a pointer.
    #[getter]
    fn pointer_size(&self) -> PyResult<u64> {
        Ok(self.types()?.pointer_size())
    }

    /// The tags of all structures and unions.
    fn structures(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let types = self.types()?;
        Ok(py.detach(|| types.structures().collect()))
    }

    fn __contains__(&self, name: &str) -> PyResult<bool> {
        Ok(self.types()?.find(name).is_some())
    }

    /// The names of a structure's members, those of anonymous ones included.
    fn members(&self, py: Python<'_>, name: &str) -> PyResult<Vec<String>> {
        let types = self.types()?;
        types.structure(name).raise(py)?;
        let layout = types.find(name).map(|id| self.guest.layout(types, id)).transpose().raise(py)?.flatten();
        Ok(layout.map(|layout| layout.names.clone()).unwrap_or_default())
    }

    /// The size of a structure in bytes.
    fn size_of(&self, py: Python<'_>, name: &str) -> PyResult<u64> {
        Ok(self.types()?.structure(name).raise(py)?.size)
    }

    /// The offset of a member in bytes: offset_of("task_struct", "se.sum_exec_runtime").
    fn offset_of(&self, py: Python<'_>, name: &str, path: &str) -> PyResult<u64> {
        Ok(self.types()?.field(name, path).raise(py)?.offset)
    }

    /// A bitfield's lowest bit in the number at its offset, and its width; `None` for other members.
    fn bits_of(&self, py: Python<'_>, name: &str, path: &str) -> PyResult<Option<(u32, u32)>> {
        Ok(self.types()?.field(name, path).raise(py)?.bits)
    }

    /// The name of a member's type, as in C.
    fn type_of(&self, py: Python<'_>, name: &str, path: &str) -> PyResult<String> {
        let types = self.types()?;
        let field = types.field(name, path).raise(py)?;
        vmi::type_name(types, field.ty).raise(py)
    }

    /// The value of a constant of an enumeration.
    fn constant(&self, py: Python<'_>, enumeration: &str, name: &str) -> PyResult<i64> {
        self.types()?.constant(enumeration, name).raise(py)
    }

    fn __repr__(&self) -> String {
        self.types().map_or_else(|_| "<vmi.Types, closed>".to_owned(), |types| format!("<vmi.Types, {}>", types.origin()))
    }
}
