//! The ring through which Xen reports events and takes answers: one shared page, the two ends of which run at the same time.
//!
//! Follows xen/include/public/io/ring.h (Xen 4.17): four indices that only grow (modulo 2^32), padding up to byte 64, then as many entries as a power of two
//! allows. A request and its response share an entry. Xen is the front end: it puts requests and takes responses; this is the back end.
//!
//! All accesses are atomic, so the other end may do what it likes with the page: entries are copied out before they are looked at, and indices that cannot be
//! are errors. Nothing here loops.

#[cfg(not(all(test, loom)))]
use core::sync::atomic::{AtomicU32, Ordering};
use std::ops::Deref;

#[cfg(all(test, loom))]
use loom::sync::atomic::{AtomicU32, Ordering};

/// A word of the shared page.
pub(crate) type Word = AtomicU32;

/// Words of the shared page: 4096 bytes.
pub(crate) const PAGE_WORDS: usize = 1024;

const REQUESTS_PUT: usize = 0;
const REQUEST_EVENT: usize = 1;
const RESPONSES_PUT: usize = 2;
const RESPONSE_EVENT: usize = 3;
/// Where the entries begin, in words.
const ENTRIES: usize = 16;

/// Why the ring cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The page does not hold a single entry.
    #[error("a ring of {words} words has no room for an entry of {entry} words")]
    TooSmall {
        /// Words in the page.
        words: usize,
        /// Words in an entry.
        entry: usize,
    },
    /// The other end claims more requests than the ring holds.
    #[error(
        "the event ring's request index is {put}, but {answered} were answered and it holds {entries}: somebody else writes to it"
    )]
    Overrun {
        /// The index that it shows.
        put: u32,
        /// How many were answered.
        answered: u32,
        /// How many the ring holds.
        entries: u32,
    },
    /// There is no request that waits for an answer.
    #[error("an answer without a request")]
    NothingToAnswer,
}

/// The back end of a ring.
#[derive(Debug)]
pub(crate) struct Ring<P> {
    page: P,
    /// Words in an entry.
    entry: usize,
    /// Entries, a power of two.
    entries: u32,
    /// Requests that were taken.
    taken: u32,
    /// Responses that were put.
    answered: u32,
}

impl<P: Deref<Target = [Word]>> Ring<P> {
    /// Makes an empty ring of a page that nobody uses yet. `entry` is the size of an entry in words.
    pub(crate) fn new(page: P, entry: usize) -> Result<Self, RingError> {
        let words = page.len();
        let too_small = RingError::TooSmall { words, entry };
        let fit = words.saturating_sub(ENTRIES).checked_div(entry).unwrap_or(0);
        // The largest power of two that is not above it.
        let entries = fit.checked_ilog2().and_then(|log2| 1u32.checked_shl(log2)).ok_or(too_small)?;
        let ring = Self { page, entry, entries, taken: 0, answered: 0 };
        for (at, value) in [(REQUESTS_PUT, 0), (REQUEST_EVENT, 1), (RESPONSES_PUT, 0), (RESPONSE_EVENT, 1)] {
            ring.store(at, value, Ordering::Relaxed);
        }
        Ok(ring)
    }

    /// How many requests wait for an answer.
    pub(crate) fn unanswered(&self) -> u32 {
        self.taken.wrapping_sub(self.answered)
    }

    /// Takes the next request, if there is one. `request` gets as many words of it as it has room for.
    pub(crate) fn take(&mut self, request: &mut [u32]) -> Result<bool, RingError> {
        // Acquire: the words of the entry are read after the index that announces them.
        let put = self.load(REQUESTS_PUT, Ordering::Acquire);
        if put.wrapping_sub(self.answered) > self.entries || put.wrapping_sub(self.answered) < self.unanswered() {
            return Err(RingError::Overrun { put, answered: self.answered, entries: self.entries });
        }
        if put == self.taken {
            return Ok(false);
        }
        for (word, shared) in request.iter_mut().zip(self.slot(self.taken)) {
            *word = shared.load(Ordering::Relaxed);
        }
        self.taken = self.taken.wrapping_add(1);
        self.store(REQUEST_EVENT, self.taken.wrapping_add(1), Ordering::Release);
        Ok(true)
    }

    /// Puts a response. The other end must be notified then.
    pub(crate) fn put(&mut self, response: &[u32]) -> Result<(), RingError> {
        if self.unanswered() == 0 {
            return Err(RingError::NothingToAnswer);
        }
        for (shared, word) in self.slot(self.answered).iter().zip(response) {
            shared.store(*word, Ordering::Relaxed);
        }
        self.answered = self.answered.wrapping_add(1);
        // Release: who sees the index sees the words of the entry.
        self.store(RESPONSES_PUT, self.answered, Ordering::Release);
        Ok(())
    }

    /// Puts a response to no request. The numbers of requests and responses no longer agree then: the ring is good for nothing but more of these.
    pub(crate) fn put_unasked(&mut self, response: &[u32]) -> Result<(), RingError> {
        self.taken = self.answered.wrapping_add(1);
        self.put(response)
    }

    fn slot(&self, index: u32) -> &[Word] {
        // Inside of the page: there are `entries` of them.
        let number = (index & self.entries.wrapping_sub(1)) as usize;
        let first = number.saturating_mul(self.entry).saturating_add(ENTRIES);
        self.page.get(first..first.saturating_add(self.entry)).unwrap_or_default()
    }

    fn load(&self, at: usize, order: Ordering) -> u32 {
        self.page.get(at).map_or(0, |word| word.load(order))
    }

    fn store(&self, at: usize, value: u32, order: Ordering) {
        if let Some(word) = self.page.get(at) {
            word.store(value, order);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    struct Page(Rc<Vec<Word>>);

    impl Deref for Page {
        type Target = [Word];
        fn deref(&self) -> &[Word] {
            &self.0
        }
    }

    fn page(words: usize) -> Page {
        Page(Rc::new((0..words).map(|_| Word::new(0xdead_beef)).collect()))
    }

    /// The front end as ring.h's macros have it, for a ring of eight entries of four words.
    struct Front {
        page: Page,
        put: u32,
        taken: u32,
    }

    impl Front {
        const ENTRIES: u32 = 8;

        fn slot(&self, index: u32) -> usize {
            16 + (index % Self::ENTRIES) as usize * 4
        }

        fn request(&mut self, value: u32) -> bool {
            if Self::ENTRIES - self.put.wrapping_sub(self.taken) == 0 {
                return false;
            }
            let at = self.slot(self.put);
            for word in 0..4 {
                self.page.0[at + word].store(value.wrapping_add(word as u32), Ordering::Relaxed);
            }
            self.put = self.put.wrapping_add(1);
            self.page.0[0].store(self.put, Ordering::Release);
            true
        }

        fn response(&mut self) -> Option<u32> {
            if self.page.0[2].load(Ordering::Acquire) == self.taken {
                return None;
            }
            let value = self.page.0[self.slot(self.taken)].load(Ordering::Relaxed);
            self.taken = self.taken.wrapping_add(1);
            Some(value)
        }
    }

    #[test]
    fn a_ring_of_vm_events_has_eight_entries() {
        // __RING_SIZE of a vm_event ring in a page of 4096 bytes, by the C compiler: 8 entries of 400 bytes.
        let ring = Ring::new(page(PAGE_WORDS), 100).unwrap();
        assert_eq!(ring.entries, 8);
        let shown: Vec<u32> = ring.page.0[..4].iter().map(|word| word.load(Ordering::Relaxed)).collect();
        assert_eq!(shown, [0, 1, 0, 1]);
    }

    #[test]
    fn a_page_without_room_is_an_error() {
        assert_eq!(Ring::new(page(20), 5).unwrap_err(), RingError::TooSmall { words: 20, entry: 5 });
        assert_eq!(Ring::new(page(20), 0).unwrap_err(), RingError::TooSmall { words: 20, entry: 0 });
        assert!(Ring::new(page(0), 1).is_err());
    }

    #[test]
    fn an_answer_needs_a_request() {
        let mut ring = Ring::new(page(PAGE_WORDS), 4).unwrap();
        assert_eq!(ring.put(&[1]), Err(RingError::NothingToAnswer));
    }

    proptest! {
        /// Whatever the order of requests, takes and answers: each request is taken once, in order, whole; each answer comes back in order.
        #[test]
        fn both_ends_agree(steps in proptest::collection::vec(0u8..4, 0..400), near_the_end: bool) {
            let shared = page(16 + 8 * 4);
            let mut ring = Ring::new(shared.clone(), 4).unwrap();
            let mut front = Front { page: shared, put: 0, taken: 0 };
            if near_the_end {
                let near = u32::MAX - 5;
                (front.put, front.taken, ring.taken, ring.answered) = (near, near, near, near);
                front.page.0[0].store(near, Ordering::Relaxed);
                front.page.0[2].store(near, Ordering::Relaxed);
            }
            let (mut sent, mut held, mut answered) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
            for (number, step) in steps.into_iter().enumerate() {
                let value = number as u32 * 1000;
                match step {
                    0 => if front.request(value) {
                        sent.push_back(value);
                    },
                    1 => {
                        let mut request = [0; 4];
                        let expected = sent.pop_front();
                        prop_assert_eq!(ring.take(&mut request).unwrap(), expected.is_some());
                        if let Some(expected) = expected {
                            prop_assert_eq!(request, [expected, expected + 1, expected + 2, expected + 3]);
                            held.push_back(expected);
                        }
                    }
                    2 => if let Some(value) = held.pop_front() {
                        ring.put(&[value + 7, 0, 0, 0]).unwrap();
                        answered.push_back(value + 7);
                    } else {
                        prop_assert_eq!(ring.put(&[0]), Err(RingError::NothingToAnswer));
                    },
                    _ => prop_assert_eq!(front.response(), answered.pop_front()),
                }
                prop_assert_eq!(ring.unanswered() as usize, held.len());
            }
        }

        /// Indices and entries that make no sense: an error or a request, never more than the ring holds before it is an error.
        #[test]
        fn a_hostile_page_ends_in_an_error(words in proptest::collection::vec(any::<u32>(), 48), answer: bool) {
            let shared = page(48);
            let mut ring = Ring::new(shared.clone(), 4).unwrap();
            for (shared, word) in shared.0.iter().zip(&words) {
                shared.store(*word, Ordering::Relaxed);
            }
            let honest = words[0] <= 8;
            let mut taken = 0u32;
            while taken < 100 {
                match ring.take(&mut [0; 9]) {
                    Ok(true) => taken += 1,
                    Ok(false) => break,
                    Err(RingError::Overrun { put, entries: 8, .. }) => {
                        prop_assert!(!honest && put == words[0]);
                        break;
                    }
                    Err(other) => prop_assert!(false, "{other}"),
                }
                if answer {
                    ring.put(&[0; 4]).unwrap();
                }
            }
            prop_assert_eq!(taken, if honest { words[0] } else { 0 });
        }

        /// An index that falls back is an error.
        #[test]
        fn an_index_that_falls_back_is_an_error(back in 1u32..5) {
            let shared = page(48);
            let mut ring = Ring::new(shared.clone(), 4).unwrap();
            shared.0[0].store(4, Ordering::Relaxed);
            for _ in 0..4 {
                prop_assert!(ring.take(&mut []).unwrap());
            }
            shared.0[0].store(4 - back, Ordering::Relaxed);
            prop_assert!(ring.take(&mut []).is_err());
        }
    }
}

/// Run with loom: `RUSTFLAGS="--cfg loom" cargo test -p vmi-driver-xen --release --lib ring`.
#[cfg(all(test, loom))]
mod interleavings {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    #[derive(Clone, Debug)]
    struct Page(Arc<Vec<Word>>);

    impl Deref for Page {
        type Target = [Word];
        fn deref(&self) -> &[Word] {
            &self.0
        }
    }

    /// The front end puts two requests into a ring of one entry, the second over the answer to the first: both ends see whole entries only.
    #[test]
    fn entries_are_whole_on_both_ends() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let page = Page(Arc::new((0..ENTRIES + 2).map(|_| Word::new(0)).collect()));
            let mut ring = Ring::new(page.clone(), 2).unwrap();
            let front = thread::spawn(move || {
                for number in 0..2u32 {
                    for word in 0..2 {
                        page.0[ENTRIES + word].store(10 + number, Ordering::Relaxed);
                    }
                    page.0[REQUESTS_PUT].store(number + 1, Ordering::Release);
                    while page.0[RESPONSES_PUT].load(Ordering::Acquire) != number + 1 {
                        thread::yield_now();
                    }
                    for word in 0..2 {
                        assert_eq!(page.0[ENTRIES + word].load(Ordering::Relaxed), 20 + number);
                    }
                }
            });
            let mut number = 0;
            while number < 2 {
                let mut request = [0; 2];
                if ring.take(&mut request).unwrap() {
                    assert_eq!(request, [10 + number; 2]);
                    ring.put(&[20 + number; 2]).unwrap();
                    number += 1;
                } else {
                    thread::yield_now();
                }
            }
            front.join().unwrap();
        });
    }
}
