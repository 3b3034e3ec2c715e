//! Reads that pad what is missing, and say where.

use std::ops::Range;

use crate::{Address, Memory, PAGE_SIZE, Result};

/// See [`Memory::read_lossy`]. Absent memory is padded to the next 4 KiB boundary, as a page is the least that can be absent
/// from an address space; where a region ends within a page, that page's rest is absent.
pub(crate) fn read_lossy<M: Memory + ?Sized>(memory: &M, at: M::Addr, buf: &mut [u8]) -> Result<Vec<Range<usize>>> {
    let len = buf.len();
    let mut padded: Vec<Range<usize>> = Vec::new();
    let mut done = 0usize;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let here = at.checked_add(done as u64).ok_or_else(|| at.out_of_range(len).after(done))?;
        let Err(error) = memory.read_into(here, rest) else { break };
        if !error.is_absent() {
            return Err(error.after(done));
        }
        let missing = done.saturating_add(error.done());
        let in_page = at.get().wrapping_add(missing as u64) % PAGE_SIZE;
        let to_boundary = usize::try_from(PAGE_SIZE.wrapping_sub(in_page)).unwrap_or(usize::MAX);
        let end = missing.saturating_add(to_boundary).min(len);
        if let Some(gap) = buf.get_mut(missing..end) {
            gap.fill(0);
        }
        match padded.last_mut() {
            Some(last) if last.end == missing => last.end = end,
            _ => padded.push(missing..end),
        }
        done = end;
    }
    Ok(padded)
}
