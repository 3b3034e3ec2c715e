//! The running guests of this host.

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// A running guest that was found on this host.
#[pyclass(frozen, get_all, module = "vmi")]
pub(crate) struct FoundGuest {
    /// What `vmi.open` takes; `None` if there is no way in.
    target: Option<String>,
    /// The guest's name.
    name: Option<String>,
    /// The process that runs it.
    pid: Option<u32>,
    /// How much memory it was given, as whoever started it wrote that.
    memory: Option<String>,
    /// The ways to its memory that are open to this user, best first.
    roads: Vec<String>,
    /// Whether it can be paused and resumed.
    control: bool,
    /// Whether it reports events.
    events: bool,
    /// What is not possible and why; a sentence each.
    problems: Vec<String>,
}

#[pymethods]
impl FoundGuest {
    /// The attributes as a dictionary.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("target", &self.target)?;
        dict.set_item("name", &self.name)?;
        dict.set_item("pid", self.pid)?;
        dict.set_item("memory", &self.memory)?;
        dict.set_item("roads", &self.roads)?;
        dict.set_item("control", self.control)?;
        dict.set_item("events", self.events)?;
        dict.set_item("problems", &self.problems)?;
        Ok(dict)
    }

    fn __repr__(&self) -> String {
        let target = self.target.as_deref().map_or_else(|| "None".to_owned(), |target| format!("{target:?}"));
        format!("FoundGuest(target={target}, pid={:?})", self.pid.unwrap_or_default())
    }
}

/// The running guests of this host that this user can see. Nothing is opened.
#[pyfunction]
pub(crate) fn targets(py: Python<'_>) -> Vec<FoundGuest> {
    let found = py.detach(::vmi::targets);
    let row = |guest: ::vmi::FoundGuest| FoundGuest {
        target: guest.target.map(|target| target.to_string()),
        name: guest.name,
        pid: guest.pid,
        memory: guest.memory,
        roads: guest.roads.iter().map(ToString::to_string).collect(),
        control: guest.control,
        events: guest.events,
        problems: guest.problems,
    };
    found.into_iter().map(row).collect()
}
