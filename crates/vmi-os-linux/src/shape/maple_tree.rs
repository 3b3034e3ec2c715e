//! The tree of memory areas since 6.1: `mm_mt` in `mm_struct`, and the areas in it (kernel: include/linux/maple_tree.h).
//!
//! The nodes of the tree have one layout, which only the width of a pointer changes. The parent of a root node is the tree itself,
//! with bit 0 set (kernel: `MA_ROOT_PARENT` and `ma_is_root` in lib/maple_tree.c): that tells where the tree is.

use vmi_arch_x86::X86Driver;

use super::findings::Findings;
use super::page_tables::Spaces;
use super::sample::{Doubt, Object, Sample, only};
use super::types::Kind;
use super::view::View;

/// Bytes of a node; it is aligned to that, and the low byte of a pointer to it tells its type.
const NODE: u64 = 256;
/// Levels of a tree that are descended: ten entries a node make 2^64 at 20.
const MAX_DEPTH: usize = 20;
/// Flags of a process's tree that are always set: `MT_FLAGS_ALLOC_RANGE`, `MT_FLAGS_LOCK_EXTERN` (kernel: `MM_MT_FLAGS`), and those
/// that may be: `MT_FLAGS_USE_RCU`, the height.
const FLAGS_SET: u32 = 0x301;
const FLAGS_ALL: u32 = 0x37f;
/// The most bytes from the start of a tree to its root.
const MAX_LOCK: usize = 40;

/// Where things are in a node.
#[derive(Clone, Copy)]
struct Shape {
    /// Slots of a range or leaf node, and of an allocation range node.
    slots: [usize; 2],
    width: usize,
}

impl Shape {
    fn new(width: usize) -> Self {
        Self { slots: if width == 4 { [32, 21] } else { [16, 10] }, width }
    }

    /// Offset of the first slot of a node: behind the parent and the pivots, one fewer than slots.
    fn first_slot(self, slots: usize) -> usize {
        slots.saturating_mul(self.width)
    }

    /// Offset of the byte that numbers the last used slot: behind all but the last slot of a range node, and behind slots and gaps of
    /// an allocation range node.
    fn meta(self, kind: NodeKind) -> usize {
        let [range_slots, arange_slots] = self.slots;
        let words = match kind {
            NodeKind::AllocationRange => arange_slots.saturating_mul(3),
            _ => range_slots.saturating_mul(2).saturating_sub(1),
        };
        words.saturating_mul(self.width)
    }
}

/// Describes the nodes.
fn describe(width: usize, findings: &mut Findings) {
    let shape = Shape::new(width);
    let [range, arange] = shape.slots;
    findings.add("maple_metadata", "end", 0, Kind::Number(1));
    findings.add("maple_metadata", "gap", 1, Kind::Number(1));
    for (name, slots, kind) in
        [("maple_range_64", range, NodeKind::Range), ("maple_arange_64", arange, NodeKind::AllocationRange)]
    {
        let first = shape.first_slot(slots);
        findings.add(name, "parent", 0, Kind::Pointer);
        findings.add(name, "pivot", width, Kind::Words(slots.saturating_sub(1) as u64));
        findings.add(name, "slot", first, Kind::Words(slots as u64));
        if kind == NodeKind::AllocationRange {
            findings.add(name, "gap", first.saturating_add(slots.saturating_mul(width)), Kind::Words(slots as u64));
        }
        findings.add(name, "meta", shape.meta(kind), Kind::Structure("maple_metadata"));
    }
    findings.add("maple_node", "parent", 0, Kind::Pointer);
    findings.add("maple_node", "mr64", 0, Kind::Structure("maple_range_64"));
    findings.add("maple_node", "ma64", 0, Kind::Structure("maple_arange_64"));
}

/// Infers `mm_mt`; the offset of `ma_root` in `mm_struct`.
pub(super) fn infer<D: X86Driver>(view: &View<'_, D>, spaces: &Spaces, findings: &mut Findings) -> Result<usize, Doubt> {
    let sample = &spaces.sample;
    let width = sample.width;
    let mut place = None;
    let root = only(0..spaces.pgd, width, |root| {
        let Some(tree) = sample.objects.first().and_then(|mm| tree(view, mm, root, width)) else { return false };
        let same = sample.all(|mm| Some(self::tree(view, mm, root, width)? == tree));
        let flags = same.then(|| flags(sample, tree, root)).flatten();
        place = place.or(flags.map(|flags| (tree, flags)));
        flags.is_some()
    })?;
    let (tree, flags) = place.ok_or(Doubt::None)?;
    describe(width, findings);
    findings.add("maple_tree", "ma_root", root.saturating_sub(tree), Kind::Pointer);
    findings.add("maple_tree", "ma_flags", flags.saturating_sub(tree), Kind::Number(4));
    findings.add("mm_struct", "mm_mt", tree, Kind::Structure("maple_tree"));
    Ok(root)
}

/// Where in its `mm_struct` the tree is to which the node at `root` belongs: the parent of a root node is the tree.
fn tree<D: X86Driver>(view: &View<'_, D>, mm: &Object, root: usize, width: usize) -> Option<usize> {
    let entry = mm.word(root, width)?;
    let (node, _) = node(entry)?;
    let parent = view.pointer(node)?;
    let tree = usize::try_from(parent.checked_sub(1)?.checked_sub(mm.at)?).ok()?;
    // kernel: `xa_is_node`. The lock before the root has 4 bytes, with PREEMPT_RT up to 32, and none in a kernel for one processor.
    (entry & 3 == 2 && parent & 1 == 1 && root.checked_sub(tree)? <= MAX_LOCK).then_some(tree)
}

/// Where `ma_flags` is: behind the root in 6.1 to 6.5, before it in 6.12, there possibly with padding between, and at the start where the lock is empty.
fn flags(sample: &Sample, tree: usize, root: usize) -> Option<usize> {
    let places = [root.checked_add(sample.width)?, root.saturating_sub(4), root.saturating_sub(8)];
    let mut fitting = places.into_iter().filter(|&flags| {
        flags >= tree && sample.all(|mm| mm.u32(flags).map(|flags| flags & FLAGS_SET == FLAGS_SET && flags & !FLAGS_ALL == 0))
    });
    match (fitting.next(), fitting.next()) {
        (Some(flags), None) => Some(flags),
        _ => None,
    }
}

/// The kinds of nodes that areas are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NodeKind {
    Leaf,
    Range,
    /// A range node that also knows the gaps below it (kernel: `maple_arange_64`).
    AllocationRange,
}

/// The address and kind of the node that an entry of a tree's root or of an inner node names.
fn node(entry: u64) -> Option<(u64, NodeKind)> {
    // kernel: `enum maple_type`, `mte_node_type`.
    let kind = match entry >> 3 & 0xf {
        1 => NodeKind::Leaf,
        2 => NodeKind::Range,
        3 => NodeKind::AllocationRange,
        _ => return None,
    };
    Some((entry & !NODE.wrapping_sub(1), kind))
}

/// An entry of a tree and the addresses that it stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) entry: u64,
}

/// The entries of the leaves below the root entry `root`; at most `limit` entries of all nodes are visited; `None` if the tree contradicts itself.
pub(super) fn entries<D: X86Driver>(view: &View<'_, D>, root: u64, limit: usize) -> Option<Vec<Entry>> {
    let mut found = Vec::new();
    let mut visits = limit;
    let top = if view.width() == 4 { u32::MAX.into() } else { u64::MAX };
    descend(view, Entry { first: 0, last: top, entry: root }, MAX_DEPTH, &mut visits, &mut found)?;
    Some(found)
}

fn descend<D: X86Driver>(view: &View<'_, D>, at: Entry, depth: usize, visits: &mut usize, found: &mut Vec<Entry>) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    let width = view.width();
    let shape = Shape::new(width);
    let [range_slots, arange_slots] = shape.slots;
    let (address, kind) = node(at.entry)?;
    let slots = if kind == NodeKind::AllocationRange { arange_slots } else { range_slots };
    let node = Object { at: address, bytes: view.bytes(address, NODE as usize)? };
    let pivot = |index: usize| node.word(index.checked_add(1)?.checked_mul(width)?, width);
    let meta = node.bytes.get(shape.meta(kind)).copied().map(usize::from);
    // kernel: `ma_data_end` in lib/maple_tree.c.
    let last_slot = slots.checked_sub(1)?;
    let end = match pivot(slots.checked_sub(2)?)? {
        _ if kind == NodeKind::AllocationRange => meta?,
        0 => meta?,
        last if last == at.last => last_slot.checked_sub(1)?,
        _ => last_slot,
    };
    let mut first = at.first;
    for index in 0..=end.min(last_slot) {
        *visits = visits.checked_sub(1)?;
        let last = if index < end { pivot(index)? } else { at.last };
        if last < first || last > at.last {
            return None;
        }
        let offset = shape.first_slot(slots).checked_add(index.checked_mul(width)?)?;
        let entry = node.word(offset, width)?;
        let child = Entry { first, last, entry };
        match kind {
            NodeKind::Range | NodeKind::AllocationRange if entry != 0 => descend(view, child, depth, visits, found)?,
            // Small numbers are marks, not pointers (kernel: `xa_is_advanced`).
            NodeKind::Leaf if entry > 4096 => found.push(child),
            _ => {}
        }
        match last.checked_add(1) {
            Some(next) => first = next,
            None => break,
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_before_and_behind_the_root() {
        // A tree at 0x10 of an `mm_struct`, with flags at each place where kernels have them, and its root.
        let find = |flags_at: usize, root: usize| {
            let mut bytes = vec![0; 0x40];
            bytes[flags_at..flags_at + 4].copy_from_slice(&(FLAGS_SET | 0x40).to_le_bytes());
            flags(&Sample { width: 8, objects: vec![Object { at: 0, bytes }] }, 0x10, root)
        };
        assert_eq!(find(0x20, 0x18), Some(0x20), "6.1: lock, root, flags");
        assert_eq!(find(0x14, 0x18), Some(0x14), "6.12: lock, flags, root");
        assert_eq!(find(0x10, 0x18), Some(0x10), "one processor: the lock has no bytes");
        assert_eq!(find(0x0c, 0x10), None, "before the tree");
    }
}
