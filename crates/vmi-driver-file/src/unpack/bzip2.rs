//! bzip2: stream after stream, with their checksums. Its blocks start at any bit, so there is no random access.

use std::io;

use bzip2::bufread::MultiBzDecoder;

use super::Source;
use super::sink::Sink;

/// Magic number, a digit for the block size, and what a block or the end starts with.
pub(super) fn matches(bytes: &[u8]) -> bool {
    const BLOCK: &[u8] = &[0x31, 0x41, 0x59, 0x26, 0x53, 0x59];
    const END: &[u8] = &[0x17, 0x72, 0x45, 0x38, 0x50, 0x90];
    let Some((&[b'B', b'Z', b'h', b'1'..=b'9'], rest)) = bytes.split_first_chunk() else { return false };
    rest.starts_with(BLOCK) || rest.starts_with(END)
}

/// Unpacks all streams.
pub(super) fn decode(source: &mut Source<'_>, sink: &mut Sink) -> io::Result<()> {
    sink.copy_from(&mut MultiBzDecoder::new(source)).map(drop)
}
