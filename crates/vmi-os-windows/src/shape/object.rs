//! The bytes of an object, as far as they are in memory.

use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{AddressSpace, Memory, Paging, VirtAddr};

use crate::discover::OBJECT_TYPE;

/// Bytes that are read of an object: processes and threads have up to 0xc00, and what follows belongs to others.
pub(super) const WINDOW: usize = 0x1000;

/// An object of the kernel.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) at: VirtAddr,
    bytes: Vec<u8>,
    pub(super) width: usize,
}

impl Object {
    /// The object at `at`: what can be read without a gap. `None` if its header says that it is of another type.
    pub(super) fn read<D: X86Driver>(space: &AddressSpace<'_, D>, at: VirtAddr, kind: u8) -> Option<Self> {
        let mut bytes = vec![0; WINDOW];
        let padded = space.read_lossy(at, &mut bytes).ok()?;
        bytes.truncate(padded.first().map_or(WINDOW, |gap| gap.start));
        let object = Self { at, bytes, width: space.mode().pointer_size() };
        (object.byte(0)? & OBJECT_TYPE == kind).then_some(object)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.bytes.get(at).copied()
    }

    /// The number as wide as a pointer at an offset.
    pub(super) fn word(&self, at: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at.checked_add(self.width)?)?;
        Some(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    pub(super) fn u32(&self, at: usize) -> Option<u32> {
        self.bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }

    pub(super) fn u64(&self, at: usize) -> Option<u64> {
        self.bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// Offsets at which a pointer can be, from `first` on.
    pub(super) fn offsets(&self, first: usize) -> impl Iterator<Item = usize> + use<> {
        (first..self.bytes.len()).step_by(self.width)
    }
}

/// Whether `at` can be the address of a page of user mode. The first 64 KiB are never used.
pub(super) fn is_user_page(mode: PagingMode, at: u64) -> bool {
    let end = if mode.is_long() { 0x7fff_ffff_0000 } else { 0xbfff_0000 };
    (0x1_0000..end).contains(&at) && at & 0xfff == 0
}

/// Whether `at` can be a pointer of the kernel.
pub(super) fn is_kernel(mode: PagingMode, at: u64) -> bool {
    if mode.is_long() { at >= 0xffff_8000_0000_0000 } else { (0x8000_0000..0xffff_f000).contains(&at) }
}
