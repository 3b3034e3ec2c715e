//! `std::io` over guest memory.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use crate::{Address, Memory, PhysAddr, Vmi, WriteMemory};

/// A range of guest memory, physical or virtual, as [`Read`] and [`Seek`], and as [`Write`] where physical memory can be written.
///
/// Positions count from the start of the range; reading ends at its end. A read returns the bytes before the first address that
/// cannot be read, and the next read, which starts there, fails with the cause. Seeking past what cannot be read is how to go on.
///
/// ```
/// use std::io::{Read, Seek, SeekFrom};
/// use vmi_core::{Memory, PhysAddr, Vmi};
/// # use vmi_core::synthetic::SyntheticDriver;
/// # fn main() -> std::io::Result<()> {
/// # let vmi = Vmi::new(SyntheticDriver::new([(PhysAddr::new(0x1000), b"hello".to_vec())]));
/// let mut reader = vmi.reader(PhysAddr::new(0x1000)..PhysAddr::new(0x1005));
/// reader.seek(SeekFrom::Start(1))?;
/// let mut text = String::new();
/// reader.read_to_string(&mut text)?;
/// assert_eq!(text, "ello");
/// # Ok(())
/// # }
/// ```
pub struct Cursor<'m, M: Memory + ?Sized> {
    memory: &'m M,
    range: Range<M::Addr>,
    position: u64,
}

impl<'m, M: Memory + ?Sized> Cursor<'m, M> {
    pub(crate) fn new(memory: &'m M, range: Range<M::Addr>) -> Self {
        Self { memory, range, position: 0 }
    }

    /// Length of the range in bytes; zero if it ends before it starts.
    pub fn len(&self) -> u64 {
        self.range.end.get().saturating_sub(self.range.start.get())
    }

    /// Whether the range is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The address of the next byte, and how many of `wanted` bytes are left in the range.
    fn next(&self, wanted: usize) -> io::Result<Option<(M::Addr, usize)>> {
        let left = usize::try_from(self.len().saturating_sub(self.position)).unwrap_or(usize::MAX);
        let len = left.min(wanted);
        if len == 0 {
            return Ok(None);
        }
        let at = self.range.start.checked_add(self.position).ok_or_else(|| self.range.start.out_of_range(len))?;
        Ok(Some((at, len)))
    }

    fn advance(&mut self, by: usize) -> usize {
        self.position = self.position.saturating_add(by as u64);
        by
    }
}

impl<M: Memory + ?Sized> Read for Cursor<'_, M> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some((at, len)) = self.next(buf.len())? else { return Ok(0) };
        let Some(target) = buf.get_mut(..len) else { return Ok(0) };
        match self.memory.read_into(at, target) {
            Ok(()) => Ok(self.advance(len)),
            Err(error) if error.done() > 0 => Ok(self.advance(error.done())),
            Err(error) => Err(error.into()),
        }
    }
}

impl<M: Memory + ?Sized> Seek for Cursor<'_, M> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.len().checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position =
            position.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek to before the start of the range"))?;
        Ok(self.position)
    }
}

impl<D: WriteMemory> Write for Cursor<'_, Vmi<D>> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Some((at, len)) = self.next(buf.len())? else { return Ok(0) };
        let at: PhysAddr = at;
        let Some(source) = buf.get(..len) else { return Ok(0) };
        match self.memory.write(at, source) {
            Ok(()) => Ok(self.advance(len)),
            Err(error) if error.done() > 0 => Ok(self.advance(error.done())),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes reach the guest at once; there is nothing to flush.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<D: WriteMemory> Write for Cursor<'_, crate::AddressSpace<'_, D>> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Some((at, len)) = self.next(buf.len())? else { return Ok(0) };
        let translation = self.memory.translate(at).map_err(io::Error::from)?;
        let piece = usize::try_from(translation.rest_of_page()).unwrap_or(usize::MAX).min(len);
        let Some(source) = buf.get(..piece) else { return Ok(0) };
        match self.memory.vmi().write(translation.at, source) {
            Ok(()) => Ok(self.advance(piece)),
            Err(error) if error.done() > 0 => Ok(self.advance(error.done())),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes reach the guest at once; there is nothing to flush.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<M: Memory + ?Sized> fmt::Debug for Cursor<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor").field("range", &self.range).field("position", &self.position).finish_non_exhaustive()
    }
}
