//! Who is reading from a [`Window`](super::Window) at this moment, so that memory is not taken away under a reader.
//!
//! A thread raises its flag, looks whether the page is there, copies, and lowers the flag. Who takes a page away first says that it is not there, makes every
//! thread of the process pass a memory barrier, and then waits until each flag that was up has been lowered or raised for something else. A reader that raised its
//! flag before the barrier is waited for; one that raises it later sees that the page is not there. The barrier is the taker's alone (membarrier(2)): to a reader, the
//! flag is two plain stores.

use std::cell::Cell;
#[cfg(not(all(test, loom)))]
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence};
use std::sync::{Mutex, PoisonError};

#[cfg(all(test, loom))]
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

/// The flag of one thread. On lines of the cache of its own, as it is written all the time.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Reader {
    /// Zero while the thread reads nothing; else a number that says for what the flag is up, to tell one time from another.
    reading: AtomicUsize,
    /// Whether a thread has this flag.
    taken: AtomicBool,
}

impl Reader {
    fn new() -> Self {
        Self { reading: AtomicUsize::new(0), taken: AtomicBool::new(true) }
    }

    /// Raises the flag. What is loaded from here on is loaded with the flag up, for whoever makes this thread pass a barrier. `what` is not zero.
    #[inline(always)]
    pub(super) fn enter(&self, what: usize) {
        // Release: who sees this flag, and not that the last one was lowered, knows that what was read under that one is read.
        self.reading.store(what, Ordering::Release);
        #[cfg(not(all(test, loom)))]
        compiler_fence(Ordering::SeqCst);
        // A model has no barrier that one thread makes another one pass, so there both have one.
        #[cfg(all(test, loom))]
        fence(Ordering::SeqCst);
    }

    /// Lowers the flag. What was loaded before is loaded before this is seen.
    #[inline(always)]
    pub(super) fn leave(&self) {
        self.reading.store(0, Ordering::Release);
    }

    /// Waits until the read that goes on now, if one does, has ended.
    fn wait(&self, mut pause: impl FnMut()) {
        let before = self.reading.load(Ordering::Acquire);
        // Zero, or another number: that read has ended, and the next one began after the barrier.
        while before != 0 && self.reading.load(Ordering::Acquire) == before {
            pause();
        }
    }
}

/// The flags of all threads that have ever read from a window. They are used again and never freed: as many as there were such threads at a time.
static READERS: Mutex<Vec<&'static Reader>> = Mutex::new(Vec::new());

/// Gives the thread's flag back when the thread ends.
#[derive(Debug)]
struct Registration(&'static Reader);

impl Registration {
    fn new() -> Self {
        let mut readers = READERS.lock().unwrap_or_else(PoisonError::into_inner);
        let is_free =
            |reader: &&&'static Reader| reader.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let reader = readers.iter().find(is_free).copied().unwrap_or_else(|| {
            let reader: &'static Reader = Box::leak(Box::new(Reader::new()));
            readers.push(reader);
            reader
        });
        Self(reader)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        CURRENT.set(None);
        self.0.taken.store(false, Ordering::Release);
    }
}

thread_local! {
    /// Apart from the registration, as a value that needs no dropping is found without a question.
    static CURRENT: Cell<Option<&'static Reader>> = const { Cell::new(None) };
    static REGISTRATION: Registration = Registration::new();
}

/// The flag of this thread, if it has one.
#[inline(always)]
pub(super) fn current() -> Option<&'static Reader> {
    CURRENT.get()
}

/// The flag of this thread; none only while the thread is ending.
#[cold]
pub(super) fn register() -> Option<&'static Reader> {
    let reader = REGISTRATION.try_with(|registration| registration.0).ok()?;
    CURRENT.set(Some(reader));
    Some(reader)
}

/// Waits until every read that may still see what was there before this call has ended. `barrier` makes all threads of the process pass a memory barrier.
///
/// A thread is kept waiting for as long as another one takes to copy some pages, which is long only if that one gets no processor.
pub(super) fn wait_for_readers(barrier: impl FnOnce()) {
    barrier();
    // A thread that gets its flag later gets it under this lock, and sees what was stored before.
    let readers = READERS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut turns = 0u32;
    for reader in readers {
        reader.wait(|| {
            turns = turns.saturating_add(1);
            match turns {
                0..=1000 => std::hint::spin_loop(),
                1001..=2000 => std::thread::yield_now(),
                _ => std::thread::sleep(std::time::Duration::from_micros(100)),
            }
        });
    }
}

/// Run with loom: `RUSTFLAGS="--cfg loom" cargo test -p vmi-core --release --lib readers`.
#[cfg(all(test, loom))]
mod interleavings {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    struct Shared {
        reader: Reader,
        there: AtomicBool,
        /// The mapping: loom fails if one thread changes it while another one reads it.
        memory: UnsafeCell<u32>,
    }

    /// One page is taken away and put back while another thread reads it twice.
    #[test]
    fn nothing_is_taken_away_under_a_reader() {
        loom::model(|| {
            let shared = Arc::new(Shared { reader: Reader::new(), there: AtomicBool::new(true), memory: UnsafeCell::new(1) });
            let other = Arc::clone(&shared);
            let reading = thread::spawn(move || {
                for what in [1, 2] {
                    other.reader.enter(what);
                    if other.there.load(Ordering::Acquire) {
                        // SAFETY: what the model is to prove.
                        let value = other.memory.with(|memory| unsafe { *memory });
                        assert!(value == 1 || value == 2, "{value}");
                    }
                    other.reader.leave();
                }
            });
            shared.there.store(false, Ordering::Release);
            fence(Ordering::SeqCst);
            shared.reader.wait(thread::yield_now);
            // SAFETY: as above.
            shared.memory.with_mut(|memory| unsafe { *memory = 0 });
            shared.memory.with_mut(|memory| unsafe { *memory = 2 });
            shared.there.store(true, Ordering::Release);
            reading.join().unwrap();
        });
    }
}
