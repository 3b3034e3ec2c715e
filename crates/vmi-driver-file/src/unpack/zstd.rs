//! Zstandard: frame after frame, with their checksums (RFC 8878, section 3).
//!
//! Where the frames are known without unpacking them, each is a block of its own: from the seek table at the end of the file (zstd,
//! `contrib/seekable_format/zstd_seekable_compression_format.md`), or from the frames' headers if all of them tell the size of their content. Those of
//! pzstd do not.

use std::io;

use zerocopy::FromBytes;
use zerocopy::little_endian::U32;
use zstd::bulk::Decompressor;
use zstd::stream::read::Decoder;
use zstd::zstd_safe;

use super::Source;
use super::blocks::{Index, MAX_BLOCK};
use super::sink::Sink;

const FRAME: u32 = 0xfd2f_b528;
/// The lowest four bits of a skippable frame's magic number are free.
const SKIPPABLE: u32 = 0x184d_2a50;
/// Magic number and length of a skippable frame.
const SKIPPABLE_HEADER: usize = 8;
/// The largest window that is unpacked, as a power of two: what the zstd program takes unless told otherwise.
const WINDOW_LOG: u32 = 27;

/// Whether `bytes` start with a frame, skippable or not.
pub(super) fn matches(bytes: &[u8]) -> bool {
    let magic = bytes.first_chunk().copied().map(u32::from_le_bytes);
    magic.is_some_and(|magic| magic == FRAME || magic & !0xf == SKIPPABLE)
}

/// Unpacks all frames.
pub(super) fn decode(source: &mut Source<'_>, sink: &mut Sink) -> io::Result<()> {
    let mut frames = Decoder::with_buffer(source)?;
    frames.window_log_max(WINDOW_LOG)?;
    sink.copy_from(&mut frames).map(drop)
}

/// Unpacks one frame of which the content has the length of `out`.
pub(super) fn decode_block(frame: &[u8], out: &mut [u8]) -> io::Result<()> {
    let len = Decompressor::new()?.decompress_to_buffer(frame, out)?;
    super::blocks::check_length(len, out.len())
}

/// Where the frames are; `None` if that cannot be told, or if they are too few or too large for random access.
pub(super) fn index(packed: &[u8]) -> Option<Index> {
    seek_table(packed).or_else(|| frames(packed))
}

/// What a seek table ends with.
#[derive(FromBytes)]
#[repr(C)]
struct Footer {
    frames: U32,
    descriptor: u8,
    magic: U32,
}

const SEEKABLE: u32 = 0x8f92_eab1;
const SEEK_TABLE: u32 = SKIPPABLE | 0xe;

fn seek_table(packed: &[u8]) -> Option<Index> {
    const HAS_CHECKSUMS: u8 = 0x80;
    const RESERVED: u8 = 0x7c;
    let (rest, footer) = Footer::read_from_suffix(packed).ok()?;
    if footer.magic.get() != SEEKABLE || footer.descriptor & RESERVED != 0 {
        return None;
    }
    let entry = if footer.descriptor & HAS_CHECKSUMS == 0 { 8 } else { 12 };
    let table_at = rest.len().checked_sub(usize::try_from(footer.frames.get()).ok()?.checked_mul(entry)?)?;
    let header_at = table_at.checked_sub(SKIPPABLE_HEADER)?;
    let (header, table) = rest.get(header_at..)?.split_at_checked(SKIPPABLE_HEADER)?;
    let (magic, _) = U32::read_from_prefix(header).ok()?;
    if magic.get() != SEEK_TABLE {
        return None;
    }
    let mut index = Index::default();
    for entry in table.chunks_exact(entry) {
        let ([packed, content], _) = <[U32; 2]>::read_from_prefix(entry).ok()?;
        // The checksum of an entry is that of the content; the frames have their own.
        index.add(packed.get().into(), content.get().into())?;
    }
    let table_len = packed.len().checked_sub(header_at)? as u64;
    index.add(table_len, 0)?;
    Some(index)
}

fn frames(packed: &[u8]) -> Option<Index> {
    let mut index = Index::default();
    let mut rest = packed;
    while !rest.is_empty() {
        let content = match U32::read_from_prefix(rest).ok()?.0.get() {
            FRAME => zstd_safe::get_frame_content_size(rest).ok()??,
            _ => 0,
        };
        if content > MAX_BLOCK {
            return None;
        }
        let len = zstd_safe::find_frame_compressed_size(rest).ok()?;
        rest = rest.get(len..)?;
        index.add(len as u64, content)?;
    }
    Some(index)
}
