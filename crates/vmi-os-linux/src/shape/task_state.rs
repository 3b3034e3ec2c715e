//! The members at the start of `task_struct`: the state, `stack` and `flags`.

use rustc_hash::FxHashSet;

use super::findings::Findings;
use super::sample::{Doubt, Object, Sample, only};
use super::types::Kind;

/// `PF_KTHREAD` (kernel: include/linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;
/// `TASK_IDLE`: `TASK_UNINTERRUPTIBLE | TASK_NOLOAD` (kernel: include/linux/sched.h, since 4.2; idle workers since 4.14).
const TASK_IDLE: u32 = 0x402;
/// All bits of a task's state (kernel: `TASK_STATE_MAX` in include/linux/sched.h, at most 0x40000 up to 6.12).
const STATE_BITS: u32 = 0x3_ffff;
/// `TASK_INTERRUPTIBLE | TASK_UNINTERRUPTIBLE`: a sleeping task has one of them.
const ASLEEP: u32 = 3;
/// The least size and alignment of a kernel stack on x86 (kernel: `THREAD_SIZE`: 8 KiB on i386, 16 KiB on x86-64).
const STACK_ALIGNMENT: u64 = 0x2000;
/// `stack` lies behind `thread_info` and the state. Measured: 0x14 to 0x20 (kernels 5.10 to 7.2).
const MAX_STACK: usize = 0x80;
/// `flags` follows `stack` and `usage`. Measured: 8 bytes (i386) and 12 bytes (x86-64) behind `stack`.
const MAX_FLAGS: usize = 0x40;

/// Infers `stack`, `flags` and `__state`; `mm` is known.
pub(super) fn infer(sample: &Sample, mm: usize, findings: &mut Findings) {
    let stack = only(sample.width..MAX_STACK, sample.width, |offset| is_stack(sample, offset));
    let Some(stack) = findings.record("task_struct", "stack", stack, Kind::Pointer) else {
        findings.missing("task_struct", "flags", Doubt::None);
        findings.missing("task_struct", "__state", Doubt::None);
        return;
    };
    let flags = only(stack..stack.saturating_add(MAX_FLAGS), 4, |offset| is_flags(sample, mm, offset));
    findings.record("task_struct", "flags", flags, Kind::Number(4));
    // `state` was a `long` before 5.14 (kernel commit 2f064a59a11f), which in little endian starts with the same 4 bytes.
    let state = only(0..stack, 4, |offset| is_state(sample, offset, stack));
    findings.record("task_struct", "__state", state, Kind::Number(4));
}

/// An aligned address of the kernel half, another in each task. Only tasks that have ended may have none: their stack is freed
/// before the structure (kernel: `put_task_stack` in `finish_task_switch`).
fn is_stack(sample: &Sample, offset: usize) -> bool {
    let mut seen = FxHashSet::default();
    let lowest = if sample.width == 4 { 1 << 30 } else { 0xff << 56 };
    let mut without = 0usize;
    sample.all(|task| {
        let stack = task.word(offset, sample.width)?;
        without = without.saturating_add(usize::from(stack == 0));
        Some(stack == 0 || stack >= lowest && stack.is_multiple_of(STACK_ALIGNMENT) && seen.insert(stack))
    }) && without.saturating_mul(4) < sample.objects.len()
        && sample.objects.iter().take(3).all(|task| task.word(offset, sample.width) != Some(0))
}

/// `PF_KTHREAD` is set in the tasks without user memory and in no other. A few may differ: tasks that have ended have no memory
/// either, and a kernel thread may borrow some (kernel: `kthread_use_mm`).
fn is_flags(sample: &Sample, mm: usize, offset: usize) -> bool {
    let kernel_thread = |task: &Object| Some(task.u32(offset)? & PF_KTHREAD != 0);
    let agree = sample.count(|task| Some(kernel_thread(task)? == (task.word(mm, sample.width)? == 0)));
    let first: Vec<Option<bool>> = sample.objects.iter().take(3).map(kernel_thread).collect();
    first == [Some(true), Some(false), Some(true)] && agree.saturating_mul(8) >= sample.objects.len().saturating_mul(7)
}

/// State bits only; running in swapper, asleep in most, and idle in some worker or (before 4.14, when workers were not) the last before
/// `stack`: there is at most padding between (a cache line's, in 4.13).
fn is_state(sample: &Sample, offset: usize, stack: usize) -> bool {
    let state = |task: &Object| task.u32(offset);
    let sound = sample.all(|task| Some(state(task)? & !STATE_BITS == 0 && state(task)? & ASLEEP != ASLEEP));
    let asleep = sample.count(|task| Some(state(task)? & ASLEEP != 0));
    let idle = sample.count(|task| Some(state(task)? == TASK_IDLE));
    let swapper = sample.objects.first().and_then(state);
    let last = (offset.saturating_add(4)..stack).step_by(4).all(|behind| sample.all(|task| Some(task.u32(behind)? == 0)));
    sound && swapper == Some(0) && (idle > 0 || last) && asleep.saturating_mul(4) >= sample.objects.len().saturating_mul(3)
}
