//! lzop: a header, then blocks of LZO1X, each with its lengths and checksums.
//!
//! Layout: lzop 1.04, src/lzop.c (`write_header`, `x_compress`) and conf.h (the flags). Numbers are big-endian.

use std::io::{self, Read};

use flate2::Crc;

use super::Source;
use super::sink::Sink;

const MAGIC: &[u8; 9] = b"\x89LZO\0\r\n\x1a\n";
/// The longest block that lzop makes.
const MAX_BLOCK: usize = 64 << 20;
/// From this version on the header has more fields.
const VERSION_0_94: u16 = 0x0940;

mod flag {
    pub(super) const ADLER32_UNPACKED: u32 = 0x1;
    pub(super) const ADLER32_PACKED: u32 = 0x2;
    pub(super) const EXTRA_FIELD: u32 = 0x40;
    pub(super) const CRC32_UNPACKED: u32 = 0x100;
    pub(super) const CRC32_PACKED: u32 = 0x200;
    pub(super) const MULTIPART: u32 = 0x400;
    pub(super) const FILTER: u32 = 0x800;
    pub(super) const CRC32_OF_HEADER: u32 = 0x1000;
}

/// Whether `bytes` start with the magic number.
pub(super) fn matches(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Unpacks all files that follow each other.
pub(super) fn decode(source: &mut Source<'_>, sink: &mut Sink) -> io::Result<()> {
    while !source.is_empty() {
        let flags = header(source)?;
        while block(source, sink, flags)? {}
    }
    Ok(())
}

fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Reads a header, and tells its flags.
fn header(source: &mut Source<'_>) -> io::Result<u32> {
    let mut magic = [0; MAGIC.len()];
    source.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(damaged("no lzop header where one should be"));
    }
    let mut header = Header { source, read: Vec::new() };
    let version = u16::from_be_bytes(header.take()?);
    let _library = header.take::<2>()?;
    if version >= VERSION_0_94 {
        let _needed = header.take::<2>()?;
    }
    let [method] = header.take()?;
    if !(1..=3).contains(&method) {
        return Err(damaged(format!("the unknown method {method}")));
    }
    if version >= VERSION_0_94 {
        let _level = header.take::<1>()?;
    }
    let flags = u32::from_be_bytes(header.take()?);
    if flags & flag::FILTER != 0 {
        return Err(damaged("a filter, which is not undone here"));
    }
    if flags & flag::MULTIPART != 0 {
        return Err(damaged("a part of an archive"));
    }
    let (_mode, _modified) = (header.take::<4>()?, header.take::<4>()?);
    if version >= VERSION_0_94 {
        let _modified_high = header.take::<4>()?;
    }
    let [name_len] = header.take()?;
    header.skip(u32::from(name_len))?;
    header.check(flags)?;
    if flags & flag::EXTRA_FIELD != 0 {
        let mut extra = Header { source, read: Vec::new() };
        let len = u32::from_be_bytes(extra.take()?);
        extra.skip(len)?;
        extra.check(flags)?;
    }
    Ok(flags)
}

/// Reads what is checked as a whole.
struct Header<'s, 'p> {
    source: &'s mut Source<'p>,
    read: Vec<u8>,
}

impl Header<'_, '_> {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes)?;
        self.read.extend(bytes);
        Ok(bytes)
    }

    fn skip(&mut self, len: u32) -> io::Result<()> {
        let read = self.source.take(u64::from(len)).read_to_end(&mut self.read)?;
        if read as u64 == u64::from(len) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn check(self, flags: u32) -> io::Result<()> {
        let expected = number(self.source)?;
        let found = if flags & flag::CRC32_OF_HEADER != 0 { crc32(&self.read) } else { adler32(&self.read) };
        same(found, expected, "the header")
    }
}

/// Unpacks a block; false if it is the mark of the end.
fn block(source: &mut Source<'_>, sink: &mut Sink, flags: u32) -> io::Result<bool> {
    let len = number(source)? as usize;
    if len == 0 {
        return Ok(false);
    }
    let packed_len = number(source)? as usize;
    if len > MAX_BLOCK || packed_len > len || packed_len == 0 {
        return Err(damaged(format!("a block of {len} bytes, packed as {packed_len}")));
    }
    let mut sum = |flag, wanted: bool| if wanted && flags & flag != 0 { number(source).map(Some) } else { Ok(None) };
    let is_packed = packed_len < len;
    let unpacked_sums = (sum(flag::ADLER32_UNPACKED, true)?, sum(flag::CRC32_UNPACKED, true)?);
    let packed_sums = (sum(flag::ADLER32_PACKED, is_packed)?, sum(flag::CRC32_PACKED, is_packed)?);
    // Grows with what is there, not with what is promised.
    let mut packed = Vec::new();
    if source.take(packed_len as u64).read_to_end(&mut packed)? != packed_len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    check(&packed, packed_sums, "a packed block")?;
    let unpacked = if is_packed { lzo::decompress(&packed, len).map_err(|error| damaged(error.to_string()))? } else { packed };
    if unpacked.len() != len {
        return Err(damaged(format!("a block of {} bytes promised {len}", unpacked.len())));
    }
    check(&unpacked, unpacked_sums, "a block")?;
    sink.copy_from(&mut unpacked.as_slice())?;
    Ok(true)
}

fn number(source: &mut Source<'_>) -> io::Result<u32> {
    let mut bytes = [0; 4];
    source.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn check(bytes: &[u8], (adler, crc): (Option<u32>, Option<u32>), what: &str) -> io::Result<()> {
    adler.map_or(Ok(()), |expected| same(adler32(bytes), expected, what))?;
    crc.map_or(Ok(()), |expected| same(crc32(bytes), expected, what))
}

fn same(found: u32, expected: u32, what: &str) -> io::Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(damaged(format!("checksum {found:#010x} of {what} where {expected:#010x} was expected")))
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// RFC 1950, section 8.2.
fn adler32(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65521;
    /// So many bytes that neither sum overflows.
    const STEP: usize = 5552;
    let (mut low, mut high) = (1u32, 0u32);
    for step in bytes.chunks(STEP) {
        for &byte in step {
            low = low.wrapping_add(u32::from(byte));
            high = high.wrapping_add(low);
        }
        (low, high) = (low % MODULUS, high % MODULUS);
    }
    high << 16 | low
}
