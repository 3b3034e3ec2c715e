//! The children of a task: `children` and `sibling` in `task_struct` (kernel: include/linux/sched.h).
//!
//! They follow `real_parent` and `parent`, and `group_leader` follows them. `children` is the head of a list of the `sibling` of each child.

use vmi_arch_x86::X86Driver;

use super::findings::Findings;
use super::sample::{Doubt, Object};
use super::tasks::Tasks;
use super::types::Kind;
use super::view::View;

/// Infers `children` and `sibling`; `group_leader` is known.
pub(super) fn infer<D: X86Driver>(view: &View<'_, D>, tasks: &Tasks, leader: usize, findings: &mut Findings) {
    let sample = &tasks.sample;
    let width = sample.width;
    let behind = |pointers: usize| tasks.real_parent.saturating_add(width.saturating_mul(pointers));
    let (children, sibling) = (behind(2), behind(4));
    let found = leader == behind(6)
        && sample.most(|task| is_list(view, task, children, width))
        && sample.most(|task| is_list(view, task, sibling, width))
        && first_child(tasks, children, sibling) == Some(true);
    for (name, offset) in [("children", children), ("sibling", sibling)] {
        findings.record("task_struct", name, found.then_some(offset).ok_or(Doubt::None), Kind::Structure("list_head"));
    }
}

/// A node whose neighbours know it: itself, if the list is empty.
fn is_list<D: X86Driver>(view: &View<'_, D>, task: &Object, offset: usize, width: usize) -> Option<bool> {
    let here = task.at.checked_add(offset as u64)?;
    let (next, prev) = (task.word(offset, width)?, task.word(offset.checked_add(width)?, width)?);
    Some(view.pointer(next.checked_add(width as u64)?)? == here && view.pointer(prev)? == here)
}

/// Whether the first child of the first task is init, which it made first.
fn first_child(tasks: &Tasks, children: usize, sibling: usize) -> Option<bool> {
    let [swapper, init, ..] = tasks.sample.objects.as_slice() else { return None };
    Some(swapper.word(children, tasks.sample.width)? == init.at.checked_add(sibling as u64)?)
}
