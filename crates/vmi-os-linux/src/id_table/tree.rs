//! The tree of process ids: an XArray (include/linux/xarray.h) in `init_pid_ns` (kernel/pid.c).
//!
//! An entry whose lowest bits are 10 refers to a node, which has 64 entries (16 in small kernels) and says by how many bits the number is shifted whose lowest bits
//! choose among them. One whose lowest bits are 00 is a pointer. Until 4.19 it is a radix tree (include/linux/radix-tree.h), which has the same but for the
//! lowest bits of what refers to a node: 01.

use rustc_hash::FxHashSet;
use vmi_arch_x86::X86Driver;
use vmi_core::{Error, ErrorKind, KernelField, Memory, Paging, Result, VirtAddr};

use super::INITIAL;
use crate::Linux;
use crate::layout::Layout;
use crate::linux::MAX_TASKS;

/// XA_CHUNK_SIZE.
const SLOTS: u64 = 64;
/// More nodes than so many tasks need.
const MAX_NODES: usize = 1 << 17;
/// Below are not nodes but signs of their own, as XA_ZERO_ENTRY.
const SIGNS: u64 = 4096;

/// Where the table begins, what its nodes are like, and the lowest bits of an entry that refers to one.
#[derive(Clone, Copy)]
struct Tree {
    head: KernelField,
    shift: KernelField,
    slots: KernelField,
    mark: u64,
}

impl Tree {
    fn of(layout: &Layout) -> Self {
        let (space, array, radix) = (&layout.id_space, &layout.array_node, &layout.radix_node);
        if space.radix_tree.exists() && !space.array.exists() {
            return Self { head: space.radix_tree, shift: radix.shift, slots: radix.slots, mark: 1 };
        }
        Self { head: space.array, shift: array.shift, slots: array.slots, mark: 2 }
    }
}

/// An entry that was not looked at yet.
#[derive(Clone, Copy)]
struct Pending {
    entry: u64,
    /// If it refers to a node, that one's shift is less.
    below: u8,
}

/// The pointers of the tree, in ascending order of their numbers. A node that cannot be read is an error in its place.
pub(super) struct Ids<'l, 'v, D: X86Driver> {
    linux: &'l Linux<'v, D>,
    tree: Tree,
    pending: Vec<Pending>,
    visited: FxHashSet<u64>,
    count: usize,
}

impl<'l, 'v, D: X86Driver> Ids<'l, 'v, D> {
    /// # Errors
    /// A member that is not known, or the table's head.
    pub(super) fn of(linux: &'l Linux<'v, D>) -> Result<Self> {
        let tree = Tree::of(&linux.layout);
        let head = tree.head.of(linux.symbol(INITIAL)?)?;
        // What is missing is told at once, not by every row.
        tree.shift.offset()?;
        tree.slots.offset()?;
        let entry = linux.space.read_pointer(head)?.get();
        let pending = vec![Pending { entry, below: u8::MAX }];
        Ok(Self { linux, tree, pending, visited: FxHashSet::default(), count: 0 })
    }

    /// Puts the entries of the node at `at` in the place of that node.
    fn descend(&mut self, at: VirtAddr, below: u8) -> Result<()> {
        let space = &self.linux.space;
        if self.visited.len() == MAX_NODES {
            self.pending.clear();
            return Err(ErrorKind::Limit { what: "the table of process ids".to_owned(), limit: MAX_NODES }.into());
        }
        let shift: u8 = self.linux.read(at, self.tree.shift)?;
        if shift >= below || !self.visited.insert(at.get()) {
            return Err(Error::corrupt("the table of process ids runs in a circle", at));
        }
        let width = space.mode().pointer_size() as u64;
        let slots = self.tree.slots.size()?.checked_div(width).filter(|slots| (1..=SLOTS).contains(slots)).unwrap_or(SLOTS);
        let mut bytes = [0; (SLOTS * 8) as usize];
        let (bytes, _) = bytes.split_at_mut(slots.saturating_mul(width) as usize);
        space.read_into(self.tree.slots.of(at)?, bytes)?;
        let word = |word: &[u8]| word.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let entries = bytes.chunks_exact(width as usize).rev().map(word).filter(|&entry| entry != 0);
        self.pending.extend(entries.map(|entry| Pending { entry, below: shift }));
        Ok(())
    }
}

impl<D: X86Driver> Iterator for Ids<'_, '_, D> {
    /// Where a `struct pid` is.
    type Item = Result<VirtAddr>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(Pending { entry, below }) = self.pending.pop() {
            match entry & 3 {
                0 if entry != 0 => {
                    if self.count == MAX_TASKS {
                        self.pending.clear();
                        return Some(Err(ErrorKind::Limit { what: "the process ids".to_owned(), limit: MAX_TASKS }.into()));
                    }
                    self.count = self.count.saturating_add(1);
                    return Some(Ok(VirtAddr::new(entry)));
                }
                mark if mark == self.tree.mark && entry > SIGNS => {
                    if let Err(error) = self.descend(VirtAddr::new(entry & !3), below) {
                        return Some(Err(error));
                    }
                }
                _ => {}
            }
        }
        None
    }
}
