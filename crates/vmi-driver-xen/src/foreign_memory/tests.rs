use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;
use vmi_core::ErrorKind;

use super::*;
use crate::frames::Same;

/// A domain of 1,024 pages, without every page whose number ends in 7. Mappings show the pages as they were when they were made, as frames do.
#[derive(Clone, Default)]
struct Domain {
    /// Pages that are mapped now, at most, and in how many mappings.
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    memory: Mutex<Vec<u64>>,
    mappings: AtomicUsize,
    writable: AtomicUsize,
}

/// A mapping that counts itself.
struct Kept {
    state: Arc<State>,
    words: Box<[u64]>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.state.mappings.fetch_sub(1, Ordering::SeqCst);
        let _ = &self.words;
    }
}

const PAGES: u64 = 1024;
const WORDS: usize = 512;

fn there(page: u64) -> bool {
    page < PAGES && page % 10 != 7
}

impl Domain {
    fn new() -> Self {
        let domain = Self::default();
        *domain.state.memory.lock().unwrap() =
            (0..PAGES * WORDS as u64).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        domain
    }

    fn byte(&self, at: u64) -> u8 {
        (self.state.memory.lock().unwrap()[(at / 8) as usize] >> (at % 8 * 8)) as u8
    }

    fn cache(&self, mapped: u64, lifetime: u64) -> GuestMemory<Self> {
        let limits = Limits { mapped, lifetime: Duration::from_millis(lifetime) };
        GuestMemory::new(self.clone(), Box::new(Same), Failures::new("a domain"), limits)
    }
}

impl Mapper for Domain {
    fn map(&self, pages: &[u64], frames: &[u64], writable: bool) -> Result<GuestMapping> {
        assert_eq!(pages, frames);
        assert!(pages.len() <= MAX_AT_ONCE * CHUNK_PAGES as usize);
        self.state.mappings.fetch_add(1, Ordering::SeqCst);
        self.state.writable.fetch_add(usize::from(writable), Ordering::SeqCst);
        let memory = self.state.memory.lock().unwrap();
        let words = pages.iter().flat_map(|page| {
            let start = *page as usize * WORDS;
            (start..start + WORDS).map(|word| memory.get(word).copied().unwrap_or(0))
        });
        let mut kept = Kept { state: Arc::clone(&self.state), words: words.collect() };
        let host = kept.words.as_mut_ptr().cast::<u8>();
        let pieces: Vec<RawPiece> = pages
            .iter()
            .enumerate()
            .filter(|(_, page)| there(**page))
            .map(|(index, page)| RawPiece {
                region: Region::new(PhysAddr::new(page * PAGE_SIZE), PAGE_SIZE).unwrap(),
                host: host.wrapping_add(index * PAGE_SIZE as usize),
                writable,
            })
            .collect();
        // SAFETY: the words live in the box as long as it is kept, and nobody else refers to them.
        Ok(unsafe { GuestMapping::raw(&pieces, Arc::new(kept)) }.unwrap())
    }
}

#[test]
fn what_is_mapped_is_bounded_and_goes_with_the_cache() {
    let domain = Domain::new();
    let cache = domain.cache(2 * CHUNK, 60_000);
    let mut word = [0; 8];
    for round in 0..3 {
        for chunk in 0..PAGES / CHUNK_PAGES {
            cache.read(PhysAddr::new(chunk * CHUNK + round), &mut word).unwrap();
        }
    }
    let mapped = domain.state.mappings.load(Ordering::SeqCst);
    assert!(mapped <= SLOTS + 2, "{mapped} mappings");
    cache.forget();
    drop(cache);
    assert_eq!(domain.state.mappings.load(Ordering::SeqCst), 0);
}

#[test]
fn a_mapping_grows_old_while_the_domain_runs() {
    let domain = Domain::new();
    let cache = domain.cache(1 << 20, 20);
    let mut byte = [0];
    let mut read = || {
        cache.read(PhysAddr::ZERO, &mut byte).unwrap();
        byte[0]
    };
    let before = read();
    domain.state.memory.lock().unwrap()[0] = 0x55;
    cache.clock().stop();
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(read(), before, "time stands still in a pause");
    cache.clock().go_on();
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(read(), 0x55);
}

#[test]
fn long_reads_and_batches_map_many_chunks_in_a_call() {
    let domain = Domain::new();
    let cache = domain.cache(1 << 30, 60_000);
    // Up to the first page that is none.
    let mut buffer = vec![0; 4 << 20];
    let error = cache.read(PhysAddr::ZERO, &mut buffer).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == 7 * PAGE_SIZE));
    assert_eq!((error.done(), cache.counters()), (7 * PAGE_SIZE as usize, MappingCounters { mapped: 16, calls: 1 }));

    let cache = domain.cache(1 << 30, 60_000);
    let mut buffers = [[0u8; 16]; 40];
    let mut ops: Vec<_> =
        buffers.iter_mut().zip(0..).map(|(buffer, index)| ReadOp::new(PhysAddr::new(index * 0x9000), &mut buffer[..])).collect();
    cache.read_batch(&mut ops);
    for (index, op) in (0..).zip(&ops) {
        assert_eq!(op.result.is_ok(), there(index * 9), "{index}");
    }
    assert_eq!(cache.counters().calls, 1);
}

#[test]
fn only_writes_map_for_writing() {
    let domain = Domain::new();
    let cache = domain.cache(1 << 30, 60_000);
    cache.read(PhysAddr::new(0x1000), &mut [0; 64]).unwrap();
    assert_eq!(domain.state.writable.load(Ordering::SeqCst), 0);
    cache.write(PhysAddr::new(0x1ffc), &[1; 8]).unwrap();
    assert_eq!(domain.state.writable.load(Ordering::SeqCst), 1);
    let error = cache.write(PhysAddr::new(0x6ffe), &[1; 8]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == 0x7000) && error.done() == 2, "{error:?}");
}

proptest! {
    /// Every read gives the domain's bytes, up to the first page that is none.
    #[test]
    fn reads_are_the_memory(reads in proptest::collection::vec((0..PAGES * PAGE_SIZE + 0x4000, 0..0x9000usize), 1..8), mapped in 1..8u64) {
        let domain = Domain::new();
        let cache = domain.cache(mapped * CHUNK, 60_000);
        for (at, len) in reads {
            let mut buffer = vec![0; len];
            let good = (at..at + len as u64).take_while(|at| there(at / PAGE_SIZE)).count();
            let result = cache.read(PhysAddr::new(at), &mut buffer);
            match &result {
                Ok(()) => prop_assert_eq!(good, len),
                Err(error) => {
                    prop_assert_eq!(error.done(), good);
                    let hole = matches!(error.kind(), ErrorKind::Hole { at: hole } if hole.get() == at + good as u64);
                    prop_assert!(hole, "{}", error);
                }
            }
            for (byte, at) in buffer[..good].iter().zip(at..) {
                prop_assert_eq!(*byte, domain.byte(at));
            }
        }
    }
}
