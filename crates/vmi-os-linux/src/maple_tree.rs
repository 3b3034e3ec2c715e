//! Maple trees (include/linux/maple_tree.h, lib/maple_tree.c; since 6.1, commit 54a611b60590): ranges of numbers with a pointer each.
//!
//! A node is 256 bytes, aligned to as much. Its lowest word is the parent; then come the pivots, then the slots. Slot `i` covers the
//! numbers above pivot `i - 1` up to pivot `i`, the last one up to the end of the node's own range. What lies in slots behind
//! the last is left over from before and means nothing, so the end must be computed as the kernel's `ma_data_end` does.

use core::fmt;

use rustc_hash::FxHashSet;
use vmi_core::{AddressSpace, Driver, Error, ErrorKind, Memory, Paging, Result, VirtAddr};

const NODE_SIZE: usize = 256;
/// Low bits of a reference to a node: its type and flags.
const NODE_MASK: u64 = 0xff;
/// MAPLE_HEIGHT_MAX.
const MAX_HEIGHT: u8 = 31;
/// More nodes than any process has: 2^20 nodes hold at least five million areas, and the default limit is 65,530 areas.
const MAX_NODES: usize = 1 << 20;
/// XA_ZERO_ENTRY: a reserved range without a value.
const ZERO_ENTRY: u64 = 257 << 2 | 2;

/// Numbers of pivots and slots in each kind of node, which depend on the width of a pointer.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    leaf: bool,
    pivots: usize,
    /// Index of the word whose first byte says which slot is the last, where no pivot does.
    meta: usize,
    /// The last slot shares its room with that byte.
    meta_in_last_slot: bool,
}

impl Geometry {
    /// Of the node that `entry` refers to; `enum maple_type`: 1 leaf_64, 2 range_64, 3 arange_64.
    fn new(entry: u64, pointer_size: usize) -> Option<Self> {
        let narrow = pointer_size == 4;
        Some(match entry >> 3 & 0xf {
            kind @ (1 | 2) => {
                let (pivots, meta) = if narrow { (31, 63) } else { (15, 31) };
                Self { leaf: kind == 1, pivots, meta, meta_in_last_slot: true }
            }
            // Behind the slots lie as many gaps.
            3 => {
                let (pivots, meta) = if narrow { (20, 63) } else { (9, 30) };
                Self { leaf: false, pivots, meta, meta_in_last_slot: false }
            }
            _ => return None,
        })
    }
}

/// A copy of one node.
struct Node {
    bytes: [u8; NODE_SIZE],
    pointer_size: usize,
    geometry: Geometry,
}

impl Node {
    fn word(&self, index: usize) -> u64 {
        let start = index.saturating_mul(self.pointer_size);
        let bytes = self.bytes.get(start..start.saturating_add(self.pointer_size)).unwrap_or_default();
        bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
    }

    fn pivot(&self, index: usize) -> u64 {
        self.word(index.saturating_add(1))
    }

    fn slot(&self, index: usize) -> u64 {
        self.word(index.saturating_add(1).saturating_add(self.geometry.pivots))
    }

    /// The last slot in use, as `ma_data_end` finds it; `max` is the end of the node's range.
    fn end(&self, max: u64) -> usize {
        let pivots = self.geometry.pivots;
        let last = pivots.saturating_sub(1);
        match self.pivot(last) {
            pivot if self.geometry.meta_in_last_slot && pivot != 0 => {
                if pivot == max {
                    last
                } else {
                    pivots
                }
            }
            _ => {
                let at = self.geometry.meta.saturating_mul(self.pointer_size);
                usize::from(self.bytes.get(at).copied().unwrap_or_default())
            }
        }
    }
}

/// A slot still to be looked at.
#[derive(Clone, Copy, Debug)]
struct Pending {
    entry: u64,
    min: u64,
    max: u64,
    /// Whether `entry` refers to a node, not to a value.
    node: bool,
    height: u8,
}

/// The values of a maple tree in ascending order of their ranges.
///
/// Nodes that contradict themselves, are freed, come up twice or lie too deep end the walk in an error.
pub(crate) struct MapleTree<'a, 'v, D: Driver> {
    space: &'a AddressSpace<'v, D>,
    pending: Vec<Pending>,
    visited: FxHashSet<u64>,
}

impl<'a, 'v, D: Driver> MapleTree<'a, 'v, D> {
    /// The tree whose `ma_root` is `root`.
    pub(crate) fn new(space: &'a AddressSpace<'v, D>, root: VirtAddr) -> Self {
        let entry = root.get();
        let max = if space.mode().pointer_size() == 4 { u64::from(u32::MAX) } else { u64::MAX };
        // xa_is_node(); a root without node bits is a single value.
        let node = entry & 3 == 2 && entry > 4096;
        Self { space, pending: vec![Pending { entry, min: 0, max, node, height: 0 }], visited: FxHashSet::default() }
    }

    /// Reads the node that `pending` refers to and queues its slots.
    fn descend(&mut self, pending: Pending) -> Result<()> {
        let at = VirtAddr::new(pending.entry & !NODE_MASK);
        let corrupt = |what: &str| Error::corrupt(format!("maple tree node {what}"), at);
        let pointer_size = self.space.mode().pointer_size();
        let geometry = Geometry::new(pending.entry, pointer_size).ok_or_else(|| corrupt("of an unknown type"))?;
        if pending.height == MAX_HEIGHT {
            return Err(corrupt("deeper than any tree is"));
        }
        if !self.visited.insert(at.get()) {
            return Err(corrupt("comes up twice: the tree runs in a circle"));
        }
        if self.visited.len() > MAX_NODES {
            return Err(ErrorKind::Limit { what: "a maple tree".to_owned(), limit: MAX_NODES }.into());
        }
        let node = Node { bytes: self.space.read(at)?, pointer_size, geometry };
        // ma_dead_node(): a node that was replaced is its own parent.
        if node.word(0) & !NODE_MASK == at.get() {
            return Err(corrupt("is no longer part of its tree; read the tree again"));
        }
        let end = node.end(pending.max);
        if end > geometry.pivots {
            return Err(corrupt("says that it has more slots than fit"));
        }
        let first = self.pending.len();
        let mut min = pending.min;
        for index in 0..=end {
            let max = if index == end { pending.max } else { node.pivot(index) };
            if max < min || max > pending.max {
                return Err(corrupt("has pivots that do not ascend"));
            }
            let entry = node.slot(index);
            self.pending.push(Pending { entry, min, max, node: !geometry.leaf, height: pending.height.wrapping_add(1) });
            if index < end {
                min = max.checked_add(1).ok_or_else(|| corrupt("has pivots that do not ascend"))?;
            }
        }
        if let Some(slots) = self.pending.get_mut(first..) {
            slots.reverse();
        }
        Ok(())
    }

    fn step(&mut self) -> Result<Option<VirtAddr>> {
        while let Some(pending) = self.pending.pop() {
            match pending.entry {
                0 if !pending.node => {}
                ZERO_ENTRY if !pending.node => {}
                entry if !pending.node => return Ok(Some(VirtAddr::new(entry))),
                entry if entry > 4096 => self.descend(pending)?,
                entry => {
                    let what = format!("a maple tree refers to {entry:#x} as a node for {:#x}..={:#x}", pending.min, pending.max);
                    return Err(Error::corrupt(what, VirtAddr::new(entry)));
                }
            }
        }
        Ok(None)
    }
}

impl<D: Driver> Iterator for MapleTree<'_, '_, D> {
    type Item = Result<VirtAddr>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.pending.clear();
        }
        step.transpose()
    }
}

impl<D: Driver> fmt::Debug for MapleTree<'_, '_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapleTree").field("pending", &self.pending).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use vmi_core::synthetic::{SyntheticDriver, Unpaged};
    use vmi_core::{PhysAddr, Vmi};

    use super::*;

    /// References as mt_mk_node() makes them; that of the root has bit 1 set too.
    const LEAF: u64 = 1 << 3 | 4;
    const RANGE: u64 = 2 << 3 | 4;
    const ARANGE: u64 = 3 << 3 | 4;

    /// A node: words at byte offsets, and the byte that says its end.
    fn node(words: &[(usize, u64)], meta: (usize, u8)) -> Vec<u8> {
        let mut bytes = vec![0; NODE_SIZE];
        for (at, word) in words {
            bytes[*at..*at + 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes[meta.0] = meta.1;
        bytes
    }

    /// The tree with this root over nodes that lie from 0x10000 on.
    fn values(root: u64, nodes: &[Vec<u8>]) -> Result<Vec<u64>> {
        let root = if root & 4 == 0 { root } else { root | 2 };
        let vmi = Vmi::new(SyntheticDriver::new([(PhysAddr::new(0x10000), nodes.concat())]));
        let space = vmi.address_space(PhysAddr::ZERO, Unpaged);
        MapleTree::new(&space, VirtAddr::new(root)).map(|value| value.map(VirtAddr::get)).collect()
    }

    fn corrupt(root: u64, nodes: &[Vec<u8>], why: &str) {
        let error = values(root, nodes).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Corrupt { what, .. } if what.contains(why)), "{error}");
    }

    #[test]
    fn no_node_at_all() {
        assert_eq!(values(0, &[]).unwrap(), [0u64; 0]);
        assert_eq!(values(0xabc0, &[]).unwrap(), [0xabc0]);
    }

    #[test]
    fn stale_slots_behind_the_end_are_not_values() {
        // Two slots in use; a third from before, with its pivot.
        let words = [(0, 1), (8, 0xfff), (16, 0x1fff), (24, 0x2fff), (128, 0xa00), (136, 0xb00), (144, 0xdead00)];
        assert_eq!(values(0x10000 | LEAF, &[node(&words, (248, 1))]).unwrap(), [0xa00, 0xb00]);
    }

    #[test]
    fn a_full_leaf_has_sixteen_slots_and_no_room_for_its_end() {
        let mut words = vec![(0, 1)];
        words.extend((0..15).map(|i| (8 + 8 * i, 0x1000 * (i as u64 + 1) - 1)));
        words.extend((0..16).map(|i| (128 + 8 * i, 0x100 * (i as u64 + 1))));
        let expected: Vec<_> = (1..=16).map(|i| 0x100 * i).collect();
        assert_eq!(values(0x10000 | LEAF, &[node(&words, (0, 1))]).unwrap(), expected);
        // With the last pivot at the end of the range, the sixteenth slot is a stale one.
        words[15].1 = u64::MAX;
        assert_eq!(values(0x10000 | LEAF, &[node(&words, (0, 1))]).unwrap(), expected[..15]);
    }

    #[test]
    fn empty_and_reserved_ranges_are_passed_over() {
        let words = [(0, 1), (8, 0xfff), (16, 0x1fff), (24, 0x2fff), (136, 0xb00), (144, ZERO_ENTRY), (152, 0xc00)];
        assert_eq!(values(0x10000 | LEAF, &[node(&words, (248, 3))]).unwrap(), [0xb00, 0xc00]);
    }

    #[test]
    fn three_levels_in_order() {
        let leaf = |value: u64| node(&[(0, 1), (8, 0xfff), (128, value), (136, value + 0x10)], (248, 0));
        let nodes = [
            node(&[(0, 1), (8, 0xffff), (80, 0x10100 | RANGE), (88, 0x10200 | LEAF), (96, 0xdead0 | LEAF)], (240, 1)),
            node(&[(0, 1), (8, 0xfff), (128, 0x10300 | LEAF), (136, 0x10400 | LEAF)], (248, 1)),
            leaf(0x300),
            leaf(0x100),
            leaf(0x200),
        ];
        assert_eq!(values(0x10000 | ARANGE, &nodes).unwrap(), [0x100, 0x200, 0x300]);
    }

    #[test]
    fn broken_trees_end_in_an_error() {
        let circle = node(&[(0, 1), (8, 0xfff), (80, 0x10000 | ARANGE), (88, 0x10000 | ARANGE)], (240, 1));
        corrupt(0x10000 | ARANGE, &[circle], "circle");
        corrupt(0x10000 | LEAF, &[node(&[(0, 0x10000)], (248, 0))], "no longer part");
        corrupt(0x10000 | LEAF, &[node(&[(0, 1)], (248, 16))], "more slots");
        corrupt(0x10000 | LEAF, &[node(&[(0, 1), (8, 0x2fff), (16, 0xfff)], (248, 2))], "do not ascend");
        corrupt(0x10000 | 0x7c, &[node(&[(0, 1)], (248, 0))], "unknown type");
        corrupt(0x10000 | RANGE, &[node(&[(0, 1), (128, 0x1000)], (248, 0))], "as a node");
        let hole = values(0x90000 | LEAF, &[]).unwrap_err();
        assert!(matches!(hole.kind(), ErrorKind::Hole { .. }), "{hole}");
    }

    #[test]
    fn deep_trees_are_bounded() {
        let nodes: Vec<_> = (1..=40u64).map(|n| node(&[(0, 1), (128, (0x10000 + 256 * n) | RANGE)], (248, 0))).collect();
        corrupt(0x10000 | RANGE, &nodes, "deeper");
    }

    /// A node of `kind` over these slots (start of its range, entry), with garbage wherever nothing may be read.
    fn filled(kind: u64, slots: &[(u64, u64)], max: u64) -> Vec<u8> {
        let (first_slot, meta) = if kind == ARANGE { (80, 240) } else { (128, 248) };
        let mut words = vec![(0, 1)];
        words.extend((8..NODE_SIZE).step_by(8).map(|at| (at, 0xdead_dead_dead_de00)));
        let last_pivot = first_slot - 8;
        words.push((last_pivot, 0));
        for (index, (_, entry)) in slots.iter().enumerate() {
            let end = slots.get(index + 1).map_or(max, |next| next.0 - 1);
            if 8 + 8 * index <= last_pivot {
                words.push((8 + 8 * index, end));
            }
            words.push((first_slot + 8 * index, *entry));
        }
        match slots.len() {
            16 => node(&words, (0, 1)),
            len => node(&words, (meta, len as u8 - 1)),
        }
    }

    proptest::proptest! {
        /// Trees of three levels over random areas and gaps hold exactly what was put in.
        #[test]
        fn whatever_is_put_in_comes_out(sizes in proptest::collection::vec(proptest::collection::vec(1usize..=16, 1..=10), 1..=10),
                                        gaps in proptest::collection::vec(proptest::bool::ANY, 64)) {
            let mut nodes = vec![Vec::new()];
            let (mut expected, mut top) = (Vec::new(), Vec::new());
            let reference = |nodes: &Vec<Vec<u8>>, kind| (0x10000 + 256 * (nodes.len() as u64 - 1)) | kind;
            let leaves: usize = sizes.iter().map(Vec::len).sum();
            let total = sizes.iter().flatten().sum::<usize>() as u64;
            let (mut number, mut leaf) = (0u64, 0);
            for middle in &sizes {
                let start = 0x1000 * number;
                let mut slots = Vec::new();
                for &size in middle {
                    leaf += 1;
                    let start = 0x1000 * number;
                    let mut values = Vec::new();
                    for _ in 0..size {
                        let value = if gaps[number as usize % gaps.len()] { 0 } else { 0x8000 + 64 * number };
                        values.push((0x1000 * number, value));
                        expected.extend(Some(value).filter(|&value| value != 0));
                        number += 1;
                    }
                    let max = if leaf == leaves { u64::MAX } else { 0x1000 * number - 1 };
                    nodes.push(filled(LEAF, &values, max));
                    slots.push((start, reference(&nodes, LEAF)));
                }
                let max = if number == total { u64::MAX } else { 0x1000 * number - 1 };
                nodes.push(filled(ARANGE, &slots, max));
                top.push((start, reference(&nodes, ARANGE)));
            }
            nodes[0] = filled(ARANGE, &top, u64::MAX);
            proptest::prop_assert_eq!(values(0x10000 | ARANGE, &nodes).unwrap(), expected);
        }

        /// Whatever lies in memory, a walk ends.
        #[test]
        fn hostile_nodes_never_hang(words in proptest::collection::vec(0u64..0x11000, 32 * 8), root in 0x10000u64..0x10800) {
            let nodes: Vec<Vec<u8>> = words.chunks(32).map(|node| node.iter().flat_map(|word| word.to_le_bytes()).collect()).collect();
            let _ = values(root, &nodes);
        }
    }
}
