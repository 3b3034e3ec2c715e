//! The table of process ids (kernel: include/linux/pid.h, include/linux/pid_namespace.h).
//!
//! A task names its `struct pid` (`thread_pid`), and is a node of that structure's first list (`pid_links`); the two were the elements of one array of
//! three, `pids`, until 4.18. A `struct pid` has, for each namespace in which it has a number, that number and a pointer to the namespace: first those of
//! `init_pid_ns`. That one's member `idr` leads from the number back to the structure: an XArray since 4.20, a radix tree before, whose nodes have the
//! same layout, and another mark on the pointers to them. Before 4.15 the number is a node of a hash table instead.

use vmi_arch_x86::X86Driver;
use vmi_core::{Memory, Symbols, VirtAddr};

use super::findings::Findings;
use super::sample::{Doubt, Object, Sample, only};
use super::tasks::Tasks;
use super::types::Kind;
use super::view::View;
use crate::id_table::INITIAL;

/// Bytes of each `struct pid` that are judged. Measured: the number at 0x60 to 0x80 (x86-64, kernels 5.10 to 7.2).
const SIZE: usize = 0x100;
/// How far into the namespace the table may begin.
const MAX_TABLE: u64 = 0x100;
/// Entries of a node, and how many bits of a number choose among them (kernel: `XA_CHUNK_SIZE`, `RADIX_TREE_MAP_SIZE`).
const SLOTS: u64 = 64;
const SLOT_BITS: u8 = 6;
/// How deep its namespace is nested, at most 32, is the second number of a `struct pid` (kernel: `level`; `MAX_PID_NS_LEVEL`).
const LEVEL: u64 = 4;
const MAX_LEVEL: u32 = 32;
/// `hlist_head`s of a `struct pid`, at least.
const LISTS: usize = 3;

/// Where the two members of a task are, from the first of them on, in words.
#[derive(Clone, Copy, Debug)]
struct Form {
    id: usize,
    link: usize,
}

/// `thread_pid` and `pid_links[0]`; `pids[0].pid` and `pids[0].node`.
const FORMS: [Form; 2] = [Form { id: 0, link: 1 }, Form { id: 2, link: 0 }];

/// The names that the table has in the kernel, and what marks a pointer to one of its nodes.
struct Tree {
    root: &'static str,
    head: &'static str,
    node: &'static str,
    mark: u64,
}

const ARRAY: Tree = Tree { root: "xarray", head: "xa_head", node: "xa_node", mark: 2 };
const RADIX_TREE: Tree = Tree { root: "radix_tree_root", head: "rnode", node: "radix_tree_node", mark: 1 };

/// Infers `thread_pid`, `pid_links`, `struct pid` and the table in `init_pid_ns`; `group_leader` and `pid` are known.
pub(super) fn infer<D: X86Driver>(
    view: &View<'_, D>,
    tasks: &Tasks,
    leader: usize,
    pid: usize,
    symbols: &Symbols,
    findings: &mut Findings,
) {
    let sample = &tasks.sample;
    let width = sample.width;
    let mut place = None;
    let found = only(leader..tasks.comm, width, |offset| {
        let here = FORMS.iter().find_map(|form| links(view, sample, offset, *form));
        place = place.or(here);
        here.is_some()
    });
    let (Ok(_), Some(Links { id, link, lists })) = (found, place) else {
        return findings.missing("task_struct", "thread_pid", found.err().unwrap_or(Doubt::None));
    };
    if link < id {
        findings.add("pid_link", "node", 0, Kind::Words(2));
        findings.add("pid_link", "pid", id.saturating_sub(link), Kind::Pointer);
        findings.add("task_struct", "pids", link, Kind::Structures("pid_link", LISTS as u64));
    } else {
        findings.add("task_struct", "thread_pid", id, Kind::Pointer);
        findings.add("task_struct", "pid_links", link, Kind::Words(2));
    }
    findings.add("pid", "tasks", lists, Kind::Words(LISTS as u64));

    // Of the first task the structure is a variable, in which it is no node.
    let ids = sample.objects.iter().skip(1).filter_map(|task| {
        let (at, number) = (task.word(id, width)?, task.u32(pid)?);
        Some((number, Object { at, bytes: view.bytes(at, SIZE)? }))
    });
    let ids: Vec<_> = ids.collect();
    let mut space = None;
    let behind = lists.saturating_add(width.saturating_mul(LISTS));
    let numbers = only(behind..SIZE, width, |offset| {
        let here = namespace(&ids, offset, width);
        space = space.or(here);
        here.is_some()
    });
    let known = symbols.find(INITIAL).map(|symbol| symbol.address.get());
    let space = space.filter(|space| numbers.is_ok() && known.is_none_or(|known| known == *space));
    let (Ok(numbers), Some(space)) = (numbers, space) else {
        return findings.missing("pid", "numbers", numbers.err().unwrap_or(Doubt::None));
    };
    if known.is_none() {
        findings.symbol(INITIAL, VirtAddr::new(space));
    }
    let table = [ARRAY, RADIX_TREE].into_iter().find_map(|tree| {
        let leads = |head: u64, number, id| leads(view, space.checked_add(head)?, tree.mark, number, id);
        let mut heads = (0..MAX_TABLE).step_by(width);
        let head = heads.find(|head| nearly_all(&ids, |number, id| leads(*head, number, id.at)))?;
        Some((tree, head as usize))
    });
    match table {
        Some((tree, head)) => describe(&tree, head, width, findings),
        None if is_hashed(view, &ids, numbers) => findings.add("upid", "pid_chain", width.saturating_mul(2), Kind::Words(2)),
        None => findings.missing("pid_namespace", "idr", Doubt::None),
    }
    findings.add("upid", "nr", 0, Kind::Number(4));
    findings.add("upid", "ns", width, Kind::Pointer);
    findings.add("pid", "numbers", numbers, Kind::Structures("upid", 1));
}

/// Where the members of a task are, and the first list in a `struct pid`.
#[derive(Clone, Copy, Debug)]
struct Links {
    id: usize,
    link: usize,
    lists: usize,
}

/// The members in this form at `offset`: every task but the first is the only one of the list whose head is always as far in the structure that it names.
fn links<D: X86Driver>(view: &View<'_, D>, sample: &Sample, offset: usize, form: Form) -> Option<Links> {
    let width = sample.width;
    let place = |words: usize| offset.checked_add(words.checked_mul(width)?);
    let (id, link) = (place(form.id)?, place(form.link)?);
    let head = |task: &Object| task.word(link.checked_add(width)?, width)?.checked_sub(task.word(id, width)?);
    let lists = sample.objects.get(1).and_then(head).filter(|lists| (width as u64..SIZE as u64 / 2).contains(lists))?;
    let tasks = sample.objects.get(1..)?;
    let fits = |task: &Object| {
        let id = task.word(id, width)?;
        let is_first = view.pointer(id.checked_add(lists)?)? == task.at.checked_add(link as u64)?;
        // Between two lists of the structure it is as far in every task, too.
        let level = view.read::<u32>(VirtAddr::new(id.checked_add(LEVEL)?)).ok()?;
        Some(head(task)? == lists && task.word(link, width)? == 0 && is_first && level <= MAX_LEVEL)
    };
    most(tasks, fits).then_some(Links { id, link, lists: lists as usize })
}

/// Whether nearly all pass: of a process that has ended the id is taken away first.
fn most<T>(all: &[T], mut test: impl FnMut(&T) -> Option<bool>) -> bool {
    let (allowed, mut failed) = (all.len() / 16, 0usize);
    let mut passes = |item| {
        failed = failed.saturating_add(usize::from(test(item) != Some(true)));
        failed <= allowed
    };
    !all.is_empty() && all.iter().all(&mut passes)
}

fn nearly_all(ids: &[(u32, Object)], test: impl Fn(u32, &Object) -> Option<bool>) -> bool {
    most(ids, |(number, id)| test(*number, id))
}

/// The namespace, if at `offset` there is the number and behind it the same pointer in nearly all.
fn namespace(ids: &[(u32, Object)], offset: usize, width: usize) -> Option<u64> {
    let space = |id: &Object| id.word(offset.checked_add(width)?, width);
    let first = ids.first().and_then(|(_, id)| space(id)).filter(|space| *space != 0)?;
    nearly_all(ids, |number, id| Some(id.u32(offset)? == number && space(id)? == first)).then_some(first)
}

/// Whether the numbers are nodes of lists (kernel: `struct upid.pid_chain`): what leads to one, and what it leads to, know it.
fn is_hashed<D: X86Driver>(view: &View<'_, D>, ids: &[(u32, Object)], numbers: usize) -> bool {
    let width = view.width();
    nearly_all(ids, |_, id| {
        let chain = numbers.checked_add(width.checked_mul(2)?)?;
        let here = id.at.checked_add(chain as u64)?;
        let (next, before) = (id.word(chain, width)?, id.word(chain.checked_add(width)?, width)?);
        let known_behind = next == 0 || view.pointer(next.checked_add(width as u64)?)? == here;
        Some(view.pointer(before)? == here && known_behind)
    })
}

/// Where the entries of a node are: behind four bytes, two pointers and a list node (kernel: include/linux/xarray.h, and before it
/// include/linux/radix-tree.h).
fn slots(width: usize) -> u64 {
    (width as u64).saturating_mul(5)
}

/// Whether the tree whose first entry is at `head` leads from `number` to `id`.
fn leads<D: X86Driver>(view: &View<'_, D>, head: u64, mark: u64, number: u32, id: u64) -> Option<bool> {
    let width = view.width();
    let mut entry = view.pointer(head)?;
    let mut below = u8::MAX;
    while entry & 3 == mark {
        let node = entry & !3;
        let shift = view.read::<u8>(VirtAddr::new(node)).ok()?;
        let index = u64::from(number).checked_shr(shift.into())?;
        if shift >= below || !shift.is_multiple_of(SLOT_BITS) || below == u8::MAX && index >= SLOTS {
            return Some(false);
        }
        below = shift;
        let slot = (index % SLOTS).checked_mul(width as u64)?;
        entry = view.pointer(node.checked_add(slots(width))?.checked_add(slot)?)?;
    }
    Some(below != u8::MAX && entry == id)
}

fn describe(tree: &Tree, head: usize, width: usize, findings: &mut Findings) {
    // In front of the pointer are a lock and flags; until 4.16, when there were trees, flags alone.
    let before = head.min(if tree.mark == ARRAY.mark { 8 } else { width });
    findings.add(tree.root, tree.head, before, Kind::Pointer);
    findings.add("idr", "idr_rt", 0, Kind::Structure(tree.root));
    findings.add("pid_namespace", "idr", head.saturating_sub(before), Kind::Structure("idr"));
    findings.add(tree.node, "shift", 0, Kind::Number(1));
    findings.add(tree.node, "slots", slots(width) as usize, Kind::Words(SLOTS));
}
