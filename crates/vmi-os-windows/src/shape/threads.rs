//! Threads: where a process has the list of them, and where a thread has its ids and its links.

use std::collections::BTreeMap;

use vmi_arch_x86::X86Driver;
use vmi_core::{AddressSpace, VirtAddr, list};

use super::findings::{Doubt, Findings, only};
use super::object::{Object, is_kernel, is_user_page};
use super::processes::{Process, Processes};

/// The type of a thread object in its header (see [`crate::discover::PROCESS_OBJECT`]).
const THREAD_OBJECT: u8 = 6;
/// Threads of one process, and processes, that are looked at.
const MAX_THREADS: usize = 24;
const MAX_PROCESSES: usize = 6;
/// Nodes of one list, which is the count of the threads.
const MAX_NODES: usize = 1 << 16;
/// The links of a thread lie at most this far behind its start, and its ids no nearer.
const LINKS_REACH: u64 = 0x900;
const FIRST_ID: usize = 0x180;
/// Fewer threads than this may look like one by chance.
const MIN_THREADS: usize = 3;
/// `TEB.NtTib.Self` and `TEB.ClientId` (winternl.h, and in all kernels of the built-in table).
const TEB_64: (u64, u64) = (0x30, 0x40);
const TEB_32: (u64, u64) = (0x18, 0x20);

/// A list of threads in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// Where the process has its head.
    head: usize,
    /// Where a thread has its links, and where its ids.
    links: u64,
    ids: usize,
}

/// A thread that was found.
struct Thread<'p> {
    process: &'p Process,
    object: Object,
}

/// Looks for the lists of threads and the members of `_KTHREAD` and `_ETHREAD`.
pub(super) fn infer<D: X86Driver>(space: &AddressSpace<'_, D>, processes: &Processes, findings: &mut Findings) {
    let candidates = candidates(space, processes);
    // A process has two lists of its threads: the scheduler's before its links, and one behind them. Both must agree where a thread has its ids.
    let of = |behind: bool| only_candidate(candidates.iter().filter(|it| (it.head > processes.links) == behind));
    let (kernel, executive) = (of(false), of(true));
    let executive = match (kernel, executive) {
        (Ok(kernel), Ok(executive)) if kernel.ids != executive.ids || kernel.links >= executive.links => Err(Doubt::Several(2)),
        (_, executive) => executive,
    };
    findings.record("_EPROCESS", "ThreadListHead", executive.map(|it| it.head));
    findings.record("_ETHREAD", "ThreadListEntry", executive.map(|it| it.links as usize));
    findings.record("_ETHREAD", "Cid", executive.map(|it| it.ids));
    findings.record("_KPROCESS", "ThreadListHead", kernel.map(|it| it.head));
    findings.record("_KTHREAD", "ThreadListEntry", kernel.map(|it| it.links as usize));
    let Ok(executive) = executive else { return };
    let few: Vec<&Process> = processes.all.iter().take(MAX_PROCESSES).collect();
    let threads: Vec<Thread<'_>> = few.iter().flat_map(|process| threads(space, process, executive)).collect();
    findings.record("_EPROCESS", "ActiveThreads", active(space, processes, executive));
    findings.record("_KTHREAD", "Teb", environment(space, processes, &threads, executive));
    owners(&threads, kernel.ok(), findings);
}

/// The lists of threads that System has, as far as each of their nodes lies in a thread with System's id.
fn candidates<D: X86Driver>(space: &AddressSpace<'_, D>, processes: &Processes) -> Vec<Candidate> {
    let Some(system) = processes.system() else { return Vec::new() };
    let mut found = Vec::new();
    for head in system.object.offsets(0) {
        let nodes = nodes(space, system, head, MAX_THREADS);
        if nodes.len() < MIN_THREADS || head == processes.links {
            continue;
        }
        // How far before a node a thread begins, and where it has its ids: what holds for all nodes.
        let mut votes: BTreeMap<(u64, usize), usize> = BTreeMap::new();
        for &node in &nodes {
            for back in (0x10..=LINKS_REACH).step_by(8) {
                let Some(start) = node.checked_sub(back) else { continue };
                if let Some(thread) = Object::read(space, start, THREAD_OBJECT) {
                    for ids in id_places(&thread, system.id) {
                        let votes = votes.entry((back, ids)).or_default();
                        *votes = votes.saturating_add(1);
                    }
                }
            }
        }
        let all = votes.into_iter().filter(|(_, count)| *count == nodes.len());
        found.extend(all.map(|((links, ids), _)| Candidate { head, links, ids }));
    }
    found.retain(|candidate| ids_differ(space, system, candidate));
    found
}

/// Where a thread can have the id of its process and, behind it, its own.
fn id_places(thread: &Object, process: u64) -> Vec<usize> {
    let own = |at: usize| thread.word(at.saturating_add(thread.width)).is_some_and(|id| id != 0 && id % 4 == 0 && id < 1 << 26);
    thread.offsets(FIRST_ID).filter(|&at| thread.word(at) == Some(process) && own(at)).collect()
}

/// Whether the threads of a list have ids of their own.
fn ids_differ<D: X86Driver>(space: &AddressSpace<'_, D>, process: &Process, candidate: &Candidate) -> bool {
    let threads = threads(space, process, *candidate);
    let mut ids: Vec<_> =
        threads.iter().filter_map(|thread| thread.object.word(candidate.ids.checked_add(thread.object.width)?)).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    count >= MIN_THREADS && ids.len() == count
}

/// The nodes of the list that a process may have at `head`; none if it is no list, or does not close. At most `limit` are given.
fn nodes<D: X86Driver>(space: &AddressSpace<'_, D>, process: &Process, head: usize, limit: usize) -> Vec<VirtAddr> {
    let width = process.object.width;
    let at = process.object.at.wrapping_add(head as u64);
    let pointers = [process.object.word(head), process.object.word(head.saturating_add(width))];
    let mode = space.mode();
    let are_kernel = pointers.iter().all(|pointer| pointer.is_some_and(|pointer| is_kernel(mode, pointer)));
    let [Some(first), Some(last)] = pointers else { return Vec::new() };
    let back = |at: u64| space.read_pointer(VirtAddr::new(at)).is_ok_and(|to| to == at_of(process, head));
    if !are_kernel || first == at.get() || !back(first.wrapping_add(width as u64)) || !back(last) {
        return Vec::new();
    }
    let mut nodes = Vec::new();
    for node in list::List::new(space, at, "a list of threads", MAX_NODES) {
        let Ok(node) = node else { return Vec::new() };
        if nodes.len() < limit {
            nodes.push(node);
        }
    }
    nodes
}

fn at_of(process: &Process, head: usize) -> VirtAddr {
    process.object.at.wrapping_add(head as u64)
}

/// The threads of a process, at most some of them.
fn threads<'p, D: X86Driver>(space: &AddressSpace<'_, D>, process: &'p Process, list: Candidate) -> Vec<Thread<'p>> {
    let nodes = nodes(space, process, list.head, MAX_THREADS);
    let thread = |node: VirtAddr| Object::read(space, node.checked_sub(list.links)?, THREAD_OBJECT);
    nodes.into_iter().filter_map(thread).map(|object| Thread { process, object }).collect()
}

fn only_candidate<'c>(candidates: impl Iterator<Item = &'c Candidate>) -> Result<Candidate, Doubt> {
    let all: Vec<_> = candidates.copied().collect();
    match all.as_slice() {
        [] => Err(Doubt::None),
        [one] => Ok(*one),
        more => Err(Doubt::Several(more.len())),
    }
}

/// How many threads a process has: the length of their list, right behind its head in new releases, a little further in others.
fn active<D: X86Driver>(space: &AddressSpace<'_, D>, processes: &Processes, list: Candidate) -> Result<usize, Doubt> {
    let counts: Vec<_> = processes
        .all
        .iter()
        .take(MAX_PROCESSES)
        .map(|process| (process, nodes(space, process, list.head, MAX_NODES).len()))
        .filter(|(_, count)| *count > 0)
        .collect();
    // One count for all would tell nothing.
    let differ = counts.iter().any(|(_, count)| Some(*count) != counts.first().map(|(_, first)| *first));
    if !differ {
        return Err(Doubt::None);
    }
    let from = list.head.saturating_add(processes.mode_width().saturating_mul(2));
    let places = (from..from.saturating_add(0x40)).step_by(4);
    only(
        places.filter(|&at| counts.iter().all(|(process, count)| process.object.u32(at).is_some_and(|it| it as usize == *count))),
    )
}

/// The thread's environment block: a page of user mode that names itself and the thread.
fn environment<D: X86Driver>(
    space: &AddressSpace<'_, D>,
    processes: &Processes,
    threads: &[Thread<'_>],
    list: Candidate,
) -> Result<usize, Doubt> {
    let (own, ids) = if processes.mode_width() == 8 { TEB_64 } else { TEB_32 };
    let is_block = |thread: &Thread<'_>, at: u64| {
        let user = space.vmi().address_space(thread.process.root, processes.mode);
        let word = |member: u64| user.read_pointer(VirtAddr::new(at.wrapping_add(member))).ok().map(VirtAddr::get);
        let width = thread.object.width as u64;
        let id = |n: usize| thread.object.word(list.ids.wrapping_add(n.wrapping_mul(thread.object.width)));
        word(own) == Some(at) && word(ids) == id(0) && word(ids.wrapping_add(width)) == id(1)
    };
    let first = threads.first().ok_or(Doubt::None)?;
    only(first.object.offsets(0).filter(|&at| {
        let values: Vec<_> = threads.iter().map(|thread| (thread, thread.object.word(at).unwrap_or_default())).collect();
        let pages = values.iter().filter(|(_, value)| *value != 0);
        pages.clone().next().is_some()
            && pages.clone().all(|(_, value)| is_user_page(processes.mode, *value))
            && pages.clone().any(|(thread, value)| is_block(thread, *value))
    }))
}

/// Where a thread has its process: in its state for asynchronous procedure calls, which comes first, and once more, in the thread of the kernel
/// or (before Vista) of the executive.
fn owners(threads: &[Thread<'_>], kernel: Option<Candidate>, findings: &mut Findings) {
    let Some(first) = threads.first() else { return };
    let holds = |at: &usize| threads.iter().all(|thread| thread.object.word(*at) == Some(thread.process.object.at.get()));
    let places: Vec<usize> = first.object.offsets(0).filter(holds).collect();
    let process = first.object.width.saturating_mul(4);
    if let [state, owner] = places.as_slice() {
        findings.record("_KTHREAD", "ApcState", state.checked_sub(process).ok_or(Doubt::None));
        let in_kernel = kernel.is_none_or(|kernel| (*owner as u64) < kernel.links);
        let (structure, member) = if in_kernel { ("_KTHREAD", "Process") } else { ("_ETHREAD", "ThreadsProcess") };
        findings.record(structure, member, Ok(*owner));
    } else {
        findings.record("_KTHREAD", "Process", Err(if places.is_empty() { Doubt::None } else { Doubt::Several(places.len()) }));
    }
}
