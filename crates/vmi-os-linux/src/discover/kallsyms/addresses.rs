//! Where the symbols are: an array of addresses or offsets, before or behind the names.

use core::fmt;

use super::names::Names;
use super::tokens::Tokens;
use super::{Reject, u32_at, u64_at};

/// How addresses are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As they are, one pointer each (kernels without CONFIG_KALLSYMS_BASE_RELATIVE).
    Absolute,
    /// 32 bits: zero and above the address of a per-CPU variable, below zero `base - 1 - value` (CONFIG_KALLSYMS_ABSOLUTE_PERCPU).
    AbsolutePerCpu {
        /// `kallsyms_relative_base`.
        base: u64,
    },
    /// 32 bits without a sign, from a base.
    Relative {
        /// `kallsyms_relative_base`.
        base: u64,
    },
    /// 32 bits with a sign, from the place of the offset itself.
    PlaceRelative,
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absolute => "absolute addresses",
            Self::AbsolutePerCpu { .. } => "offsets with absolute per-CPU addresses",
            Self::Relative { .. } => "offsets from a base",
            Self::PlaceRelative => "offsets from their own place",
        })
    }
}

/// A kernel's symbols lie within this many bytes of each other (KERNEL_IMAGE_SIZE is 1 GiB at most).
const MAX_SPAN: u64 = 1 << 30;

/// The addresses.
#[derive(Debug)]
pub(super) struct Addresses<'b> {
    bytes: &'b [u8],
    pub(super) at: usize,
    count: usize,
    pub(super) start: u64,
    pub(super) pointer_size: usize,
    pub(super) encoding: Encoding,
}

impl<'b> Addresses<'b> {
    /// The array of addresses that is in ascending order, of all places and encodings there are.
    pub(super) fn locate(
        bytes: &'b [u8],
        tokens: &Tokens,
        names: &Names<'_>,
        start: u64,
        pointer_size: usize,
    ) -> Result<Self, Reject> {
        let with = |at: usize, encoding| Self { bytes, at, count: names.count, start, pointer_size, encoding };
        let pointer = |at: usize| read_pointer(bytes, at, pointer_size);
        let offsets_len = names.count.saturating_mul(4);
        let mut places = Vec::new();
        // Behind the index: offsets, then their base.
        for align in [4, 8] {
            let at = tokens.end.next_multiple_of(align);
            let base = at.saturating_add(offsets_len).checked_next_multiple_of(pointer_size).and_then(pointer);
            places.extend(base.into_iter().flat_map(relative).map(|encoding| with(at, encoding)));
            places.push(with(at, Encoding::PlaceRelative));
            places.push(with(at, Encoding::Absolute));
        }
        // Before the number of symbols: offsets, then their base; or addresses.
        if let Some(base_at) = names.count_at.checked_sub(pointer_size) {
            let before = base_at.checked_sub(offsets_len).and_then(|at| at.checked_sub(at.checked_rem(pointer_size)?));
            let base = pointer(base_at);
            places.extend(
                base.into_iter().flat_map(relative).zip(before.into_iter().cycle()).map(|(encoding, at)| with(at, encoding)),
            );
        }
        if let Some(at) = names.count_at.checked_sub(names.count.saturating_mul(pointer_size)) {
            places.push(with(at, Encoding::Absolute));
        }
        places.into_iter().find(Self::ascends).ok_or(Reject::Addresses)
    }

    /// The address of one symbol.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<u64> {
        if index >= self.count {
            return None;
        }
        if self.encoding == Encoding::Absolute {
            return read_pointer(self.bytes, self.at.checked_add(index.checked_mul(self.pointer_size)?)?, self.pointer_size);
        }
        let at = self.at.checked_add(index.checked_mul(4)?)?;
        let value = u32_at(self.bytes, at)?;
        let signed = value.cast_signed();
        let address = match self.encoding {
            Encoding::AbsolutePerCpu { .. } if signed >= 0 => u64::from(value),
            Encoding::AbsolutePerCpu { base } => base.wrapping_add(u64::from(!value)),
            Encoding::Relative { base } => base.wrapping_add(u64::from(value)),
            _ => self.start.wrapping_add(at as u64).wrapping_add_signed(i64::from(signed)),
        };
        Some(if self.pointer_size == 4 { address & 0xffff_ffff } else { address })
    }

    /// Whether the addresses are those of a kernel: sorted, as the kernel's own search needs them; per-CPU ones small and
    /// first; all others close together, and not all the same.
    fn ascends(&self) -> bool {
        let kernel_half = if self.pointer_size == 4 { 0x4000_0000 } else { 0xffff_ffff_8000_0000 };
        let mut previous = 0u64;
        let mut lowest = None;
        let mut distinct = 0usize;
        for index in 0..self.count {
            let Some(address) = self.get(index) else { return false };
            if address < previous {
                return false;
            }
            distinct = distinct.saturating_add(usize::from(address != previous));
            previous = address;
            let in_kernel = match self.encoding {
                // The place may be given by its physical address.
                Encoding::PlaceRelative => true,
                _ => address >= kernel_half,
            };
            if in_kernel {
                let lowest = *lowest.get_or_insert(address);
                if address.saturating_sub(lowest) > MAX_SPAN {
                    return false;
                }
            } else if address > MAX_SPAN {
                return false;
            }
        }
        // Each symbol takes some bytes, and the kernel's text lies before its tables: a run of equal offsets is neither.
        let here = self.start.wrapping_add(self.at as u64);
        lowest.is_some_and(|lowest| {
            previous.saturating_sub(lowest) > (self.count as u64).saturating_mul(8)
                && (self.encoding != Encoding::PlaceRelative || lowest < here)
        }) && distinct > self.count / 2
    }
}

fn relative(base: u64) -> [Encoding; 2] {
    [Encoding::AbsolutePerCpu { base }, Encoding::Relative { base }]
}

fn read_pointer(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    if size == 4 { u32_at(bytes, at).map(u64::from) } else { u64_at(bytes, at) }
}
