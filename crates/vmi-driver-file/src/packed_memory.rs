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

/// Unpacked blocks that are kept at most, in bytes.
const CACHE_BYTES: u64 = 64 << 20;
/// What is unpacked ahead of a reader that goes from block to block.
const READ_AHEAD: u64 = 1 << 20;
/// What is unpacked at once for a long read.
const BATCH: usize = 16 << 20;
/// Less than this is not worth waking other threads.
const PARALLEL: usize = 32 << 10;

/// Blocks, with a bounded cache of those that were read in parts.
pub(crate) struct PackedMemory {
    blocks: Box<dyn Blocks>,
    name: String,
    /// By first address.
    cache: moka::sync::Cache<u64, Arc<[u8]>>,
    /// Whether the cache ever held anything: looking in vain costs as much as unpacking a small page.
    cached: AtomicBool,
    /// Where a reader that goes from block to block would go on.
    next: AtomicU64,
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
        let weigher = |_: &u64, bytes: &Arc<[u8]>| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        // By moka's own policy, a full cache would not take what is unpacked ahead.
        let policy = EvictionPolicy::lru();
        let cache = moka::sync::Cache::builder().weigher(weigher).max_capacity(CACHE_BYTES).eviction_policy(policy).build();
        Self { blocks, name, cache, cached: AtomicBool::new(false), next: AtomicU64::new(u64::MAX) }
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
            if found == Found::Packed && self.next.swap(end.get(), Ordering::Relaxed) == start.get() {
                self.read_ahead(end);
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
        if self.cached.load(Ordering::Relaxed)
            && let Some(bytes) = self.cache.get(&region.start().get())
        {
            copy(&bytes, job)?;
            return Ok(Found::Cached);
        }
        if job.target.len() as u64 == region.len() {
            // Whoever reads whole blocks keeps them: `Vmi` has a page cache.
            self.blocks.unpack(job.block, job.target).map_err(|error| self.damaged(region, error))?;
        } else {
            copy(&self.unpacked(job.block)?, job)?;
        }
        Ok(Found::Packed)
    }

    fn unpacked(&self, block: Block) -> Result<Arc<[u8]>> {
        let len = usize::try_from(block.region.len().min(MAX_BLOCK)).unwrap_or_default();
        let mut bytes = vec![0; len];
        self.blocks.unpack(block, &mut bytes).map_err(|error| self.damaged(block.region, error))?;
        let bytes: Arc<[u8]> = bytes.into();
        self.cached.store(true, Ordering::Relaxed);
        self.cache.insert(block.region.start().get(), Arc::clone(&bytes));
        Ok(bytes)
    }

    /// Unpacks what follows `from`, on all processors. Damage is left to whoever reads it.
    fn read_ahead(&self, from: PhysAddr) {
        let mut blocks = Vec::new();
        let (mut at, mut ahead) = (from, 0u64);
        while ahead < READ_AHEAD
            && let Some(block) = self.blocks.block_at(at)
        {
            ahead = ahead.saturating_add(block.region.len());
            at = block.region.end();
            blocks.push(block);
        }
        self.next.store(at.get(), Ordering::Relaxed);
        blocks.into_par_iter().for_each(|block| {
            if !self.cache.contains_key(&block.region.start().get()) {
                let _ = self.unpacked(block);
            }
        });
    }

    #[cold]
    fn damaged(&self, region: Region, error: FormatError) -> Error {
        let action = format!("unpacking the memory at {}", region.start());
        ErrorKind::Driver { back_end: self.name.clone(), action, source: error.into() }.into()
    }
}

fn copy(bytes: &[u8], job: &mut Job<'_>) -> Result<()> {
    let end = job.within.saturating_add(job.target.len());
    let source = bytes.get(job.within..end).ok_or_else(|| Error::hole(job.block.region.end()))?;
    job.target.copy_from_slice(source);
    Ok(())
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
        let unpacked = Arc::new(AtomicUsize::new(0));
        let blocks = CACHE_BYTES / PAGE * 5 / 4;
        let counted = Counted { block: PAGE, blocks, is_hole: |_| false, damaged: None, unpacked: Arc::clone(&unpacked) };
        let memory = PackedMemory::new(Box::new(counted), "test".to_owned());
        let mut page = vec![0; PAGE as usize];
        for number in 0..blocks {
            memory.read(PhysAddr::new(number * PAGE), &mut page).unwrap();
        }
        assert_eq!(unpacked.load(Ordering::Relaxed) as u64, blocks);
    }
}
