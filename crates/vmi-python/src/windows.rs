//! What only Windows guests have: handles, address descriptors, tokens, system services, the registry.

use std::sync::Arc;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use vmi::windows::registry::{self, Data, RegistryError};
use vmi::windows::{Windows as System, moment};
use vmi::{AnyDriver, Error, ErrorKind, Result, VirtAddr, of_process};

use crate::errors::Raise;
use crate::guest::Attached;
use crate::process::Process;
use crate::rows::{Row, Rows, datetime, plain_row};

/// Rows of a list, each or the error in its place.
type Listed = Vec<Result<Row>>;

/// What a layer of Windows reads beyond what all systems have.
pub(crate) trait OfWindows {
    fn handles(&self, process: &vmi::Process) -> Result<Listed>;
    fn vads(&self, process: &vmi::Process) -> Result<Listed>;
    fn token(&self, process: &vmi::Process) -> Result<Token>;
    fn services(&self) -> Result<Listed>;
    fn hives(&self) -> Listed;
    fn key(&self, path: &str) -> Result<KeyContents>;
    fn subkeys(&self, path: &str) -> Result<Listed>;
    fn values(&self, path: &str) -> Result<Listed>;
}

/// What a key says of itself.
pub(crate) struct KeyContents {
    name: String,
    class: Option<String>,
    last_write: u64,
}

/// An error of the registry as one of memory.
fn registry_error(error: RegistryError) -> Error {
    match error {
        RegistryError::Memory { source, .. } | RegistryError::Guest(source) => source,
        RegistryError::NoKey { path } => ErrorKind::NoObject { what: format!("registry key `{path}`") }.into(),
        RegistryError::Limit { what, limit } => ErrorKind::Limit { what, limit }.into(),
        RegistryError::Corrupt { cell, .. } => Error::corrupt(error.to_string(), VirtAddr::new(cell.into())),
        other => Error::corrupt(other.to_string(), VirtAddr::new(0)),
    }
}

impl OfWindows for System<'_, AnyDriver> {
    fn handles(&self, process: &vmi::Process) -> Result<Listed> {
        let object = self.process_at(process.object);
        let row = |handle: vmi::windows::Handle<'_, '_, AnyDriver>| {
            let object = handle.object();
            Ok(Row::Handle(Handle {
                value: handle.value(),
                kind: object.type_name()?,
                name: object.full_name()?,
                access: handle.granted_access(),
                attributes: handle.attributes(),
                object: object.address().get(),
            }))
        };
        of_process(process, || object.pid(), || Ok(object.handles().map(|handle| handle.and_then(row)).collect()))
    }

    fn vads(&self, process: &vmi::Process) -> Result<Listed> {
        let object = self.process_at(process.object);
        let row = |vad: vmi::windows::Vad<'_, '_, AnyDriver>| {
            Ok(Row::Vad(Vad {
                start: vad.start().get(),
                end: vad.end().get(),
                kind: format!("{:?}", vad.kind()?),
                protection: vad.protection()?.to_string(),
                private: vad.is_private()?,
                committed: vad.is_committed()?,
                commit_charge: vad.commit_charge()?,
                file: vad.file()?,
                object: vad.address().get(),
            }))
        };
        of_process(process, || object.pid(), || Ok(object.vads().map(|vad| vad.and_then(row)).collect()))
    }

    fn token(&self, process: &vmi::Process) -> Result<Token> {
        let object = self.process_at(process.object);
        let token = of_process(process, || object.pid(), || object.token())?;
        let privileges = token.privileges.unwrap_or_default().into_iter();
        Ok(Token {
            user: token.user.to_string(),
            user_name: token.user.well_known_name().map(str::to_owned),
            groups: token.groups.into_iter().map(|group| (group.sid.to_string(), group.attributes)).collect(),
            integrity: token.integrity.as_ref().map(ToString::to_string),
            privileges: privileges
                .map(|privilege| {
                    let name = privilege.name().map_or_else(|| format!("privilege {}", privilege.number), str::to_owned);
                    (name, privilege.enabled)
                })
                .collect(),
            session: token.session,
            object: token.address.get(),
        })
    }

    fn services(&self) -> Result<Listed> {
        let row = |service: vmi::windows::Service| {
            let (symbol, offset) = service.symbol.unzip();
            Ok(Row::Service(SystemService {
                number: service.number,
                target: service.target.get(),
                symbol,
                offset,
                module: service.module,
                outside: service.outside,
                stack_arguments: service.stack_arguments,
            }))
        };
        Ok(System::services(self)?.into_iter().map(row).collect())
    }

    fn hives(&self) -> Listed {
        let row = |hive: registry::MemoryHive<'_, '_, AnyDriver>| {
            Ok(Row::Hive(Hive {
                name: hive.name()?,
                root_path: hive.root_path()?,
                file: hive.file_path()?,
                object: hive.address().get(),
            }))
        };
        System::hives(self).map(|hive| hive.and_then(row)).collect()
    }

    fn key(&self, path: &str) -> Result<KeyContents> {
        let read = || {
            let found = self.registry_key(path)?;
            let key = found.key()?;
            Ok(KeyContents { name: key.name(), class: key.class()?, last_write: key.last_write() })
        };
        read().map_err(registry_error)
    }

    fn subkeys(&self, path: &str) -> Result<Listed> {
        let read = || {
            let found = self.registry_key(path)?;
            let key = found.key()?;
            Ok(key.subkeys().map(|subkey| subkey.map(|subkey| Row::Text(subkey.name())).map_err(registry_error)).collect())
        };
        read().map_err(registry_error)
    }

    fn values(&self, path: &str) -> Result<Listed> {
        let row = |value: registry::Value<'_, _>| {
            Ok(Row::Value { name: value.name(), kind: value.data_type().to_string(), data: value.data()? })
        };
        let read = || {
            let found = self.registry_key(path)?;
            let key = found.key()?;
            Ok(key.values().map(|value| value.and_then(row).map_err(registry_error)).collect())
        };
        read().map_err(registry_error)
    }
}

plain_row! {
    /// An open handle of a Windows process.
    Handle {
        /// The value of the handle.
        value: u64,
        /// The type of the object: "File", "Key", "Event".
        kind: String,
        /// The full name of the object, where it has one.
        name: Option<String>,
        /// The access that was granted (ACCESS_MASK).
        access: u32,
        /// Flags of the handle (OBJ_*).
        attributes: u32,
        /// Where the object is in kernel memory.
        object: u64,
    }
}

plain_row! {
    /// A virtual address descriptor of a Windows process.
    Vad {
        /// First address.
        start: u64,
        /// First address behind it.
        end: u64,
        /// What is there: "Private", "Image", "Mapped" and others.
        kind: String,
        /// What the process may do there: "READWRITE", "EXECUTE_WRITECOPY".
        protection: String,
        /// Nobody else sees it.
        private: bool,
        /// Memory was set aside for all of it when it was made.
        committed: bool,
        /// Pages that are charged for it.
        commit_charge: Option<u64>,
        /// Path of the file that is mapped.
        file: Option<String>,
        /// Where the descriptor is in kernel memory.
        object: u64,
    }
}

plain_row! {
    /// Who a Windows process is and what it may.
    Token {
        /// The user's security identifier: "S-1-5-18".
        user: String,
        /// Its name, if it is the same in all systems: "SYSTEM".
        user_name: Option<String>,
        /// Groups with their attributes (SE_GROUP_*).
        groups: Vec<(String, u32)>,
        /// The level of integrity, since Windows Vista.
        integrity: Option<String>,
        /// Privileges, and whether each is in effect.
        privileges: Vec<(String, bool)>,
        /// The session of the log-on.
        session: Option<u32>,
        /// Where the token is in kernel memory.
        object: u64,
    }
}

plain_row! {
    /// A system service of the Windows kernel.
    SystemService {
        /// Its number.
        number: u32,
        /// The function that serves it.
        target: u64,
        /// The symbol at or before the function.
        symbol: Option<String>,
        /// Bytes from the symbol to the function.
        offset: Option<u64>,
        /// The module that the function is in.
        module: Option<String>,
        /// Whether the function is outside of the kernel's image: in a clean system none is.
        outside: bool,
        /// Bytes of arguments on the stack.
        stack_arguments: u32,
    }
}

plain_row! {
    /// A registry hive that the kernel has loaded.
    Hive {
        /// Its name, by the best that the kernel knows of it.
        name: Option<String>,
        /// Path of its root key, since Windows Vista.
        root_path: Option<String>,
        /// Path of its file.
        file: Option<String>,
        /// Where its structure is in kernel memory.
        object: u64,
    }
}

/// A value of a registry key.
#[pyclass(frozen, get_all, module = "vmi")]
pub(crate) struct RegistryValue {
    /// Its name; empty for the default value.
    name: String,
    /// The type of the data: "REG_SZ".
    kind: String,
    /// The data: text, a list of texts, a number, or bytes for all other types.
    data: Py<PyAny>,
}

impl RegistryValue {
    pub(crate) fn new(py: Python<'_>, name: String, kind: String, data: Data) -> PyResult<Self> {
        let data = match data {
            Data::Text(text) => text.into_bound_py_any(py)?,
            Data::Texts(texts) => texts.into_bound_py_any(py)?,
            Data::Number(number) => number.into_bound_py_any(py)?,
            Data::Bytes(bytes) => PyBytes::new(py, &bytes).into_any(),
            other => format!("{other:?}").into_bound_py_any(py)?,
        };
        Ok(Self { name, kind, data: data.unbind() })
    }
}

#[pymethods]
impl RegistryValue {
    /// The attributes as a dictionary.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("name", &self.name)?;
        dict.set_item("kind", &self.kind)?;
        dict.set_item("data", &self.data)?;
        Ok(dict)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("RegistryValue({})", self.to_dict(py)?.repr()?))
    }
}

/// A registry key, as it was when it was asked for. Its subkeys and values are read when they are asked for.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct RegistryKey {
    guest: Arc<Attached>,
    path: String,
    contents: KeyContents,
}

impl RegistryKey {
    fn open(py: Python<'_>, guest: &Arc<Attached>, path: String) -> PyResult<Self> {
        let contents = read(py, guest, |windows| windows.key(&path))?;
        Ok(Self { guest: guest.clone(), path, contents })
    }
}

#[pymethods]
impl RegistryKey {
    /// The path by which it was asked for.
    #[getter]
    fn path(&self) -> &str {
        &self.path
    }

    /// Its name; of a root key the kernel's name for the hive.
    #[getter]
    fn name(&self) -> &str {
        &self.contents.name
    }

    /// The class name, which few keys have.
    #[getter]
    fn class_name(&self) -> Option<&str> {
        self.contents.class.as_deref()
    }

    /// When it was last written, as an aware datetime.
    #[getter]
    fn last_write<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        datetime(py, moment(self.contents.last_write))
    }

    /// Names of its subkeys.
    #[pyo3(signature = (*, on_error=None))]
    fn subkeys(&self, py: Python<'_>, on_error: Option<Py<PyAny>>) -> PyResult<Rows> {
        let rows = read(py, &self.guest, |windows| windows.subkeys(&self.path))?;
        Ok(Rows::new(self.guest.clone(), rows, on_error))
    }

    /// A subkey by its name, or by a path from here; NoObjectError if there is none.
    fn subkey(&self, py: Python<'_>, name: &str) -> PyResult<Self> {
        Self::open(py, &self.guest, format!("{}\\{name}", self.path))
    }

    /// Its values.
    #[pyo3(signature = (*, on_error=None))]
    fn values(&self, py: Python<'_>, on_error: Option<Py<PyAny>>) -> PyResult<Rows> {
        let rows = read(py, &self.guest, |windows| windows.values(&self.path))?;
        Ok(Rows::new(self.guest.clone(), rows, on_error))
    }

    /// The attributes as a dictionary.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("path", self.path())?;
        dict.set_item("name", self.name())?;
        dict.set_item("class_name", self.class_name())?;
        dict.set_item("last_write", self.last_write(py))?;
        Ok(dict)
    }

    fn __repr__(&self) -> String {
        format!("<registry key {}>", self.path)
    }
}

/// Reads with the interpreter's lock released.
fn read<T: Send>(py: Python<'_>, guest: &Arc<Attached>, read: impl FnOnce(&dyn OfWindows) -> Result<T> + Send) -> PyResult<T> {
    guest.handle.check()?;
    let nothing = || Error::from(ErrorKind::NoObject { what: "a Windows system in this machine".to_owned() });
    py.detach(|| guest.guest().windows(|windows| read(windows)).unwrap_or_else(|| Err(nothing()))).raise(py)
}

/// What only a Windows guest has: `Guest.windows`.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct Windows {
    guest: Arc<Attached>,
}

impl Windows {
    pub(crate) fn new(guest: Arc<Attached>) -> Self {
        Self { guest }
    }

    fn list(
        &self,
        py: Python<'_>,
        on_error: Option<Py<PyAny>>,
        list: impl FnOnce(&dyn OfWindows) -> Result<Listed> + Send,
    ) -> PyResult<Rows> {
        Ok(Rows::new(self.guest.clone(), read(py, &self.guest, list)?, on_error))
    }
}

#[pymethods]
impl Windows {
    /// The open handles of a process, ascending.
    #[pyo3(signature = (process, *, on_error=None))]
    fn handles(&self, py: Python<'_>, process: &Bound<'_, Process>, on_error: Option<Py<PyAny>>) -> PyResult<Rows> {
        let process = process.get().row();
        self.list(py, on_error, |windows| windows.handles(process))
    }

    /// The virtual address descriptors of a process, ascending: what `memory_areas()` gives, with all that Windows knows of it.
    #[pyo3(signature = (process, *, on_error=None))]
    fn vads(&self, py: Python<'_>, process: &Bound<'_, Process>, on_error: Option<Py<PyAny>>) -> PyResult<Rows> {
        let process = process.get().row();
        self.list(py, on_error, |windows| windows.vads(process))
    }

    /// The token of a process: who it is and what it may.
    fn token(&self, py: Python<'_>, process: &Bound<'_, Process>) -> PyResult<Token> {
        let process = process.get().row();
        read(py, &self.guest, |windows| windows.token(process))
    }

    /// The kernel's system services, by number.
    #[pyo3(signature = (*, on_error=None))]
    fn system_services(&self, py: Python<'_>, on_error: Option<Py<PyAny>>) -> PyResult<Rows> {
        self.list(py, on_error, |windows| windows.services())
    }

    /// The registry hives that the kernel has loaded. Their layouts come from symbols of the kernel only.
    #[pyo3(signature = (*, on_error=None))]
    fn hives(&self, py: Python<'_>, on_error: Option<Py<PyAny>>) -> PyResult<Rows> {
        self.list(py, on_error, |windows| Ok(windows.hives()))
    }

    /// The registry key at a full path, as drivers write it: "\REGISTRY\MACHINE\SYSTEM\CurrentControlSet". Links are followed.
    fn registry_key(&self, py: Python<'_>, path: String) -> PyResult<RegistryKey> {
        RegistryKey::open(py, &self.guest, path)
    }

    fn __repr__(&self) -> String {
        "<vmi.Windows>".to_owned()
    }
}
