//! Copying out of and into memory that someone else may be using.
//!
//! Guest RAM is shared with a running machine, so it is no `&[u8]`: each byte is loaded exactly once by a volatile load.
//! An aligned word of 1, 2, 4 or 8 bytes is one load, so the guest's own aligned stores are seen whole. The loop for longer runs
//! moves 64 or 128 bytes a turn and does not call `memcpy`: on some processors its `rep movsb` path is many times slower when the destination
//! lies a few bytes ahead of the source modulo 4096 (seen with glibc 2.36 on Zen 3), which is just what a guest page copied to a
//! heap buffer is. `cargo bench` compares both at several alignments of the destination.

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::__m128i as Block;

#[cfg(not(target_arch = "x86_64"))]
type Block = u64;

const BLOCK: usize = size_of::<Block>();

/// How far ahead of the loads a long copy asks for memory: hardware does not look beyond the 4 KiB page that it reads.
/// Half a page was faster than less, and than nothing, in the sequential rows of `cargo bench`.
const AHEAD: usize = 2048;

/// Asks for the cache line at `at`.
#[inline(always)]
fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on speed; the address need not be mapped.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// A frozen run of at most so many bytes is copied by `memcpy`, which is fastest there and far from its slow path.
pub(super) const SMALL: usize = 256;

/// Copies a word of 1, 2, 4 or 8 bytes, in one access; other lengths copy nothing.
///
/// # Safety
/// `src` is aligned to `dst.len()` and valid for a volatile read of that length. It may change meanwhile.
#[inline(always)]
pub(super) unsafe fn copy_word(src: *const u8, dst: &mut [u8]) {
    let to = dst.as_mut_ptr();
    // SAFETY: as the caller says; each branch moves `dst.len()` bytes.
    unsafe {
        match dst.len() {
            1 => move_one::<u8>(src, to),
            2 => move_one::<u16>(src, to),
            4 => move_one::<u32>(src, to),
            8 => move_one::<u64>(src, to),
            _ => {}
        }
    }
}

/// Copies `dst.len()` bytes from `src`.
///
/// # Safety
/// `src` is valid for volatile reads of `dst.len()` bytes. They may change meanwhile.
pub(super) unsafe fn copy_volatile(src: *const u8, dst: &mut [u8]) {
    // SAFETY: the slice holds `dst.len()` bytes, and the caller vouches for as many at `src`.
    unsafe { copy_run(src, dst.as_mut_ptr(), dst.len()) }
}

/// Copies `src` to `dst` by volatile stores, each byte once, in words as large as the alignment of `dst` allows: an aligned
/// word of 1, 2, 4 or 8 bytes is one store.
///
/// # Safety
/// `dst` is valid for volatile writes of `src.len()` bytes. Others may read and write them meanwhile.
pub(super) unsafe fn store_volatile(src: &[u8], mut dst: *mut u8) {
    let mut rest = src;
    /// One store of `$t`, and on, if there is enough left and `dst` is aligned.
    macro_rules! store {
        ($t:ty) => {
            if dst.cast::<$t>().is_aligned()
                && let Some((word, tail)) = rest.split_first_chunk::<{ size_of::<$t>() }>()
            {
                // SAFETY: `dst` is aligned, and of the bytes that the caller vouches for as many are left as `rest` has.
                unsafe { dst.cast::<$t>().write_volatile(<$t>::from_ne_bytes(*word)) };
                dst = dst.wrapping_add(size_of::<$t>());
                rest = tail;
                continue;
            }
        };
    }
    while !rest.is_empty() {
        store!(u64);
        store!(u32);
        store!(u16);
        store!(u8);
    }
}

/// # Safety
/// `src` is aligned for `T` and valid for a volatile read of it, `dst` for a write, in any alignment. `T` is a plain integer or vector.
#[inline(always)]
unsafe fn move_one<T>(src: *const u8, dst: *mut u8) {
    // SAFETY: as the caller says.
    unsafe { dst.cast::<T>().write_unaligned(src.cast::<T>().read_volatile()) }
}

/// # Safety
/// `src` is valid for volatile reads of `len` bytes, `dst` for writes of `len` bytes.
unsafe fn copy_run(mut src: *const u8, mut dst: *mut u8, mut len: usize) {
    /// One move of `T`, and on.
    macro_rules! step {
        ($t:ty) => {
            // SAFETY: the conditions around each use leave at least `size_of::<T>()` bytes and see to the alignment of `src`.
            unsafe {
                move_one::<$t>(src, dst);
                src = src.add(size_of::<$t>());
                dst = dst.add(size_of::<$t>());
            }
            len = len.wrapping_sub(size_of::<$t>());
        };
    }
    /// Small moves until `src` is aligned for the next size.
    macro_rules! align {
        ($t:ty, $next:ty) => {
            if len >= size_of::<$t>() && !src.cast::<$next>().is_aligned() {
                step!($t);
            }
        };
    }
    align!(u8, u16);
    align!(u16, u32);
    align!(u32, u64);
    if len >= 8 && !src.cast::<Block>().is_aligned() && BLOCK > 8 {
        step!(u64);
    }
    #[cfg(target_arch = "x86_64")]
    if len >= WIDE && std::arch::is_x86_feature_detected!("avx2") {
        if !src.cast::<Wide>().is_aligned() {
            step!(Block);
        }
        let whole = len & !(size_of::<Wide>().wrapping_mul(4).wrapping_sub(1));
        // SAFETY: the processor can do it. `src` is aligned for it: it was aligned for a block, or is by the last step. As many bytes are left.
        unsafe {
            copy_wide(src, dst, whole);
            src = src.add(whole);
            dst = dst.add(whole);
        }
        len = len.wrapping_sub(whole);
    }
    // What follows needs `src` aligned for a block; a run that is too short to get there falls through to the tail, where
    // each size is used only if `src` is aligned for it.
    while len >= BLOCK.wrapping_mul(4) {
        if len > AHEAD {
            prefetch(src.wrapping_add(AHEAD));
        }
        // SAFETY: four blocks are left, and `src` is aligned for a block: every alignment step above was taken, as `len`
        // was large enough for each.
        unsafe {
            let [a, b, c, d] = core::array::from_fn(|i| src.cast::<Block>().add(i).read_volatile());
            let to = dst.cast::<Block>();
            to.write_unaligned(a);
            to.add(1).write_unaligned(b);
            to.add(2).write_unaligned(c);
            to.add(3).write_unaligned(d);
            src = src.add(BLOCK.wrapping_mul(4));
            dst = dst.add(BLOCK.wrapping_mul(4));
        }
        len = len.wrapping_sub(BLOCK.wrapping_mul(4));
    }
    while len >= 8 && src.cast::<u64>().is_aligned() {
        step!(u64);
    }
    while len >= 4 && src.cast::<u32>().is_aligned() {
        step!(u32);
    }
    while len >= 2 && src.cast::<u16>().is_aligned() {
        step!(u16);
    }
    while len >= 1 {
        step!(u8);
    }
}

/// What one load moves in [`copy_wide`].
#[cfg(target_arch = "x86_64")]
type Wide = core::arch::x86_64::__m256i;

/// From so many bytes on, wide moves are worth asking whether there are any.
#[cfg(target_arch = "x86_64")]
const WIDE: usize = 512;

/// # Safety
/// The processor has AVX2. `src` is aligned for [`Wide`] and valid for volatile reads of `len` bytes, a multiple of four times its size; `dst` is valid for writes of as many.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn copy_wide(src: *const u8, dst: *mut u8, len: usize) {
    /// One turn of the loop.
    macro_rules! turn {
        ($done:ident) => {
            // SAFETY: four of them are left, as the caller says.
            unsafe {
                let [a, b, c, d] = core::array::from_fn(|i| src.add($done).cast::<Wide>().add(i).read_volatile());
                let to = dst.add($done).cast::<Wide>();
                to.write_unaligned(a);
                to.add(1).write_unaligned(b);
                to.add(2).write_unaligned(c);
                to.add(3).write_unaligned(d);
            }
            $done = $done.wrapping_add(size_of::<Wide>().wrapping_mul(4));
        };
    }
    let mut done = 0usize;
    // Apart from the rest, for a question less in each turn of a copy of a page.
    while done < len.saturating_sub(AHEAD) {
        prefetch(src.wrapping_add(done).wrapping_add(AHEAD));
        prefetch(src.wrapping_add(done).wrapping_add(AHEAD).wrapping_add(64));
        turn!(done);
    }
    while done < len {
        turn!(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_of_every_length_and_alignment() {
        let source: Vec<u8> = (0..200u32).map(|i| (i * 7) as u8).collect();
        for to in 0..17 {
            for len in (0..40).chain([63, 64, 65, 150]) {
                let mut out = vec![0xee; to + len + 8];
                // SAFETY: `to + len` is within `out`.
                unsafe { store_volatile(&source[3..3 + len], out.as_mut_ptr().add(to)) };
                assert_eq!(out[to..to + len], source[3..3 + len], "to {to} len {len}");
                assert!(out[..to].iter().chain(&out[to + len..]).all(|&b| b == 0xee));
            }
        }
    }

    #[test]
    fn every_length_and_alignment() {
        let source: Vec<u8> = (0..1200u32).map(|i| (i * 7 + i / 256) as u8).collect();
        for from in 0..33 {
            for to in 0..33 {
                for len in (0..80).chain([127, 128, 129, 255, 256, 500, 512, 543, 640, 701, 1100]) {
                    let mut out = vec![0xee; to + len + 8];
                    // SAFETY: `from + len` is at most 1132, within `source`.
                    unsafe { copy_volatile(source.as_ptr().add(from), &mut out[to..to + len]) };
                    assert_eq!(out[to..to + len], source[from..from + len], "from {from} to {to} len {len}");
                    assert!(out[..to].iter().chain(&out[to + len..]).all(|&b| b == 0xee));
                }
            }
        }
    }
}
