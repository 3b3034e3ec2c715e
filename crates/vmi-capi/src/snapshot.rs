//! Snapshots: a frozen copy of a machine is a machine.

use core::mem::MaybeUninit;

use crate::border;
use crate::error::{vmi_error, vmi_status};
use crate::machine::{Machine, vmi_machine};
use crate::table;

/// How a snapshot was made.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_snapshot_report {
    /// How long the guest stood still, in nanoseconds.
    pub stood_still: u64,
    /// How long everything took, in nanoseconds.
    pub took: u64,
    /// Bytes of this host's memory that the snapshot takes.
    pub resident: u64,
    /// Bytes of memory that the map names but that were not there.
    pub missing: u64,
}

/// Makes a frozen copy of all memory and registers, of one moment: a machine of its own, which outlives this one. Closed with vmi_machine_close. `report` may be NULL.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_machine_snapshot(
    machine: *mut vmi_machine,
    snapshot: Option<&mut MaybeUninit<*mut vmi_machine>>,
    report: Option<&mut MaybeUninit<vmi_snapshot_report>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let snapshot = border::slot(snapshot)?;
        let machine = table::get(machine)?;
        let (frozen, made) = machine.0.machine.snapshot()?;
        let nanoseconds = |time: core::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let made = vmi_snapshot_report {
            stood_still: nanoseconds(made.stood_still),
            took: nanoseconds(made.took),
            resident: made.resident,
            missing: made.missing.iter().fold(0, |sum, region| sum.saturating_add(region.len())),
        };
        snapshot.put(Machine::new(frozen))?;
        if let Some(report) = report {
            report.write(made);
        }
        Ok(())
    })
}
