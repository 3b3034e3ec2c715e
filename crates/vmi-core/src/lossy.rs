//! Reads that pad what is missing, and say where.

use std::ops::Range;

use crate::{Address, Memory, Result};

/// See [`Memory::read_lossy`].
pub(crate) fn read_lossy<M: Memory + ?Sized>(memory: &M, at: M::Addr, buf: &mut [u8]) -> Result<Vec<Range<usize>>> {
    let len = buf.len();
    let address = |offset: usize| at.checked_add(offset as u64).ok_or_else(|| at.out_of_range(len).after(offset));
    let mut padded: Vec<Range<usize>> = Vec::new();
    let mut done = 0usize;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let Err(error) = memory.read_into(address(done)?, rest) else { break };
        if !error.is_absent() {
            return Err(error.after(done));
        }
        let missing = done.saturating_add(error.done());
        let next = memory.next_present(address(missing)?).and_then(|next| next.get().checked_sub(at.get()));
        // An implementation that does not move on would never end.
        let end = next.map_or(len, |next| usize::try_from(next).unwrap_or(usize::MAX)).clamp(missing.saturating_add(1), len);
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
