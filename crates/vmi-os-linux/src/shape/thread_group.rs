//! The threads of a process: `thread_node` in `task_struct`, `thread_head` in `signal_struct` (kernel: include/linux/sched.h and
//! include/linux/sched/signal.h, both since 3.14).
//!
//! `signal->thread_head` is the head of a list of the `thread_node` of every thread, the leader's first; `signal` is the same in all of them.

use vmi_arch_x86::X86Driver;

use super::findings::Findings;
use super::sample::{Doubt, Object, Sample, only};
use super::task_list::COMM_LEN;
use super::tasks::Tasks;
use super::types::Kind;
use super::view::View;

/// `thread_head` follows three or four 4-byte numbers (`sigcnt`, `live`, `nr_threads`, `quick_threads` since 6.0).
const HEADS: [u64; 2] = [0xc, 0x10];
/// Offset of `nr_threads` in `signal_struct`, behind `sigcnt` and `live` (kernel: include/linux/sched/signal.h).
const NR_THREADS: usize = 8;
/// How far behind `comm` the pointer `signal` is searched. Measured: 0x30 to 0x68 bytes.
const MAX_SIGNAL: usize = 0x180;
/// Threads of one process that are visited to compare with `nr_threads`.
const MAX_THREADS: u32 = 65_536;

/// Infers `thread_node`, `signal` and `thread_head`; `group_leader` is known.
pub(super) fn infer<D: X86Driver>(view: &View<'_, D>, tasks: &Tasks, leader: usize, findings: &mut Findings) {
    let sample = &tasks.sample;
    let width = sample.width;
    let behind = tasks.comm.saturating_add(COMM_LEN);
    let mut place = None;
    let node = only(leader..tasks.comm, width, |node| {
        if !sample.most(|task| is_node(view, task, node, width)) {
            return false;
        }
        let signals = behind..behind.saturating_add(MAX_SIGNAL);
        let signal = only(signals, width, |signal| {
            head(sample, node, signal)
                .is_some_and(|head| sample.most(|task| counts(view, task, node, signal, head, leader, width)))
        });
        if let Ok(signal) = signal {
            place = head(sample, node, signal).map(|head| (signal, head));
        }
        signal.is_ok()
    });
    findings.record("task_struct", "thread_node", node, Kind::Structure("list_head"));
    match place {
        Some((signal, head)) if node.is_ok() => {
            findings.add("task_struct", "signal", signal, Kind::Pointer);
            findings.add("signal_struct", "nr_threads", NR_THREADS, Kind::Number(4));
            findings.add("signal_struct", "thread_head", head as usize, Kind::Structure("list_head"));
        }
        _ => findings.missing("task_struct", "signal", Doubt::None),
    }
}

/// A list node whose neighbours know it, and which is not alone.
fn is_node<D: X86Driver>(view: &View<'_, D>, task: &Object, node: usize, width: usize) -> Option<bool> {
    let here = task.at.checked_add(node as u64)?;
    let next = task.word(node, width)?;
    let prev = task.word(node.checked_add(width)?, width)?;
    Some(next != here && view.pointer(next.checked_add(width as u64)?)? == here && view.pointer(prev)? == here)
}

/// How far in `signal_struct` the list head is, if it is the same in nearly all tasks: the leader's node follows it.
fn head(sample: &Sample, node: usize, signal: usize) -> Option<u64> {
    let distance = |task: &Object| {
        let head = task.word(node.checked_add(sample.width)?, sample.width)?;
        head.checked_sub(task.word(signal, sample.width)?)
    };
    let first = sample.objects.first().and_then(distance)?;
    (HEADS.contains(&first) && sample.most(|task| Some(distance(task)? == first))).then_some(first)
}

/// Whether as many threads as `nr_threads` says are in the list, all with this task as leader.
fn counts<D: X86Driver>(
    view: &View<'_, D>,
    task: &Object,
    node: usize,
    signal: usize,
    head: u64,
    leader: usize,
    width: usize,
) -> Option<bool> {
    let signal = task.word(signal, width)?;
    let head = signal.checked_add(head)?;
    let said = vmi_core::Memory::read::<u32>(view, vmi_core::VirtAddr::new(signal.checked_add(NR_THREADS as u64)?)).ok()?;
    let mut threads = 0u32;
    let mut at = view.pointer(head)?;
    while at != head && threads < said.min(MAX_THREADS) {
        let base = at.checked_sub(node as u64)?;
        if view.pointer(base.checked_add(leader as u64)?)? != task.at {
            return Some(false);
        }
        threads = threads.checked_add(1)?;
        at = view.pointer(at)?;
    }
    Some(threads > 0 && (at == head && threads == said || threads == MAX_THREADS))
}
