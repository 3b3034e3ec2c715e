//! What the fuzz targets call where the parser itself is not public. Each gives how much it found, takes any bytes, and checks what must hold whatever they are.

use std::cell::Cell;

use vmi_core::PAGE_SIZE;

use crate::domain_info::{parse_uuid, uuid_text};
use crate::domains::decode_name;
use crate::p2m::{Anchor, MachineFrames, P2m, P2mError, Page};
use crate::ring::{PAGE_WORDS, Ring, RingError, Word};
use crate::ring_lock;
use crate::vm_event::{InterfaceVersion, MOST_WORDS, Request, Response};

/// A machine of these bytes.
struct Machine<'b> {
    frames: &'b [u8],
    /// Frames that were asked for.
    read: Cell<u64>,
}

impl MachineFrames for Machine<'_> {
    fn read(&self, frames: &[u64], visit: &mut dyn FnMut(usize, &Page)) -> vmi_core::Result<()> {
        self.read.set(self.read.get().saturating_add(frames.len() as u64));
        for (index, frame) in frames.iter().enumerate() {
            let start = usize::try_from(*frame).ok().and_then(|frame| frame.checked_mul(PAGE_SIZE as usize));
            if let Some(page) = start.and_then(|start| self.frames.get(start..)).and_then(<[u8]>::first_chunk) {
                visit(index, page);
            }
        }
        Ok(())
    }
}

/// The list of machine frames of a PV domain. The first page of `bytes` is the one that is shared with Xen, the others are machine frames from zero. Gives the
/// number of runs of pages that the list has.
///
/// # Errors
/// Those of reading the list.
pub fn p2m(bytes: &[u8]) -> Result<usize, P2mError> {
    let (shared, frames) = bytes.split_first_chunk().ok_or(P2mError::NotTold)?;
    let anchor = Anchor::of(shared);
    let machine = Machine { frames, read: Cell::new(0) };
    let read = P2m::read(&machine, &anchor, (frames.len() as u64) / PAGE_SIZE);
    // For each page of the list itself and at most one table of each level.
    let bound = anchor.pages.div_ceil(PAGE_SIZE / 8).saturating_mul(5).saturating_add(8);
    assert!(machine.read.get() <= bound, "{} frames were read for {} pages", machine.read.get(), anchor.pages);
    let list = read?;
    let runs = list.runs();
    let mut end = 0u64;
    for (first, count) in &runs {
        assert!(*first >= end && *count > 0);
        end = first.saturating_add(*count);
    }
    assert!(end <= anchor.pages);
    Ok(runs.len())
}

/// The event ring, whose other side does what it likes. The first byte chooses the version of the entries; then comes what happens: each a byte, those of the other side
/// with a place (2 bytes) and a word (4 bytes). Gives the number of events that were taken and answered.
pub fn ring(bytes: &[u8]) -> usize {
    let Some((version, mut steps)) = bytes.split_first() else { return 0 };
    let version = match version % 3 {
        0 => InterfaceVersion::V7,
        1 => InterfaceVersion::V6,
        _ => InterfaceVersion::V5,
    };
    let page: Vec<Word> = (0..PAGE_WORDS).map(|_| Word::new(0)).collect();
    let Ok(mut ring) = Ring::new(page.as_slice(), version.words()) else { return 0 };
    let (mut waiting, mut answered) = (Vec::new(), 0usize);
    while let Some((step, rest)) = steps.split_first() {
        steps = rest;
        let before = Shown::of(&page);
        match step % 4 {
            0 => match ring.take(&mut [0; MOST_WORDS]) {
                // An entry that is none is left for the other side to explain; as in `MonitorRing::take` it is not answered.
                Ok(taken) => before.unchanged_but(&page, |at| taken && at == 1),
                Err(error) => {
                    assert!(matches!(error, RingError::Overrun { put, .. } if Some(put) == before.word(0)), "{error}");
                    before.unchanged_but(&page, |_| false);
                }
            },
            1 => {
                let mut words = [0; MOST_WORDS];
                if let Ok(true) = ring.take(&mut words)
                    && let Ok(request) = Request::decode(&words, version)
                {
                    waiting.push(request);
                }
            }
            2 => {
                let asked = ring.unanswered() > 0;
                let response = waiting.pop().map_or_else(|| Response::to_lost(version, 0), |request| Response::to(&request));
                let (words, len) = response.encode();
                let put = ring.put(words.get(..len).unwrap_or(&words));
                assert_eq!(put, if asked { Ok(()) } else { Err(RingError::NothingToAnswer) });
                // An index, and one entry; a page has eight of them, behind 16 words.
                let end = version.words().saturating_mul(8).saturating_add(16);
                before.unchanged_but(&page, |at| asked && (at == 2 || (16..end).contains(&at)));
                assert!(before.changed(&page) <= version.words().saturating_add(1));
                answered = answered.saturating_add(usize::from(asked));
            }
            _ => {
                let Some((place, rest)) = steps.split_first_chunk::<2>() else { break };
                let Some((word, rest)) = rest.split_first_chunk::<4>() else { break };
                steps = rest;
                if let Some(place) = page.get(usize::from(u16::from_le_bytes(*place)) % PAGE_WORDS) {
                    place.store(u32::from_le_bytes(*word), core::sync::atomic::Ordering::Relaxed);
                }
            }
        }
        assert!(ring.unanswered() <= 8, "more requests than the ring holds");
    }
    answered
}

/// What the shared page shows.
struct Shown(Vec<u32>);

impl Shown {
    fn of(page: &[Word]) -> Self {
        Self(page.iter().map(|word| word.load(core::sync::atomic::Ordering::Relaxed)).collect())
    }

    fn word(&self, at: usize) -> Option<u32> {
        self.0.get(at).copied()
    }

    fn changed(&self, page: &[Word]) -> usize {
        self.0.iter().zip(Self::of(page).0).filter(|(before, now)| *before != now).count()
    }

    /// Our side writes where it may, and nowhere else.
    fn unchanged_but(&self, page: &[Word], may: impl Fn(usize) -> bool) {
        for (at, (before, now)) in self.0.iter().zip(Self::of(page).0).enumerate() {
            assert!(*before == now || may(at), "word {at} of the page was written");
        }
    }
}

/// Texts of others: a domain's name in xenstore, a UUID, and what a lock file says was left behind. Says whether they are a name, and one of the others.
pub fn texts(bytes: &[u8]) -> (bool, bool) {
    let name = decode_name(bytes);
    if let Some(name) = &name {
        assert!(!name.is_empty() && name.len() <= 4096 && !name.contains(char::is_control));
    }
    let text = String::from_utf8_lossy(bytes);
    let uuid = parse_uuid(&text);
    assert!(uuid.is_none_or(|uuid| parse_uuid(&uuid_text(&uuid)) == Some(uuid)));
    let left = ring_lock::last_whole(&text);
    if let Some((at, left)) = &left {
        let there = text.get(at.start as usize..at.end as usize);
        assert_eq!(there.and_then(ring_lock::parse).as_ref(), Some(left));
        assert_eq!(ring_lock::parse(&ring_lock::text(left)).as_ref(), Some(left));
    }
    (name.is_some(), uuid.is_some() || left.is_some())
}
