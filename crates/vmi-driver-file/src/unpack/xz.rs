//! xz (The .xz File Format, version 1.2.1): stream after stream, with their checks.
//!
//! The index at the end of each stream tells where its blocks are and how large: `xz -T0` and pixz write several, `--block-size` says how large.

use std::io::{self, Read};

use flate2::Crc;
use lzma_rust2::XzReader;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::Source;
use super::blocks::{Index, check_end};
use super::sink::Sink;

const MAGIC: &[u8] = b"\xfd7zXZ\0";
const FOOTER_MAGIC: &[u8] = b"YZ";
/// Of a stream's header and of its footer.
const EDGE: usize = 12;
/// What a decoder may use, in KiB: enough for dictionaries of 128 MiB. `xz -9` has 64 MiB.
const MEMORY_KIB: u32 = 160 << 10;

/// Whether `bytes` start with a stream.
pub(super) fn matches(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Unpacks all streams.
pub(super) fn decode(source: &mut Source<'_>, sink: &mut Sink) -> io::Result<()> {
    sink.copy_from(&mut XzReader::new_mem_limit(source, true, MEMORY_KIB)).map(drop)
}

/// Unpacks one block of a stream with the given flags, with content of the length of `out`: as the only block of a stream, for which it gets header, index and
/// footer.
pub(super) fn decode_block(block: &[u8], flags: [u8; 2], unpadded: u64, out: &mut [u8]) -> io::Result<()> {
    let mut header = MAGIC.to_vec();
    header.extend(flags);
    header.extend(crc(&flags));
    let mut index = vec![0, 1];
    put_number(&mut index, unpadded);
    put_number(&mut index, out.len() as u64);
    index.resize(index.len().next_multiple_of(4), 0);
    index.extend(crc(&index));
    let words = u32::try_from(index.len() / 4).unwrap_or(u32::MAX).saturating_sub(1);
    let mut end = words.to_le_bytes().to_vec();
    end.extend(flags);
    let end_crc = crc(&end);
    index.extend(end_crc);
    index.extend(end);
    index.extend(FOOTER_MAGIC);
    let mut decoder = XzReader::new_mem_limit(header.chain(block).chain(&*index), false, MEMORY_KIB);
    decoder.read_exact(out)?;
    check_end(&mut decoder)
}

fn crc(bytes: &[u8]) -> [u8; 4] {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

/// Adds a number: seven bits a byte, the lowest first, with the highest bit set but for the last byte.
fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Takes a number off the start of `bytes`.
fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Where the blocks of all streams are; `None` if the indexes do not lead from the end of the file to its start.
pub(super) fn index(packed: &[u8]) -> Option<Index> {
    let mut streams = Vec::new();
    let mut rest = packed;
    while !rest.is_empty() {
        // Behind each stream there may be zeros, four at a time.
        let mut padding = 0u64;
        while let Some((before, [0, 0, 0, 0])) = rest.split_last_chunk::<4>() {
            padding = padding.checked_add(4)?;
            rest = before;
        }
        let stream = Stream::before(rest)?;
        rest = rest.get(..stream.start)?;
        streams.push((stream, padding));
    }
    let mut index = Index::default();
    for (stream, padding) in streams.into_iter().rev() {
        stream.add_to(&mut index)?;
        index.add(padding, 0)?;
    }
    Some(index)
}

/// A stream of which the index has been found.
struct Stream<'a> {
    start: usize,
    flags: [u8; 2],
    /// Count of blocks, and for each its length without padding and that of its content.
    records: &'a [u8],
    /// Length of the index with its checksum.
    index_len: usize,
}

impl<'a> Stream<'a> {
    /// The stream that ends where `bytes` end.
    fn before(bytes: &'a [u8]) -> Option<Self> {
        let (before, footer) = bytes.split_at_checked(bytes.len().checked_sub(EDGE)?)?;
        let (footer_crc, footer) = footer.split_first_chunk::<4>()?;
        let (tail, magic) = footer.split_at_checked(6)?;
        if magic != FOOTER_MAGIC || crc(tail) != *footer_crc {
            return None;
        }
        let (words, flags) = U32::read_from_prefix(tail).ok()?;
        let index_len = usize::try_from(words.get()).ok()?.checked_add(1)?.checked_mul(4)?;
        let index_at = before.len().checked_sub(index_len)?;
        let (index, index_crc) = before.get(index_at..)?.split_last_chunk::<4>()?;
        let (&0, records) = index.split_first()? else { return None };
        if crc(index) != *index_crc {
            return None;
        }
        let mut blocks = 0u64;
        each(records, |unpadded, _| {
            blocks = blocks.checked_add(unpadded.checked_next_multiple_of(4)?)?;
            Some(())
        })?;
        let start = index_at.checked_sub(usize::try_from(blocks).ok()?)?.checked_sub(EDGE)?;
        let flags = *flags.first_chunk()?;
        let header = bytes.get(start..)?.get(..EDGE)?;
        let is_header = header.starts_with(MAGIC) && header.get(6..8) == Some(&flags) && header.get(8..) == Some(&crc(&flags));
        is_header.then_some(Self { start, flags, records, index_len })
    }

    fn add_to(self, index: &mut Index) -> Option<()> {
        index.add(EDGE as u64, 0)?;
        each(self.records, |unpadded, content| {
            index.add_with(unpadded.checked_next_multiple_of(4)?, content, u16::from_le_bytes(self.flags), (unpadded % 4) as u8)
        })?;
        index.add((self.index_len as u64).checked_add(EDGE as u64)?, 0)
    }
}

/// Calls `record` with the two numbers of each record of an index.
fn each(mut records: &[u8], mut record: impl FnMut(u64, u64) -> Option<()>) -> Option<()> {
    for _ in 0..take_number(&mut records)? {
        let (unpadded, content) = (take_number(&mut records)?, take_number(&mut records)?);
        if unpadded == 0 {
            return None;
        }
        record(unpadded, content)?;
    }
    // Zeros up to a multiple of four.
    (records.len() < 4 && records.iter().all(|&byte| byte == 0)).then_some(())
}
