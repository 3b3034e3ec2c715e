//! Whether an image that was written holds what it was made from.

use rayon::prelude::*;
use vmi_core::{Driver, Error, Liveness, MemoryMap, PAGE_SIZE, Region, Vmi};

use super::pipeline::{self, digest};
use crate::{Format, ImageDriver};

/// How many pieces are compared between two calls of the progress function.
const BATCH: usize = 16;

/// The memory in which `copy`, an image of `format`, differs from `source`: page by page against the memory itself where it is frozen, else
/// piece by piece against the `digests` of what was written.
pub(super) fn differences<D: Driver>(
    source: &Vmi<D>,
    copy: &Vmi<ImageDriver>,
    format: Format,
    digests: &[u64],
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<Region>, Error> {
    let memory = &source.machine().memory;
    let frozen = source.machine().liveness == Liveness::Frozen;
    let pieces: Vec<Region> = pipeline::pieces(memory).collect();
    let compare = |(index, &region): (usize, &Region)| -> Result<Vec<Region>, Error> {
        let (written, mut missing) = pipeline::read(copy, region)?;
        // AVML leaves zeros out.
        if format == Format::Avml {
            missing.clear();
        }
        if frozen {
            let (expected, _) = pipeline::read(source, region)?;
            missing.extend(pages_that_differ(region, &expected, &written));
        } else if digests.get(index) != Some(&digest(&written)) {
            missing.push(region);
        }
        Ok(missing)
    };
    let (mut differing, mut done) = (Vec::new(), 0u64);
    let pieces: Vec<(usize, &Region)> = pieces.iter().enumerate().collect();
    for batch in pieces.chunks(BATCH) {
        let found: Vec<_> = batch.par_iter().map(|&piece| compare(piece)).collect::<Result<_, _>>()?;
        differing.extend(found.into_iter().flatten());
        done = batch.iter().fold(done, |done, (_, region)| done.saturating_add(region.len()));
        progress(done);
    }
    // As a map, differences that touch are one.
    Ok(MemoryMap::new(differing).regions().to_vec())
}

fn pages_that_differ(region: Region, expected: &[u8], written: &[u8]) -> Vec<Region> {
    if expected == written {
        return Vec::new();
    }
    let step = PAGE_SIZE as usize;
    let pages = expected.chunks(step).zip(written.chunks(step)).enumerate();
    let differing = pages.filter(|(_, (expected, written))| expected != written);
    let page = |(index, (page, _)): (usize, (&[u8], &[u8]))| {
        Region::new(region.start().checked_add((index as u64).checked_mul(PAGE_SIZE)?)?, page.len() as u64)
    };
    differing.filter_map(page).collect()
}
