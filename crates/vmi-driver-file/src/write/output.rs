//! Where the bytes of an image go: a file, which may have holes and be gone back in, or a pipe, which takes them one after the other.

use core::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use crate::sparse::Run;

/// Zeros are written to a pipe from this.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The place of a new image. Written from one place to the next.
pub(super) struct Output<'w> {
    sink: Sink<'w>,
    /// Where the next byte goes.
    at: u64,
    stored: u64,
}

enum Sink<'w> {
    /// A new file: what is not written reads as zero.
    File(&'w File),
    Stream(&'w mut dyn Write),
}

impl<'w> Output<'w> {
    /// A new and empty file.
    pub(super) fn file(file: &'w File) -> Self {
        Self { sink: Sink::File(file), at: 0, stored: 0 }
    }

    /// Anything that takes bytes.
    pub(super) fn stream(stream: &'w mut dyn Write) -> Self {
        Self { sink: Sink::Stream(stream), at: 0, stored: 0 }
    }

    /// Where the next byte goes.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// How many bytes were written, holes left out.
    pub(super) fn stored(&self) -> u64 {
        self.stored
    }

    /// Tells how long the image will be, so that a file system that cannot hold such a file says so at once.
    pub(super) fn announce(&mut self, len: u64) -> io::Result<()> {
        match self.sink {
            Sink::File(file) => file.set_len(len),
            Sink::Stream(_) => Ok(()),
        }
    }

    /// Writes `bytes` as they are.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.sink {
            Sink::File(file) => file.write_all_at(bytes, self.at)?,
            Sink::Stream(stream) => stream.write_all(bytes)?,
        }
        self.pass(bytes.len() as u64);
        self.stored = self.stored.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// Writes `bytes`, which are `runs`: those of zeros become holes where the output can have them.
    pub(super) fn write_runs(&mut self, bytes: &[u8], runs: &[Run]) -> io::Result<()> {
        let Sink::File(_) = self.sink else { return self.write(bytes) };
        let mut rest = bytes;
        for run in runs {
            let (now, behind) = rest.split_at(run.len.min(rest.len()));
            if run.zero {
                self.pass(now.len() as u64);
            } else {
                self.write(now)?;
            }
            rest = behind;
        }
        Ok(())
    }

    /// Goes on at `offset`; what is passed over reads as zero.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotSeekable`] if that is behind what has been written and this is a stream.
    pub(super) fn go_to(&mut self, offset: u64) -> io::Result<()> {
        match &mut self.sink {
            Sink::File(_) => self.at = offset,
            Sink::Stream(stream) => {
                let mut left = offset.checked_sub(self.at).ok_or(io::ErrorKind::NotSeekable)?;
                while left > 0 {
                    let zeros = ZEROS.get(..usize::try_from(left).unwrap_or(usize::MAX)).unwrap_or(&ZEROS);
                    stream.write_all(zeros)?;
                    self.at = self.at.saturating_add(zeros.len() as u64);
                    self.stored = self.stored.saturating_add(zeros.len() as u64);
                    left = left.saturating_sub(zeros.len() as u64);
                }
            }
        }
        Ok(())
    }

    /// The image ends here, or where it was announced to end.
    pub(super) fn finish(self) -> io::Result<()> {
        match self.sink {
            Sink::File(file) if file.metadata()?.len() < self.at => file.set_len(self.at),
            Sink::File(_) => Ok(()),
            Sink::Stream(stream) => stream.flush(),
        }
    }

    fn pass(&mut self, len: u64) {
        self.at = self.at.saturating_add(len);
    }
}

impl fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("at", &self.at).field("stored", &self.stored).finish_non_exhaustive()
    }
}
