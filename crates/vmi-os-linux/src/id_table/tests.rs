//! Guests with tables of ids, whole and broken.

use proptest::prelude::*;
use vmi_core::{ErrorKind, ProcessView, SeenProcess};

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
        ("task_struct", if head == HASHED { "pids" } else { "pid_links" }, 0x60, 64),
        ("task_struct", if head == HASHED { "unused" } else { "thread_pid" }, 0x70, 8),
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

/// A namespace without a table.
const HASHED: &str = "unused";
const HEADS: u64 = 0x6000;

/// The same processes in a hash table, as kernels had it until 4.14: 1 and 70 in one list, with an id of another namespace between.
fn hashed() -> TestGuest {
    let mut guest = guest_with(HASHED, "unused");
    for (structure, name, offset, size) in [
        ("pid", "numbers", 0x30, 32),
        ("upid", "nr", 0, 4),
        ("upid", "ns", 8, 8),
        ("upid", "pid_chain", 16, 16),
        ("pid_link", "pid", 16, 8),
    ] {
        guest.types.member(structure, name, offset, size);
    }
    for (name, at) in [("pid_hash", 0x5000), ("pidhash_shift", 0x5008)] {
        guest.symbol(name, at);
    }
    guest.put(0x5000, &[HEADS, 1]);
    let chain = |at: u64| at + 0x840;
    for (at, previous, pid, next) in [(0x2_0000, INIT_TASK, 1, 0x5_0010), (0x3_0000, 0x2_0000, 2, 0), (0x4_0000, 0x3_0000, 70, 0)]
    {
        task(&mut guest, at, previous, pid, 0x7000);
        guest.put(at + 0x830, &[u64::from(pid), NAMESPACE, next]);
    }
    guest.put(0x5_0000, &[1, NAMESPACE + 0x100, chain(0x4_0000)]);
    guest.put(HEADS, &[chain(0x2_0000), chain(0x3_0000)]);
    guest
}

#[test]
fn a_hash_table_of_ids() {
    let rows = by_id(hashed());
    assert!(rows.iter().all(Result::is_ok), "{rows:?}");
    assert_eq!(pids(&rows), [1, 2, 70]);
    let (processes, problems) = survey(hashed());
    assert!(
        problems.is_empty() && processes.len() == 3 && processes.iter().all(|process| !process.hidden),
        "{processes:?} {problems:?}"
    );
}

#[test]
fn a_broken_hash_table_is_an_error_behind_what_it_has() {
    let mut circle = hashed();
    circle.put(0x4_0840, &[0x2_0840]);
    let mut cut = hashed();
    cut.put(0x3_0840, &[0x3f00_0000]);
    for guest in [circle, cut] {
        let rows = by_id(guest);
        assert!(rows.len() == 4 && rows[3].is_err(), "{rows:?}");
        assert_eq!(pids(&rows), [1, 2, 70]);
    }
    let mut endless = hashed();
    endless.put32(0x5008, &[64]);
    let rows = by_id(endless);
    assert!(matches!(rows[..], [Err(ref error)] if matches!(error.kind(), ErrorKind::Corrupt { .. })), "{rows:?}");
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
