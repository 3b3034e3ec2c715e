//! Packed images: unpacked block by block as they are read, where the container tells where its blocks are; else once, into an unnamed temporary file with
//! holes for pages of zeros.

mod blocks;
mod bzip2;
mod gzip;
mod lz4;
mod lzop;
mod sink;
mod xz;
mod zstd;

use core::fmt;
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::Arc;

use nix::sys::statvfs::statvfs;
use vmi_core::{MappedFile, Store};

use self::blocks::BlockContainer;
use self::sink::Sink;
use crate::options::Progress;
use crate::source::{self, RandomAccess};
use crate::{OpenError, OpenOptions};

/// How an image is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// Zstandard (RFC 8878), one frame or many, with windows of up to 128 MiB.
    Zstd,
    /// gzip (RFC 1952), one member or many.
    Gzip,
    /// xz, one stream or many, with dictionaries of up to 128 MiB.
    Xz,
    /// LZ4 frames, one or many.
    Lz4,
    /// bzip2, one stream or many.
    Bzip2,
    /// lzop, one file or many.
    Lzop,
}

impl Compression {
    const ALL: [Self; 6] = [Self::Zstd, Self::Gzip, Self::Xz, Self::Lz4, Self::Bzip2, Self::Lzop];

    /// How `bytes` are packed, if at all.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|compression| match compression {
            Self::Zstd => zstd::matches(bytes),
            Self::Gzip => gzip::matches(bytes),
            Self::Xz => xz::matches(bytes),
            Self::Lz4 => lz4::matches(bytes),
            Self::Bzip2 => bzip2::matches(bytes),
            Self::Lzop => lzop::matches(bytes),
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Bzip2 => "bzip2",
            Self::Lzop => "lzop",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The content of `packed`, which is the content of `path`: read in place where the container allows that, else unpacked.
pub(crate) fn open(
    path: &Path,
    packed: &Store,
    compression: Compression,
    options: &mut OpenOptions,
) -> Result<source::Source, OpenError> {
    if let Some(container) = BlockContainer::open(packed, compression) {
        if let Some(limit) = options.max_unpacked.filter(|&limit| container.len() > limit) {
            return Err(OpenError::TooLarge { path: path.to_owned(), limit, reason: TOO_LONG });
        }
        // The format is told by what is in the first block, so its damage must not pass for something else.
        container.read_at(0, &mut [0]).map_err(|error| OpenError::Unpack {
            path: path.to_owned(),
            compression,
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        })?;
        return Ok(source::Source::Indexed(Arc::new(container)));
    }
    unpack(path, (**packed).as_ref(), compression, options).map(source::Source::mapped)
}

/// Why a packed image is refused that is longer than what the caller allows.
const TOO_LONG: &str = "the most that a packed image may hold here";

/// What a packed image may hold at most unless the caller says otherwise.
const MAX_UNPACKED: u64 = 64 << 30;

/// Unpacks `packed`, the content of `path`.
pub(crate) fn unpack(
    path: &Path,
    packed: &[u8],
    compression: Compression,
    options: &mut OpenOptions,
) -> Result<MappedFile, OpenError> {
    let failed = |source| OpenError::Unpack { path: path.to_owned(), compression, source };
    let directory = options.temp_dir.clone().unwrap_or_else(std::env::temp_dir);
    let file = tempfile::tempfile_in(&directory).map_err(|source| {
        failed(io::Error::new(source.kind(), format!("no temporary file in {}: {source}", directory.display())))
    })?;
    // No promise, as others write there too, but it stops before the disk is full.
    let space = statvfs(&directory).map_or(u64::MAX, |system| system.blocks_available().saturating_mul(system.fragment_size()));
    let mut sink = Sink::new(file, options.max_unpacked.unwrap_or(MAX_UNPACKED), space);
    let mut source = Source { rest: packed, total: packed.len() as u64, told: 0, progress: options.progress.as_mut() };
    let outcome = match compression {
        Compression::Zstd => zstd::decode(&mut source, &mut sink),
        Compression::Gzip => gzip::decode(&mut source, &mut sink),
        Compression::Xz => xz::decode(&mut source, &mut sink),
        Compression::Lz4 => lz4::decode(&mut source, &mut sink),
        Compression::Bzip2 => bzip2::decode(&mut source, &mut sink),
        Compression::Lzop => lzop::decode(&mut source, &mut sink),
    };
    match outcome.and_then(|()| MappedFile::new(sink.finish()?)) {
        Ok(unpacked) => Ok(unpacked),
        Err(source) => Err(match sink.exceeded() {
            Some((limit, reason)) => OpenError::TooLarge { path: path.to_owned(), limit, reason },
            None => failed(source),
        }),
    }
}

/// The packed bytes, which tell how many of them are read.
struct Source<'a> {
    rest: &'a [u8],
    total: u64,
    told: u64,
    progress: Option<&'a mut Progress>,
}

impl Source<'_> {
    /// How much is read between two calls of the progress function.
    const STEP: u64 = 64 << 10;

    fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Passes over `len` bytes.
    fn skip(&mut self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.rest = self.rest.get(len..).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(())
    }

    fn tell(&mut self) {
        let done = self.total.saturating_sub(self.rest.len() as u64);
        if let Some(progress) = self.progress.as_mut()
            && (done.saturating_sub(self.told) >= Self::STEP || done == self.total)
        {
            progress(done, self.total);
            self.told = done;
        }
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.rest.read(buf)?;
        self.tell();
        Ok(len)
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(self.rest.get(..self.rest.len().min(Self::STEP as usize)).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.rest.consume(amount);
        self.tell();
    }
}
