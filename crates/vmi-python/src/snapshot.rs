//! Snapshots: a frozen copy of a machine is a machine.

use pyo3::prelude::*;

use crate::machine::Region;

/// How a snapshot was made. Times are in seconds.
#[pyclass(frozen, get_all, module = "vmi")]
pub(crate) struct SnapshotReport {
    /// How long the guest stood still.
    stood_still: f64,
    /// How long everything took.
    took: f64,
    /// Bytes of this host's memory that the snapshot takes.
    resident: u64,
    /// Memory that the map names but that was not there.
    missing: Vec<Region>,
}

impl SnapshotReport {
    pub(crate) fn new(report: &vmi::SnapshotReport) -> Self {
        Self {
            stood_still: report.stood_still.as_secs_f64(),
            took: report.took.as_secs_f64(),
            resident: report.resident,
            missing: report.missing.iter().map(|region| Region::from(*region)).collect(),
        }
    }
}

#[pymethods]
impl SnapshotReport {
    fn __repr__(&self) -> String {
        format!("SnapshotReport(stood_still={}, took={}, resident={})", self.stood_still, self.took, self.resident)
    }
}
