//! The table of process ids: a way to the tasks besides their list.
//!
//! `init_pid_ns` (kernel/pid.c) has an XArray (include/linux/xarray.h) from the ids to `struct pid`, and that leads to the thread which has the id. An entry
//! whose lowest bits are 10 refers to a node, which has 64 entries (16 in small kernels) and says by how many bits the number is shifted whose lowest bits
//! choose among them. One whose lowest bits are 00 is a pointer. Until 4.19 it is a radix tree (include/linux/radix-tree.h), which has the same but for the lowest
//! bits of what refers to a node: 01.

use rustc_hash::FxHashSet;
use vmi_arch_x86::X86Driver;
use vmi_core::{Error, ErrorKind, KernelField, Memory, Paging, Result, VirtAddr, list::rows, live};

use crate::layout::Layout;
use crate::linux::MAX_TASKS;
use crate::{Linux, Task};

/// The symbol of the namespace in which each task has an id.
const INITIAL: &str = "init_pid_ns";
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

impl<'v, D: X86Driver> Linux<'v, D> {
    /// The threads that the kernel's table of process ids knows, in ascending order of their ids; of each process one is the first, whose own id is that of
    /// the process. Compared with [`Linux::threads`] this tells what hides from either: see [`Linux::survey_processes`].
    ///
    /// Kernels since 4.15 have such a table, and it is read where it is described: by the types of kernels since 4.19, or because it was inferred. Of others
    /// [`ErrorKind::NoType`] is the only row. In a running guest each row is of its own moment: threads that came or went meanwhile may be there or not.
    pub fn threads_by_id(&self) -> impl Iterator<Item = Result<Task<'_, 'v, D>>> {
        let walk = || {
            let tree = Tree::of(&self.layout);
            let head = tree.head.of(self.symbol(INITIAL)?)?;
            // What is missing is told at once, not by every row.
            let task = &self.layout.task;
            for member in [tree.shift, tree.slots, self.layout.id.tasks, task.id_links, task.id] {
                member.offset()?;
            }
            let root = self.space.read_pointer(head)?.get();
            Ok(Ids {
                linux: self,
                tree,
                pending: vec![Pending { entry: root, below: u8::MAX }],
                visited: FxHashSet::default(),
                count: 0,
            })
        };
        rows(walk()).filter_map(|id| id.and_then(|id| self.thread_of(id)).transpose())
    }

    /// The thread that has the id `id`, a `struct pid`; `None` if it is only the id of a group or a session whose first thread has ended.
    fn thread_of(&self, id: VirtAddr) -> Result<Option<Task<'_, 'v, D>>> {
        let task = &self.layout.task;
        let read = || {
            let Some(link) = self.pointer_or_null(id, self.layout.id.tasks)? else { return Ok(None) };
            let at = task.id_links.owner(link)?;
            if self.pointer(at, task.id)? != id {
                return Err(Error::corrupt("a task that does not have the id which leads to it", at));
            }
            let found = if live::runs(self.vmi()) { Some(self.read(at, task.pid)?) } else { None };
            Ok(Some(Task::new(self, at, found)))
        };
        match read() {
            // It ended meanwhile.
            Err(_) if live::runs(self.vmi()) => Ok(None),
            read => read,
        }
    }
}

/// An entry that was not looked at yet.
#[derive(Clone, Copy)]
struct Pending {
    entry: u64,
    /// If it refers to a node, that one's shift is less.
    below: u8,
}

/// The pointers of the array, in ascending order of their numbers. A node that cannot be read is an error in its place.
struct Ids<'l, 'v, D: X86Driver> {
    linux: &'l Linux<'v, D>,
    tree: Tree,
    pending: Vec<Pending>,
    visited: FxHashSet<u64>,
    count: usize,
}

impl<D: X86Driver> Ids<'_, '_, D> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmi_core::{ProcessView, SeenProcess};

    use super::*;
    use crate::test_guest::{INIT_TASK, TestGuest};

    const NAMESPACE: u64 = 0x4000;
    /// Of the array's root.
    const ROOT: u64 = NAMESPACE + 0x18;
    const NODE: u64 = 0x1_0000;

    /// A guest with types for the table. A node has its shift at 0 and entries from 0x28 on; a `struct pid` has its tasks at 0x10; a task its link at 0x60, its
    /// id at 0x70, children at 0x80 and siblings at 0x90, and its threads at 0xa0 in a `signal_struct`, which is at the task's own address plus 0x400.
    fn guest() -> TestGuest {
        guest_with("idr.idr_rt.xa_head", "xa_node")
    }

    fn guest_with(head: &'static str, node: &'static str) -> TestGuest {
        let mut guest = TestGuest::new();
        for (structure, name, offset, size) in [
            ("pid_namespace", head, 0x18, 8),
            (node, "shift", 0, 1),
            (node, "slots", 0x28, 512),
            ("pid", "tasks", 0x10, 32),
            ("task_struct", "pid_links", 0x60, 64),
            ("task_struct", "thread_pid", 0x70, 8),
            ("task_struct", "children", 0x80, 16),
            ("task_struct", "sibling", 0x90, 16),
            ("task_struct", "thread_node", 0xa0, 16),
            ("task_struct", "signal", 0xb0, 8),
            ("signal_struct", "thread_head", 0, 16),
        ] {
            guest.types.member(structure, name, offset, size);
        }
        guest.symbol(INITIAL, NAMESPACE);
        guest.put(INIT_TASK + 0x80, &[INIT_TASK + 0x80, INIT_TASK + 0x80]);
        guest
    }

    /// The reference to a node.
    fn node(at: u64) -> u64 {
        at | 2
    }

    /// A task in the list and in the place `slot` of memory, as the last child of the first task, whose `struct pid` is 0x800 behind it.
    fn task(guest: &mut TestGuest, at: u64, previous: u64, pid: u32, slot: u64) {
        guest.task(at, previous, pid, "task");
        guest.put(slot, &[at + 0x800]);
        guest.put(at + 0x810, &[at + 0x60]);
        guest.put(at + 0x70, &[at + 0x800]);
        let signal = at + 0x400;
        guest.put(at + 0xb0, &[signal]);
        guest.put(signal, &[at + 0xa0]);
        guest.put(at + 0xa0, &[signal]);
        guest.put(at + 0x80, &[at + 0x80, at + 0x80]);
        let last = u64::from_le_bytes(guest.bytes[INIT_TASK as usize + 0x88..][..8].try_into().unwrap());
        guest.put(last, &[at + 0x90]);
        guest.put(at + 0x90, &[INIT_TASK + 0x80, last]);
        guest.put(INIT_TASK + 0x88, &[at + 0x90]);
    }

    /// Processes 1, 2 and 70 in a table of two levels, with what is no pointer between them.
    fn three() -> TestGuest {
        three_in(guest())
    }

    fn three_in(mut guest: TestGuest) -> TestGuest {
        let (low, high) = (NODE + 0x400, NODE + 0x800);
        guest.put(ROOT, &[node(NODE)]);
        guest.bytes[NODE as usize] = 6;
        guest.put(NODE + 0x28, &[node(low), node(high)]);
        task(&mut guest, 0x2_0000, INIT_TASK, 1, low + 0x28 + 8);
        task(&mut guest, 0x3_0000, 0x2_0000, 2, low + 0x28 + 16);
        // A value, XA_ZERO_ENTRY, and the id of a group of which nobody is left.
        guest.put(low + 0x28 + 24, &[5, 257 << 2 | 2, 0x5_0000]);
        task(&mut guest, 0x4_0000, 0x3_0000, 70, high + 0x28 + 6 * 8);
        guest
    }

    fn by_id(guest: TestGuest) -> Vec<Result<u32>> {
        let (vmi, kernel) = guest.build();
        let linux = Linux::with_kernel(&vmi, kernel).unwrap();
        linux.threads_by_id().map(|thread| thread?.pid()).collect()
    }

    fn pids(rows: &[Result<u32>]) -> Vec<u32> {
        rows.iter().filter_map(|row| row.as_ref().ok().copied()).collect()
    }

    #[test]
    fn threads_in_the_order_of_their_ids() {
        let rows = by_id(three());
        assert!(rows.iter().all(Result::is_ok), "{rows:?}");
        assert_eq!(pids(&rows), [1, 2, 70]);
        assert!(by_id(guest()).is_empty());
        // One entry alone is the root itself.
        let mut one = guest();
        task(&mut one, 0x2_0000, INIT_TASK, 0, ROOT);
        assert_eq!(pids(&by_id(one)), [0]);
    }

    /// The table as it was until 4.19: the same nodes behind other marks.
    #[test]
    fn a_radix_tree_of_ids() {
        let mut guest = three_in(guest_with("idr.idr_rt.rnode", "radix_tree_node"));
        guest.put(ROOT, &[NODE | 1]);
        guest.put(NODE + 0x28, &[(NODE + 0x400) | 1, (NODE + 0x800) | 1]);
        let rows = by_id(guest);
        assert!(rows.iter().all(Result::is_ok), "{rows:?}");
        assert_eq!(pids(&rows), [1, 2, 70]);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_in_its_place() {
        let mut guest = three();
        guest.put(NODE + 0x28, &[node(0x3f00_0000)]);
        let rows = by_id(guest);
        assert!(rows.len() == 2 && rows[0].as_ref().is_err_and(Error::is_absent), "{rows:?}");
        assert_eq!(pids(&rows), [70]);
        let mut guest = three();
        guest.put(0x3_0070, &[0x2_0800]);
        let rows = by_id(guest);
        assert!(rows[1].as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::Corrupt { .. })), "{rows:?}");
        assert_eq!(pids(&rows), [1, 70]);
    }

    #[test]
    fn circles_end() {
        for entry in [node(NODE), node(NODE + 0x400)] {
            let mut guest = three();
            guest.put(NODE + 0x800 + 0x28, &[entry, entry]);
            let rows = by_id(guest);
            assert_eq!((rows.len(), pids(&rows)), (5, vec![1, 2, 70]));
        }
    }

    #[test]
    fn a_kernel_without_such_a_table_is_told_at_once() {
        let mut guest = TestGuest::new();
        guest.symbol(INITIAL, NAMESPACE);
        let rows = by_id(guest);
        assert!(matches!(rows[..], [Err(ref error)] if matches!(error.kind(), ErrorKind::NoType { .. })), "{rows:?}");
    }

    fn survey(guest: TestGuest) -> (Vec<SeenProcess>, Vec<ProcessView>) {
        let (vmi, kernel) = guest.build();
        let linux = Linux::with_kernel(&vmi, kernel).unwrap();
        let survey = linux.survey_processes();
        (survey.processes, survey.problems.into_iter().map(|(view, _)| view).collect())
    }

    #[test]
    fn what_hides_from_one_view() {
        let (processes, problems) = survey(three());
        assert!(problems.is_empty() && processes.len() == 3, "{processes:?} {problems:?}");
        assert!(processes.iter().all(|process| !process.hidden && process.known_to(ProcessView::Children) == Some(true)));

        let mut guest = three();
        guest.put(0x2_0010, &[0x4_0010]);
        let (processes, _) = survey(guest);
        let seen: Vec<_> =
            processes.iter().map(|process| (process.pid, process.hidden, process.known_to(ProcessView::List))).collect();
        assert_eq!(seen, [(1, false, Some(true)), (2, true, Some(false)), (70, false, Some(true))]);

        // Who is not in the table of ids is not in /proc. One that has ended is in neither by and by.
        for (exit_state, hidden) in [(0, true), (0x20, false)] {
            let mut guest = three();
            guest.put(NODE + 0x800 + 0x28 + 6 * 8, &[0]);
            guest.put32(0x4_0048, &[exit_state]);
            let (processes, _) = survey(guest);
            assert_eq!(
                (processes[2].pid, processes[2].hidden, processes[2].known_to(ProcessView::IdTable)),
                (70, hidden, Some(false))
            );
        }
    }

    #[test]
    fn a_view_that_broke_hides_nobody() {
        let mut guest = three();
        guest.put(NODE + 0x28, &[node(0x3f00_0000)]);
        let (processes, problems) = survey(guest);
        assert_eq!(problems, [ProcessView::IdTable]);
        let seen: Vec<_> = processes.iter().map(|process| (process.hidden, process.known_to(ProcessView::IdTable))).collect();
        assert_eq!(seen, [(false, None), (false, None), (false, Some(true))]);
    }

    proptest! {
        /// Whatever is in the nodes, an end comes, and each row is a thread or an error.
        #[test]
        fn any_nodes(words in prop::collection::vec((0u64..0x200, prop_oneof![
            (0u64..0x20).prop_map(|page| node(NODE + page * 0x100)),
            Just(0x2_0800), Just(0x3_0800), Just(node(0x3f00_0000)), any::<u64>(),
        ]), 0..60)) {
            let mut guest = three();
            for (at, word) in words {
                guest.put(NODE + at * 8, &[word]);
            }
            let (vmi, kernel) = guest.build();
            let linux = Linux::with_kernel(&vmi, kernel).unwrap();
            prop_assert!(linux.threads_by_id().count() < 10_000);
            prop_assert!(linux.survey_processes().processes.len() >= 3);
        }
    }
}
