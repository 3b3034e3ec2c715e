//! Reads a stream from one number to the next.

use zerocopy::big_endian::{U16, U32, U64};

use crate::FormatError;
use crate::source::Source;

/// A place in a source, which moves behind what is read.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    source: &'a Source,
    at: u64,
    /// What of an unpacked container was read ahead, so that not each number is unpacked by itself.
    window: Vec<u8>,
    window_at: u64,
}

/// The text of a length byte and as many bytes.
pub(super) type Name = String;

impl<'a> Cursor<'a> {
    /// How much is read ahead.
    const WINDOW: u64 = 256 << 10;

    pub(super) fn new(source: &'a Source, at: u64) -> Self {
        Self { source, at, window: Vec::new(), window_at: 0 }
    }

    /// The offset in the source.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> u64 {
        self.source.len().saturating_sub(self.at)
    }

    /// Passes over `len` bytes, which may lead beyond the end: then the next read fails.
    pub(super) fn skip(&mut self, len: u64) {
        self.at = self.at.saturating_add(len);
    }

    /// Goes to an offset.
    pub(super) fn seek(&mut self, at: u64) {
        self.at = at;
    }

    fn fill<const N: usize>(&mut self, what: &str) -> Result<[u8; N], FormatError> {
        let bytes = self.peek::<N>(what)?;
        self.skip(N as u64);
        Ok(bytes)
    }

    /// The next bytes, without moving.
    fn peek<const N: usize>(&mut self, what: &str) -> Result<[u8; N], FormatError> {
        let mut bytes = [0; N];
        match self.source {
            Source::Mapped(_) => self.source.read_at(self.at, &mut bytes, what)?,
            Source::Indexed(_) => {
                if self.windowed::<N>().is_none() {
                    let len = Self::WINDOW.min(self.left()).max(N as u64);
                    self.window = self.source.get(self.at, len, what)?.into_owned();
                    self.window_at = self.at;
                }
                bytes = self.windowed().unwrap_or(bytes);
            }
        }
        Ok(bytes)
    }

    fn windowed<const N: usize>(&self) -> Option<[u8; N]> {
        let start = usize::try_from(self.at.checked_sub(self.window_at)?).ok()?;
        self.window.get(start..)?.first_chunk().copied()
    }

    pub(super) fn byte(&mut self, what: &str) -> Result<u8, FormatError> {
        Ok(u8::from_be_bytes(self.fill(what)?))
    }

    pub(super) fn peek_byte(&mut self, what: &str) -> Result<u8, FormatError> {
        Ok(u8::from_be_bytes(self.peek(what)?))
    }

    pub(super) fn half(&mut self, what: &str) -> Result<u16, FormatError> {
        Ok(U16::from_bytes(self.fill(what)?).get())
    }

    pub(super) fn word(&mut self, what: &str) -> Result<u32, FormatError> {
        Ok(U32::from_bytes(self.fill(what)?).get())
    }

    pub(super) fn long(&mut self, what: &str) -> Result<u64, FormatError> {
        Ok(U64::from_bytes(self.fill(what)?).get())
    }

    pub(super) fn peek_long(&mut self, what: &str) -> Result<u64, FormatError> {
        Ok(U64::from_bytes(self.peek(what)?).get())
    }

    /// A length byte and a text. QEMU's names are ASCII.
    pub(super) fn name(&mut self, what: &str) -> Result<Name, FormatError> {
        let len = self.byte(what)?;
        self.text(u64::from(len), what)
    }

    /// A text of `len` bytes, which the caller has bounded.
    pub(super) fn text(&mut self, len: u64, what: &str) -> Result<Name, FormatError> {
        let bytes = self.source.get(self.at, len, what)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        self.skip(len);
        Ok(text)
    }
}
