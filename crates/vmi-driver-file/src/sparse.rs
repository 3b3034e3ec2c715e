//! Files with holes: writing them where there is nothing but zeros, and finding what is stored between them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use vmi_core::{Piece, Region};

/// What becomes a hole if it is zero: the page of x86, and the block of nearly every file system.
pub(crate) const PAGE: usize = 4096;

/// Pages that follow each other and are all zero, or all not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) len: usize,
    pub(crate) zero: bool,
}

/// More runs of stored bytes than any file system keeps of a file that was not made to have them.
const MAX_RUNS: usize = 1 << 21;

/// The ranges of the file at `path` that are stored; between them are holes. All of it on a file system that does not know.
pub(crate) fn data(path: &Path) -> io::Result<Vec<Range<u64>>> {
    let file = File::open(path)?;
    let mut runs = Vec::new();
    let mut at = 0i64;
    loop {
        let start = match lseek(&file, at, Whence::SeekData) {
            Ok(start) => start,
            // Nothing is stored behind this place.
            Err(Errno::ENXIO) => return Ok(runs),
            Err(error) => return Err(error.into()),
        };
        let end = lseek(&file, start, Whence::SeekHole)?;
        if end <= start || runs.len() >= MAX_RUNS {
            return Err(io::Error::other("its holes cannot be told: too many, or not in order"));
        }
        runs.push(start.unsigned_abs()..end.unsigned_abs());
        at = end;
    }
}

/// Those parts of `pieces` that lie in `runs`, which ascend.
pub(crate) fn cut(pieces: &[Piece], runs: &[Range<u64>]) -> Vec<Piece> {
    let mut stored = Vec::new();
    for piece in pieces {
        let piece_end = piece.offset.saturating_add(piece.region.len());
        let first = runs.partition_point(|run| run.end <= piece.offset);
        for run in runs.iter().skip(first).take_while(|run| run.start < piece_end) {
            let (start, end) = (run.start.max(piece.offset), run.end.min(piece_end));
            let at = piece.region.start().checked_add(start.saturating_sub(piece.offset));
            let region = at.and_then(|at| Region::new(at, end.saturating_sub(start)));
            stored.extend(region.map(|region| Piece { region, offset: start }));
        }
    }
    stored
}

/// Writes `bytes` at `offset` of a new file, leaving out pages of zeros. Returns how many bytes were not left out.
pub(crate) fn write_at(file: &File, offset: u64, bytes: &[u8]) -> io::Result<u64> {
    let (mut rest, mut at, mut written) = (bytes, offset, 0u64);
    for run in runs(bytes) {
        let (now, behind) = rest.split_at(run.len.min(rest.len()));
        if !run.zero {
            file.write_all_at(now, at)?;
            written = written.saturating_add(now.len() as u64);
        }
        at = at.saturating_add(now.len() as u64);
        rest = behind;
    }
    Ok(written)
}

/// All of `bytes`, in runs as long as they go; the last page may be a part of one.
pub(crate) fn runs(bytes: &[u8]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for page in bytes.chunks(PAGE) {
        let zero = is_zero(page);
        match runs.last_mut() {
            Some(run) if run.zero == zero => run.len = run.len.saturating_add(page.len()),
            _ => runs.push(Run { len: page.len(), zero }),
        }
    }
    runs
}

/// Whether all of `bytes` are zero. Looks at 64 bytes at a time, which the compiler makes vectors of.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    let zero = |block: &[u8]| block.iter().fold(0, |all, &byte| all | byte) == 0;
    blocks.iter().all(|block| zero(block)) && zero(rest)
}
