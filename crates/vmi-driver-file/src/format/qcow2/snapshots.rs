//! The table of snapshots.

use core::fmt;

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::header::Disk;
use crate::FormatError;
use crate::source::Source;

/// What each entry starts with. Extra data, id and name follow, and zeros up to a multiple of 8 bytes.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    l1_table: U64,
    l1_size: U32,
    id_len: U16,
    name_len: U16,
    seconds: U32,
    nanoseconds: U32,
    clock: U64,
    /// Zero in version 3, where the extra data has it in 8 bytes.
    state_size: U32,
    extra_len: U32,
}

/// QEMU's own limits.
const MOST: u32 = 65536;
const MOST_EXTRA: u32 = 1024;
/// Of the whole table.
const MOST_BYTES: u64 = 64 << 20;

/// A snapshot.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    /// The number that QEMU gave it.
    id: String,
    /// The name that the user gave it.
    name: String,
    /// Since 1970: seconds, and nanoseconds of the next one.
    taken: (u32, u32),
    /// Where the first level of its table of clusters is, and how many entries that has.
    pub(super) l1_table: u64,
    pub(super) l1_size: u32,
    /// Bytes of the disk then.
    pub(super) disk_size: u64,
    /// Bytes of the machine's state; 0 if there is none.
    pub(super) state_size: u64,
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snapshot {} (`{}`)", self.id.escape_debug(), self.name.escape_debug())
    }
}

/// All snapshots, in the order in which they were taken.
///
/// # Errors
/// What is missing of the table, or cannot be.
pub(super) fn read(source: &Source, disk: &Disk) -> Result<Vec<Snapshot>, FormatError> {
    const WHAT: &str = "the table of snapshots";
    let malformed = |offset, what: String| Err(FormatError::Malformed { offset, what });
    if disk.snapshots > MOST {
        return malformed(60, format!("{} snapshots", disk.snapshots));
    }
    let (mut snapshots, mut at) = (Vec::new(), disk.snapshots_at);
    for _ in 0..disk.snapshots {
        let entry: Entry = source.read(at, WHAT)?;
        let (id_len, name_len) = (u64::from(entry.id_len.get()), u64::from(entry.name_len.get()));
        let extra_len = entry.extra_len.get();
        let extra_at = at.saturating_add(size_of::<Entry>() as u64);
        let id_at = extra_at.saturating_add(u64::from(extra_len));
        let name_at = id_at.saturating_add(id_len);
        let end = name_at.saturating_add(name_len);
        if extra_len > MOST_EXTRA || end.saturating_sub(disk.snapshots_at) > MOST_BYTES {
            return malformed(
                at,
                format!(
                    "a snapshot with {extra_len} bytes of extra data, {:#x} bytes into the table",
                    end.saturating_sub(disk.snapshots_at)
                ),
            );
        }
        let extra = |index: u64| -> Result<Option<u64>, FormatError> {
            let offset = index.saturating_mul(8);
            let there = u64::from(extra_len) >= offset.saturating_add(8);
            there.then(|| source.read::<U64>(extra_at.saturating_add(offset), WHAT).map(U64::get)).transpose()
        };
        let text = |at, len| source.get(at, len, WHAT).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        snapshots.push(Snapshot {
            id: text(id_at, id_len)?,
            name: text(name_at, name_len)?,
            taken: (entry.seconds.get(), entry.nanoseconds.get()),
            l1_table: entry.l1_table.get(),
            l1_size: entry.l1_size.get(),
            disk_size: extra(1)?.unwrap_or(disk.size),
            state_size: extra(0)?.unwrap_or_else(|| entry.state_size.get().into()),
        });
        at = end.next_multiple_of(8);
    }
    Ok(snapshots)
}

/// The snapshot with memory that has this name, or else this number; without one the newest.
///
/// # Errors
/// There is none: which there are.
pub(super) fn choose(snapshots: Vec<Snapshot>, wanted: Option<&str>) -> Result<Snapshot, FormatError> {
    let (with, without): (Vec<_>, Vec<_>) = snapshots.into_iter().partition(|snapshot| snapshot.state_size > 0);
    let newest = with.iter().max_by_key(|snapshot| snapshot.taken);
    let Some(newest) = newest else {
        let why = if without.is_empty() {
            "the disk has no snapshots".to_owned()
        } else {
            format!("no memory is in {}", list(&without))
        };
        let advice = "a snapshot of a running machine (`savevm`, `virsh snapshot-create`) has its memory, in one of its disks";
        return Err(FormatError::NoSnapshot(format!("{why}; {advice}")));
    };
    let Some(wanted) = wanted else {
        if with.len() > 1 {
            tracing::warn!("the newest of several snapshots is read, {newest}; the image has {}", list(&with));
        }
        return Ok(newest.clone());
    };
    let named = with.iter().find(|snapshot| snapshot.name == wanted);
    let found = named.or_else(|| with.iter().find(|snapshot| snapshot.id == wanted)).cloned();
    found.ok_or_else(|| {
        let without = if without.is_empty() { String::new() } else { format!("; without memory: {}", list(&without)) };
        FormatError::NoSnapshot(format!(
            "no snapshot with memory is called `{}`; there are: {}{without}",
            wanted.escape_debug(),
            list(&with)
        ))
    })
}

/// Their names, the first ones if there are many.
fn list(snapshots: &[Snapshot]) -> String {
    const SHOWN: usize = 10;
    let mut names: Vec<_> = snapshots.iter().take(SHOWN).map(|snapshot| snapshot.to_string()).collect();
    if snapshots.len() > SHOWN {
        names.push(format!("{} more", snapshots.len().saturating_sub(SHOWN)));
    }
    names.join(", ")
}
