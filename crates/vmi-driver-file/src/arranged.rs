//! A file whose bytes are in another one, in segments at other places.

use core::fmt;
use std::sync::Arc;

use crate::FormatError;
use crate::source::{RandomAccess, Source};

/// Bytes that lie in both files behind each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Their place in the file that is put together.
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// Where they are.
    pub(crate) at: u64,
}

/// The file that is put together. What no segment has is zero.
pub(crate) struct Arranged {
    of: Source,
    /// Ascending and disjoint.
    segments: Vec<Segment>,
    len: u64,
}

/// What no segment has at most: no writer leaves out more than ends of blocks, and reading holes takes time for nothing.
const MAX_HOLES: u64 = 1 << 30;

impl Arranged {
    /// The file of `len` bytes that the segments of `of` make, which are ascending and disjoint; `None` if it is nearly all holes.
    pub(crate) fn source(of: Source, segments: Vec<Segment>, len: u64) -> Option<Source> {
        (len <= MAX_HOLES.saturating_add(of.len())).then(|| Source::Indexed(Arc::new(Self { of, segments, len })))
    }
}

impl RandomAccess for Arranged {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FormatError> {
        let first = self.segments.partition_point(|segment| segment.start.saturating_add(segment.len) <= offset);
        let mut segments = self.segments.iter().skip(first);
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let segment = segments.next();
            let start = segment.map_or(u64::MAX, |segment| segment.start).max(at);
            let gap = usize::try_from(start.saturating_sub(at)).unwrap_or(usize::MAX).min(rest.len());
            let (zeros, behind) = rest.split_at_mut(gap);
            zeros.fill(0);
            let Some(segment) = segment.filter(|_| !behind.is_empty()) else { break };
            let within = start.saturating_sub(segment.start);
            let len = usize::try_from(segment.len.saturating_sub(within)).unwrap_or(usize::MAX).min(behind.len());
            let (now, behind) = behind.split_at_mut(len);
            self.of.read_at(segment.at.saturating_add(within), now, "a segment of the file")?;
            at = start.saturating_add(len as u64);
            rest = behind;
        }
        Ok(())
    }
}

impl fmt::Debug for Arranged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arranged").field("segments", &self.segments.len()).field("len", &self.len).finish_non_exhaustive()
    }
}
