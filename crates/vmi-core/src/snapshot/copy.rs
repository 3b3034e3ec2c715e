//! Copies guest memory on all processors.
//!
//! The copy is made of blocks. One that is zero takes no memory; for all others memory is set aside before the guest is paused, so that while
//! it stands still nothing is done but copying.

use core::sync::atomic::{AtomicBool, Ordering};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::mapping::{BLOCK, Budget, PrivateMemory};
use crate::{Error, ErrorKind, MemoryMap, PAGE_SIZE, PhysAddr, Piece, Region, Result};

const PAGE: usize = PAGE_SIZE as usize;

/// Pages that one word of bits tells of.
const CHUNK: usize = 64 * PAGE;

/// Words of bits for the pages of a block.
const CHUNKS: usize = BLOCK.div_ceil(CHUNK);

/// More threads do not copy faster: the memory's bandwidth is used up.
const THREADS: usize = 8;

/// The largest guest that is copied: more than this is no guest but a lie about its size.
const LARGEST: u64 = 16 << 40;

const ZERO_PAGE: [u8; PAGE] = [0; PAGE];

/// A copy of all guest memory, with what is known of its pages.
#[derive(Debug)]
pub(super) struct Copy {
    memory: PrivateMemory,
    /// Where the regions are in `memory`: each from the start of a block.
    pieces: Vec<Piece>,
    blocks: Vec<Block>,
}

/// What is known of a block of the copy.
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// Memory was set aside for it. Without, it is zero.
    populated: bool,
    /// A bit for each page whose memory was given back, as it is zero.
    discarded: [u64; CHUNKS],
    /// A bit for each page that the guest does not have, although its memory map says so.
    missing: [u64; CHUNKS],
}

/// How guest memory is read: fills the buffer or says how far it got.
pub(super) trait Source: Sync {
    fn fetch(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()>;

    /// Whether the bytes are known to be zero without reading them.
    fn is_zero(&self, at: PhysAddr, len: u64) -> bool;
}

/// One block, handed to one thread.
struct Job<'c> {
    at: PhysAddr,
    /// How much of the block the guest's region fills.
    len: usize,
    /// All of the block.
    bytes: &'c mut [u8],
    state: &'c mut Block,
}

impl Copy {
    /// An empty copy for the memory of `map`.
    ///
    /// # Errors
    /// [`ErrorKind::Driver`] for `back_end` if the host does not give that much address range.
    pub(super) fn new(map: &MemoryMap, back_end: &str) -> Result<Self> {
        let mut pieces = Vec::with_capacity(map.regions().len());
        let mut len = 0u64;
        for &region in map.regions() {
            pieces.push(Piece { region, offset: len });
            len = region
                .len()
                .checked_next_multiple_of(BLOCK as u64)
                .and_then(|size| len.checked_add(size))
                .filter(|&len| len <= LARGEST)
                .ok_or_else(|| no_room(back_end, map.total(), std::io::ErrorKind::FileTooLarge.into()))?;
        }
        let memory = PrivateMemory::new(len).map_err(|error| no_room(back_end, len, error))?;
        // At most 2^23 blocks, as `LARGEST` says.
        let blocks = vec![Block::default(); len.div_ceil(BLOCK as u64) as usize];
        Ok(Self { memory, pieces, blocks })
    }

    /// Whether the copy is of memory with this map.
    pub(super) fn is_of(&self, map: &MemoryMap) -> bool {
        self.pieces.iter().map(|piece| piece.region).eq(map.regions().iter().copied())
    }

    /// Sets memory aside for every block that is not zero now. The guest may run.
    ///
    /// # Errors
    /// As [`Copy::fill`].
    pub(super) fn prepare(&mut self, source: &impl Source, back_end: &str) -> Result<()> {
        self.each_block(|job, buffer, budget| job.prepare(source, buffer, budget, back_end))
    }

    /// Copies all of the memory.
    ///
    /// # Errors
    /// The first failure other than absent memory, which is noted as missing; [`ErrorKind::Driver`] for `back_end` if the host has no
    /// room for blocks that are not prepared.
    pub(super) fn fill(&mut self, source: &impl Source, back_end: &str) -> Result<()> {
        self.each_block(|job, buffer, budget| job.fill(source, buffer, budget, back_end))
    }

    /// Does `work` on all blocks, on several threads, until one fails. It is given a buffer of the size of a chunk.
    fn each_block(&mut self, work: impl Fn(&mut Job<'_>, &mut [u8], &Budget) -> Result<()> + Sync) -> Result<()> {
        let jobs = Mutex::new(jobs(&self.pieces, self.memory.bytes_mut(), &mut self.blocks));
        let budget = Budget::default();
        let (stop, failure) = (AtomicBool::new(false), Mutex::new(None));
        let thread = || {
            let mut buffer = vec![0; CHUNK];
            while !stop.load(Ordering::Relaxed) {
                let Some(mut job) = jobs.lock().unwrap_or_else(PoisonError::into_inner).next() else { break };
                if let Err(error) = work(&mut job, &mut buffer, &budget) {
                    stop.store(true, Ordering::Relaxed);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..std::thread::available_parallelism().map_or(1, |count| count.get().min(THREADS)) {
                scope.spawn(thread);
            }
            thread();
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Gives memory behind zeros back to the host: of blocks that are zero for the larger part, as others are better off with their huge
    /// page. What fails is left as it is: zeros that take memory.
    pub(super) fn discard(&mut self) {
        for (index, block) in self.blocks.iter_mut().enumerate().filter(|(_, block)| block.populated) {
            let start = index.saturating_mul(BLOCK);
            let end = start.saturating_add(BLOCK);
            let zero = zero_pages(self.memory.as_ref().get(start..end).unwrap_or_default());
            let count = count(&zero) as usize;
            if count == CHUNKS.saturating_mul(64) {
                if self.memory.discard(start..end).is_ok() {
                    (block.populated, block.discarded) = (false, [0; CHUNKS]);
                }
            } else if count.saturating_mul(2) >= CHUNKS.saturating_mul(64) {
                for ((chunk, zero), discarded) in zero.into_iter().enumerate().zip(&mut block.discarded) {
                    let start = start.saturating_add(chunk.saturating_mul(CHUNK));
                    for run in runs(zero) {
                        let range = start.saturating_add(offset_of(run.start))..start.saturating_add(offset_of(run.end));
                        if self.memory.discard(range).is_ok() {
                            *discarded |= mask(&run);
                        }
                    }
                }
            }
        }
    }

    /// Bytes of the host's memory that the copy takes.
    pub(super) fn resident(&self) -> u64 {
        let populated = self.blocks.iter().filter(|block| block.populated);
        let bytes = populated.map(|block| (BLOCK as u64).saturating_sub(count(&block.discarded).saturating_mul(PAGE_SIZE)));
        bytes.fold(0, u64::saturating_add)
    }

    /// The pieces that the guest has, and the regions that its map names but that were not there.
    pub(super) fn found(&self) -> (Vec<Piece>, Vec<Region>) {
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for piece in &self.pieces {
            let mut from = 0u64;
            for range in self.missing_in(piece) {
                found.extend(part(piece, from..range.start));
                missing.extend(part(piece, range.clone()).map(|piece| piece.region));
                from = range.end;
            }
            found.extend(part(piece, from..piece.region.len()));
        }
        let missing = MemoryMap::new(missing).regions().to_vec();
        (found, missing)
    }

    /// Runs of missing bytes of a piece, ascending, by their offset in it.
    fn missing_in(&self, piece: &Piece) -> Vec<Range<u64>> {
        let mut missing: Vec<Range<u64>> = Vec::new();
        let first = piece.offset.div_ceil(BLOCK as u64) as usize;
        let count = piece.region.len().div_ceil(BLOCK as u64) as usize;
        let words = self.blocks.iter().skip(first).take(count).flat_map(|block| block.missing);
        for (index, word) in words.enumerate() {
            let start = (index as u64).saturating_mul(CHUNK as u64);
            for run in runs(word) {
                let from = start.saturating_add(offset_of(run.start) as u64);
                let to = start.saturating_add(offset_of(run.end) as u64).min(piece.region.len());
                match missing.last_mut() {
                    Some(last) if last.end == from => last.end = to,
                    _ => missing.push(from..to),
                }
            }
        }
        missing
    }
}

impl AsRef<[u8]> for Copy {
    fn as_ref(&self) -> &[u8] {
        self.memory.as_ref()
    }
}

impl Job<'_> {
    /// Sets memory aside if the block is not zero. `buffer` is for looking at it.
    fn prepare(&mut self, source: &impl Source, buffer: &mut [u8], budget: &Budget, back_end: &str) -> Result<()> {
        let whole = self.state.populated && self.state.discarded == [0; CHUNKS];
        if !whole && (self.state.populated || !self.is_zero(source, buffer)?) {
            self.populate(budget, back_end)?;
        }
        Ok(())
    }

    /// Copies the block.
    fn fill(&mut self, source: &impl Source, buffer: &mut [u8], budget: &Budget, back_end: &str) -> Result<()> {
        self.state.missing = [0; CHUNKS];
        if source.is_zero(self.at, self.len as u64) {
            if self.state.populated {
                self.bytes.fill(0);
            }
            return Ok(());
        }
        if !self.state.populated {
            if self.is_zero(source, buffer)? {
                return Ok(());
            }
            self.populate(budget, back_end)?;
        }
        let Some(bytes) = self.bytes.get_mut(..self.len) else { return Ok(()) };
        match source.fetch(self.at, bytes) {
            Err(error) if error.is_absent() => {
                for ((index, chunk), missing) in bytes.chunks_mut(CHUNK).enumerate().zip(&mut self.state.missing) {
                    *missing = fetch(source, self.at.wrapping_add((index as u64).saturating_mul(CHUNK as u64)), chunk)?;
                }
                Ok(())
            }
            other => other,
        }
    }

    /// Looks whether the block is zero, up to the first chunk that is not. Pages that are not there count as zero and are noted.
    fn is_zero(&mut self, source: &impl Source, buffer: &mut [u8]) -> Result<bool> {
        if source.is_zero(self.at, self.len as u64) {
            return Ok(true);
        }
        for (start, missing) in (0..self.len).step_by(CHUNK).zip(&mut self.state.missing) {
            let at = self.at.wrapping_add(start as u64);
            let Some(buffer) = buffer.get_mut(..self.len.saturating_sub(start).min(CHUNK)) else { break };
            *missing = fetch(source, at, buffer)?;
            if !buffer.chunks(PAGE).all(is_zero_page) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn populate(&mut self, budget: &Budget, back_end: &str) -> Result<()> {
        budget.populate(self.bytes).map_err(|error| no_room(back_end, BLOCK as u64, error))?;
        (self.state.populated, self.state.discarded) = (true, [0; CHUNKS]);
        Ok(())
    }
}

/// Reads at most a chunk. What is not there becomes zero; says which pages that is.
fn fetch(source: &impl Source, at: PhysAddr, buffer: &mut [u8]) -> Result<u64> {
    match source.fetch(at, buffer) {
        Ok(()) => return Ok(0),
        Err(error) if error.is_absent() => {}
        Err(error) => return Err(error),
    }
    let mut missing = 0u64;
    for (index, page) in buffer.chunks_mut(PAGE).enumerate() {
        match source.fetch(at.wrapping_add((index as u64).saturating_mul(PAGE_SIZE)), page) {
            Ok(()) => {}
            Err(error) if error.is_absent() => {
                page.fill(0);
                missing |= 1u64.wrapping_shl(index as u32);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(missing)
}

fn is_zero_page(page: &[u8]) -> bool {
    ZERO_PAGE.get(..page.len()) == Some(page)
}

/// A bit for each page of a block that is zero.
fn zero_pages(block: &[u8]) -> [u64; CHUNKS] {
    let mut zero = [0; CHUNKS];
    for (chunk, word) in block.chunks(CHUNK).zip(&mut zero) {
        for (index, page) in chunk.chunks(PAGE).enumerate() {
            *word |= if is_zero_page(page) { 1u64.wrapping_shl(index as u32) } else { 0 };
        }
    }
    zero
}

/// How many bits are set.
fn count(words: &[u64; CHUNKS]) -> u64 {
    words.iter().map(|word| u64::from(word.count_ones())).fold(0, u64::saturating_add)
}

/// The blocks of all pieces, each with its part of the copy's bytes.
fn jobs<'c>(pieces: &[Piece], bytes: &'c mut [u8], states: &'c mut [Block]) -> impl Iterator<Item = Job<'c>> + Send {
    let pieces: Vec<Piece> = pieces.to_vec();
    let places = pieces.into_iter().flat_map(|piece| {
        (0..piece.region.len()).step_by(BLOCK).map(move |from| {
            let len = piece.region.len().saturating_sub(from).min(BLOCK as u64) as usize;
            (piece.region.start().wrapping_add(from), len)
        })
    });
    // Pieces start with a block and follow each other, so the blocks of the bytes are those of the pieces.
    places.zip(bytes.chunks_mut(BLOCK)).zip(states).map(|(((at, len), bytes), state)| Job { at, len, bytes, state })
}

/// A part of a piece, by offsets in it; nothing if it is empty.
fn part(piece: &Piece, range: Range<u64>) -> Option<Piece> {
    let start = piece.region.start().checked_add(range.start)?;
    let region = Region::new(start, range.end.checked_sub(range.start)?)?;
    Some(Piece { region, offset: piece.offset.saturating_add(range.start) })
}

/// The runs of ones in a word, as ranges of bit numbers, ascending.
fn runs(mut word: u64) -> impl Iterator<Item = Range<u32>> {
    core::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let start = word.trailing_zeros();
        let len = word.wrapping_shr(start).trailing_ones();
        let run = start..start.saturating_add(len);
        word &= !mask(&run);
        Some(run)
    })
}

/// A word with ones at the bits of `run`, which is not empty.
fn mask(run: &Range<u32>) -> u64 {
    let len = run.end.saturating_sub(run.start);
    u64::MAX.wrapping_shr(64u32.saturating_sub(len)).wrapping_shl(run.start)
}

/// Where a page of a chunk starts in it, in bytes.
fn offset_of(page: u32) -> usize {
    (page as usize).saturating_mul(PAGE)
}

#[cold]
fn no_room(back_end: &str, bytes: u64, source: std::io::Error) -> Error {
    let action = format!(
        "making room for {} KiB of guest memory in a snapshot, which takes as much of this host's memory as the guest has in use",
        bytes.div_ceil(1024)
    );
    ErrorKind::Driver { back_end: back_end.to_owned(), action, source: Box::new(source) }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_are_the_ones_of_a_word(word: u64) {
            let mut bits = 0u64;
            let mut last = None;
            for run in runs(word) {
                prop_assert!(run.start < run.end && last.is_none_or(|last| last < run.start));
                last = Some(run.end);
                for bit in run.clone() {
                    bits |= 1 << bit;
                }
                prop_assert_eq!(mask(&run), run.fold(0, |word, bit| word | 1 << bit));
            }
            prop_assert_eq!(bits, word);
        }
    }

    #[test]
    fn all_ones_are_one_run() {
        assert!(runs(u64::MAX).eq(core::iter::once(0..64)));
        assert_eq!(mask(&(0..64)), u64::MAX);
    }
}
