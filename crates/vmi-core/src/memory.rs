//! One way of reading for physical and virtual memory.

use std::ops::Range;

use zerocopy::{FromBytes, IntoBytes};

use crate::{Address, Cursor, PAGE_SIZE, ReadOp, Result, strings};

/// Memory that can be read: a whole machine by physical address ([`Vmi`](crate::Vmi)), or one address space by
/// virtual address ([`AddressSpace`](crate::AddressSpace)).
///
/// A read never lies: it fills the buffer, or says how far it got and why it stopped. Only [`Memory::read_lossy`] pads
/// what is missing, and it says where.
pub trait Memory {
    /// How this memory is addressed.
    type Addr: Address;

    /// Fills `buf` with the memory at `at`.
    ///
    /// # Errors
    /// The first thing that stops the read; [`Error::done`](crate::Error::done) bytes of `buf` are good then.
    fn read_into(&self, at: Self::Addr, buf: &mut [u8]) -> Result<()>;

    /// Does many reads at once; each gets its own [`ReadOp::result`]. Back ends where a call is dear serve the whole
    /// batch in one go.
    fn read_batch(&self, ops: &mut [ReadOp<'_, Self::Addr>]) {
        for op in ops {
            op.result = self.read_into(op.at, op.buf);
        }
    }

    /// For an address that is absent: the next one that may be present, and before which nothing is. `None` if there is none.
    fn next_present(&self, at: Self::Addr) -> Option<Self::Addr> {
        at.checked_add(PAGE_SIZE.wrapping_sub(at.get() % PAGE_SIZE))
    }

    /// Where the frame lies that a page table names: see [`Driver::resolve_frame`](crate::Driver::resolve_frame). Whoever follows the entries of page
    /// tables asks this for each.
    #[inline(always)]
    fn resolve_frame(&self, named: Self::Addr) -> Self::Addr {
        named
    }

    /// Lends `len` bytes at `at` without copying: only where the source is frozen and mapped, and the range contiguous.
    /// `None` says nothing about whether the range can be read.
    fn slice(&self, at: Self::Addr, len: usize) -> Option<&[u8]> {
        let _ = (at, len);
        None
    }

    /// Reads a value of `T` at `at`, in the byte order of this machine (x86 guests: little endian).
    ///
    /// An aligned integer of up to 8 bytes is read in one access where memory is mapped: it is never torn.
    ///
    /// # Errors
    /// As [`Memory::read_into`].
    #[inline]
    fn read<T: FromBytes + IntoBytes>(&self, at: Self::Addr) -> Result<T>
    where
        Self: Sized,
    {
        let mut value = T::new_zeroed();
        self.read_into(at, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Reads `len` bytes at `at` into a new buffer. The caller bounds `len`.
    ///
    /// # Errors
    /// As [`Memory::read_into`].
    fn read_vec(&self, at: Self::Addr, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_into(at, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `buf` with the memory at `at`, and with zeros where there is none.
    ///
    /// Returns the padded ranges of `buf`, ascending and apart; none if all was there.
    ///
    /// # Errors
    /// Failures other than absent memory (see [`Error::is_absent`](crate::Error::is_absent)): they are not padded over.
    fn read_lossy(&self, at: Self::Addr, buf: &mut [u8]) -> Result<Vec<Range<usize>>> {
        crate::lossy::read_lossy(self, at, buf)
    }

    /// Reads the bytes of a C string at `at`, without the terminator, of at most `limit` bytes with it.
    ///
    /// # Errors
    /// [`ErrorKind::Unterminated`](crate::ErrorKind::Unterminated) if `limit` bytes hold no zero; as [`Memory::read_into`] if memory ends
    /// before the terminator.
    fn read_c_string(&self, at: Self::Addr, limit: usize) -> Result<Vec<u8>> {
        strings::read_c_string(self, at, limit)
    }

    /// Reads a zero-terminated string of little-endian UTF-16 units at `at`, odd or even, without the terminator, of at most
    /// `limit` units with it.
    ///
    /// # Errors
    /// As [`Memory::read_c_string`].
    fn read_utf16(&self, at: Self::Addr, limit: usize) -> Result<Vec<u16>> {
        strings::read_utf16(self, at, limit)
    }

    /// An adapter to [`std::io::Read`] and [`std::io::Seek`] over a range of addresses.
    fn reader(&self, range: Range<Self::Addr>) -> Cursor<'_, Self> {
        Cursor::new(self, range)
    }
}
