//! Runs of pages that lie in the file one behind the other.

use vmi_core::{PAGE_SIZE, PhysAddr, Piece, Region};

use crate::FormatError;
use crate::image::Input;

/// A run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The number of the first page.
    pub(super) first: u64,
    /// How many pages there are.
    pub(super) count: u64,
}

/// One more than the highest page number of x86, which addresses 52 bits (Intel SDM, volume 3, section 4.1.4).
const HIGHEST: u64 = 1 << 40;

impl Run {
    /// The memory of these pages; `None` if there are none, or beyond what x86 addresses.
    pub(super) fn region(self) -> Option<Region> {
        self.first.checked_add(self.count).filter(|&end| end <= HIGHEST)?;
        Region::new(PhysAddr::new(self.first.saturating_mul(PAGE_SIZE)), self.count.saturating_mul(PAGE_SIZE))
    }
}

/// Where in the file `runs` are, whose pages start at `offset`.
pub(super) fn place(input: Input<'_>, mut offset: u64, runs: impl IntoIterator<Item = Run>) -> Result<Vec<Piece>, FormatError> {
    let mut pieces = Vec::new();
    for (index, run) in runs.into_iter().enumerate().filter(|(_, run)| run.count > 0) {
        let Run { first, count } = run;
        let region = run.region().ok_or_else(|| FormatError::Malformed {
            offset: 0,
            what: format!("run {index} has {count:#x} pages from page {first:#x} on: beyond what x86 can address"),
        })?;
        let what = || format!("the pages {first:#x} to {:#x}", first.saturating_add(count));
        let present = input.present(offset, region.len(), what)?;
        pieces.extend(Region::new(region.start(), present).map(|region| Piece { region, offset }));
        if present < region.len() {
            // Nor is what follows there.
            break;
        }
        offset = offset.saturating_add(present);
    }
    Ok(pieces)
}
