//! The members of `task_struct` (kernel: include/linux/sched.h), each judged by its values in all tasks.
//!
//! The order of the members is the kernel's and has not changed since 3.x where it is relied on: `thread_info`, state, `stack`,
//! `usage`, `flags`; `tasks`, `mm`, `active_mm`, `exit_state`, `exit_code`, `exit_signal`, `pid`, `tgid`, `real_parent`, `parent`,
//! `group_leader`, `thread_node`, `start_time`, `real_cred`, `cred`, `comm`, `signal`.

use rustc_hash::FxHashSet;
use vmi_arch_x86::X86Driver;

use super::findings::Findings;
use super::sample::{Doubt, Object, Sample, only};
use super::task_list::COMM_LEN;
use super::tasks::{Tasks, is_task};
use super::types::Kind;
use super::view::View;

/// `PID_MAX_LIMIT` of 64-bit kernels (kernel: include/linux/threads.h).
const PID_MAX_LIMIT: u32 = 4 << 20;
/// `SIGCHLD` (kernel: arch/x86/include/uapi/asm/signal.h).
const SIGCHLD: u32 = 17;
/// `EXIT_DEAD | EXIT_ZOMBIE` (kernel: include/linux/sched.h, since 3.15).
const EXIT_BITS: u32 = 0x30;

/// Offsets in `task_struct` that further steps need.
#[derive(Debug)]
pub(super) struct TaskFields {
    pub(super) group_leader: Option<usize>,
    pub(super) pid: Option<usize>,
    /// Which members may be `mm`.
    pub(super) mm: Vec<usize>,
}

/// How much later than the next one a task may have been started, in nanoseconds.
const SLACK: u64 = 100_000_000;

/// No machine has run for so many nanoseconds (36 years): a word that is larger is something else, such as a pointer.
const MAX_UPTIME: u64 = 1 << 60;

/// Infers the members between `tasks` and `comm` that need no more than the tasks themselves.
pub(super) fn infer<D: X86Driver>(view: &View<'_, D>, tasks: &Tasks, findings: &mut Findings) -> TaskFields {
    let sample = &tasks.sample;
    let width = sample.width;
    findings.add("task_struct", "tasks", tasks.tasks, Kind::Structure("list_head"));
    findings.add("task_struct", "comm", tasks.comm, Kind::Bytes(COMM_LEN as u64));

    let group_leader =
        only(tasks.real_parent..tasks.comm, width, |offset| sample.all(|task| Some(task.word(offset, width)? == task.at)));
    let group_leader = findings.record("task_struct", "group_leader", group_leader, Kind::Pointer);
    parents(view, tasks, group_leader, findings);

    let pid = findings.record("task_struct", "pid", pid(tasks), Kind::Number(4));
    if let Some(pid) = pid {
        findings.add("task_struct", "tgid", pid.saturating_add(4), Kind::Number(4));
    }
    let before_pid = pid.unwrap_or(tasks.real_parent);
    let mm: Vec<usize> = (tasks.tasks..before_pid).step_by(width).filter(|&offset| is_mm(view, sample, offset)).collect();
    if let Some(&mm) = mm.first() {
        findings.record("task_struct", "exit_state", exit_state(sample, mm, before_pid), Kind::Number(4));
    }
    let start = only(tasks.real_parent..tasks.comm, width, |offset| is_start_time(sample, offset));
    if let Some(start) = findings.record("task_struct", "start_time", start, Kind::Number(8)) {
        findings.add("task_struct", "start_boottime", start.saturating_add(8), Kind::Number(8));
    }
    TaskFields { group_leader, pid, mm }
}

fn parents<D: X86Driver>(view: &View<'_, D>, tasks: &Tasks, leader: Option<usize>, findings: &mut Findings) {
    let width = tasks.sample.width;
    let Some(leader) = leader else {
        findings.missing("task_struct", "real_parent", Doubt::None);
        return;
    };
    for (name, offset) in [("real_parent", tasks.real_parent), ("parent", tasks.real_parent.saturating_add(width))] {
        let sound = tasks.sample.most(|task| Some(is_task(view, tasks, leader, task.word(offset, width)?)));
        findings.record("task_struct", name, sound.then_some(offset).ok_or(Doubt::None), Kind::Pointer);
    }
}

/// 0, 1 and 2 in the first three tasks, different in all, and equal to `tgid` behind it, as only leaders are in the list.
fn pid(tasks: &Tasks) -> Result<usize, Doubt> {
    let sample = &tasks.sample;
    only(tasks.tasks..tasks.real_parent, 4, |offset| {
        let mut seen = FxHashSet::default();
        let first = sample.objects.iter().zip(0..3).all(|(task, pid)| task.u32(offset) == Some(pid));
        first
            && sample.all(|task| {
                let pid = task.u32(offset)?;
                Some(pid < PID_MAX_LIMIT && task.u32(offset.checked_add(4)?)? == pid && seen.insert(pid))
            })
    })
}

/// Nothing in swapper and `kthreadd`; where something, a structure in memory, and `active_mm` behind it is the same.
fn is_mm<D: X86Driver>(view: &View<'_, D>, sample: &Sample, offset: usize) -> bool {
    let width = sample.width;
    let mut first = sample.words(offset);
    let [Some(Some(0)), Some(Some(init)), Some(Some(0))] = [first.next(), first.next(), first.next()] else { return false };
    let mut last = init;
    view.pointer(init).is_some()
        && sample.all(|task| {
            let mm = task.word(offset, width)?;
            let active = task.word(offset.checked_add(width)?, width)?;
            let known = mm == 0 || mm == last || view.pointer(mm).is_some();
            last = if mm == 0 { last } else { mm };
            Some(known && (mm == 0 || active == mm))
        })
}

/// `exit_state`, `exit_code`, `exit_signal`, `pdeath_signal` follow each other: the third is `SIGCHLD` in nearly all, and the first
/// is set just in those that have ended.
fn exit_state(sample: &Sample, mm: usize, end: usize) -> Result<usize, Doubt> {
    let count = sample.objects.len();
    let width = sample.width;
    let start = mm.saturating_add(width.saturating_mul(2));
    only(start..end.saturating_sub(8), 4, |offset| {
        let Some(signal) = offset.checked_add(8) else { return false };
        let usual = sample.count(|task| Some(task.u32(signal)? == SIGCHLD));
        let sound = |task: &Object| {
            let state = task.u32(offset)?;
            let alive = task.word(mm, width)? != 0;
            Some(state & !EXIT_BITS == 0 && !(alive && state != 0) && task.u32(signal)? & !0x7f == 0)
        };
        usual.saturating_mul(2) > count && sample.all(sound)
    })
}

/// Two times in nanoseconds: none in swapper, never (but for what processors that make tasks at the same time differ) less than in
/// the tasks before in the list, which is in the order of creation, and the second (which counts suspended time too) never less than the
/// first. (Where tasks lie one behind the other in the order of creation, pointers to them grow as well.)
fn is_start_time(sample: &Sample, offset: usize) -> bool {
    let mut before = 0u64;
    let mut steps = 0usize;
    let ordered = sample.all(|task| {
        let start = task.u64(offset)?;
        let boot = task.u64(offset.checked_add(8)?)?;
        let sound = start.saturating_add(SLACK) >= before && (start..MAX_UPTIME).contains(&boot);
        steps = steps.saturating_add(usize::from(start > before));
        before = before.max(start);
        Some(sound)
    });
    let swapper = sample.objects.first().and_then(|task| task.u64(offset));
    ordered && swapper == Some(0) && steps.saturating_mul(2) > sample.objects.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tasks that have these pairs of words at offset 0, swapper first.
    fn tasks(words: impl Iterator<Item = (u64, u64)>) -> Sample {
        let bytes = |(first, second): (u64, u64)| [first.to_le_bytes(), second.to_le_bytes()].concat();
        Sample { width: 8, objects: words.map(|pair| Object { at: 0, bytes: bytes(pair) }).collect() }
    }

    #[test]
    fn times_grow_and_pointers_are_no_times() {
        let second = |task: u64| task * 1_000_000_000;
        assert!(is_start_time(&tasks((0..9).map(|task| (second(task), second(task) + 5))), 0));
        assert!(!is_start_time(&tasks((0..9).map(|task| (second(9 - task), second(9 - task)))), 0), "they shrink");
        // Links between tasks that lie one behind the other in the order of creation.
        let pointer = |task: u64| if task == 0 { 0 } else { 0xffff_8880_0200_0000 + (task << 12) };
        assert!(!is_start_time(&tasks((0..9).map(|task| (pointer(task), pointer(task + 1)))), 0));
    }
}
