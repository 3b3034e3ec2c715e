//! The registers of one vCPU.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyAttributeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use vmi::VirtAddr;
use vmi::x86::{Registers as Values, Segment, SegmentAttributes, Table};

/// The registers of one vCPU as attributes: rax, cr3, cs, ... What the source does not tell is `None`, never zero.
///
/// They are a copy: setting one changes this object, and Machine.set_registers or Event.reply brings it to the vCPU.
#[pyclass(frozen, module = "vmi")]
pub(crate) struct Registers(Mutex<Values>);

/// What has no value of its own.
const GENERAL: [&str; 18] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
];
const SYSTEM: [&str; 16] = [
    "cr0",
    "cr2",
    "cr3",
    "cr4",
    "cr8",
    "xcr0",
    "efer",
    "star",
    "lstar",
    "cstar",
    "sfmask",
    "kernel_gs_base",
    "pat",
    "sysenter_cs",
    "sysenter_esp",
    "sysenter_eip",
];
const SEGMENTS: [&str; 8] = ["cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr"];
const TABLES: [&str; 2] = ["gdtr", "idtr"];

macro_rules! choose {
    ($values:expr, $name:expr, $($register:ident)*) => {
        match $name { $(stringify!($register) => Some(&mut $values.$register),)* _ => None }
    };
}

fn general<'v>(values: &'v mut Values, name: &str) -> Option<&'v mut u64> {
    choose!(values, name, rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags)
}

fn system<'v>(values: &'v mut Values, name: &str) -> Option<&'v mut Option<u64>> {
    choose!(values, name, cr0 cr2 cr3 cr4 cr8 xcr0 efer star lstar cstar sfmask kernel_gs_base pat sysenter_cs sysenter_esp sysenter_eip)
}

fn segment<'v>(values: &'v mut Values, name: &str) -> Option<&'v mut Option<Segment>> {
    choose!(values.segments, name, cs ds es fs gs ss ldt tr)
}

fn table<'v>(values: &'v mut Values, name: &str) -> Option<&'v mut Option<Table>> {
    choose!(values, name, gdtr idtr)
}

impl Registers {
    pub(crate) fn new(values: Values) -> Self {
        Self(Mutex::new(values))
    }

    pub(crate) fn copy(&self) -> Values {
        *self.values()
    }

    fn values(&self) -> MutexGuard<'_, Values> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn segment_dict(py: Python<'_>, segment: Segment) -> PyResult<Bound<'_, PyAny>> {
    let dict = PyDict::new(py);
    dict.set_item("selector", segment.selector)?;
    dict.set_item("base", segment.base)?;
    dict.set_item("limit", segment.limit)?;
    dict.set_item("attributes", segment.attributes.map(|attributes| attributes.bits()))?;
    Ok(dict.into_any())
}

fn table_dict(py: Python<'_>, table: Table) -> PyResult<Bound<'_, PyAny>> {
    let dict = PyDict::new(py);
    dict.set_item("base", table.base.get())?;
    dict.set_item("limit", table.limit)?;
    Ok(dict.into_any())
}

fn item<'py, T: for<'a> FromPyObjectOwned<'py>>(dict: &Bound<'py, PyDict>, name: &str) -> PyResult<T> {
    let value = dict.get_item(name)?.ok_or_else(|| PyTypeError::new_err(format!("`{name}` is missing")))?;
    value.extract().map_err(Into::into)
}

#[pymethods]
impl Registers {
    fn __getattr__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let mut values = self.copy();
        if let Some(value) = general(&mut values, name) {
            return value.into_bound_py_any(py);
        }
        if let Some(value) = system(&mut values, name) {
            return value.into_bound_py_any(py);
        }
        if let Some(value) = segment(&mut values, name) {
            return value.map(|segment| segment_dict(py, segment)).transpose()?.into_bound_py_any(py);
        }
        if let Some(value) = table(&mut values, name) {
            return value.map(|table| table_dict(py, table)).transpose()?.into_bound_py_any(py);
        }
        if name == "dr" {
            return values.dr.map(|dr| dr.to_vec()).into_bound_py_any(py);
        }
        Err(PyAttributeError::new_err(format!("no register `{name}`")))
    }

    fn __setattr__(&self, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
        // What Python says is taken in before the values are held.
        let unknown = || Err(PyAttributeError::new_err(format!("no register `{name}`")));
        let mut values = self.copy();
        if let Some(register) = general(&mut values, name) {
            *register = value.extract()?;
        } else if let Some(register) = system(&mut values, name) {
            *register = value.extract()?;
        } else if let Some(register) = segment(&mut values, name) {
            let dict = value.cast::<PyDict>()?;
            let attributes: Option<u16> = item(dict, "attributes")?;
            *register = Some(Segment {
                selector: item(dict, "selector")?,
                base: item(dict, "base")?,
                limit: item(dict, "limit")?,
                attributes: attributes.map(SegmentAttributes::from_bits_retain),
            });
        } else if let Some(register) = table(&mut values, name) {
            let dict = value.cast::<PyDict>()?;
            *register = Some(Table { base: VirtAddr::new(item(dict, "base")?), limit: item(dict, "limit")? });
        } else if name == "dr" {
            values.dr = Some(value.extract()?);
        } else {
            return unknown();
        }
        *self.values() = values;
        Ok(())
    }

    fn __dir__(&self) -> Vec<&'static str> {
        let own = ["dr", "privilege_level", "paging_mode", "to_dict"];
        GENERAL.into_iter().chain(SYSTEM).chain(SEGMENTS).chain(TABLES).chain(own).collect()
    }

    /// The current privilege level: 0 in the kernel, 3 in user mode.
    #[getter]
    fn privilege_level(&self) -> Option<u8> {
        self.values().privilege_level()
    }

    /// The paging mode that the control registers select; `None` if paging is off or the source does not tell.
    #[getter]
    fn paging_mode(&self) -> Option<String> {
        self.values().paging_mode().map(crate::memory::mode_name).map(str::to_owned)
    }

    /// All registers as a dictionary.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for name in GENERAL.into_iter().chain(SYSTEM).chain(SEGMENTS).chain(TABLES).chain(["dr"]) {
            dict.set_item(name, self.__getattr__(py, name)?)?;
        }
        Ok(dict)
    }

    fn __str__(&self) -> String {
        self.values().to_string()
    }

    fn __repr__(&self) -> String {
        let values = self.values();
        format!("<vmi.Registers rip={:#x} rsp={:#x}>", values.rip, values.rsp)
    }
}
