//! Dumps of a running system: pages by a table of runs (kdmp-parser, structs.rs and parse.rs, which found it out).

use vmi_core::Piece;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::runs::{Run, place};
use crate::FormatError;
use crate::image::Input;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    marker: U32,
    /// `RDMP`.
    magic: [u8; 4],
    valid: [u8; 4],
    reserved: U32,
    /// Length of what is before the pages, from the end of this field on.
    metadata_len: U64,
    /// Where the first page is in the file.
    pages_at: U64,
    /// For a dump of all memory: how many runs and pages there are; else unknown.
    counts: [U64; 2],
}

/// The table ends where the first page begins, or with an entry of page 0. More runs than this are no table of Windows: 16 MiB.
const MAX_RUNS: u64 = 1 << 20;

/// Reads the memory that a table at `offset` tells of.
pub(super) fn read(input: Input<'_>, offset: u64) -> Result<Vec<Piece>, FormatError> {
    let header: Header = input.source.read(offset, "the header of the table of runs")?;
    let malformed = |what: String| FormatError::Malformed { offset, what };
    if &header.magic != b"RDMP" || &header.valid != b"DUMP" {
        return Err(malformed("no table of runs of pages (RDMP) behind the header".to_owned()));
    }
    let table = offset.saturating_add(size_of::<Header>() as u64);
    let pages_at = header.pages_at.get();
    let count = pages_at
        .checked_sub(table)
        .and_then(|len| len.checked_div(size_of::<[U64; 2]>() as u64))
        .filter(|&count| count <= MAX_RUNS)
        .ok_or_else(|| malformed(format!("the first page cannot be at {pages_at:#x}")))?;
    let bytes = input.source.get(table, count.saturating_mul(size_of::<[U64; 2]>() as u64), "the table of runs")?;
    let entries = <[[U64; 2]]>::ref_from_bytes(&bytes).unwrap_or_default();
    let runs = entries.iter().map(|[first, count]| Run { first: first.get(), count: count.get() });
    place(input, pages_at, runs.take_while(|run| run.first != 0))
}
