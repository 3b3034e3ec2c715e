//! makedumpfile's flattened form of a file: what was written to its places, in the order in which it was written, so that it goes through a pipe
//! (`makedumpfile -F`; QEMU writes its kdump files like this unless they are asked for as `kdump-raw-...`).
//!
//! Layout: makedumpfile, `IMPLEMENTATION` and `struct makedumpfile_header`, `struct makedumpfile_data_header` of makedumpfile.h. All numbers are
//! big endian: a signature of 16 bytes, type 1, version 1, nothing more in the first 4096 bytes; then segments: offset, length, as many bytes. An offset and a length of -1 end them.
//! Later segments override earlier ones, as makedumpfile writes its headers twice. What no segment has is zero, as in any file.
//!
//! What is inside, a kdump or an ELF core, is told by its own content.

use vmi_core::{PhysAddr, Region};
use zerocopy::big_endian::{I64, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::FormatError;
use crate::arranged::{Arranged, Segment};
use crate::claims::Claims;
use crate::image::Input;
use crate::source::Source;

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
    // Of about 16 or 64 KiB each: 100 MiB of segments if QEMU writes 64 GiB that cannot be packed at all.
    segments.shrink_to_fit();
    let segments = last_holds(segments);
    let len = segments.last().map_or(0, |last| last.start.saturating_add(last.len));
    let arranged = Arranged::source(input.source.clone(), segments, len)
        .ok_or_else(|| malformed(SEGMENTS, format!("{len:#x} bytes, nearly all of which no segment has")))?;
    Ok(Some(arranged))
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
