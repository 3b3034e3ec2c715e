//! Snapshots: a frozen copy of a machine is a machine.

use pyo3::prelude::*;
use vmi::x86::X86;
use vmi::{Driver, GuestMapping, MachineInfo, PhysAddr, Snapshot, Vcpus, Vmi};

use crate::machine::Region;

/// The driver of a snapshot, out of the handle that the library gives on it.
pub(crate) struct Frozen(pub(crate) Vmi<Snapshot<X86>>);

impl Driver for Frozen {
    type Arch = X86;

    fn machine(&self) -> &MachineInfo {
        self.0.machine()
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> vmi::Result<()> {
        self.0.driver().read(at, buf)
    }

    fn mapping(&self) -> Option<&GuestMapping> {
        self.0.driver().mapping()
    }

    fn vcpus(&self) -> Option<&dyn Vcpus<Arch = X86>> {
        self.0.driver().vcpus()
    }
}

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
