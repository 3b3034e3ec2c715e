//! Counted strings: `UNICODE_STRING` (ntdef.h), in kernel and in user memory.
//!
//! A 16-bit length in bytes, a 16-bit size of the buffer in bytes, and the buffer's address: 8 bytes in all with 32-bit pointers, 16 with 64-bit ones.

use vmi_core::{Error, Memory, Result, VirtAddr};

/// How a memory's own structures have pointers: those of a WoW64 process have 4 bytes in a 64-bit system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Bits32,
    Bits64,
}

impl Width {
    /// The width of pointers of `bytes` bytes.
    pub(crate) fn of(bytes: usize) -> Self {
        if bytes == 4 { Self::Bits32 } else { Self::Bits64 }
    }

    /// Bytes of a pointer.
    pub(crate) const fn bytes(self) -> u64 {
        match self {
            Self::Bits32 => 4,
            Self::Bits64 => 8,
        }
    }

    /// Reads a pointer.
    pub(crate) fn pointer(self, memory: &impl Memory<Addr = VirtAddr>, at: VirtAddr) -> Result<VirtAddr> {
        Ok(VirtAddr::new(match self {
            Self::Bits32 => u64::from(memory.read::<u32>(at)?),
            Self::Bits64 => memory.read::<u64>(at)?,
        }))
    }
}

/// The string whose `UNICODE_STRING` is at `at`; what is not UTF-16 is replaced.
///
/// # Errors
/// As [`Memory::read_into`]; [`ErrorKind::Corrupt`](vmi_core::ErrorKind::Corrupt) if the length is odd or beyond the buffer.
pub(crate) fn read(memory: &impl Memory<Addr = VirtAddr>, at: VirtAddr, width: Width) -> Result<String> {
    Ok(match units(memory, at, width)? {
        Some(units) => String::from_utf16_lossy(&units),
        None => String::new(),
    })
}

/// As [`read`], undecoded; `None` for a string without a buffer.
fn units(memory: &impl Memory<Addr = VirtAddr>, at: VirtAddr, width: Width) -> Result<Option<Vec<u16>>> {
    let [len, capacity]: [u16; 2] = memory.read(at)?;
    let buffer = width.pointer(memory, at.wrapping_add(width.bytes()))?;
    if len == 0 {
        return Ok(None);
    }
    if len % 2 != 0 || capacity < len || buffer.is_null() {
        let what = format!("a string of {len} bytes in a buffer of {capacity} bytes at {buffer}");
        return Err(Error::corrupt(what, at));
    }
    let bytes = memory.read_vec(buffer, usize::from(len))?;
    Ok(Some(bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit)).collect()))
}

#[cfg(test)]
mod tests {
    use vmi_core::synthetic::{SyntheticDriver, Unpaged};
    use vmi_core::{ErrorKind, PhysAddr, Vmi};

    use super::*;

    fn read_from(bytes: Vec<u8>, width: Width) -> Result<String> {
        let vmi = Vmi::new(SyntheticDriver::new([(PhysAddr::new(0x1000), bytes)]));
        read(&vmi.address_space(PhysAddr::ZERO, Unpaged), VirtAddr::new(0x1000), width)
    }

    fn string(len: u16, capacity: u16, buffer: u32, text: &str) -> Vec<u8> {
        let mut bytes: Vec<u8> = [len, capacity].iter().flat_map(|n| n.to_le_bytes()).collect();
        bytes.extend(buffer.to_le_bytes());
        bytes.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
        bytes
    }

    #[test]
    fn strings_of_both_widths() {
        assert_eq!(read_from(string(6, 8, 0x1008, "smß!"), Width::Bits32).unwrap(), "smß");
        let mut wide = string(6, 8, 0, "");
        wide.extend(0x1010u64.to_le_bytes());
        wide.extend("smß!".encode_utf16().flat_map(u16::to_le_bytes));
        assert_eq!(read_from(wide, Width::Bits64).unwrap(), "smß");
        assert_eq!(read_from(string(0, 0, 0, ""), Width::Bits32).unwrap(), "");
    }

    #[test]
    fn strings_that_cannot_be() {
        for bytes in [string(5, 8, 0x1008, "abcd"), string(8, 6, 0x1008, "abcd"), string(4, 4, 0, "")] {
            assert!(matches!(read_from(bytes, Width::Bits32).unwrap_err().kind(), ErrorKind::Corrupt { .. }));
        }
        assert!(read_from(string(6, 6, 0x1010, ""), Width::Bits32).unwrap_err().is_absent());
    }
}
