//! Which guest-physical addresses have memory behind them.

use crate::PhysAddr;

/// A run of guest-physical addresses with memory behind them. Never empty, never past the end of the 64-bit range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    start: PhysAddr,
    len: u64,
}

impl Region {
    /// `len` bytes from `start`; `None` if that is nothing or leaves the 64-bit range.
    pub const fn new(start: PhysAddr, len: u64) -> Option<Self> {
        if len == 0 || start.checked_add(len).is_none() { None } else { Some(Self { start, len }) }
    }

    /// First address.
    pub const fn start(self) -> PhysAddr {
        self.start
    }

    /// First address behind the region.
    pub const fn end(self) -> PhysAddr {
        self.start.wrapping_add(self.len)
    }

    /// Length in bytes, at least 1.
    #[allow(clippy::len_without_is_empty)] // a region is never empty
    pub const fn len(self) -> u64 {
        self.len
    }

    /// Whether the region holds `at`.
    pub const fn contains(self, at: PhysAddr) -> bool {
        at.get().wrapping_sub(self.start.get()) < self.len
    }
}

/// The memory of a machine: regions in ascending order, apart from each other. What lies between them is a hole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryMap {
    regions: Vec<Region>,
}

impl MemoryMap {
    /// A map of the union of `regions`, which may come in any order, touch and overlap.
    pub fn new(regions: impl IntoIterator<Item = Region>) -> Self {
        // In place: a fragmented dump of a large machine has millions of regions.
        let mut regions: Vec<Region> = regions.into_iter().collect();
        regions.sort_unstable_by_key(|region| region.start);
        regions.dedup_by(|region, last| {
            let touches = region.start <= last.end();
            if touches {
                last.len = last.end().max(region.end()).get().wrapping_sub(last.start.get());
            }
            touches
        });
        regions.shrink_to_fit();
        Self { regions }
    }

    /// The regions, ascending and disjoint.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The region that holds `at`.
    pub fn region_at(&self, at: PhysAddr) -> Option<Region> {
        self.region_from(at).filter(|region| region.contains(at))
    }

    /// The region that holds `at`, else the first one above it.
    pub fn region_from(&self, at: PhysAddr) -> Option<Region> {
        let index = self.regions.partition_point(|region| region.end() <= at);
        self.regions.get(index).copied()
    }

    /// Bytes of memory in all regions.
    pub fn total(&self) -> u64 {
        self.regions.iter().fold(0, |sum, region| region.len.saturating_add(sum))
    }

    /// First address behind the highest region; zero for an empty map.
    pub fn end(&self) -> PhysAddr {
        self.regions.last().map_or(PhysAddr::ZERO, |region| region.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start: u64, len: u64) -> Region {
        Region::new(PhysAddr::new(start), len).unwrap()
    }

    #[test]
    fn regions_are_sorted_and_merged() {
        let map = MemoryMap::new([region(0x4000, 0x1000), region(0, 0x1000), region(0x1000, 0x800), region(0x4800, 0x1000)]);
        assert_eq!(map.regions(), [region(0, 0x1800), region(0x4000, 0x1800)]);
        assert_eq!(map.total(), 0x3000);
        assert_eq!(map.end(), PhysAddr::new(0x5800));
    }

    #[test]
    fn holes_belong_to_no_region() {
        let map = MemoryMap::new([region(0x1000, 0x1000), region(1 << 32, 0x1000)]);
        assert_eq!(map.region_at(PhysAddr::new(0x2000)), None);
        assert_eq!(map.region_from(PhysAddr::new(0x2000)), Some(region(1 << 32, 0x1000)));
        assert_eq!(map.region_from(PhysAddr::new((1 << 32) + 0x1000)), None);
    }

    #[test]
    fn impossible_regions_do_not_exist() {
        assert_eq!(Region::new(PhysAddr::new(0), 0), None);
        assert_eq!(Region::new(PhysAddr::new(u64::MAX), 2), None);
    }
}
