//! The tags of a group: `u16` with the length of the name in bits 15 to 8, the number of indices in bits 7 and 6 and the length of the
//! value in bits 5 to 0; the name; the indices, 4 bytes each; the value. An empty tag ends the group.
//!
//! The lengths 63 and 62 announce a block, as it is or compressed: its length in the file, its length in memory, the length of a padding
//! (16 bits), the padding, the bytes.

use zerocopy::little_endian::{U16, U32, U64};

use super::malformed;
use crate::FormatError;
use crate::source::Source;

/// Far more than the hundred or so for each vCPU.
const MAX_TAGS: u32 = 1 << 20;

/// A tag.
#[derive(Debug)]
pub(super) struct Tag {
    /// Where it is.
    pub(super) offset: u64,
    pub(super) name: Box<[u8]>,
    indices: [Option<u32>; 3],
    pub(super) value: Value,
}

/// Where the value of a tag is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Bytes {
        offset: u64,
        len: u64,
    },
    /// Compressed.
    Packed {
        offset: u64,
        len: u64,
    },
}

impl Tag {
    /// The index in this place.
    pub(super) fn index(&self, place: usize) -> Option<u32> {
        self.indices.get(place).copied().flatten()
    }

    /// The value, if it is a number.
    pub(super) fn number(&self, source: &Source) -> Result<u64, FormatError> {
        let Some(bytes) = self.bytes::<8>(source)? else {
            let what = format!("`{}` is not a number of up to 8 bytes", String::from_utf8_lossy(&self.name));
            return Err(malformed(self.offset, what));
        };
        Ok(u64::from_le_bytes(bytes))
    }

    /// The value, if it has up to `N` bytes, with zeros behind it.
    pub(super) fn bytes<const N: usize>(&self, source: &Source) -> Result<Option<[u8; N]>, FormatError> {
        match self.value {
            Value::Bytes { offset, len } if len <= N as u64 => {
                let mut bytes = [0; N];
                let (value, _) = bytes.split_at_mut(len as usize);
                source.read_at(offset, value, "the value of a tag")?;
                Ok(Some(bytes))
            }
            _ => Ok(None),
        }
    }

    /// How long the value is.
    pub(super) fn len(&self) -> u64 {
        match self.value {
            Value::Bytes { len, .. } | Value::Packed { len, .. } => len,
        }
    }
}

/// Calls `visit` for each tag of the group at `at`. `narrow` lengths of blocks take 4 bytes.
pub(super) fn walk(
    source: &Source,
    mut at: u64,
    narrow: bool,
    mut visit: impl FnMut(Tag) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    for _ in 0..MAX_TAGS {
        let offset = at;
        let head: U16 = source.read(at, "a tag")?;
        at = at.saturating_add(2);
        let (name_len, count, len) = (head.get() >> 8, head.get() >> 6 & 3, head.get() & 0x3f);
        if name_len == 0 {
            return Ok(());
        }
        let name = source.get(at, u64::from(name_len), "the name of a tag")?.into();
        at = at.saturating_add(u64::from(name_len));
        let mut indices = [None; 3];
        for index in indices.iter_mut().take(usize::from(count)) {
            *index = Some(source.read::<U32>(at, "the index of a tag")?.get());
            at = at.saturating_add(4);
        }
        let value = match len {
            62 | 63 => {
                let step = if narrow { 4 } else { 8 };
                let len =
                    if narrow { source.read::<U32>(at, LENGTH)?.get().into() } else { source.read::<U64>(at, LENGTH)?.get() };
                at = at.saturating_add(step).saturating_add(step);
                let padding: U16 = source.read(at, LENGTH)?;
                let offset = at.saturating_add(2).saturating_add(padding.get().into());
                if head.get() & 0x3f == 62 { Value::Packed { offset, len } } else { Value::Bytes { offset, len } }
            }
            len => Value::Bytes { offset: at, len: len.into() },
        };
        let (Value::Bytes { offset: start, len } | Value::Packed { offset: start, len }) = value;
        at = start.saturating_add(len);
        visit(Tag { offset, name, indices, value })?;
    }
    Err(malformed(at, format!("more than {MAX_TAGS} tags in a group")))
}

const LENGTH: &str = "the length of a block";
