use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use nix::libc;
use proptest::prelude::*;
use vmi_core::{ErrorKind, Memory as _};

use super::*;
use crate::frames::Same;

/// A domain of 1,024 pages, without every page whose number ends in 7. Mappings show the pages as they were when they were made, as frames do.
#[derive(Clone, Default)]
struct Domain {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    memory: Mutex<Vec<u64>>,
    /// Mappings outside of the window that live.
    alone: AtomicUsize,
    /// Whether mapping fails, as when the domain is gone.
    gone: AtomicBool,
    /// A page that is on its way to the domain.
    late: Mutex<Option<u64>>,
}

/// A mapping that counts itself.
struct Kept {
    state: Arc<State>,
    words: Box<[u64]>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.state.alone.fetch_sub(1, Ordering::SeqCst);
        let _ = &self.words;
    }
}

const PAGES: u64 = 1024;
const WORDS: usize = 512;
const PAGE: usize = PAGE_SIZE as usize;

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
        self.limited(Limits { mapped, lifetime: Duration::from_millis(lifetime), ..Limits::DEFAULT })
    }

    /// A cache that nothing happens to with time, however slow the machine.
    fn timeless(&self) -> GuestMemory<Self> {
        self.limited(Limits { mapped: 1 << 30, lifetime: Duration::MAX, absent: Duration::MAX })
    }

    fn limited(&self, limits: Limits) -> GuestMemory<Self> {
        let memory = MemoryMap::new([Region::new(PhysAddr::ZERO, PAGES * PAGE_SIZE).unwrap()]);
        GuestMemory::new(self.clone(), Box::new(Same), Failures::new("a domain"), limits, &memory).unwrap()
    }
}

impl Mapper for Domain {
    fn map(&self, pages: &[u64], frames: &[u64], writable: bool) -> Result<GuestMapping> {
        assert!(pages == frames && (!writable || pages.len() == CHUNK_PAGES as usize));
        let late = *self.state.late.lock().unwrap();
        self.state.alone.fetch_add(1, Ordering::SeqCst);
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
            .filter(|(_, page)| there(**page) && late != Some(**page))
            .map(|(index, page)| RawPiece {
                region: Region::new(PhysAddr::new(page * PAGE_SIZE), PAGE_SIZE).unwrap(),
                host: host.wrapping_add(index * PAGE),
                writable,
            })
            .collect();
        // SAFETY: the words live in the box as long as it is kept, and nobody else refers to them.
        Ok(unsafe { GuestMapping::raw(&pieces, Arc::new(kept)) }.unwrap())
    }

    /// In steps, as a foreign mapping is made: what nobody may read yet would end the process if it were read.
    unsafe fn map_at(&self, place: NonNull<u8>, frames: &[u64]) -> Result<Vec<bool>> {
        assert!(frames.len() as u64 <= MAX_AT_ONCE * CHUNK_PAGES);
        let map = |place: *mut u8, len: usize, protection| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            // SAFETY: within the place, which nobody uses.
            assert_eq!(unsafe { libc::mmap(place.cast(), len, protection, flags, -1, 0) }, place.cast());
        };
        map(place.as_ptr(), frames.len() * PAGE, libc::PROT_NONE);
        if self.state.gone.load(Ordering::SeqCst) {
            // SAFETY: as above; this is what the library does.
            unsafe { libc::munmap(place.as_ptr().cast(), frames.len() * PAGE) };
            return Err(ErrorKind::Ended { machine: "a domain".into(), why: "gone".into() }.into());
        }
        let late = *self.state.late.lock().unwrap();
        let there = |page| there(page) && late != Some(page);
        let memory = self.state.memory.lock().unwrap();
        for (index, frame) in frames.iter().enumerate().filter(|(_, frame)| there(**frame)) {
            let host = place.as_ptr().wrapping_add(index * PAGE);
            map(host, PAGE, libc::PROT_READ | libc::PROT_WRITE);
            for (word, value) in memory[*frame as usize * WORDS..][..WORDS].iter().enumerate() {
                // SAFETY: just mapped.
                unsafe { host.cast::<u64>().add(word).write_volatile(*value) };
            }
        }
        Ok(frames.iter().map(|frame| there(*frame)).collect())
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// A page that could not be mapped is looked for again, though not at each read, also while the domain stands and while its mappings would live for ever.
#[test]
fn a_page_that_was_late_is_found() {
    let domain = Domain::new();
    let cache = domain.cache(u64::MAX, u64::MAX);
    let at = PhysAddr::new(5 * PAGE_SIZE + 8);
    let mut byte = [0];
    for stands in [false, true] {
        if stands {
            cache.forget();
            cache.stands();
        }
        *domain.state.late.lock().unwrap() = Some(5);
        let (began, before) = (std::time::Instant::now(), cache.counters().calls);
        for _ in 0..10_000 {
            let error = cache.read(at, &mut byte).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Hole { .. }), "{error}");
        }
        let most = 2 + began.elapsed().as_millis() as u64 / 5;
        assert!(cache.counters().calls - before <= most, "{:?}, {most}", cache.counters());
        *domain.state.late.lock().unwrap() = None;
        let began = std::time::Instant::now();
        while cache.read(at, &mut byte).is_err() {
            assert!(began.elapsed() < Duration::from_secs(30));
        }
        assert_eq!(byte, [domain.byte(at.get())]);
        cache.read(PhysAddr::new(6 * PAGE_SIZE), &mut byte).unwrap();
        assert_eq!(cache.shown.mapped(), 1);
        cache.read(PhysAddr::new(7 * PAGE_SIZE), &mut byte).unwrap_err();
    }
}

/// The same for a page that is written to.
#[test]
fn a_page_that_was_late_is_written() {
    let domain = Domain::new();
    let cache = domain.cache(u64::MAX, u64::MAX);
    let at = PhysAddr::new(5 * PAGE_SIZE + 8);
    *domain.state.late.lock().unwrap() = Some(5);
    let (began, before) = (std::time::Instant::now(), cache.counters().calls);
    for _ in 0..10_000 {
        let error = cache.write(at, &[1]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Hole { .. }), "{error}");
    }
    let most = 2 + began.elapsed().as_millis() as u64 / 5;
    assert!(cache.counters().calls - before <= most, "{:?}, {most}", cache.counters());
    *domain.state.late.lock().unwrap() = None;
    let began = std::time::Instant::now();
    while cache.write(at, &[1]).is_err() {
        assert!(began.elapsed() < Duration::from_secs(30));
    }
    cache.write(PhysAddr::new(7 * PAGE_SIZE), &[1]).unwrap_err();
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
    assert_eq!(cache.shown.mapped(), 2);
    cache.forget();
    assert_eq!(cache.shown.mapped(), 0);
    let mut word = [0; 8];
    assert_eq!(cache.mapping().read_shown(PhysAddr::ZERO, &mut word), 0);
    let mapping = cache.mapping().clone();
    cache.read(PhysAddr::ZERO, &mut word).unwrap();
    assert_eq!(mapping.read_shown(PhysAddr::ZERO, &mut word), 8);
    drop(cache);
    assert_eq!(mapping.read_shown(PhysAddr::ZERO, &mut word), 0, "a mapping that is kept longer shows nothing");
}

/// All memory mapped once stays, for who keeps the mapping longer than the rest too.
#[test]
fn all_memory_is_mapped_for_ever() {
    let domain = Domain::new();
    let limits = Limits::NONE;
    let memory = MemoryMap::new([Region::new(PhysAddr::ZERO, PAGES * PAGE_SIZE).unwrap()]);
    let mut cache = GuestMemory::new(domain.clone(), Box::new(Same), Failures::new("a domain"), limits, &memory).unwrap();
    cache.map_whole(&memory).unwrap();
    assert_eq!(cache.shown.mapped() as u64, PAGES / CHUNK_PAGES);
    cache.forget();
    let mapping = cache.mapping().clone();
    drop(cache);
    let mut bytes = vec![0; 7 * PAGE];
    mapping.read_into(PhysAddr::new(508 * PAGE_SIZE), &mut bytes).unwrap();
    assert!(bytes.iter().zip(508 * PAGE_SIZE..).step_by(977).all(|(byte, at)| *byte == domain.byte(at)));
    let error = mapping.read_into(PhysAddr::new(515 * PAGE_SIZE), &mut bytes).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == 517 * PAGE_SIZE), "{error}");
}

/// A range stays mapped when the cache has forgotten everything, and when it is gone.
#[test]
fn a_range_is_mapped_until_it_is_dropped() {
    let domain = Domain::new();
    let cache = domain.cache(CHUNK, 1);
    let memory = MemoryMap::new([Region::new(PhysAddr::ZERO, PAGES * PAGE_SIZE).unwrap()]);
    let map = |start, len| cache.map_range(Region::new(PhysAddr::new(start), len).unwrap(), &memory);
    // Across two chunks, and not of whole pages.
    let (start, len) = (2 * CHUNK - 3 * PAGE_SIZE + 8, 4 * PAGE_SIZE);
    assert!(!there(2 * CHUNK_PAGES - 1) && there(2 * CHUNK_PAGES));
    let error = map(start, len).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == 2 * CHUNK - PAGE_SIZE), "{error}");
    assert_eq!(domain.state.alone.load(Ordering::SeqCst), 0);
    let (start, len) = (3 * CHUNK - 3 * PAGE_SIZE + 8, 4 * PAGE_SIZE);
    let range = map(start, len).unwrap();
    assert_eq!(domain.state.alone.load(Ordering::SeqCst), 1);
    // What cannot be: one page beyond the memory, all of the address range.
    for (start, len) in [(PAGES * PAGE_SIZE - 8, 16), (1 << 62, 8), (0, u64::MAX)] {
        let error = map(start, len).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Hole { .. }), "{error}");
    }
    drop(cache);
    for at in start..start + len {
        assert_eq!(range.read::<u8>(PhysAddr::new(at)).unwrap(), domain.byte(at));
    }
    assert!(range.read::<u8>(PhysAddr::new(start - 1)).is_err() && range.read::<u8>(PhysAddr::new(start + len)).is_err());
    drop(range);
    assert_eq!(domain.state.alone.load(Ordering::SeqCst), 0);
}

/// What nobody reads any more is unmapped too.
#[test]
fn what_is_old_is_unmapped_without_a_read() {
    let domain = Domain::new();
    let cache = domain.cache(1 << 20, 40);
    cache.read(PhysAddr::ZERO, &mut [0; 8]).unwrap();
    assert_eq!(cache.shown.mapped(), 1);
    let began = std::time::Instant::now();
    while cache.shown.mapped() > 0 {
        assert!(began.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A call that fails and unmaps the place: a typed error, and the domain can be read if it comes back.
#[test]
fn a_failed_call_leaves_the_place() {
    let domain = Domain::new();
    let cache = domain.cache(1 << 20, 60_000);
    domain.state.gone.store(true, Ordering::SeqCst);
    let mut bytes = vec![0; 3 * CHUNK as usize];
    let error = cache.read(PhysAddr::new(5), &mut bytes).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Ended { .. }) && error.done() == 0, "{error}");
    domain.state.gone.store(false, Ordering::SeqCst);
    // Another test may have got the place meanwhile; then that is said.
    if let Err(error) = cache.read(PhysAddr::new(5), &mut bytes[..8]) {
        assert!(error.to_string().contains("mapping its memory"), "{error}");
    }
}

/// Many threads read while there is room for less than they need, and what is mapped grows old at once.
#[test]
fn readers_and_evictions_get_on() {
    let domain = Domain::new();
    let cache = domain.cache(3 * CHUNK, 2);
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (domain, cache) = (&domain, &cache);
            scope.spawn(move || {
                let mut at = thread;
                let mut bytes = vec![0; 3 * PAGE];
                for _ in 0..3000 {
                    at = at.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                    let start = (at >> 20) % (PAGES * PAGE_SIZE);
                    let len = if at & 7 == 0 { 2 * PAGE } else { 8 };
                    let start = if len == 8 { start & !7 } else { start };
                    let result = cache.read(PhysAddr::new(start), &mut bytes[..len]);
                    let good = (start..start + len as u64).take_while(|at| there(at / PAGE_SIZE)).count();
                    assert_eq!(result.as_ref().map_or_else(vmi_core::Error::done, |()| len), good, "{start:#x} {result:?}");
                    for (index, byte) in bytes[..good].iter().enumerate().step_by(509) {
                        assert_eq!(*byte, domain.byte(start + index as u64));
                    }
                }
            });
        }
    });
    assert!(cache.shown.mapped() <= 3 && cache.counters().mapped > 100, "{:?}", cache.counters());
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
    cache.stands();
    let before = read();
    domain.state.memory.lock().unwrap()[0] = 0x55;
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(read(), before, "time stands still in a pause");
    cache.goes_on();
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(read(), 0x55);
}

#[test]
fn long_reads_and_batches_map_many_chunks_in_a_call() {
    let domain = Domain::new();
    let cache = domain.timeless();
    // Up to the first page that is none.
    let mut buffer = vec![0; 4 << 20];
    let error = cache.read(PhysAddr::ZERO, &mut buffer).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == 7 * PAGE_SIZE));
    assert_eq!((error.done(), cache.counters()), (7 * PAGE_SIZE as usize, MappingCounters { mapped: 16, calls: 1 }));

    let cache = domain.timeless();
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
    assert_eq!(domain.state.alone.load(Ordering::SeqCst), 0);
    cache.write(PhysAddr::new(0x1ffc), &[1; 8]).unwrap();
    assert_eq!(domain.state.alone.load(Ordering::SeqCst), 1);
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
