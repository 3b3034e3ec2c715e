//! The compressed names, and the markers that say where every 256th of them starts.

use super::tokens::{SHORT, Tokens};
use super::{MAX_SYMBOLS, Reject, u32_at, u64_at};

/// A marker stands at every name whose number is a multiple of this.
const STRIDE: usize = 256;

/// Fewer markers than these are no evidence; real kernels have hundreds.
const MIN_MARKERS: usize = 4;

/// Bytes between two markers: 256 names of 1 to 511 tokens, each with its length.
const STEPS: core::ops::RangeInclusive<u64> = 2 * STRIDE as u64..=STRIDE as u64 * 513;

/// Places that look like markers, or like the start of the names, tried before giving up.
const MAX_TRIES: usize = 64;

/// Longest name with its type, in bytes: the kernel's KSYM_NAME_LEN is 512 since 6.1, and escapes take four bytes each.
const MAX_NAME: usize = 2048;

/// All names together, at most.
const MAX_TEXT: usize = 256 << 20;

/// The compressed names.
#[derive(Debug)]
pub(super) struct Names<'b> {
    bytes: &'b [u8],
    /// Offset of the number of symbols, which lies before the names.
    pub(super) count_at: usize,
    /// Offset of the first name.
    pub(super) start: usize,
    /// Offset of the markers.
    pub(super) markers_at: usize,
    /// How many symbols there are.
    pub(super) count: usize,
    /// Whether bit 7 of a length says that a second byte follows.
    two_byte_lengths: bool,
}

/// The decoded names, one after another.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) names: String,
    /// Where each name ends.
    pub(super) ends: Vec<u32>,
}

/// An array of offsets, of 4 or 8 bytes each.
struct Markers {
    at: usize,
    values: Vec<u64>,
}

impl<'b> Names<'b> {
    /// The names before `tokens`: markers lie directly before the tokens, or one table of 3-byte numbers (seqs_of_names) earlier.
    pub(super) fn locate(bytes: &'b [u8], tokens: &Tokens) -> Result<Self, Reject> {
        let lowest = tokens.start.saturating_sub(MAX_SYMBOLS.saturating_mul(3).saturating_add(MAX_SYMBOLS / STRIDE * 8));
        (lowest..tokens.start)
            .rev()
            .filter(|at| at.is_multiple_of(4))
            .filter_map(|at| Markers::at(bytes, at, tokens.start))
            .take(MAX_TRIES)
            .find_map(|markers| Self::before(bytes, &markers))
            .ok_or(Reject::Markers)
    }

    /// The names that end before `markers`.
    fn before(bytes: &'b [u8], markers: &Markers) -> Option<Self> {
        // The array may seem longer than it is, if what follows it happens to continue it.
        (MIN_MARKERS..=markers.values.len())
            .rev()
            .take(3)
            .find_map(|len| Self::before_exactly(bytes, markers.at, markers.values.get(..len)?))
    }

    fn before_exactly(bytes: &'b [u8], end: usize, markers: &[u64]) -> Option<Self> {
        let last = usize::try_from(*markers.last()?).ok()?;
        let highest = end.checked_sub(last)?;
        let lowest = highest.saturating_sub(usize::try_from(*STEPS.end()).ok()?);
        let full = markers.len().checked_mul(STRIDE)?;
        let counts = full.checked_sub(STRIDE)?.checked_add(1)?..=full;
        // The number of symbols is followed by the names at the next multiple of 4 (32-bit kernels, and all from 7.0) or 8.
        let starts = (lowest..=highest).rev().filter(|start| start.is_multiple_of(4));
        let places = starts.flat_map(|start| [4, 8].map(|gap| (start, start.checked_sub(gap))));
        let plausible = places.filter_map(|(start, count_at)| {
            let count = usize::try_from(u32_at(bytes, count_at?)?).ok()?;
            counts.contains(&count).then_some((start, count_at?, count))
        });
        // Both readings of lengths above 127 are tried; the markers decide.
        plausible.take(MAX_TRIES).find_map(|(start, count_at, count)| {
            [true, false].into_iter().find_map(|two_byte_lengths| {
                let names = Self { bytes, count_at, start, markers_at: end, count, two_byte_lengths };
                names.agree(markers, end).then_some(names)
            })
        })
    }

    /// Whether a walk over all names passes every marker and ends where the markers begin.
    fn agree(&self, markers: &[u64], end: usize) -> bool {
        let mut at = self.start;
        let mut markers = markers.iter();
        for index in 0..self.count {
            if index.is_multiple_of(STRIDE) {
                let offset = at.saturating_sub(self.start) as u64;
                if markers.next() != Some(&offset) {
                    return false;
                }
            }
            match self.entry(at) {
                Some((_, next)) if next <= end => at = next,
                _ => return false,
            }
        }
        end.saturating_sub(at) < 8 && markers.next().is_none()
    }

    /// The tokens of the name at `at`, and where the next name starts.
    #[inline]
    fn entry(&self, at: usize) -> Option<(&'b [u8], usize)> {
        let rest = self.bytes.get(at..)?;
        let (&first, mut rest) = rest.split_first()?;
        let mut len = usize::from(first);
        let mut head = 1usize;
        if self.two_byte_lengths && first & 0x80 != 0 {
            let (&second, behind) = rest.split_first()?;
            // ULEB128 of two bytes; the kernel writes no third.
            if second & 0x80 != 0 {
                return None;
            }
            len = usize::from(first & 0x7f) | usize::from(second) << 7;
            rest = behind;
            head = 2;
        }
        if len == 0 {
            return None;
        }
        Some((rest.get(..len)?, at.checked_add(head)?.checked_add(len)?))
    }

    /// Decodes all names.
    pub(super) fn decode(&self, tokens: &Tokens) -> Result<Text, Reject> {
        let mut text = vec![0u8; self.count.saturating_mul(28).saturating_add(MAX_NAME)];
        let mut ends = Vec::with_capacity(self.count);
        let mut len = 0usize;
        let mut at = self.start;
        for _ in 0..self.count {
            let (entry, next) = self.entry(at).ok_or(Reject::Name)?;
            at = next;
            let limit = len.saturating_add(MAX_NAME);
            if text.len() < limit.saturating_add(SHORT) {
                if limit > MAX_TEXT {
                    return Err(Reject::Name);
                }
                text.resize(limit.saturating_mul(2), 0);
            }
            for &token in entry {
                let token = tokens.get(token).ok_or(Reject::Name)?;
                let space = text.get_mut(len..).unwrap_or_default();
                if token.text.len() <= SHORT {
                    // A fixed length is one store; what is too much, the next token overwrites.
                    *space.first_chunk_mut().ok_or(Reject::Name)? = token.short;
                } else {
                    space.get_mut(..token.text.len()).ok_or(Reject::Name)?.copy_from_slice(&token.text);
                }
                len = len.saturating_add(token.text.len());
                if len > limit {
                    return Err(Reject::Name);
                }
            }
            ends.push(u32::try_from(len).map_err(|_| Reject::Name)?);
        }
        text.truncate(len);
        let names = String::from_utf8(text).map_err(|_| Reject::Name)?;
        Ok(Text { names, ends })
    }
}

impl Markers {
    /// The array at `at`, which ends at `end` or before it: a zero, then values that grow by what 256 names can take.
    fn at(bytes: &[u8], at: usize, end: usize) -> Option<Self> {
        if u32_at(bytes, at)? != 0 {
            return None;
        }
        Self::of(4, at, end, |at| u32_at(bytes, at).map(u64::from)).or_else(|| Self::of(8, at, end, |at| u64_at(bytes, at)))
    }

    fn of(size: usize, at: usize, end: usize, value: impl Fn(usize) -> Option<u64>) -> Option<Self> {
        let mut previous = value(at).filter(|&first| first == 0)?;
        let mut values = Vec::new();
        for next in (at.checked_add(size)?..end).step_by(size).take(MAX_SYMBOLS / STRIDE) {
            match value(next) {
                Some(value) if value.checked_sub(previous).is_some_and(|step| STEPS.contains(&step)) => {
                    values.push(previous);
                    previous = value;
                }
                _ => break,
            }
        }
        values.push(previous);
        (values.len() >= MIN_MARKERS).then_some(Self { at, values })
    }
}
