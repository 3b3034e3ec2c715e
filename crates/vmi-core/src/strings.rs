//! Bounded strings out of guest memory.

use crate::{Address, ErrorKind, Memory, PAGE_SIZE, Result};

/// Reads pieces that end at page boundaries, so that a string just before an unmapped page is read, and nothing beyond
/// the page of its terminator is touched. `end` gets the bytes so far and says how many of them the string has, once it knows.
fn read_until<M: Memory + ?Sized>(
    memory: &M,
    at: M::Addr,
    limit: usize,
    mut end: impl FnMut(&[u8]) -> Option<usize>,
) -> Result<Vec<u8>> {
    let mut bytes: Vec<u8> = Vec::new();
    while bytes.len() < limit {
        let done = bytes.len();
        let here = at.checked_add(done as u64).ok_or_else(|| at.out_of_range(limit).after(done))?;
        let to_boundary = PAGE_SIZE.wrapping_sub(here.get() % PAGE_SIZE);
        let piece = usize::try_from(to_boundary).unwrap_or(usize::MAX).min(limit.saturating_sub(done));
        bytes.resize(done.saturating_add(piece), 0);
        let read = match bytes.get_mut(done..) {
            Some(rest) => memory.read_into(here, rest),
            None => Ok(()),
        };
        // A region may end within a page: the terminator may lie before that.
        let good = read.as_ref().err().map_or(piece, crate::Error::done);
        bytes.truncate(done.saturating_add(good));
        if let Some(len) = end(&bytes) {
            bytes.truncate(len);
            return Ok(bytes);
        }
        read.map_err(|error| error.after(done))?;
    }
    Err(ErrorKind::Unterminated { at: at.get(), limit }.into())
}

/// See [`Memory::read_c_string`].
pub(crate) fn read_c_string<M: Memory + ?Sized>(memory: &M, at: M::Addr, limit: usize) -> Result<Vec<u8>> {
    let mut searched = 0usize;
    read_until(memory, at, limit, |bytes| {
        let found = bytes.get(searched..)?.iter().position(|&byte| byte == 0);
        let len = found.map(|index| index.saturating_add(searched));
        searched = bytes.len();
        len
    })
}

/// See [`Memory::read_utf16`].
pub(crate) fn read_utf16<M: Memory + ?Sized>(memory: &M, at: M::Addr, limit: usize) -> Result<Vec<u16>> {
    let mut searched = 0usize;
    let bytes = read_until(memory, at, limit.saturating_mul(2), |bytes| {
        let (units, _) = bytes.as_chunks::<2>();
        let found = units.get(searched..)?.iter().position(|unit| *unit == [0, 0]);
        let len = found.map(|index| index.saturating_add(searched).saturating_mul(2));
        searched = units.len();
        len
    })?;
    Ok(bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit)).collect())
}
