//! Zstandard: frame after frame, with their checksums (RFC 8878, section 3).

use std::io;

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use super::Source;
use super::sink::Sink;

const FRAME: u32 = 0xfd2f_b528;
/// The lowest four bits of a skippable frame's magic number are free.
const SKIPPABLE: u32 = 0x184d_2a50;

/// Whether `bytes` start with a frame, skippable or not.
pub(super) fn matches(bytes: &[u8]) -> bool {
    let magic = bytes.first_chunk().copied().map(u32::from_le_bytes);
    magic.is_some_and(|magic| magic == FRAME || magic & !0xf == SKIPPABLE)
}

/// Unpacks all frames.
pub(super) fn decode(source: &mut Source<'_>, sink: &mut Sink) -> io::Result<()> {
    // The decoder refuses windows above 128 MiB, as the zstd program does unless told otherwise.
    let mut decoder = FrameDecoder::new();
    while !source.is_empty() {
        match StreamingDecoder::new_with_decoder(&mut *source, &mut decoder) {
            Ok(mut frame) => {
                let len = sink.copy_from(&mut frame)?;
                check(&decoder, len)?;
            }
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                source.skip(length)?
            }
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
    Ok(())
}

/// Whether a frame of `len` bytes is what its header and its end say.
fn check(decoder: &FrameDecoder, len: u64) -> io::Result<()> {
    let damaged = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    // Zero stands for a header without content size too.
    let promised = decoder.content_size();
    if promised != 0 && promised != len {
        return damaged(format!("a frame of {len} bytes promised {promised}"));
    }
    match (decoder.get_checksum_from_data(), decoder.get_calculated_checksum()) {
        (Some(stored), Some(computed)) if stored != computed => {
            damaged(format!("checksum {computed:#010x} where {stored:#010x} was expected"))
        }
        _ => Ok(()),
    }
}
