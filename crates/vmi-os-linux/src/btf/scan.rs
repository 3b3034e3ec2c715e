//! BTF in a haystack: headers that may begin one.

use memchr::memmem;

use super::header::{Header, MAGIC};

/// The longest BTF that is believed: kernels have 3 to 6 MB.
pub const MAX_LEN: usize = 32 << 20;

/// A place where BTF may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Offset of the header in the haystack.
    pub offset: usize,
    /// Length in bytes of the header and all sections. They may go on after the end of the haystack.
    pub len: usize,
}

/// All places in `haystack`, at multiples of four bytes, where a plausible BTF header stands, in ascending order.
///
/// A candidate has a sane header and at most [`MAX_LEN`] bytes, and its strings begin with an empty name (a module's may begin with
/// any name: seen in 7.2) and end one, as far as they are within the haystack. Only [`Btf::parse`](super::Btf::parse) can tell whether it is whole; memory may hold stale copies.
pub fn find_headers(haystack: &[u8]) -> impl Iterator<Item = Candidate> {
    memmem::find_iter(haystack, &MAGIC).filter_map(move |offset| candidate(haystack, offset))
}

fn candidate(haystack: &[u8], offset: usize) -> Option<Candidate> {
    if !offset.is_multiple_of(4) {
        return None;
    }
    let bytes = haystack.get(offset..)?;
    let header = Header::parse(bytes).ok()?;
    let (types, strings) = (header.types(), header.strings());
    let sane = matches!(header.len(), 24..=64)
        && header.len().is_multiple_of(4)
        && types.start.is_multiple_of(4)
        && types.end > types.start
        && strings.end > strings.start;
    let end = types.end.max(strings.end).max(header.layouts().map_or(0, |layouts| layouts.end));
    let len = usize::try_from(end).ok().filter(|&len| len <= MAX_LEN)?;
    let byte = |at: u64| usize::try_from(at).ok().and_then(|at| bytes.get(at)).copied();
    let named = byte(strings.start).is_none_or(|first| first == 0 || first.is_ascii_graphic())
        && byte(strings.end.saturating_sub(1)).is_none_or(|last| last == 0);
    (sane && named).then_some(Candidate { offset, len })
}
