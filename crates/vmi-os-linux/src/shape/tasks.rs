//! Where a task's structure starts, and copies of many of them.
//!
//! `real_parent` and `parent` are two adjacent pointers which, in `init_task`, init and `kthreadd` alike, name `init_task` itself
//! (kernel: struct task_struct in include/linux/sched.h; `INIT_TASK`; `rest_init`): that tells where the structure starts.

use rustc_hash::FxHashSet;
use vmi_arch_x86::X86Driver;

use super::ShapeError;
use super::sample::{Object, Sample};
use super::task_list::{COMM_LEN, TaskList};
use super::view::View;

/// How far before `tasks` the structure may start. Measured: 0x1a4 to 0xa28 bytes (kernels 5.10 to 7.2).
const MAX_BEFORE: u64 = 0x3000;
/// How much behind the name is copied: `signal` is there. Measured: 0x60 to 0x68 bytes behind it.
const BEHIND_COMM: usize = 0x200;
/// Tasks that are judged; of more, an even selection.
const MAX_SAMPLE: usize = 4096;

/// The tasks of the list, and where the members that led to them are.
#[derive(Debug)]
pub(super) struct Tasks {
    /// Copies from the start of the structure to some way behind the name; `init_task`, init and `kthreadd` first.
    pub(super) sample: Sample,
    /// The start of every task in the list.
    pub(super) bases: FxHashSet<u64>,
    pub(super) tasks: usize,
    pub(super) real_parent: usize,
    pub(super) comm: usize,
}

impl Tasks {
    /// Reads the tasks of `list`.
    pub(super) fn read<D: X86Driver>(list: &TaskList<'_, D>) -> Result<Self, ShapeError> {
        let (before, real_parent) = base(list)?;
        let width = list.view.width();
        let tasks = before as usize;
        let comm = before.saturating_add(list.to_comm) as usize;
        let size = comm.saturating_add(COMM_LEN).saturating_add(BEHIND_COMM);
        let stride = list.nodes.len().div_ceil(MAX_SAMPLE).max(1);
        let chosen = list.nodes.iter().enumerate().filter(|(index, _)| *index < 3 || index.is_multiple_of(stride));
        let objects: Vec<Object> = chosen
            .filter_map(|(_, &node)| {
                let at = node.checked_sub(before)?;
                Some(Object { at, bytes: list.view.bytes(at, size)? })
            })
            .collect();
        let bases = list.nodes.iter().filter_map(|node| node.checked_sub(before)).collect();
        Ok(Self { sample: Sample { width, objects }, bases, tasks, real_parent, comm })
    }

    /// The address of `init_task`.
    pub(super) fn init_task(&self) -> u64 {
        self.sample.objects.first().map_or(0, |task| task.at)
    }
}

/// How far before its list node a task starts, and the offset of `real_parent` in it.
fn base<D: X86Driver>(list: &TaskList<'_, D>) -> Result<(u64, usize), ShapeError> {
    let width = list.view.width() as u64;
    let view = &list.view;
    let [swapper, init, kthreadd, ..] = list.nodes.as_slice() else { return Err(ShapeError::NoBase) };
    let pair = |node: u64, offset: u64| -> Option<u64> {
        let first = view.pointer(node.checked_add(offset)?)?;
        let second = view.pointer(node.checked_add(offset)?.checked_add(width)?)?;
        (first == second).then_some(first)
    };
    let mut found = None;
    for offset in (0..list.to_comm).step_by(width as usize) {
        let Some(base) = pair(*swapper, offset) else { continue };
        let Some(before) = swapper.checked_sub(base).filter(|before| *before < MAX_BEFORE) else { continue };
        if pair(*init, offset) != Some(base) || pair(*kthreadd, offset) != Some(base) || before == 0 {
            continue;
        }
        if found.is_some() {
            return Err(ShapeError::NoBase);
        }
        found = Some((before, before.saturating_add(offset) as usize));
    }
    found.ok_or(ShapeError::NoBase)
}

/// Whether `at` is the start of a task: a listed one, or a thread whose leader is listed.
pub(super) fn is_task<D: X86Driver>(view: &View<'_, D>, tasks: &Tasks, group_leader: usize, at: u64) -> bool {
    tasks.bases.contains(&at)
        || at.checked_add(group_leader as u64).and_then(|at| view.pointer(at)).is_some_and(|leader| tasks.bases.contains(&leader))
}
