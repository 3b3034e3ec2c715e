//! Snapshots of running machines in qcow2 disk images: what QEMU's `savevm` and `snapshot-save`, and libvirt's `virsh snapshot-create`, write unless they
//! are told to write files of their own.
//!
//! Layout: QEMU, docs/interop/qcow2.txt. Numbers are big-endian. A snapshot has a table of the disk's clusters at its moment; behind the end of the disk,
//! at the next entry of the first level, the same table leads to the state of the machine, which is a migration stream (`format/qemu/`).
//!
//! Of a machine with several disks, the state is in one of them.

mod clusters;
mod header;
mod snapshots;

pub(crate) use header::matches;

use crate::FormatError;
use crate::format::qemu;
use crate::image::{Image, Input};

/// Reads the machine's state of the snapshot that the user named, or of the newest one.
pub(crate) fn parse(input: Input<'_>) -> Result<Image, FormatError> {
    let disk = header::Disk::read(input.source)?;
    let snapshot = snapshots::choose(snapshots::read(input.source, &disk)?, input.options.snapshot.as_deref())?;
    let state = clusters::state(input, &disk, &snapshot)?;
    if !qemu::matches(&state.head(16)?) {
        let what = format!("the state in {snapshot} is no migration stream of version 3");
        return Err(FormatError::Malformed { offset: snapshot.l1_table, what });
    }
    // No file lies beside a state.
    qemu::parse(Input { source: &state, path: None, ..input })
}
