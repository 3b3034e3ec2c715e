//! Where unpacked bytes go.

use std::fs::File;
use std::io::{self, Read};

use crate::sparse;

/// Bytes gathered before they are written. A multiple of the page size, so that pages stay whole.
const CHUNK: usize = 1 << 20;

/// A new file, written from its start, with two bounds: on its length, and on what of it is not holes.
#[derive(Debug)]
pub(super) struct Sink {
    file: File,
    buffer: Vec<u8>,
    filled: usize,
    /// Length of what is in the file.
    len: u64,
    stored: u64,
    max_len: u64,
    max_stored: u64,
    exceeded: Option<(u64, &'static str)>,
}

impl Sink {
    pub(super) fn new(file: File, max_len: u64, max_stored: u64) -> Self {
        Self { file, buffer: vec![0; CHUNK], filled: 0, len: 0, stored: 0, max_len, max_stored, exceeded: None }
    }

    /// Takes all that `source` gives. Returns how many bytes that was.
    pub(super) fn copy_from(&mut self, source: &mut impl Read) -> io::Result<u64> {
        let mut taken = 0u64;
        loop {
            let free = self.buffer.get_mut(self.filled..).unwrap_or_default();
            match source.read(free) {
                Ok(0) => return Ok(taken),
                Ok(len) => {
                    taken = taken.saturating_add(len as u64);
                    self.filled = self.filled.saturating_add(len);
                    if self.filled == self.buffer.len() {
                        self.flush()?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = self.buffer.get(..self.filled).unwrap_or_default();
        let len = self.len.saturating_add(bytes.len() as u64);
        if len > self.max_len {
            return self.exceed(self.max_len, super::TOO_LONG);
        }
        // Checked before writing, for the worst case.
        if self.stored.saturating_add(bytes.len() as u64) > self.max_stored {
            return self.exceed(self.max_stored, "the free space for temporary files");
        }
        let stored = sparse::write_at(&self.file, self.len, bytes)?;
        self.stored = self.stored.saturating_add(stored);
        self.len = len;
        self.filled = 0;
        Ok(())
    }

    fn exceed(&mut self, limit: u64, reason: &'static str) -> io::Result<()> {
        self.exceeded = Some((limit, reason));
        Err(io::ErrorKind::FileTooLarge.into())
    }

    /// The bound that was met, and what it is.
    pub(super) fn exceeded(&self) -> Option<(u64, &'static str)> {
        self.exceeded
    }

    /// Writes what is left and sets the length, so that zeros at the end count.
    pub(super) fn finish(&mut self) -> io::Result<&File> {
        self.flush()?;
        self.file.set_len(self.len)?;
        Ok(&self.file)
    }
}
