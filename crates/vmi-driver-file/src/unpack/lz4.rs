//! LZ4 (LZ4 Frame Format Description, version 1.6.1): frame after frame, with their checksums.
//!
//! A frame's blocks do not tell the size of their content, so there is no random access. The legacy format of `lz4 -l` has neither checksums nor an
//! end, so it is not read.

use std::io::{self, BufRead, Read};

use lz4_flex::frame::FrameDecoder;

use super::Source;
use super::sink::Sink;

const FRAME: u32 = 0x184d_2204;
/// The lowest four bits of a skippable frame's magic number are free.
const SKIPPABLE: u32 = 0x184d_2a50;

/// Whether `bytes` start with a frame.
pub(super) fn matches(bytes: &[u8]) -> bool {
    bytes.starts_with(&FRAME.to_le_bytes())
}

/// Unpacks all frames.
pub(super) fn decode(source: &mut Source<'_>, sink: &mut Sink) -> io::Result<()> {
    while !source.is_empty() {
        let head = source.fill_buf()?;
        match head.first_chunk::<8>().map(|head| u64::from_le_bytes(*head)) {
            Some(head) if head as u32 & !0xf == SKIPPABLE => source.skip((head >> 32).saturating_add(8))?,
            _ if matches(head) => drop(sink.copy_from(&mut FrameDecoder::new(Whole(source)))?),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "no frame where one should start")),
        }
    }
    Ok(())
}

/// A source that must not end: the decoder takes an end before a block for the end of the frame.
struct Whole<'a, 's>(&'a mut Source<'s>);

impl Read for Whole<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf)? {
            0 if !buf.is_empty() => Err(io::Error::new(io::ErrorKind::InvalidData, "the frame is cut short")),
            len => Ok(len),
        }
    }
}
