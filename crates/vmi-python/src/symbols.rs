//! The kernel's symbols, both ways.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use vmi::{Guest as _, VirtAddr};

use crate::errors::Raise;
use crate::guest::Attached;

/// A symbol.
#[pyclass(frozen, get_all, eq, hash, module = "vmi")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Symbol {
    /// Name.
    name: String,
    /// Address in the guest.
    address: u64,
    /// The letter of nm(1).
    kind: char,
    /// The module that defines it; `None` for the kernel itself.
    module: Option<String>,
}

impl From<vmi::Symbol<'_>> for Symbol {
    fn from(symbol: vmi::Symbol<'_>) -> Self {
        Self {
            name: symbol.name.to_owned(),
            address: symbol.address.get(),
            kind: char::from(symbol.kind),
            module: symbol.module.map(str::to_owned),
        }
    }
}

#[pymethods]
impl Symbol {
    fn __int__(&self) -> u64 {
        self.address
    }

    fn __index__(&self) -> u64 {
        self.address
    }

    /// The attributes as a dictionary.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("name", &self.name)?;
        dict.set_item("address", self.address)?;
        dict.set_item("kind", self.kind)?;
        dict.set_item("module", &self.module)?;
        Ok(dict)
    }

    fn __repr__(&self) -> String {
        format!("<symbol {} at {:#x}>", self.name, self.address)
    }
}

/// The symbols of the kernel and its modules.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct Symbols {
    guest: Arc<Attached>,
}

impl Symbols {
    pub(crate) fn new(py: Python<'_>, guest: Arc<Attached>) -> Self {
        // Modules are read at the first look.
        py.detach(|| guest.guest().symbols().len());
        Self { guest }
    }

    fn symbols(&self) -> PyResult<&vmi::Symbols> {
        self.guest.handle.check()?;
        Ok(self.guest.guest().symbols())
    }
}

#[pymethods]
impl Symbols {
    fn __len__(&self) -> PyResult<usize> {
        Ok(self.symbols()?.len())
    }

    fn __contains__(&self, name: &str) -> PyResult<bool> {
        Ok(self.symbols()?.find(name).is_some())
    }

    /// The address of a symbol; NoSymbolError if there is none.
    fn __getitem__(&self, py: Python<'_>, name: &str) -> PyResult<u64> {
        self.address(py, name)
    }

    /// The address of a symbol; of several of a name, the kernel's own with the lowest address. NoSymbolError if there is none.
    fn address(&self, py: Python<'_>, name: &str) -> PyResult<u64> {
        Ok(self.symbols()?.address(name).raise(py)?.get())
    }

    /// The symbol of this name; `None` if there is none.
    fn find(&self, name: &str) -> PyResult<Option<Symbol>> {
        Ok(self.symbols()?.find(name).map(Symbol::from))
    }

    /// Every symbol of this name.
    fn all(&self, name: &str) -> PyResult<Vec<Symbol>> {
        Ok(self.symbols()?.all(name).map(Symbol::from).collect())
    }

    /// The last symbol at or below an address, and how far above it the address is; `None` if there is none.
    fn nearest(&self, at: u64) -> PyResult<Option<(Symbol, u64)>> {
        Ok(self.symbols()?.nearest(VirtAddr::new(at)).map(|(symbol, offset)| (symbol.into(), offset)))
    }

    /// All symbols at exactly an address.
    fn at(&self, at: u64) -> PyResult<Vec<Symbol>> {
        Ok(self.symbols()?.at(VirtAddr::new(at)).map(Symbol::from).collect())
    }

    /// All symbols, ascending by address.
    fn __iter__(&self, py: Python<'_>) -> PyResult<SymbolIterator> {
        let symbols = self.symbols()?;
        let all: Vec<Symbol> = py.detach(|| symbols.iter().map(Symbol::from).collect());
        Ok(SymbolIterator(Mutex::new(all.into_iter())))
    }
}

/// An iteration over symbols.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct SymbolIterator(Mutex<std::vec::IntoIter<Symbol>>);

#[pymethods]
impl SymbolIterator {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self) -> Option<Symbol> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next()
    }
}
