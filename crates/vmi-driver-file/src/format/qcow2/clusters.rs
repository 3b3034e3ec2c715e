//! Where the state of a snapshot is in the file: through the two levels of its table of clusters.

use zerocopy::FromBytes;
use zerocopy::big_endian::U64;

use super::header::Disk;
use super::snapshots::Snapshot;
use crate::FormatError;
use crate::arranged::{Arranged, Segment};
use crate::image::Input;
use crate::source::Source;

/// An offset in an entry of either level.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Of the second level: the cluster is packed.
const COMPRESSED: u64 = 1 << 62;
/// Of the second level, without subclusters: the cluster is zero, whatever there is of it.
const ZERO: u64 = 1;
/// Of a cluster, in 32 bits each of the second half of an extended entry: those that are there, and those that are zero.
const SUBCLUSTERS: u32 = 32;
/// QEMU's own limit of the first level, in bytes.
const MOST_L1: u64 = 32 << 20;

/// The snapshot's state as a file of its own. With truncated files allowed, its start, up to the first cluster that is missing.
///
/// # Errors
/// What is missing, or cannot be.
pub(super) fn state(input: Input<'_>, disk: &Disk, snapshot: &Snapshot) -> Result<Source, FormatError> {
    let mut state = State { input, disk, snapshot, segments: Vec::new(), len: 0 };
    state.fill()?;
    let State { mut segments, len, .. } = state;
    segments.shrink_to_fit();
    Arranged::source(input.source.clone(), segments, len).ok_or_else(|| {
        let what = format!("{len:#x} bytes of state, of which the file has nearly nothing, in {snapshot}");
        FormatError::Malformed { offset: snapshot.l1_table, what }
    })
}

/// What is known of the state so far.
struct State<'a> {
    input: Input<'a>,
    disk: &'a Disk,
    snapshot: &'a Snapshot,
    segments: Vec<Segment>,
    len: u64,
}

impl State<'_> {
    fn malformed<T>(&self, offset: u64, what: &str) -> Result<T, FormatError> {
        Err(FormatError::Malformed { offset, what: format!("{what} of {}", self.snapshot) })
    }

    /// Follows the first level from the entry behind the end of the disk on.
    fn fill(&mut self) -> Result<(), FormatError> {
        let Snapshot { l1_table, l1_size, disk_size, state_size, .. } = *self.snapshot;
        let cluster = 1u64 << self.disk.cluster_bits;
        // What a table of the second level leads to: it is a cluster of entries.
        let span = cluster >> self.disk.entry_size().trailing_zeros() << self.disk.cluster_bits;
        let (first, count) = (disk_size.div_ceil(span), state_size.div_ceil(span));
        let l1_len = u64::from(l1_size).saturating_mul(8);
        if l1_len > MOST_L1 || first.saturating_add(count) > u64::from(l1_size) {
            let what = format!("{state_size:#x} bytes of state behind {disk_size:#x} of disk are not in the {l1_size} entries");
            return self.malformed(l1_table, &what);
        }
        let at = l1_table.saturating_add(first.saturating_mul(8));
        let l1 = self.input.source.get(at, count.saturating_mul(8), "the snapshot's table of clusters")?;
        // Nothing in a snapshot is used twice, so that there are no more tables and clusters than the file has.
        let mut budget = self.input.source.len().div_ceil(cluster);
        for (index, entry_of_l1) in (0u64..).zip(l1.chunks_exact(8)) {
            let start = index.saturating_mul(span);
            let len = span.min(state_size.saturating_sub(start));
            let table = number(entry_of_l1) & OFFSET;
            if table != 0 && !self.table(table, start, len, &mut budget)? {
                return Ok(());
            }
            self.len = start.saturating_add(len);
        }
        Ok(())
    }

    /// Adds `len` bytes of state from `start` on, by a table of the second level. Whether all of them are there.
    fn table(&mut self, table: u64, start: u64, len: u64, budget: &mut u64) -> Result<bool, FormatError> {
        let cluster = 1u64 << self.disk.cluster_bits;
        let size = self.disk.entry_size();
        let bytes = len.div_ceil(cluster).saturating_mul(size as u64);
        if !table.is_multiple_of(cluster) {
            return self.malformed(table, "a table of clusters that is not at a cluster");
        }
        if self.input.present(table, bytes, || format!("a table of clusters of {}", self.snapshot))? < bytes {
            return Ok(false);
        }
        let source = self.input.source;
        self.spend(table, budget)?;
        let entries = source.get(table, bytes, "a table of clusters")?;
        for (index, entry) in (0u64..).zip(entries.chunks_exact(size)) {
            let within = index.saturating_mul(cluster);
            let here = start.saturating_add(within);
            let len = cluster.min(len.saturating_sub(within));
            let descriptor = number(entry);
            if descriptor & COMPRESSED != 0 {
                return self.malformed(here, "a packed cluster, which QEMU does not write, in the state");
            }
            let at = descriptor & OFFSET;
            if at != 0 && (self.disk.extended || descriptor & ZERO == 0) {
                self.spend(at, budget)?;
                let there = match entry.get(8..).filter(|bitmap| !bitmap.is_empty()) {
                    Some(bitmap) => self.subclusters(number(bitmap), here, len, at)?,
                    None => self.add(here, len, at)?,
                };
                if !there {
                    return Ok(false);
                }
            }
            self.len = here.saturating_add(len);
        }
        Ok(true)
    }

    /// Adds what a bitmap says of a cluster of subclusters.
    fn subclusters(&mut self, bitmap: u64, start: u64, len: u64, at: u64) -> Result<bool, FormatError> {
        let size = 1u64 << self.disk.cluster_bits >> SUBCLUSTERS.trailing_zeros();
        for index in 0..SUBCLUSTERS {
            let within = u64::from(index).saturating_mul(size);
            if within >= len {
                break;
            }
            let (allocated, zero) = (bitmap >> index & 1 != 0, bitmap >> index >> SUBCLUSTERS & 1 != 0);
            if allocated && !zero {
                let len = size.min(len.saturating_sub(within));
                if !self.add(start.saturating_add(within), len, at.saturating_add(within))? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Adds bytes of the file. Whether all of them are there.
    fn add(&mut self, start: u64, len: u64, at: u64) -> Result<bool, FormatError> {
        let there = self.input.present(at, len, || format!("the state in {}", self.snapshot))?;
        match self.segments.last_mut() {
            Some(last) if last.start.saturating_add(last.len) == start && last.at.saturating_add(last.len) == at => {
                last.len = last.len.saturating_add(there);
            }
            _ if there > 0 => self.segments.push(Segment { start, len: there, at }),
            _ => {}
        }
        self.len = start.saturating_add(there);
        Ok(there == len)
    }

    /// Counts a cluster of the file.
    fn spend(&self, at: u64, budget: &mut u64) -> Result<(), FormatError> {
        match budget.checked_sub(1) {
            Some(left) => *budget = left,
            None => return self.malformed(at, "clusters that are used more than once"),
        }
        Ok(())
    }
}

/// The big-endian number that `bytes` start with.
fn number(bytes: &[u8]) -> u64 {
    U64::read_from_prefix(bytes).map_or(0, |(number, _)| number.get())
}
