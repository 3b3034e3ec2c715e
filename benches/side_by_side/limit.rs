//! The least that could be done: loads and copies straight from the mapping, no errors told, no holes known.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

/// An image mapped by hand, with offsets as addresses.
pub struct MappedImage(Mmap);

impl MappedImage {
    pub fn open(path: &Path) -> Self {
        // SAFETY: nobody changes the image while the benchmark runs.
        Self(unsafe { Mmap::map(&File::open(path).unwrap()).unwrap() })
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// A load behind one comparison.
    #[inline]
    pub fn read_u32(&self, at: u64) -> Option<u32> {
        // SAFETY: the comparison keeps all four bytes within the mapping; the addresses used are multiples of four.
        (at <= self.0.len() as u64 - 4).then(|| unsafe { self.0.as_ptr().add(at as usize).cast::<u32>().read_volatile() })
    }

    /// A load behind nothing.
    #[inline]
    pub fn load_u64(&self, at: u64) -> u64 {
        debug_assert!(at as usize + 8 <= self.0.len());
        // SAFETY: the benchmark's addresses are multiples of eight within the mapping.
        unsafe { self.0.as_ptr().add(at as usize).cast::<u64>().read_volatile() }
    }

    /// The C library's `memcpy`.
    #[inline]
    pub fn copy(&self, at: u64, to: &mut [u8]) {
        // SAFETY: the benchmark's ranges are within the mapping.
        unsafe { self.0.as_ptr().add(at as usize).copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) }
    }

    /// A 4-level walk that checks nothing but page sizes.
    #[inline]
    pub fn walk(&self, root: u64, at: u64) -> u64 {
        const FRAME: u64 = 0x000f_ffff_ffff_f000;
        let entry = |table: u64, shift: u32| self.load_u64((table & FRAME) + ((at >> shift) & 0x1ff) * 8);
        let l4 = entry(root, 39);
        let l3 = entry(l4, 30);
        if l3 & 0x80 != 0 {
            return (l3 & FRAME & !0x3fff_ffff) | (at & 0x3fff_ffff);
        }
        let l2 = entry(l3, 21);
        if l2 & 0x80 != 0 {
            return (l2 & FRAME & !0x1f_ffff) | (at & 0x1f_ffff);
        }
        (entry(l2, 12) & FRAME) | (at & 0xfff)
    }
}
