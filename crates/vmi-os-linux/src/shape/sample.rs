//! The bytes of many structures of one kind, to judge an offset by all of them.

use std::ops::Range;

/// A copy of one structure out of kernel memory.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
}

impl Object {
    /// The 4-byte number at `offset`.
    pub(super) fn u32(&self, offset: usize) -> Option<u32> {
        let bytes = self.bytes.get(offset..)?;
        bytes.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// The 8-byte number at `offset`.
    pub(super) fn u64(&self, offset: usize) -> Option<u64> {
        let bytes = self.bytes.get(offset..)?;
        bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// The number of `width` bytes, 4 or 8, at `offset`.
    pub(super) fn word(&self, offset: usize, width: usize) -> Option<u64> {
        match width {
            4 => self.u32(offset).map(u64::from),
            _ => self.u64(offset),
        }
    }
}

/// Several structures of one kind.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) width: usize,
    pub(super) objects: Vec<Object>,
}

impl Sample {
    /// Whether every object passes.
    pub(super) fn all(&self, mut test: impl FnMut(&Object) -> Option<bool>) -> bool {
        self.objects.iter().all(|object| test(object) == Some(true))
    }

    /// Whether nearly every object passes, the first three included: memory that was taken in the midst of a change holds some that do
    /// not fit.
    pub(super) fn most(&self, mut test: impl FnMut(&Object) -> Option<bool>) -> bool {
        let mut failed = 0usize;
        let allowed = self.objects.len() / 16;
        self.objects.iter().enumerate().all(|(index, object)| {
            let passed = test(object) == Some(true);
            failed = failed.saturating_add(usize::from(!passed));
            passed || index > 2 && failed <= allowed
        })
    }

    /// How many objects pass.
    pub(super) fn count(&self, mut test: impl FnMut(&Object) -> Option<bool>) -> usize {
        self.objects.iter().filter(|object| test(object) == Some(true)).count()
    }

    /// The pointer or `unsigned long` at `offset` of each object.
    pub(super) fn words(&self, offset: usize) -> impl Iterator<Item = Option<u64>> {
        self.objects.iter().map(move |object| object.word(offset, self.width))
    }
}

/// The only offset in `range`, a multiple of `step`, that passes.
pub(super) fn only(range: Range<usize>, step: usize, mut test: impl FnMut(usize) -> bool) -> Result<usize, Doubt> {
    let first = range.start.next_multiple_of(step);
    let mut passed = (first..range.end).step_by(step).filter(|&offset| test(offset));
    match (passed.next(), passed.next()) {
        (Some(offset), None) => Ok(offset),
        (Some(first), Some(second)) => Err(Doubt::Several(first, second)),
        (None, _) => Err(Doubt::None),
    }
}

/// Why an offset was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Doubt {
    /// Nothing looks like it.
    #[error("nothing looks like it")]
    None,
    /// More than one offset does.
    #[error("offsets {0:#x} and {1:#x} both look like it")]
    Several(usize, usize),
}
