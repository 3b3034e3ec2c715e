//! makedumpfile's flattened form of a file: what was written to its places, in the order in which it was written, so that it goes through a pipe
//! (`makedumpfile -F`; QEMU writes its kdump files like this unless they are asked for as `kdump-raw-...`).
//!
//! Layout: makedumpfile, `IMPLEMENTATION` and `struct makedumpfile_header`, `struct makedumpfile_data_header` of makedumpfile.h. All numbers are
//! big endian: a signature of 16 bytes, type 1, version 1, nothing more in the first 4096 bytes; then segments: offset, length, as many bytes. An offset and a length of -1 end them.
//! Later segments override earlier ones, as makedumpfile writes its headers twice. What no segment has is zero, as in any file.
//!
//! What is inside, a kdump or an ELF core, is told by its own content.

use core::fmt;
use std::sync::Arc;

use vmi_core::{PhysAddr, Region};
use zerocopy::big_endian::{I64, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::FormatError;
use crate::claims::Claims;
use crate::image::Input;
use crate::source::{RandomAccess, Source};

/// What a flattened file starts with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Start {
    signature: [u8; 16],
    kind: U64,
    version: U64,
}

/// Where the first segment is.
const SEGMENTS: u64 = 4096;
const SIGNATURE: &[u8; 16] = b"makedumpfile\0\0\0\0";

/// What no segment has at most. makedumpfile and QEMU leave nothing out but ends of blocks; what is read of holes takes time for nothing.
const MAX_HOLES: u64 = 1 << 30;

/// What is before a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Header {
    offset: I64,
    len: I64,
}

impl Header {
    /// What is behind the last segment.
    pub(crate) const END: Self = Self { offset: I64::new(-1), len: I64::new(-1) };

    /// That of a segment of `len` bytes at `offset`; `None` if the form cannot hold them.
    pub(crate) fn of(offset: u64, len: u64) -> Option<Self> {
        Some(Self { offset: i64::try_from(offset).ok()?.into(), len: i64::try_from(len).ok()?.into() })
    }
}

/// What is before the first segment.
pub(crate) fn start() -> Vec<u8> {
    let start = Start { signature: *SIGNATURE, kind: U64::new(1), version: U64::new(1) };
    let mut bytes = start.as_bytes().to_vec();
    bytes.resize(SEGMENTS as usize, 0);
    bytes
}

/// A segment, or a part of one.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Segment {
    /// Its place in the file that it is a part of.
    start: u64,
    len: u64,
    /// Where its bytes are.
    at: u64,
}

/// The file that was flattened.
struct Arranged {
    flattened: Source,
    /// Ascending and disjoint. 24 bytes for each of about 16 or 64 KiB: 100 MiB if QEMU writes 64 GiB that cannot be packed at all.
    segments: Vec<Segment>,
    len: u64,
}

/// The file in `input`, if that is flattened.
///
/// # Errors
/// What is damaged or missing.
pub(crate) fn arrange(input: Input<'_>) -> Result<Option<Source>, FormatError> {
    let malformed = |offset, what: String| FormatError::Malformed { offset, what };
    if !input.source.head(16)?.starts_with(SIGNATURE) {
        return Ok(None);
    }
    let start: Start = input.source.read(0, "the flattened header")?;
    if (start.kind.get(), start.version.get()) != (1, 1) {
        return Err(malformed(
            16,
            format!("type {} and version {} of the flattened form, not 1 and 1", start.kind, start.version),
        ));
    }
    const LEN: u64 = size_of::<Header>() as u64;
    let (mut segments, mut at) = (Vec::new(), SEGMENTS);
    loop {
        if input.present(at, LEN, || "the flattened segments, of which the last one is missing".to_owned())? < LEN {
            break;
        }
        let header: Header = input.source.read(at, "a flattened segment's header")?;
        let (start, len) = match (header.offset.get(), header.len.get()) {
            _ if header == Header::END => break,
            (offset @ 0.., len @ 0..) if offset.checked_add(len).is_some() => (offset.unsigned_abs(), len.unsigned_abs()),
            (offset, len) => return Err(malformed(at, format!("a flattened segment of {len} bytes at {offset}"))),
        };
        at = at.saturating_add(LEN);
        let there = input.present(at, len, || format!("the flattened segment {start:#x}-{:#x}", start.saturating_add(len)))?;
        if there > 0 {
            segments.push(Segment { start, len: there, at });
        }
        at = at.saturating_add(there);
    }
    segments.shrink_to_fit();
    let segments = last_holds(segments);
    let len = segments.last().map_or(0, |last| last.start.saturating_add(last.len));
    if len > MAX_HOLES.saturating_add(input.source.len()) {
        return Err(malformed(SEGMENTS, format!("{len:#x} bytes, nearly all of which no segment has")));
    }
    Ok(Some(Source::Indexed(Arc::new(Arranged { flattened: input.source.clone(), segments, len }))))
}

/// What of `segments` is not overridden by later ones, in the order of places.
fn last_holds(mut segments: Vec<Segment>) -> Vec<Segment> {
    let mut claims = Claims::default();
    let mut more = Vec::new();
    for segment in segments.iter_mut().rev() {
        let whole = *segment;
        let free = Region::new(PhysAddr::new(whole.start), whole.len).map(|region| claims.claim(region)).unwrap_or_default();
        let mut parts = free.iter().map(|part| {
            let start = part.start().get();
            Segment { start, len: part.len(), at: start.saturating_sub(whole.start).saturating_add(whole.at) }
        });
        *segment = parts.next().unwrap_or(Segment { len: 0, ..whole });
        more.extend(parts);
    }
    segments.retain(|segment| segment.len > 0);
    segments.append(&mut more);
    segments.sort_unstable_by_key(|segment| segment.start);
    segments
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
            self.flattened.read_at(segment.at.saturating_add(within), now, "a flattened segment")?;
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
