//! Containers of blocks that can be unpacked one by one: only what is read is unpacked, and what was read last is kept.

use core::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use moka::policy::EvictionPolicy;
use rayon::prelude::*;
use vmi_core::Store;

use super::{Compression, gzip, xz, zstd};
use crate::FormatError;
use crate::source::RandomAccess;

/// The largest block that is worth unpacking for a page of it.
pub(super) const MAX_BLOCK: u64 = 16 << 20;

/// Unpacked blocks that are kept at most, in bytes.
const CACHE_BYTES: u64 = 96 << 20;

/// More blocks are no longer a compact index: these are 256 GiB of the smallest ones, those of bgzip.
const MAX_BLOCKS: usize = 1 << 22;

/// Where the blocks of a container are.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Those that have content, in order.
    blocks: Vec<Block>,
    packed_len: u64,
    len: u64,
}

/// A block. Its content goes on to that of the next one.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// Where its content starts.
    start: u64,
    /// Where it is in the container.
    packed: u64,
    packed_len: u32,
    /// Of xz: the flags of its stream, and its length modulo four without padding.
    flags: u16,
    unpadded: u8,
}

impl Index {
    /// Adds the next part of the container, of `packed` bytes, with `content` unpacked ones. `None` if that is too much for a block.
    pub(super) fn add(&mut self, packed: u64, content: u64) -> Option<()> {
        self.add_with(packed, content, 0, 0)
    }

    /// As [`Index::add`], for a block of xz.
    pub(super) fn add_with(&mut self, packed: u64, content: u64, flags: u16, unpadded: u8) -> Option<()> {
        if content > 0 {
            // What is stored as it is takes little more than its content.
            let fits = content <= MAX_BLOCK && packed <= MAX_BLOCK.saturating_mul(2);
            let packed_len = u32::try_from(packed).ok().filter(|_| fits && self.blocks.len() < MAX_BLOCKS)?;
            self.blocks.push(Block { start: self.len, packed: self.packed_len, packed_len, flags, unpadded });
        }
        self.packed_len = self.packed_len.checked_add(packed)?;
        self.len = self.len.checked_add(content)?;
        Some(())
    }
}

/// Whether a decoder has no more to give than it gave. Reading on makes it check what follows the content.
pub(super) fn check_end(decoder: &mut impl Read) -> io::Result<()> {
    match decoder.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the block holds more than was promised")),
    }
}

/// Whether a block gave as much as the index promised.
pub(super) fn check_length(len: usize, promised: usize) -> io::Result<()> {
    if len == promised {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("{len} bytes where {promised} were promised")))
}

/// The content of a container.
pub(super) struct BlockContainer {
    packed: Store,
    compression: Compression,
    index: Index,
    /// By number.
    cache: moka::sync::Cache<usize, Arc<[u8]>>,
}

impl BlockContainer {
    /// The content of `packed`; `None` if it is not of blocks that are worth it.
    pub(super) fn open(packed: &Store, compression: Compression) -> Option<Self> {
        let bytes = (**packed).as_ref();
        let index = match compression {
            Compression::Zstd => zstd::index(bytes),
            Compression::Gzip => gzip::index(bytes),
            Compression::Xz => xz::index(bytes),
            _ => None,
        }?;
        if index.blocks.len() < 2 || index.packed_len != bytes.len() as u64 {
            return None;
        }
        let weigher = |_: &usize, bytes: &Arc<[u8]>| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        // By moka's own policy, blocks that were read often would keep out the one that is read now, which would be unpacked for each read of it.
        let policy = EvictionPolicy::lru();
        let cache = moka::sync::Cache::builder().weigher(weigher).max_capacity(CACHE_BYTES).eviction_policy(policy).build();
        Some(Self { packed: Arc::clone(packed), compression, index, cache })
    }

    /// The content of block `number`.
    fn content(&self, number: usize) -> Option<Range<u64>> {
        let start = self.index.blocks.get(number)?.start;
        let end = self.index.blocks.get(number.saturating_add(1)).map_or(self.index.len, |next| next.start);
        Some(start..end)
    }

    /// Copies what of block `number` is wanted, starting `skip` bytes within it.
    fn copy(&self, number: usize, skip: usize, target: &mut [u8]) -> Result<(), FormatError> {
        let content = self.content(number).unwrap_or_default();
        let len = content.end.saturating_sub(content.start);
        if let Some(bytes) = self.cache.get(&number) {
            return copy_from(&bytes, skip, target);
        }
        if len == target.len() as u64 {
            // Whoever reads whole blocks goes on to the next one.
            return self.unpack(number, target);
        }
        // Readers that want the same block wait for the first of them.
        let unpacked = self.cache.try_get_with(number, || {
            let mut bytes = vec![0; usize::try_from(len.min(MAX_BLOCK)).unwrap_or_default()];
            self.unpack(number, &mut bytes).map(|()| Arc::from(bytes))
        });
        copy_from(&unpacked.map_err(|error: Arc<FormatError>| (*error).clone())?, skip, target)
    }

    fn unpack(&self, number: usize, out: &mut [u8]) -> Result<(), FormatError> {
        let block = self.index.blocks.get(number).ok_or(FormatError::NoMemory)?;
        let start = usize::try_from(block.packed).unwrap_or(usize::MAX);
        let packed = (*self.packed).as_ref().get(start..start.saturating_add(block.packed_len as usize)).unwrap_or_default();
        let outcome = match self.compression {
            Compression::Gzip => gzip::decode_block(packed, out),
            Compression::Xz => {
                let padding = u64::from(4u8.wrapping_sub(block.unpadded) % 4);
                let unpadded = u64::from(block.packed_len).saturating_sub(padding);
                xz::decode_block(packed, block.flags.to_le_bytes(), unpadded, out)
            }
            _ => zstd::decode_block(packed, out),
        };
        outcome.map_err(|error| FormatError::Damaged {
            what: self.compression.name(),
            offset: block.packed,
            why: error.to_string(),
        })
    }
}

fn copy_from(bytes: &[u8], skip: usize, target: &mut [u8]) -> Result<(), FormatError> {
    let wanted = bytes.get(skip..).and_then(|rest| rest.get(..target.len())).ok_or(FormatError::NoMemory)?;
    target.copy_from_slice(wanted);
    Ok(())
}

impl RandomAccess for BlockContainer {
    fn len(&self) -> u64 {
        self.index.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), FormatError> {
        let (mut parts, mut at, mut rest) = (Vec::new(), offset, buf);
        let mut number = self.index.blocks.partition_point(|block| block.start <= offset).saturating_sub(1);
        while !rest.is_empty() {
            let content = self.content(number).ok_or(FormatError::NoMemory)?;
            let left = usize::try_from(content.end.saturating_sub(at)).unwrap_or(usize::MAX);
            let (target, behind) = rest.split_at_mut(rest.len().min(left));
            let skip = usize::try_from(at.saturating_sub(content.start)).unwrap_or(usize::MAX);
            at = content.end;
            parts.push((number, skip, target));
            number = number.saturating_add(1);
            rest = behind;
        }
        match &mut *parts {
            [(number, skip, target)] => self.copy(*number, *skip, target),
            parts => parts.par_iter_mut().try_for_each(|(number, skip, target)| self.copy(*number, *skip, target)),
        }
    }
}

impl fmt::Debug for BlockContainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockContainer")
            .field("compression", &self.compression)
            .field("blocks", &self.index.blocks.len())
            .field("len", &self.index.len)
            .finish_non_exhaustive()
    }
}
