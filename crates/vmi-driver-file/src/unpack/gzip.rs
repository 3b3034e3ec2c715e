//! gzip (RFC 1952), member after member.
//!
//! Where all members tell their length in an extra field, as those of bgzip do (SAM specification, section 4.1, "The BGZF compression
//! format"), each is a block of its own.

use std::io::{self, Read};

use flate2::bufread::{GzDecoder, MultiGzDecoder};
use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32};

use super::Source;
use super::blocks::{Index, check_end};
use super::sink::Sink;

/// Magic number, and deflate, which is the only method.
pub(super) fn matches(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b, 8])
}

/// Unpacks all members.
pub(super) fn decode(source: &mut Source<'_>, sink: &mut Sink) -> io::Result<()> {
    sink.copy_from(&mut MultiGzDecoder::new(source)).map(drop)
}

/// Unpacks one member of which the content has the length of `out`.
pub(super) fn decode_block(member: &[u8], out: &mut [u8]) -> io::Result<()> {
    let mut decoder = GzDecoder::new(member);
    decoder.read_exact(out)?;
    check_end(&mut decoder)
}

/// Where the members are; `None` if one of them does not tell its length.
pub(super) fn index(packed: &[u8]) -> Option<Index> {
    /// The size of a BGZF member's content.
    const MAX_CONTENT: u32 = 64 << 10;
    let mut index = Index::default();
    let mut rest = packed;
    while !rest.is_empty() {
        let (member, behind) = rest.split_at_checked(member_len(rest)?)?;
        let (_, content) = U32::read_from_suffix(member).ok()?;
        if content.get() > MAX_CONTENT {
            return None;
        }
        index.add(member.len() as u64, content.get().into())?;
        rest = behind;
    }
    Some(index)
}

/// The length of the member at the start of `bytes`: the field `BC` has it, less one.
fn member_len(bytes: &[u8]) -> Option<usize> {
    const HAS_EXTRA: u8 = 4;
    const EXTRA_AT: usize = 10;
    if !matches(bytes) || bytes.get(3)? & HAS_EXTRA == 0 {
        return None;
    }
    let (len, rest) = U16::read_from_prefix(bytes.get(EXTRA_AT..)?).ok()?;
    let mut extra = rest.get(..usize::from(len.get()))?;
    loop {
        let (name, rest) = extra.split_first_chunk::<2>()?;
        let (len, rest) = U16::read_from_prefix(rest).ok()?;
        let (value, rest) = rest.split_at_checked(usize::from(len.get()))?;
        if name == b"BC" {
            return usize::from(U16::read_from_bytes(value).ok()?.get()).checked_add(1);
        }
        extra = rest;
    }
}
