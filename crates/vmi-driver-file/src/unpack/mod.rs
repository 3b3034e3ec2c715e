//! Packed images: unpacked once, into an unnamed temporary file with holes for pages of zeros.

mod lzop;
mod sink;
mod zstd;

use core::fmt;
use std::io::{self, BufRead, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use nix::sys::statvfs::statvfs;
use vmi_core::MappedFile;

use self::sink::Sink;
use crate::options::Progress;
use crate::{OpenError, OpenOptions};

/// How an image is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// Zstandard (RFC 8878), one frame or many, with windows of up to 128 MiB.
    Zstd,
    /// gzip (RFC 1952), one member or many.
    Gzip,
    /// lzop, one file or many.
    Lzop,
}

impl Compression {
    /// How `bytes` are packed, if at all.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        if zstd::matches(bytes) {
            Some(Self::Zstd)
        } else if lzop::matches(bytes) {
            Some(Self::Lzop)
        } else {
            bytes.starts_with(&[0x1f, 0x8b, 8]).then_some(Self::Gzip)
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Lzop => "lzop",
        })
    }
}

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
        Compression::Lzop => lzop::decode(&mut source, &mut sink),
        Compression::Gzip => sink.copy_from(&mut MultiGzDecoder::new(&mut source)).map(drop),
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
    fn skip(&mut self, len: u32) -> io::Result<()> {
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
