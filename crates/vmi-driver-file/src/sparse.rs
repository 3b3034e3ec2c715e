//! Writing with holes where there is nothing but zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What becomes a hole if it is zero: the page of x86, and the block of nearly every file system.
pub(crate) const PAGE: usize = 4096;

/// Writes `bytes` at `offset` of a new file, leaving out pages of zeros. Returns how many bytes were not left out.
pub(crate) fn write_at(file: &File, offset: u64, bytes: &[u8]) -> io::Result<u64> {
    let (mut at, mut written) = (0usize, 0u64);
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let (run, zero) = run(rest);
        if !zero {
            file.write_all_at(run, offset.saturating_add(at as u64))?;
            written = written.saturating_add(run.len() as u64);
        }
        at = at.saturating_add(run.len());
    }
    Ok(written)
}

/// The pages at the start of `bytes` that are all zero, or all not; and which.
fn run(bytes: &[u8]) -> (&[u8], bool) {
    let mut pages = bytes.chunks(PAGE);
    let zero = pages.next().is_some_and(is_zero);
    let more = pages.take_while(|page| is_zero(page) == zero).fold(PAGE, |len, page| len.saturating_add(page.len()));
    (bytes.get(..more).unwrap_or(bytes), zero)
}

/// Whether all of `bytes` are zero. Looks at 64 bytes at a time, which the compiler makes vectors of.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    let zero = |block: &[u8]| block.iter().fold(0, |all, &byte| all | byte) == 0;
    blocks.iter().all(|block| zero(block)) && zero(rest)
}
