//! Reading the memory of a machine, and preparing it for a format, on all processors, while what was prepared before is written in order.

use core::fmt;
use std::borrow::Cow;
use std::io;
use std::sync::mpsc;
use std::thread;

use rayon::prelude::*;
use twox_hash::XxHash3_64;
use vmi_core::{Driver, MachineInfo, Memory, MemoryMap, Region, Vmi};

/// How much is read and prepared by one thread at a time. Pieces end at multiples of it, so that pages of memory are pages of the copy.
pub(super) const PIECE: u64 = 1 << 20;

/// Why writing stopped.
#[derive(Debug)]
pub(super) enum Failure {
    Io(io::Error),
    Guest(vmi_core::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A piece of memory, and what a format has made of it.
#[derive(Debug)]
pub(super) struct Taken<'v, T> {
    pub(super) region: Region,
    /// Its bytes, borrowed where memory is mapped and frozen. What could not be read is zero.
    pub(super) bytes: Cow<'v, [u8]>,
    pub(super) prepared: T,
}

/// The pieces of `memory`, ascending.
pub(super) fn pieces(memory: &MemoryMap) -> impl Iterator<Item = Region> {
    memory.regions().iter().flat_map(|&region| {
        let mut at = region.start();
        core::iter::from_fn(move || {
            let left = region.end().get().checked_sub(at.get())?;
            let piece = Region::new(at, left.min(PIECE.wrapping_sub(at.get() % PIECE)))?;
            at = piece.end();
            Some(piece)
        })
    })
}

/// How many pieces are read at once. Three times as many are in memory: read, waiting, and written.
fn batch() -> usize {
    rayon::current_num_threads().saturating_mul(2).clamp(4, 16)
}

/// The way of a machine's memory into an image.
pub(super) struct Pipeline<'v, 'p, D: Driver> {
    vmi: &'v Vmi<D>,
    progress: &'p mut dyn FnMut(u64),
    /// Whether digests are wanted.
    with_digests: bool,
    /// The digest of each piece as it was written.
    pub(super) digests: Vec<u64>,
    /// What could not be read.
    pub(super) unreadable: Vec<Region>,
}

impl<'v, 'p, D: Driver> Pipeline<'v, 'p, D> {
    /// `progress` is called with the bytes of memory that are done.
    pub(super) fn new(vmi: &'v Vmi<D>, with_digests: bool, progress: &'p mut dyn FnMut(u64)) -> Self {
        Self { vmi, progress, with_digests, digests: Vec::new(), unreadable: Vec::new() }
    }

    /// The machine.
    pub(super) fn machine(&self) -> &'v MachineInfo {
        self.vmi.machine()
    }

    /// Takes all memory of the machine: each piece through `prepare` on some thread, then through `consume` on this one, in order.
    pub(super) fn run<T: Send>(
        &mut self,
        prepare: impl Fn(Region, &[u8]) -> T + Sync,
        mut consume: impl FnMut(Taken<'v, T>) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let (vmi, with_digests, prepare) = (self.vmi, self.with_digests, &prepare);
        let take = move |region| -> Result<_, vmi_core::Error> {
            let (bytes, unreadable) = read(vmi, region)?;
            let digest = with_digests.then(|| digest(&bytes));
            Ok((Taken { prepared: prepare(region, &bytes), region, bytes }, digest, unreadable))
        };
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel(1);
            let read = move || {
                let mut pieces = pieces(&vmi.machine().memory);
                loop {
                    let batch: Vec<Region> = pieces.by_ref().take(batch()).collect();
                    let taken: Vec<_> = batch.into_par_iter().map(take).collect();
                    // Nobody receives any more if writing has failed.
                    if taken.is_empty() || sender.send(taken).is_err() {
                        return;
                    }
                }
            };
            thread::Builder::new().name("image-reader".to_owned()).spawn_scoped(scope, read)?;
            let mut done = 0u64;
            (self.progress)(done);
            for taken in receiver.into_iter().flatten() {
                let (taken, digest, unreadable) = taken.map_err(Failure::Guest)?;
                self.digests.extend(digest);
                self.unreadable.extend(unreadable);
                done = done.saturating_add(taken.region.len());
                consume(taken)?;
                (self.progress)(done);
            }
            Ok(())
        })
    }
}

impl<D: Driver> fmt::Debug for Pipeline<'_, '_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline").field("machine", &self.machine().name).finish_non_exhaustive()
    }
}

/// What stands for the bytes of a piece when they are compared later. Guards against accidents, not against those who want to deceive.
pub(super) fn digest(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// The bytes of `region`, at most a piece, and what of them could not be read and is zero.
pub(super) fn read<D: Driver>(vmi: &Vmi<D>, region: Region) -> Result<(Cow<'_, [u8]>, Vec<Region>), vmi_core::Error> {
    let (at, len) = (region.start(), region.len().min(PIECE) as usize);
    if let Some(bytes) = vmi.slice(at, len) {
        return Ok((Cow::Borrowed(bytes), Vec::new()));
    }
    let mut bytes = vec![0; len];
    let gaps = vmi.read_lossy(at, &mut bytes)?;
    let gap = |gap: &core::ops::Range<usize>| Region::new(at.checked_add(gap.start as u64)?, gap.len() as u64);
    let unreadable = gaps.iter().filter_map(gap).collect();
    Ok((Cow::Owned(bytes), unreadable))
}
