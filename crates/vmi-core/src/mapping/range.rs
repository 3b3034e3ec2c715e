//! A range of guest memory that stays mapped for whoever looks at it all the time.
#![allow(unsafe_code)]

use std::sync::Arc;

use zerocopy::{FromBytes, IntoBytes};

use super::{GuestMapping, MappedRegion};
use crate::{Error, Memory, PhysAddr, Region, Result};

/// A range of guest-physical memory that stays mapped while this or a clone of it lives: see [`Driver::map_range`](crate::Driver::map_range).
///
/// All of it is there from the first to the last byte, so a read of an aligned word is a bounds check and a load. Addresses are those of the guest.
#[derive(Clone, Debug)]
pub struct MappedRange(
    /// No window: nothing of it comes or goes.
    GuestMapping,
);

impl MappedRange {
    /// A value that is no aligned word: said to be rare, so that the code of who reads words runs straight on.
    #[cold]
    #[inline(never)]
    fn read_value(&self, at: PhysAddr, value: &mut [u8]) -> Result<()> {
        self.0.read_run(at, value)
    }
}

impl GuestMapping {
    /// A range of this mapping, which keeps all of it mapped.
    ///
    /// # Errors
    /// [`ErrorKind::Hole`](crate::ErrorKind::Hole) at the first address that is not mapped; in a window that is the first of all, as nothing is mapped there for ever.
    pub fn range(&self, range: Region) -> Result<MappedRange> {
        let mut regions = Vec::new();
        let mut at = range.start();
        while at < range.end() {
            let region = self.region_at(at).ok_or_else(|| Error::hole(at))?;
            let end = region.start.saturating_add(region.len).min(range.end().get());
            let run = Region::new(at, end.saturating_sub(at.get())).ok_or_else(|| Error::hole(at))?;
            // SAFETY: the run lies within the region, which stays as it is as long as this mapping, whose keeper the range keeps.
            regions.push(unsafe { MappedRegion::new(run, region.host(at), region.writable) });
            at = run.end();
        }
        Ok(MappedRange(Self::from_sorted(regions, self.shared.liveness, Arc::clone(&self.shared) as _)))
    }
}

impl Memory for MappedRange {
    type Addr = PhysAddr;

    #[inline]
    fn read_into(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        if self.0.largest.read_word(at, buf) { Ok(()) } else { self.0.read_run(at, buf) }
    }

    /// As the trait has it, but a word stays in a register: nothing else sees the value that it is read into.
    #[inline]
    fn read<T: FromBytes + IntoBytes>(&self, at: PhysAddr) -> Result<T> {
        let mut word = T::new_zeroed();
        if self.0.largest.read_word(at, word.as_mut_bytes()) {
            return Ok(word);
        }
        let mut value = T::new_zeroed();
        self.read_value(at, value.as_mut_bytes())?;
        Ok(value)
    }

    fn next_present(&self, at: PhysAddr) -> Option<PhysAddr> {
        // All of it is there: what is absent is before it or behind it.
        let start = self.0.shared.regions.first()?.start;
        (at.get() < start).then_some(PhysAddr::new(start))
    }

    fn slice(&self, at: PhysAddr, len: usize) -> Option<&[u8]> {
        self.0.slice(at, len)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Piece;
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_range_is_all_there_and_no_more() {
        let piece = |start, len, offset| Piece { region: Region::new(PhysAddr::new(start), len).unwrap(), offset };
        let bytes: Arc<Vec<u8>> = Arc::new((0..300).map(|i| i as u8).collect());
        let map = GuestMapping::frozen(bytes, &[piece(0x1000, 100, 0), piece(0x1064, 100, 200), piece(0x9000, 10, 50)]).unwrap();
        let part = |start, len| map.range(Region::new(PhysAddr::new(start), len).unwrap());
        let across = part(0x1060, 8).unwrap();
        assert_eq!(across.read::<[u8; 8]>(PhysAddr::new(0x1060)).unwrap(), [96, 97, 98, 99, 200, 201, 202, 203]);
        for outside in [0x105f, 0x1061, u64::MAX] {
            let error = across.read::<u64>(PhysAddr::new(outside)).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Hole { .. } | ErrorKind::OutOfRange { .. }), "{outside:#x}: {error}");
        }
        assert_eq!(across.slice(PhysAddr::new(0x1064), 4), Some(&[200u8, 201, 202, 203][..]));
        assert_eq!(across.next_present(PhysAddr::ZERO), Some(PhysAddr::new(0x1060)));
        assert_eq!(across.next_present(PhysAddr::new(0x1068)), None);
        for (start, len, hole) in [(0xfff, 2, 0xfff), (0x1000, 201, 0x10c8), (0x9009, 2, 0x900a), (0x20, 8, 0x20)] {
            let error = part(start, len).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == hole), "{start:#x}: {error}");
        }
        // What it is a part of may go.
        drop(map);
        assert_eq!(across.read::<u8>(PhysAddr::new(0x1067)).unwrap(), 203);
    }
}
