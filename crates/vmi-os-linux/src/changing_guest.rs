//! Guests that change their lists while these are read, at every read if need be: a model of the kernel makes one store after
//! another, in the kernel's order, between the reader's reads.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vmi_core::{Error, ErrorKind, Guest};

use crate::Linux;
use crate::test_guest::{INIT_TASK, TestGuest};

const HEAD: u64 = INIT_TASK + 0x10;
/// LIST_POISON2 (include/linux/poison.h).
const POISON: u64 = 0xdead_0000_0000_0122;
/// Where tasks lie, and how many find room.
const SLOTS: u64 = 0x20000;
const SLOT: u64 = 0x100;
const ROOM: u64 = 10;

/// What the guest does: the kernel's list operations, store by store.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// A new task at the end of the list, in the free slot of this number (modulo their number).
    Fork(u64),
    /// The task of this number (modulo their number) ends.
    Exit(usize),
    /// What is free is overwritten: with pointers to the end of the list, the worst they can be.
    Poison,
}

/// An act, after how many reads it begins, and how many stores the guest makes between two reads then.
type Timed = (u32, usize, Act);

#[derive(Default)]
struct Model {
    /// Slots of the tasks in the order of the list, with their ids.
    tasks: Vec<(u64, u32)>,
    last_pid: u32,
    /// Stores that the act under way still has to make: address, value, bytes.
    stores: VecDeque<(u64, u64, usize)>,
    acts: VecDeque<Timed>,
    /// Stores between two reads, in the act under way.
    burst: usize,
    /// Ids that ended since this was last emptied.
    ended: BTreeSet<u32>,
    names: BTreeMap<u32, String>,
    reads: u64,
}

fn name(pid: u32) -> String {
    format!("task-{pid}")
}

impl Model {
    fn at(slot: u64) -> u64 {
        SLOTS + SLOT * slot
    }

    fn free(&self) -> Vec<u64> {
        (0..ROOM).filter(|slot| self.tasks.iter().all(|task| task.0 != *slot)).collect()
    }

    fn node(&self, index: Option<usize>) -> u64 {
        index.and_then(|index| self.tasks.get(index)).map_or(HEAD, |task| Self::at(task.0) + 0x10)
    }

    fn fork(&mut self, number: u64) {
        let free = self.free();
        let Some(slot) = free.get(number as usize % free.len().max(1)).copied() else { return };
        self.last_pid += 1;
        let (pid, at) = (self.last_pid, Self::at(slot));
        let tail = self.node(self.tasks.len().checked_sub(1));
        let mut comm = [0; 16];
        comm[..name(pid).len()].copy_from_slice(name(pid).as_bytes());
        let [low, high] = [0, 8].map(|half| u64::from_le_bytes(comm[half..half + 8].try_into().unwrap()));
        self.stores.extend([
            // A copy of its parent at first (dup_task_struct() in kernel/fork.c).
            (at + 0x10, HEAD, 8),
            (at + 0x18, HEAD, 8),
            (at + 0x20, 1, 4),
            (at + 0x30, low, 8),
            (at + 0x38, high, 8),
            (at + 0x20, u64::from(pid), 4),
            (at + 0x24, u64::from(pid), 4),
            // list_add_tail_rcu().
            (at + 0x10, HEAD, 8),
            (at + 0x18, tail, 8),
            (tail, at + 0x10, 8),
            (HEAD + 8, at + 0x10, 8),
        ]);
        self.tasks.push((slot, pid));
        self.names.insert(pid, name(pid));
    }

    fn exit(&mut self, number: usize) {
        // Process 1 does not end.
        let Some(index) = number.checked_rem(self.tasks.len() - 1).map(|index| index + 1) else { return };
        let (before, after) = (self.node(index.checked_sub(1)), self.node(Some(index + 1)));
        let here = self.node(Some(index));
        // list_del_rcu().
        self.stores.extend([(after + 8, before, 8), (before, after, 8), (here + 8, POISON, 8)]);
        let (_, pid) = self.tasks.remove(index);
        self.ended.insert(pid);
    }

    fn poison(&mut self) {
        let tail = self.node(self.tasks.len().checked_sub(1));
        for slot in self.free() {
            let at = Self::at(slot);
            self.stores.extend([(at + 0x10, HEAD, 8), (at + 0x18, tail, 8), (at + 0x20, 1, 4), (at + 0x30, u64::MAX, 8)]);
        }
    }

    /// What happens between two reads: stores of the act under way, and of those whose time has come.
    fn turn(&mut self, bytes: &mut [u8]) {
        self.reads += 1;
        loop {
            for (at, value, len) in self.stores.drain(..self.burst.min(self.stores.len())) {
                bytes[at as usize..][..len].copy_from_slice(&value.to_le_bytes()[..len]);
            }
            match self.acts.front_mut() {
                _ if !self.stores.is_empty() => return,
                None => return,
                Some((0, burst, act)) => {
                    self.burst = *burst;
                    let act = *act;
                    self.acts.pop_front();
                    match act {
                        Act::Fork(number) => self.fork(number),
                        Act::Exit(number) => self.exit(number),
                        Act::Poison => self.poison(),
                    }
                }
                Some((wait, ..)) => {
                    *wait -= 1;
                    return;
                }
            }
        }
    }
}

/// A guest with `tasks` tasks that does all this, an act after so many reads each.
fn guest(tasks: u32, acts: Vec<Timed>) -> (TestGuest, Arc<Mutex<Model>>) {
    let mut guest = TestGuest::new();
    let mut model = Model::default();
    guest.put(HEAD, &[HEAD, HEAD]);
    for slot in 0..u64::from(tasks) {
        model.fork(slot - model.tasks.len() as u64);
        for (at, value, len) in std::mem::take(&mut model.stores) {
            guest.bytes[at as usize..][..len].copy_from_slice(&value.to_le_bytes()[..len]);
        }
    }
    model.acts = acts.into();
    (guest, Arc::new(Mutex::new(model)))
}

fn is_gone(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Gone { .. })
}

/// Lists the processes `times` times and holds each list against the truth. How many lists there were; the others were errors.
fn check(tasks: u32, acts: Vec<Timed>, times: usize) -> usize {
    let (guest, model) = guest(tasks, acts);
    let turns = Arc::clone(&model);
    let (vmi, kernel) = guest.build_running(move |bytes, _| turns.lock().unwrap().turn(bytes));
    let linux = Linux::with_kernel(&vmi, kernel).unwrap();
    let mut whole = 0;
    for _ in 0..times {
        let (before, reads) = {
            let mut model = model.lock().unwrap();
            model.ended.clear();
            (model.tasks.clone(), model.reads)
        };
        let listed: Result<Vec<_>, _> = linux.processes().collect();
        {
            let model = model.lock().unwrap();
            assert!(model.reads - reads < 100_000, "{} reads", model.reads - reads);
            let listed = match &listed {
                Ok(listed) => listed,
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::Changing { .. }), "{error}");
                    continue;
                }
            };
            let pids: Vec<_> = listed.iter().map(|task| task.found.unwrap()).collect();
            assert_eq!(pids.iter().collect::<BTreeSet<_>>().len(), pids.len(), "one comes up twice: {pids:?}");
            for (_, pid) in before.iter().filter(|task| !model.ended.contains(&task.1)) {
                assert!(pids.contains(pid), "{pid} was there all the time, and is not among {pids:?}");
            }
            assert!(pids.iter().all(|pid| model.names.contains_key(pid)), "{pids:?}");
        }
        whole += 1;
        for task in listed.unwrap() {
            match task.name() {
                Ok(name) => assert_eq!(name, self::name(task.found.unwrap())),
                Err(error) => assert!(is_gone(&error), "{error}"),
            }
        }
    }
    whole
}

fn acts(wait: impl Strategy<Value = u32>) -> impl Strategy<Value = Vec<Timed>> {
    let act = prop_oneof![
        3 => (0..ROOM).prop_map(Act::Fork),
        3 => (0..ROOM as usize).prop_map(Act::Exit),
        2 => Just(Act::Poison),
    ];
    // One store between two reads, or a whole act.
    let burst = prop_oneof![1usize..4, Just(100)];
    proptest::collection::vec((wait, burst, act), 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Every task that is there during the whole walk is listed once, whatever happens around it.
    #[test]
    fn no_schedule_makes_a_wrong_list(tasks in 1u32..8, acts in acts(prop_oneof![3 => Just(0), 2 => 0u32..60])) {
        check(tasks, acts, 12);
    }

    /// Changes now and then cost no list.
    #[test]
    fn a_guest_that_pauses_between_its_acts_is_always_listed(tasks in 1u32..8, acts in acts(100u32..400)) {
        assert_eq!(check(tasks, acts, 4), 4);
    }
}

/// The end of the list changes at every read: it never holds still, and the walk says so instead of going on for ever.
#[test]
fn a_list_that_never_holds_still_is_an_error_that_says_what_to_do() {
    let (guest, _) = guest(3, Vec::new());
    let mut back = 0u64;
    let (vmi, kernel) = guest.build_running(move |bytes, _| {
        back += 0x1000;
        bytes[HEAD as usize + 8..][..8].copy_from_slice(&back.to_le_bytes());
    });
    let linux = Linux::with_kernel(&vmi, kernel).unwrap();
    let mut tasks = linux.processes();
    let error = tasks.next().unwrap().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Changing { attempts: vmi_core::live::ATTEMPTS, .. }), "{error}");
    assert!(error.to_string().contains("pause the guest"), "{error}");
    assert!(tasks.next().is_none());
}

/// While the guest is paused its list is read as that of an image: at once, and no attempt is repeated. Resumed, what was not
/// read yet is lost.
#[test]
fn a_paused_guest_is_read_as_it_stands() {
    let (guest, model) = guest(5, [(20, 100, Act::Fork(0)), (20, 100, Act::Exit(2))].repeat(50));
    let turns = Arc::clone(&model);
    let (vmi, kernel) = guest.build_running(move |bytes, _| turns.lock().unwrap().turn(bytes));
    let linux = Linux::with_kernel(&vmi, kernel).unwrap();
    let paused = vmi.pause().unwrap();
    let reads = model.lock().unwrap().reads;
    let rows: Vec<_> = Guest::processes(&linux).collect();
    assert_eq!(model.lock().unwrap().reads, reads, "nothing ran");
    assert_eq!(rows.len(), model.lock().unwrap().tasks.len());
    assert!(rows.iter().all(|row| row.as_ref().is_ok_and(|row| row.name == name(row.pid))), "{rows:?}");
    let mut tasks = linux.processes();
    assert!(tasks.next().unwrap().is_ok());
    drop(paused);
    let error = tasks.next().unwrap().unwrap_err();
    assert!(error.to_string().contains("resumed"), "{error}");
    assert!(tasks.next().is_none());
}

/// A process ends right after its name was read, and another takes its place.
#[test]
fn the_fields_of_another_task_are_never_shown() {
    let (guest, _) = guest(3, Vec::new());
    let at = Model::at(1);
    let (vmi, kernel) =
        guest.build_racing(at + 0x30, &[(at + 0x20, 99 << 32 | 99), (at + 0x30, u64::from_le_bytes(*b"other\0\0\0"))]);
    let linux = Linux::with_kernel(&vmi, kernel).unwrap();
    let rows: Vec<_> = Guest::processes(&linux).collect();
    // The row of the one that ended is left out.
    assert_eq!(rows.iter().map(|row| row.as_ref().map_or(0, |row| row.pid)).collect::<Vec<_>>(), [1, 3]);
    let task = linux.process(99).unwrap();
    assert_eq!(task.name().unwrap(), "other");
}

/// The parent ends while its id is read: its child has another one by then.
#[test]
fn a_parent_that_ends_meanwhile_is_not_followed() {
    let (mut guest, _) = guest(3, Vec::new());
    guest.put(Model::at(2) + 0x50, &[Model::at(1)]);
    // When the id behind the old pointer is read, it is another's already.
    let (vmi, kernel) =
        guest.build_racing(Model::at(2) + 0x50, &[(Model::at(1) + 0x20, 77 << 32 | 77), (Model::at(2) + 0x50, Model::at(0))]);
    let linux = Linux::with_kernel(&vmi, kernel).unwrap();
    assert_eq!(linux.process(3).unwrap().parent_pid().unwrap(), 1);
}

const LEAF: u64 = 1 << 3 | 6;

/// Process 1 with the mm 0xc000, whose areas are in a maple tree with one leaf: at 0x30000, three areas; at 0x30100, two of them, the second
/// having grown.
fn areas() -> TestGuest {
    let (mut guest, _) = guest(1, Vec::new());
    guest.types.member("mm_struct", "mm_mt.ma_root", 0, 8);
    for (index, member) in ["brk", "start_brk", "start_stack"].into_iter().enumerate() {
        guest.types.member("mm_struct", member, 8 + 8 * index as u64, 8);
    }
    for (index, member) in ["vm_start", "vm_end", "vm_flags", "vm_file", "vm_ops"].into_iter().enumerate() {
        guest.types.member("vm_area_struct", member, 8 * index as u64, 8);
    }
    guest.put(Model::at(0) + 0x58, &[0xc000]);
    guest.put(0xc000, &[0x30000 | LEAF, 0, 0, u64::MAX]);
    let mut leaf = |at: u64, areas: &[(u64, u64, u64)]| {
        guest.put(at, &[1]);
        for (index, (area, start, end)) in areas.iter().enumerate() {
            guest.put(at + 8 + 8 * index as u64, &[end - 1]);
            guest.put(at + 128 + 8 * index as u64, &[*area]);
            guest.put(*area, &[*start, *end, 1, 0, 0]);
        }
        guest.put(at + 248, &[areas.len() as u64 - 1]);
    };
    leaf(0x30000, &[(0x31000, 0x1000, 0x2000), (0x31100, 0x4000, 0x5000), (0x31200, 0x7000, 0x8000)]);
    leaf(0x30100, &[(0x31000, 0x1000, 0x2000), (0x31300, 0x4000, 0x6000)]);
    guest
}

fn bounds<D: vmi_arch_x86::X86Driver>(linux: &Linux<'_, D>) -> Result<Vec<(u64, u64)>, Error> {
    linux.process(1)?.memory_areas().map(|area| area.map(|area| (area.start.get(), area.end.get()))).collect()
}

/// The leaf is replaced as soon as its first area was read: the second area grows and the third goes, its object taken by another
/// process's.
#[test]
fn areas_of_a_tree_that_changes_are_those_of_one_moment() {
    let words = [(0xc000, 0x30100 | LEAF), (0x30000, 0x30000), (0x31200, 0x9000), (0x31208, 0xa000)];
    let (vmi, kernel) = areas().build_racing(0x31000, &words);
    let linux = Linux::with_kernel(&vmi, kernel).unwrap();
    assert_eq!(bounds(&linux).unwrap(), [(0x1000, 0x2000), (0x4000, 0x6000)]);
}

/// A leaf that is replaced is marked first, and stays marked for several readings. One that stays so for good is the same error as
/// in an image.
#[test]
fn a_change_that_takes_long_is_waited_for() {
    for (reads, found) in [(7, true), (u32::MAX, false)] {
        let mut guest = areas();
        guest.put(0x30000, &[0x30000]);
        let mut left = reads;
        let (vmi, kernel) = guest.build_running(move |bytes, at| {
            left = left.saturating_sub(u32::from(at == 0x30000));
            if left == 0 {
                bytes[0x30000..][..8].copy_from_slice(&1u64.to_le_bytes());
            }
        });
        let linux = Linux::with_kernel(&vmi, kernel).unwrap();
        match bounds(&linux) {
            Ok(bounds) => assert!(found && bounds.len() == 3, "{bounds:?}"),
            Err(error) => assert!(!found && matches!(error.kind(), ErrorKind::Corrupt { .. }), "{error}"),
        }
    }
}
