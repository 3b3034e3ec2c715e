//! Memory that is packed inside an image, in blocks that are unpacked when they are read.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use moka::policy::EvictionPolicy;
use rayon::prelude::*;
use vmi_core::{Address, Error, ErrorKind, MemoryMap, PhysAddr, Region, Result};

use crate::FormatError;

/// The blocks of an image. One handle serves many threads.
pub(crate) trait Blocks: Send + Sync + fmt::Debug {
    /// The memory that all blocks hold together.
    fn memory(&self) -> MemoryMap;

    /// The block that holds `at`; `None` if there is no memory.
    fn block_at(&self, at: PhysAddr) -> Option<Block>;

    /// Unpacks `block` into `out`, which has its length.
    ///
    /// # Errors
    /// What is damaged, and where in the file.
    fn unpack(&self, block: Block, out: &mut [u8]) -> Result<(), FormatError>;
}

/// A run of memory that is unpacked as a whole. At most [`MAX_BLOCK`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// The memory.
    pub(crate) region: Region,
    /// What the format knows it by, and nobody else: a number of a page, an offset in the file.
    pub(crate) id: u64,
}

/// The longest block, so that a hostile file cannot make one page cost more.
pub(crate) const MAX_BLOCK: u64 = 16 << 20;

/// Unpacked memory that is kept at most, in bytes.
const CACHE_BYTES: u64 = 64 << 20;
/// What is unpacked ahead at most, for a reader that goes from block to block.
const READ_AHEAD: u64 = 1 << 20;
/// How many times what a reader has read in a row is unpacked ahead, so that two neighbours do not cost as much as a long run.
const AHEAD_FACTOR: u64 = 4;
/// What is unpacked at once for a long read.
const BATCH: usize = 16 << 20;
/// Less than this is not worth waking other threads.
const PARALLEL: usize = 32 << 10;

/// Blocks, with a bounded cache of those that were read in parts or unpacked ahead.
pub(crate) struct PackedMemory {
    blocks: Box<dyn Blocks>,
    name: String,
    cache: moka::sync::Cache<Key, Run>,
    /// Whether the cache ever held anything: looking in vain costs as much as unpacking a small page.
    cached: AtomicBool,
    /// Where a reader that goes from block to block began, and where it would go on.
    began: AtomicU64,
    next: AtomicU64,
}

/// By what unpacked memory is found.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    /// A block by itself, by its first address.
    Block(u64),
    /// What was unpacked ahead from somewhere in these [`READ_AHEAD`] bytes of memory, and at most to their last block.
    Ahead(u64),
}

impl Key {
    fn ahead(at: PhysAddr) -> Self {
        Self::Ahead(at.get() / READ_AHEAD)
    }
}

/// Unpacked memory.
#[derive(Clone)]
struct Run {
    start: PhysAddr,
    bytes: Arc<[u8]>,
}

impl Run {
    /// Copies what the job wants, if all of it is there.
    fn copy(&self, job: &mut Job<'_>) -> bool {
        let before = job.block.region.start().get().checked_sub(self.start.get()).and_then(|before| usize::try_from(before).ok());
        let start = before.and_then(|before| before.checked_add(job.within));
        let source = start.and_then(|start| self.bytes.get(start..start.checked_add(job.target.len())?));
        source.map(|source| job.target.copy_from_slice(source)).is_some()
    }
}

/// A part of a block, and where it is wanted.
struct Job<'b> {
    block: Block,
    within: usize,
    target: &'b mut [u8],
}

/// Where a block was.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Cached,
    Packed,
}

impl PackedMemory {
    /// `name` is that of the machine, for messages.
    pub(crate) fn new(blocks: Box<dyn Blocks>, name: String) -> Self {
        let weigher = |_: &Key, run: &Run| u32::try_from(run.bytes.len()).unwrap_or(u32::MAX);
        // By moka's own policy, what was read often would keep out what is read now.
        let policy = EvictionPolicy::lru();
        let cache = moka::sync::Cache::builder().weigher(weigher).max_capacity(CACHE_BYTES).eviction_policy(policy).build();
        let (began, next) = (AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX));
        Self { blocks, name, cache, cached: AtomicBool::new(false), began, next }
    }

    /// Fills `buf` from `at`.
    ///
    /// # Errors
    /// [`ErrorKind::Hole`] at the first address without memory, [`ErrorKind::Driver`] for a damaged block; what was before it is good.
    pub(crate) fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        if let Some(block) = self.blocks.block_at(at)
            && at.checked_add(buf.len() as u64).is_some_and(|end| end <= block.region.end())
        {
            let (start, end) = (block.region.start(), block.region.end());
            let within = at.get().saturating_sub(start.get()) as usize;
            let found = self.fill(&mut Job { block, within, target: buf })?;
            if found == Found::Packed {
                if self.next.swap(end.get(), Ordering::Relaxed) == start.get() {
                    let read = end.get().saturating_sub(self.began.load(Ordering::Relaxed));
                    self.read_ahead(end, read.saturating_mul(AHEAD_FACTOR).min(READ_AHEAD));
                } else {
                    self.began.store(start.get(), Ordering::Relaxed);
                }
            }
            return Ok(());
        }
        let len = buf.len();
        let mut done = 0usize;
        for batch in buf.chunks_mut(BATCH) {
            let here = at.checked_add(done as u64).ok_or_else(|| Address::out_of_range(at, len).after(done))?;
            let batch_len = batch.len();
            self.read_batch(here, batch).map_err(|error| error.after(done))?;
            done = done.saturating_add(batch_len);
        }
        Ok(())
    }

    fn read_batch(&self, at: PhysAddr, batch: &mut [u8]) -> Result<()> {
        let len = batch.len();
        let (mut jobs, mut here, mut rest) = (Vec::new(), at, batch);
        let mut hole = None;
        while !rest.is_empty() {
            let Some(block) = self.blocks.block_at(here) else {
                hole = Some(Error::hole(here));
                break;
            };
            let within = here.get().saturating_sub(block.region.start().get()) as usize;
            let left = block.region.end().get().saturating_sub(here.get());
            let (target, behind) = rest.split_at_mut(rest.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            let next = here.checked_add(target.len() as u64);
            rest = behind;
            jobs.push(Job { block, within, target });
            match next {
                Some(next) => here = next,
                None if rest.is_empty() => {}
                None => {
                    hole = Some(Address::out_of_range(at, len));
                    break;
                }
            }
        }
        let whole = jobs.iter().fold(0usize, |sum, job| sum.saturating_add(job.target.len()));
        let results: Vec<Result<Found>> = if whole >= PARALLEL && jobs.len() > 1 {
            jobs.par_iter_mut().map(|job| self.fill(job)).collect()
        } else {
            jobs.iter_mut().map(|job| self.fill(job)).collect()
        };
        let mut done = 0usize;
        for (job, result) in jobs.iter().zip(results) {
            result.map_err(|error| error.after(done))?;
            done = done.saturating_add(job.target.len());
        }
        hole.map_or(Ok(()), |error| Err(error.after(done)))
    }

    /// Fills the target of one job: from the cache, or by unpacking.
    fn fill(&self, job: &mut Job<'_>) -> Result<Found> {
        let region = job.block.region;
        let start = region.start();
        if self.cached.load(Ordering::Relaxed)
            && [Key::ahead(start), Key::Block(start.get())]
                .into_iter()
                .any(|key| self.cache.get(&key).is_some_and(|run| run.copy(job)))
        {
            return Ok(Found::Cached);
        }
        if job.target.len() as u64 == region.len() {
            // Whoever reads whole blocks keeps them.
            self.blocks.unpack(job.block, job.target).map_err(|error| self.damaged(region, error))?;
            return Ok(Found::Packed);
        }
        let len = usize::try_from(region.len().min(MAX_BLOCK)).unwrap_or_default();
        let mut bytes = vec![0; len];
        self.blocks.unpack(job.block, &mut bytes).map_err(|error| self.damaged(region, error))?;
        let run = Run { start, bytes: bytes.into() };
        let copied = run.copy(job);
        self.keep(Key::Block(start.get()), run);
        if copied { Ok(Found::Packed) } else { Err(Error::hole(region.end())) }
    }

    fn keep(&self, key: Key, run: Run) {
        self.cached.store(true, Ordering::Relaxed);
        self.cache.insert(key, run);
    }

    /// Unpacks `len` bytes that follow `from`, on all processors. Damage is left to whoever reads it.
    fn read_ahead(&self, from: PhysAddr, len: u64) {
        let distance = |at: PhysAddr| at.get().saturating_sub(from.get());
        let (mut blocks, mut at) = (Vec::new(), from);
        while distance(at) < len
            && Key::ahead(at) == Key::ahead(from)
            && let Some(block) = self.blocks.block_at(at)
            && block.region.start() == at
            && distance(block.region.end()) <= MAX_BLOCK
        {
            at = block.region.end();
            blocks.push(block);
        }
        self.next.store(at.get(), Ordering::Relaxed);
        let mut bytes = vec![0; usize::try_from(distance(at)).unwrap_or_default()];
        let mut rest = &mut *bytes;
        let mut jobs = Vec::with_capacity(blocks.len());
        for block in blocks {
            let Some((target, behind)) = rest.split_at_mut_checked(block.region.len() as usize) else { break };
            jobs.push((block, target));
            rest = behind;
        }
        let unpack = |(block, target): &mut (Block, &mut [u8])| self.blocks.unpack(*block, target).is_ok();
        let good: Vec<bool> = if len >= PARALLEL as u64 {
            jobs.par_iter_mut().map(unpack).collect()
        } else {
            jobs.iter_mut().map(unpack).collect()
        };
        let whole = jobs.iter().zip(good).take_while(|(_, good)| *good).map(|((_, target), _)| target.len()).sum();
        bytes.truncate(whole);
        if !bytes.is_empty() {
            self.keep(Key::ahead(from), Run { start: from, bytes: bytes.into() });
        }
    }

    #[cold]
    fn damaged(&self, region: Region, error: FormatError) -> Error {
        let action = format!("unpacking the memory at {}", region.start());
        ErrorKind::Driver { back_end: self.name.clone(), action, source: error.into() }.into()
    }
}

impl fmt::Debug for PackedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedMemory").field("blocks", &self.blocks).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 4096;

    /// Pages whose bytes tell where they are, in blocks of some pages; the blocks of these numbers are holes.
    #[derive(Debug)]
    struct Counted {
        block: u64,
        blocks: u64,
        is_hole: fn(u64) -> bool,
        damaged: Option<u64>,
        unpacked: Arc<AtomicUsize>,
    }

    fn byte(at: u64) -> u8 {
        (at ^ (at >> 8) ^ (at >> 16)) as u8
    }

    fn is_hole(number: u64) -> bool {
        number % 13 == 12
    }

    impl Blocks for Counted {
        fn memory(&self) -> MemoryMap {
            let numbers = (0..self.blocks).filter(|&number| !(self.is_hole)(number));
            MemoryMap::new(numbers.filter_map(|number| Region::new(PhysAddr::new(number * self.block), self.block)))
        }

        fn block_at(&self, at: PhysAddr) -> Option<Block> {
            let number = at.get() / self.block;
            let region = Region::new(PhysAddr::new(number * self.block), self.block)?;
            (number < self.blocks && !(self.is_hole)(number)).then_some(Block { region, id: number })
        }

        fn unpack(&self, block: Block, out: &mut [u8]) -> Result<(), FormatError> {
            self.unpacked.fetch_add(1, Ordering::Relaxed);
            if self.damaged == Some(block.id) {
                return Err(FormatError::Damaged { what: "block", offset: block.id, why: "made so".to_owned() });
            }
            let start = block.region.start().get();
            out.iter_mut().zip(start..).for_each(|(out, at)| *out = byte(at));
            Ok(())
        }
    }

    fn memory(pages: u64, damaged: Option<u64>) -> (PackedMemory, Arc<AtomicUsize>) {
        let unpacked = Arc::new(AtomicUsize::new(0));
        let blocks = Counted { block: pages * PAGE, blocks: 64 / pages, is_hole, damaged, unpacked: Arc::clone(&unpacked) };
        (PackedMemory::new(Box::new(blocks), "test".to_owned()), unpacked)
    }

    proptest! {
        /// Whatever was read before: what is there is told, up to the first hole, and the hole by its address.
        #[test]
        fn reads_are_those_of_plain_memory(
            pages in prop_oneof![Just(1u64), Just(4), Just(16)],
            reads in prop::collection::vec((0..66 * PAGE, 0usize..100_000), 1..20),
        ) {
            let (memory, _) = memory(pages, None);
            let there = |at: u64| at / (pages * PAGE) < 64 / pages && !is_hole(at / (pages * PAGE));
            for (at, len) in reads {
                let mut buf = vec![0; len];
                let good = (at..at + len as u64).take_while(|&at| there(at)).count();
                match memory.read(PhysAddr::new(at), &mut buf) {
                    Ok(()) => prop_assert_eq!(good, len),
                    Err(error) => {
                        prop_assert_eq!(error.done(), good);
                        let hole = at + good as u64;
                        prop_assert!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == hole), "{}", error);
                    }
                }
                prop_assert!(buf.iter().take(good).zip(at..).all(|(&got, at)| got == byte(at)));
            }
        }
    }

    #[test]
    fn a_damaged_block_ends_a_read_where_it_begins() {
        let (memory, _) = memory(4, Some(3));
        let mut buf = vec![0; 40 * PAGE as usize];
        let error = memory.read(PhysAddr::new(100), &mut buf).unwrap_err();
        assert_eq!(error.done(), 12 * PAGE as usize - 100);
        assert!(matches!(error.kind(), ErrorKind::Driver { back_end, .. } if back_end == "test"), "{error}");
        assert!(buf[..error.done()].iter().zip(100..).all(|(&got, at)| got == byte(at)));
        // Reading ahead does not stumble over it, and what is behind it is there.
        let mut word = [0; 8];
        for page in (0..12).chain(16..48) {
            memory.read(PhysAddr::new(page * PAGE), &mut word).unwrap();
        }
    }

    /// A reader of small pieces, one after the other, has each block unpacked once.
    #[test]
    fn a_sequential_reader_unpacks_nothing_twice() {
        for pages in [4, 16] {
            let (memory, unpacked) = memory(pages, None);
            let mut piece = [0; 512];
            let mut blocks = 0;
            for number in (0..64 / pages).filter(|&number| !is_hole(number)) {
                blocks += 1;
                for at in (number * pages * PAGE..(number + 1) * pages * PAGE).step_by(512) {
                    memory.read(PhysAddr::new(at), &mut piece).unwrap();
                }
            }
            assert_eq!(unpacked.load(Ordering::Relaxed), blocks);
        }
    }

    /// Nor does one of pages, when the cache is full long since.
    #[test]
    fn a_sequential_reader_of_more_than_the_cache_unpacks_nothing_twice() {
        let blocks = CACHE_BYTES / PAGE * 5 / 4;
        let (memory, unpacked) = pages(blocks);
        (0..blocks).for_each(|number| check_page(&memory, number));
        assert_eq!(unpacked.load(Ordering::Relaxed) as u64, blocks);
    }

    /// Pages of memory without holes.
    fn pages(blocks: u64) -> (PackedMemory, Arc<AtomicUsize>) {
        let unpacked = Arc::new(AtomicUsize::new(0));
        let counted = Counted { block: PAGE, blocks, is_hole: |_| false, damaged: None, unpacked: Arc::clone(&unpacked) };
        (PackedMemory::new(Box::new(counted), "test".to_owned()), unpacked)
    }

    fn check_page(memory: &PackedMemory, number: u64) {
        let mut page = vec![0; PAGE as usize];
        memory.read(PhysAddr::new(number * PAGE), &mut page).unwrap();
        assert!(page.iter().zip(number * PAGE..).all(|(&got, at)| got == byte(at)), "{number}");
    }

    #[test]
    fn sequential_readers_do_not_disturb_each_other() {
        let (memory, unpacked) = pages(8 * 4096);
        for number in 0..4096 {
            (0..8).for_each(|reader| check_page(&memory, reader * 4096 + number));
        }
        let unpacked = unpacked.load(Ordering::Relaxed);
        assert!(unpacked < 8 * 4096 * 11 / 10, "{unpacked}");
    }

    #[test]
    fn neighbours_do_not_cost_a_long_run() {
        let (memory, unpacked) = pages(1 << 16);
        for number in (0..1 << 16).step_by(64) {
            check_page(&memory, number);
            check_page(&memory, number + 1);
        }
        assert_eq!(unpacked.load(Ordering::Relaxed), (1 << 10) * (2 + 2 * AHEAD_FACTOR as usize));
    }
}
