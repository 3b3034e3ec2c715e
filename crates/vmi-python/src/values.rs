//! Values of the guest's own types: structures by name, members by attribute.
//!
//! Our own names end with an underscore, as in drgn: no member of C's hides behind them.

use std::sync::Arc;

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyAttributeError, PyIndexError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PySlice};
use vmi::{Type, TypeId, TypeSource, VirtAddr};

use crate::errors::{NoTypeError, Raise};
use crate::guest::Attached;
use crate::layouts::{Layout, Place};
use crate::memory::Memory;

/// Arrays longer than this are not turned into lists as parts of dictionaries.
const MAX_ELEMENTS: u64 = 1 << 16;
/// Structures nested deeper than this are not.
const DEPTH: u32 = 16;

/// Where values are read, and what describes them.
#[derive(Clone)]
pub(crate) struct Scope {
    pub(crate) guest: Arc<Attached>,
    pub(crate) memory: Memory,
}

impl Scope {
    fn types(&self) -> PyResult<&dyn TypeSource> {
        self.guest.handle.check()?;
        Ok(self.guest.types())
    }

    /// The value at `at`: a number, a truth value, or one of the classes below.
    fn value<'py>(&self, py: Python<'py>, at: u64, ty: TypeId) -> PyResult<Bound<'py, PyAny>> {
        let types = self.types()?;
        match types.resolve(ty).raise(py)? {
            Type::Number { name, size, signed } => match (name.as_str(), size) {
                ("_Bool" | "bool", 1) => Ok(PyBool::new(py, self.memory.bytes::<1>(py, at)? != [0]).to_owned().into_any()),
                ("float", 4) => Ok(PyFloat::new(py, f64::from(f32::from_le_bytes(self.memory.bytes(py, at)?))).into_any()),
                ("double", 8) => Ok(PyFloat::new(py, f64::from_le_bytes(self.memory.bytes(py, at)?)).into_any()),
                _ => self.integer(py, at, size, signed),
            },
            Type::Enumeration { size, values, .. } => self.integer(py, at, size, values.iter().any(|(_, value)| *value < 0)),
            Type::Pointer { target } => {
                let at = self.pointer(py, at, types.pointer_size())?;
                Bound::new(py, Pointer { scope: self.clone(), at, target }).map(Bound::into_any)
            }
            Type::Array { element, count } => {
                let size = types.size_of(element).raise(py)?;
                Bound::new(py, Array { scope: self.clone(), at, element, count, size }).map(Bound::into_any)
            }
            Type::Structure(_) => Bound::new(py, self.structure(py, ty, at)?).map(Bound::into_any),
            // Code is not read; its place is what there is to say.
            Type::Function => at.into_bound_py_any(py),
            _ => Err(PyErr::new::<NoTypeError, _>(format!("the value at {at:#x} has no type (void)"))),
        }
    }

    fn structure(&self, py: Python<'_>, ty: TypeId, at: u64) -> PyResult<Struct> {
        let layout = self.guest.layout(self.types()?, ty).raise(py)?;
        let layout = layout.ok_or_else(|| PyErr::new::<NoTypeError, _>("the type is no structure"))?;
        Ok(Struct { scope: self.clone(), at, layout })
    }

    fn pointer(&self, py: Python<'_>, at: u64, size: u64) -> PyResult<u64> {
        match size {
            4 => Ok(u64::from(u32::from_le_bytes(self.memory.bytes(py, at)?))),
            _ => Ok(u64::from_le_bytes(self.memory.bytes(py, at)?)),
        }
    }

    fn integer<'py>(&self, py: Python<'py>, at: u64, size: u64, signed: bool) -> PyResult<Bound<'py, PyAny>> {
        let number = self.raw(py, at, size)?;
        let unused = 128u32.saturating_sub(u32::try_from(size.saturating_mul(8)).unwrap_or(128));
        if signed {
            let number = number.cast_signed().wrapping_shl(unused).wrapping_shr(unused);
            number.into_bound_py_any(py)
        } else {
            number.into_bound_py_any(py)
        }
    }

    /// A little-endian number of up to 16 bytes.
    fn raw(&self, py: Python<'_>, at: u64, size: u64) -> PyResult<u128> {
        let mut bytes = [0; 16];
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        let unknown = || PyErr::new::<NoTypeError, _>(format!("a number of {size} bytes"));
        self.memory.fill(py, at, bytes.get_mut(..len).filter(|bytes| !bytes.is_empty()).ok_or_else(unknown)?)?;
        Ok(u128::from_le_bytes(bytes))
    }

    fn member<'py>(&self, py: Python<'py>, start: u64, place: Place) -> PyResult<Bound<'py, PyAny>> {
        let at = VirtAddr::new(start).wrapping_add(place.bit_offset / 8).get();
        let Some(width) = place.bit_width else { return self.value(py, at, place.ty) };
        let lowest = (place.bit_offset % 8) as u32;
        let types = self.types()?;
        let size = u64::from(lowest.saturating_add(width)).div_ceil(8);
        let unused = 128u32.saturating_sub(width);
        let bits = self.raw(py, at, size)?.wrapping_shr(lowest).wrapping_shl(unused);
        match types.resolve(place.ty).raise(py)? {
            Type::Number { signed: true, .. } => bits.cast_signed().wrapping_shr(unused).into_bound_py_any(py),
            Type::Number { name, .. } if matches!(name.as_str(), "_Bool" | "bool") => (bits != 0).into_bound_py_any(py),
            _ => bits.wrapping_shr(unused).into_bound_py_any(py),
        }
    }
}

/// Values as plain Python ones: structures as dictionaries, arrays as lists (of characters as bytes), pointers as numbers.
fn plain<'py>(py: Python<'py>, value: Bound<'py, PyAny>, depth: u32) -> PyResult<Bound<'py, PyAny>> {
    if let Ok(structure) = value.cast::<Struct>() {
        return structure.get().dictionary(py, depth).map(Bound::into_any);
    }
    if let Ok(pointer) = value.cast::<Pointer>() {
        return pointer.get().at.into_bound_py_any(py);
    }
    if let Ok(array) = value.cast::<Array>() {
        return array.get().plain(py, depth);
    }
    Ok(value)
}

/// A structure or union in guest memory: its members are attributes, read when asked for; names with dots in brackets reach deeper.
#[pyclass(frozen, module = "vmi", name = "Struct")]
pub(crate) struct Struct {
    scope: Scope,
    at: u64,
    layout: Arc<Layout>,
}

impl Struct {
    pub(crate) fn named(py: Python<'_>, scope: &Scope, name: &str, at: u64) -> PyResult<Self> {
        let types = scope.types()?;
        let missing =
            || vmi::ErrorKind::NoType { name: name.to_owned(), why: format!("{} does not describe it", types.origin()) };
        let id = types.find(name).ok_or_else(|| vmi::Error::from(missing())).raise(py)?;
        scope.structure(py, id, at)
    }

    fn dictionary<'py>(&self, py: Python<'py>, depth: u32) -> PyResult<Bound<'py, PyDict>> {
        let depth = depth.checked_sub(1).ok_or_else(|| PyErr::new::<NoTypeError, _>("structures nested too deeply"))?;
        let dict = PyDict::new(py);
        for name in &self.layout.names {
            let Some(place) = self.layout.place(name) else { continue };
            dict.set_item(name, plain(py, self.scope.member(py, self.at, place)?, depth)?)?;
        }
        Ok(dict)
    }
}

#[pymethods]
impl Struct {
    fn __getattr__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        match self.layout.place(name) {
            Some(place) => self.scope.member(py, self.at, place),
            None => Err(PyAttributeError::new_err(format!("{} has no member `{name}`", self.layout.title()))),
        }
    }

    fn __getitem__<'py>(&self, py: Python<'py>, path: &str) -> PyResult<Bound<'py, PyAny>> {
        let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
        let missing = || PyErr::new::<NoTypeError, _>(format!("{} has no member `{first}`", self.layout.title()));
        let value = self.scope.member(py, self.at, self.layout.place(first).ok_or_else(missing)?)?;
        match rest {
            None => Ok(value),
            Some(rest) => match value.cast::<Self>() {
                Ok(inner) => inner.get().__getitem__(py, rest),
                Err(_) => Err(PyErr::new::<NoTypeError, _>(format!("`{first}` of {} is no structure", self.layout.title()))),
            },
        }
    }

    fn __dir__(&self) -> Vec<String> {
        let own = ["address_", "type_", "size_", "members_", "address_of_", "bytes_", "to_dict_"];
        self.layout.names.iter().cloned().chain(own.map(str::to_owned)).collect()
    }

    /// Where it is.
    #[getter]
    fn address_(&self) -> u64 {
        self.at
    }

    /// Its type, as in C: "struct task_struct".
    #[getter]
    fn type_(&self) -> String {
        self.layout.title()
    }

    /// Its size in bytes.
    #[getter]
    fn size_(&self) -> u64 {
        self.layout.size
    }

    /// The names of its members in the order of the source.
    #[getter]
    fn members_(&self) -> Vec<String> {
        self.layout.names.clone()
    }

    /// The address of a member; of a bitfield, of the byte with its lowest bit.
    fn address_of_(&self, name: &str) -> PyResult<u64> {
        let missing = || PyErr::new::<NoTypeError, _>(format!("{} has no member `{name}`", self.layout.title()));
        let place = self.layout.place(name).ok_or_else(missing)?;
        Ok(VirtAddr::new(self.at).wrapping_add(place.bit_offset / 8).get())
    }

    /// Its bytes.
    fn bytes_<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.scope.memory.read(py, self.at.into_bound_py_any(py)?.as_any(), usize::try_from(self.layout.size)?)
    }

    /// All members as plain values: nested structures as dictionaries, arrays as lists (of characters as bytes), pointers as numbers.
    fn to_dict_<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.dictionary(py, DEPTH)
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Self>().is_ok_and(|other| other.get().at == self.at && Arc::ptr_eq(&other.get().layout, &self.layout))
    }

    fn __hash__(&self) -> u64 {
        self.at
    }

    fn __repr__(&self) -> String {
        format!("<{} at {:#x}>", self.layout.title(), self.at)
    }
}

/// A pointer that was read from guest memory: a number by int(), what it points at by p[0], and the members of that as attributes.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct Pointer {
    scope: Scope,
    at: u64,
    target: TypeId,
}

#[pymethods]
impl Pointer {
    fn __getattr__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        if name.starts_with("__") {
            return Err(PyAttributeError::new_err(name.to_owned()));
        }
        match self.scope.guest.layout(self.scope.types()?, self.target).raise(py)? {
            Some(layout) => Struct { scope: self.scope.clone(), at: self.at, layout }.__getattr__(py, name),
            None => Err(PyAttributeError::new_err(format!("what it points at is no structure: it has no member `{name}`"))),
        }
    }

    /// As in C: the value at the pointer, and those that follow it.
    fn __getitem__<'py>(&self, py: Python<'py>, index: i64) -> PyResult<Bound<'py, PyAny>> {
        let size = self.scope.types()?.size_of(self.target).raise(py)?;
        let offset = size.wrapping_mul(index.cast_unsigned());
        self.scope.value(py, VirtAddr::new(self.at).wrapping_add(offset).get(), self.target)
    }

    /// Never iterated: a pointer has no end.
    fn __iter__(&self) -> PyResult<Py<PyAny>> {
        Err(PyTypeError::new_err("a pointer has no end: take p[0], or read an array"))
    }

    /// The number.
    #[getter]
    fn address_(&self) -> u64 {
        self.at
    }

    /// What it points at.
    fn value_<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.scope.value(py, self.at, self.target)
    }

    /// The C string that it points at, of at most `limit` bytes; what is not UTF-8 is replaced.
    #[pyo3(signature = (limit=4096))]
    fn string_(&self, py: Python<'_>, limit: usize) -> PyResult<String> {
        Ok(String::from_utf8_lossy(&self.scope.memory.c_string(py, self.at, limit)?).into_owned())
    }

    fn __int__(&self) -> u64 {
        self.at
    }

    fn __index__(&self) -> u64 {
        self.at
    }

    fn __bool__(&self) -> bool {
        self.at != 0
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        match other.cast::<Self>() {
            Ok(other) => other.get().at == self.at,
            Err(_) => other.cast::<PyInt>().is_ok_and(|other| other.extract::<u64>().is_ok_and(|other| other == self.at)),
        }
    }

    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        // Equal to a number, so with its hash.
        PyInt::new(py, self.at).hash()
    }

    fn __repr__(&self) -> String {
        format!("<pointer {:#x}>", self.at)
    }
}

/// An array in guest memory: a sequence whose elements are read when asked for.
#[pyclass(frozen, sequence, module = "vmi")]
pub(crate) struct Array {
    scope: Scope,
    at: u64,
    element: TypeId,
    count: u64,
    /// Bytes of an element.
    size: u64,
}

impl Array {
    fn element<'py>(&self, py: Python<'py>, index: u64) -> PyResult<Bound<'py, PyAny>> {
        let at = VirtAddr::new(self.at).wrapping_add(self.size.wrapping_mul(index)).get();
        self.scope.value(py, at, self.element)
    }

    fn is_of_characters(&self, py: Python<'_>) -> PyResult<bool> {
        let element = self.scope.types()?.resolve(self.element).raise(py)?;
        Ok(matches!(element, Type::Number { name, size: 1, .. } if !matches!(name.as_str(), "_Bool" | "bool")))
    }

    fn plain<'py>(&self, py: Python<'py>, depth: u32) -> PyResult<Bound<'py, PyAny>> {
        if self.count > MAX_ELEMENTS {
            let what = "an array".to_owned();
            let limit = vmi::ErrorKind::Limit { what, limit: MAX_ELEMENTS as usize };
            return Err(vmi::Error::from(limit)).raise(py);
        }
        if self.is_of_characters(py)? {
            return self.bytes_(py).map(Bound::into_any);
        }
        let list = PyList::empty(py);
        for index in 0..self.count {
            list.append(plain(py, self.element(py, index)?, depth)?)?;
        }
        Ok(list.into_any())
    }
}

#[pymethods]
impl Array {
    fn __len__(&self) -> PyResult<usize> {
        Ok(usize::try_from(self.count)?)
    }

    fn __getitem__<'py>(&self, py: Python<'py>, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        if let Ok(slice) = index.cast::<PySlice>() {
            let slice = slice.indices(isize::try_from(self.count)?)?;
            let list = PyList::empty(py);
            for number in 0..slice.slicelength {
                let index = slice.start.wrapping_add(slice.step.wrapping_mul(number.cast_signed()));
                list.append(self.element(py, u64::try_from(index)?)?)?;
            }
            return Ok(list.into_any());
        }
        let index: i64 = index.extract()?;
        let index = if index < 0 { index.checked_add_unsigned(self.count) } else { Some(index) };
        match index.and_then(|index| u64::try_from(index).ok()).filter(|index| *index < self.count) {
            Some(index) => self.element(py, index),
            None => Err(PyIndexError::new_err(format!("the array has {} elements", self.count))),
        }
    }

    /// Where it is.
    #[getter]
    fn address_(&self) -> u64 {
        self.at
    }

    /// Its bytes.
    fn bytes_<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let len = usize::try_from(self.size.saturating_mul(self.count))?;
        self.scope.memory.read(py, self.at.into_bound_py_any(py)?.as_any(), len)
    }

    /// The C string that it holds; what is not UTF-8 is replaced.
    fn string_(&self, py: Python<'_>) -> PyResult<String> {
        let limit = usize::try_from(self.size.saturating_mul(self.count))?;
        Ok(String::from_utf8_lossy(&self.scope.memory.c_string(py, self.at, limit)?).into_owned())
    }

    fn __repr__(&self) -> String {
        format!("<array of {} at {:#x}>", self.count, self.at)
    }
}
