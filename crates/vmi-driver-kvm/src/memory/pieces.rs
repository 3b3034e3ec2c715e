//! The pieces of a guest's memory in the order of their addresses.

use vmi_core::{Error, ErrorKind, PhysAddr, Region, Result};

use super::{OpenError, RamPiece};

/// Pieces, ascending and disjoint. Neighbours that continue each other in the guest and in QEMU are one.
#[derive(Clone, Debug)]
pub(super) struct Pieces(Vec<RamPiece>);

/// A run of one piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'p> {
    pub(super) piece: &'p RamPiece,
    /// Where the run starts in the QEMU process.
    pub(super) host: u64,
    /// Bytes of the piece from there on, at least 1.
    pub(super) len: u64,
}

impl Pieces {
    /// Checks and sorts the pieces of process `pid`.
    pub(super) fn new(pid: u32, mut pieces: Vec<RamPiece>) -> Result<Self, OpenError> {
        pieces.sort_by_key(|piece| piece.region.start());
        let mut merged: Vec<RamPiece> = Vec::with_capacity(pieces.len());
        for piece in pieces {
            // All of it must be addressable here too, as the system calls take a `usize`.
            let end = piece.host.checked_add(piece.region.len()).filter(|&end| usize::try_from(end).is_ok());
            if end.is_none() {
                let why = format!("block `{}` would lie at {:#x}, beyond the address range", piece.block, piece.host);
                return Err(OpenError::Pieces { pid, why });
            }
            match merged.last_mut() {
                Some(last) if piece.region.start() < last.region.end() => {
                    let at = piece.region.start();
                    let why = format!("blocks `{}` and `{}` both claim guest-physical address {at}", last.block, piece.block);
                    return Err(OpenError::Pieces { pid, why });
                }
                Some(last)
                    if piece.region.start() == last.region.end()
                        && last.host.checked_add(last.region.len()) == Some(piece.host)
                        && last.read_only == piece.read_only
                        && last.block == piece.block =>
                {
                    let len = last.region.len().saturating_add(piece.region.len());
                    last.region = Region::new(last.region.start(), len).unwrap_or(last.region);
                }
                _ => merged.push(piece),
            }
        }
        Ok(Self(merged))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &RamPiece> {
        self.0.iter()
    }

    /// What there is at `at`, to the end of its piece.
    pub(super) fn run(&self, at: PhysAddr) -> Option<Run<'_>> {
        let index = self.0.partition_point(|piece| piece.region.end() <= at);
        let piece = self.0.get(index)?;
        let offset = at.offset_from(piece.region.start())?;
        Some(Run { piece, host: piece.host.wrapping_add(offset), len: piece.region.len().wrapping_sub(offset) })
    }

    /// How many of the `len` bytes from `at` on are in pieces, up to the first that is not.
    pub(super) fn present(&self, at: PhysAddr, len: usize) -> usize {
        let mut done = 0usize;
        while done < len {
            let Some(run) = at.checked_add(done as u64).and_then(|here| self.run(here)) else { break };
            done = done.saturating_add(usize::try_from(run.len).unwrap_or(usize::MAX));
        }
        done.min(len)
    }

    /// Has `write` write `data` at `at`, what lies in one piece at a time.
    ///
    /// # Errors
    /// [`ErrorKind::Hole`] or [`ErrorKind::ReadOnly`] at the first address that cannot be written, else as `write`; what was before it is
    /// written.
    pub(super) fn write(&self, at: PhysAddr, data: &[u8], write: impl Fn(PhysAddr, &[u8]) -> Result<()>) -> Result<()> {
        let mut done = 0usize;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let here = at.wrapping_add(done as u64);
            let run = self.run(here).ok_or_else(|| Error::hole(here).after(done))?;
            if run.piece.read_only {
                return Err(Error::from(ErrorKind::ReadOnly { at: here }).after(done));
            }
            let len = usize::try_from(run.len).unwrap_or(usize::MAX).min(rest.len());
            write(here, rest.get(..len).unwrap_or_default()).map_err(|error| error.after(done))?;
            done = done.saturating_add(len);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn piece(start: u64, len: u64, host: u64, block: &str) -> RamPiece {
        let region = Region::new(PhysAddr::new(start), len).unwrap();
        RamPiece { region, host, read_only: false, block: block.to_owned() }
    }

    #[test]
    fn neighbours_that_continue_each_other_are_one() {
        let pieces = Pieces::new(
            1,
            vec![
                piece(0x2000, 0x1000, 0x7002000, "ram"),
                piece(0, 0x1000, 0x7000000, "ram"),
                piece(0x1000, 0x1000, 0x7001000, "ram"),
                piece(0x3000, 0x1000, 0x9000000, "ram"),
                RamPiece { read_only: true, ..piece(0x4000, 0x1000, 0x9001000, "ram") },
            ],
        )
        .unwrap();
        let regions: Vec<_> = pieces.iter().map(|piece| (piece.region.start().get(), piece.region.len())).collect();
        assert_eq!(regions, [(0, 0x3000), (0x3000, 0x1000), (0x4000, 0x1000)]);
        assert_eq!(pieces.run(PhysAddr::new(0x2fff)).map(|run| (run.host, run.len)), Some((0x7002fff, 1)));
        assert!(pieces.run(PhysAddr::new(0x5000)).is_none());
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(matches!(
            Pieces::new(7, vec![piece(0, 0x1001, 0, "a"), piece(0x1000, 0x1000, 0, "b")]),
            Err(OpenError::Pieces { pid: 7, .. })
        ));
        assert!(matches!(Pieces::new(7, vec![piece(0, 2, u64::MAX - 1, "a")]), Err(OpenError::Pieces { .. })));
    }

    proptest! {
        /// Every address answers as a search through the pieces as they came.
        #[test]
        fn agrees_with_a_plain_search(
            layout in proptest::collection::vec((0u64..6, 1u64..40, 0u64..3, any::<bool>()), 0..12),
            probes in proptest::collection::vec(0u64..600, 20),
        ) {
            let mut at = 0;
            let mut given = Vec::new();
            for (gap, len, host, read_only) in layout {
                at += gap;
                // Some hosts continue the piece before, some do not.
                given.push(RamPiece { read_only, ..piece(at, len, host * 0x1000 + at, "ram") });
                at += len;
            }
            let mut shuffled = given.clone();
            shuffled.reverse();
            let pieces = Pieces::new(1, shuffled).unwrap();
            for probe in probes.into_iter().map(PhysAddr::new) {
                let naive = given.iter().find(|piece| piece.region.contains(probe));
                let run = pieces.run(probe);
                prop_assert_eq!(run.is_some(), naive.is_some());
                if let (Some(run), Some(naive)) = (run, naive) {
                    prop_assert_eq!(run.host, naive.host + (probe.get() - naive.region.start().get()));
                    prop_assert_eq!(run.piece.read_only, naive.read_only);
                    prop_assert!(run.len >= naive.region.end().get() - probe.get());
                }
            }
        }
    }
}
