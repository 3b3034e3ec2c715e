//! Copying memory into a file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vmi_core::{Driver, Memory, MemoryMap, Region, Vmi};

use super::Summary;
use super::layout::Layout;
use crate::sparse;

/// How much is copied between two calls of the progress function.
const STEP: u64 = 4 << 20;

/// Why copying stopped.
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

/// Writes headers and memory where `layout` has them.
pub(super) fn write<D: Driver>(
    vmi: &Vmi<D>,
    file: &File,
    layout: &Layout,
    progress: &mut impl FnMut(u64, u64),
) -> Result<Summary, Failure> {
    // First, so that a file system that cannot hold such a file says so at once.
    file.set_len(layout.len)?;
    for (offset, bytes) in &layout.headers {
        file.write_all_at(bytes, *offset)?;
    }
    let total = layout.pieces.iter().fold(0u64, |sum, piece| sum.saturating_add(piece.region.len()));
    let mut buffer = Vec::new();
    let mut unreadable = Vec::new();
    let (mut done, mut stored) = (0u64, 0u64);
    progress(done, total);
    for piece in &layout.pieces {
        let mut within = 0u64;
        while within < piece.region.len() {
            let at = piece.region.start().wrapping_add(within);
            // Up to the next multiple of the step, so that pages of memory are pages of the copy.
            let to_step = STEP.wrapping_sub(at.get() % STEP);
            let len = piece.region.len().saturating_sub(within).min(to_step) as usize;
            let bytes = match vmi.slice(at, len) {
                Some(bytes) => bytes,
                None => {
                    buffer.resize(len, 0);
                    let gaps = vmi.read_lossy(at, &mut buffer).map_err(Failure::Guest)?;
                    unreadable
                        .extend(gaps.iter().filter_map(|gap| Region::new(at.checked_add(gap.start as u64)?, gap.len() as u64)));
                    &buffer
                }
            };
            stored = stored.saturating_add(sparse::write_at(file, piece.offset.wrapping_add(within), bytes)?);
            within = within.saturating_add(len as u64);
            done = done.saturating_add(len as u64);
            progress(done, total);
        }
    }
    // As a map, gaps that touch are one.
    let unreadable = MemoryMap::new(unreadable).regions().to_vec();
    Ok(Summary { memory: total, stored, unreadable })
}
