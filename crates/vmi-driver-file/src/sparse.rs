//! Writing with holes where there is nothing but zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What becomes a hole if it is zero: the page of x86, and the block of nearly every file system.
pub(crate) const PAGE: usize = 4096;

/// Pages that follow each other and are all zero, or all not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) len: usize,
    pub(crate) zero: bool,
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
