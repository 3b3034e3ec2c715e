//! Processes by every view that there is of them, side by side: what hides from one is seen by another.

use rustc_hash::{FxHashMap, FxHashSet};
use vmi_arch_x86::X86Driver;
use vmi_core::{Error, ErrorKind, Result, State, VirtAddr, list};

use crate::linux::MAX_TASKS;
use crate::{Linux, Task};

/// Which ways led to a process: `None` if the way could not be gone to its end, and so does not say that the process is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessViews {
    /// The list of tasks.
    pub list: Option<bool>,
    /// The table of process ids, which the guest's own `/proc` is made from: [`Linux::threads_by_id`].
    pub id_table: Option<bool>,
    /// The children of each thread, from the first task on.
    pub children: Option<bool>,
}

/// A process, and which views know it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SeenProcess {
    /// Where its `struct task_struct` is in the kernel's memory.
    pub object: VirtAddr,
    /// Process id.
    pub pid: u32,
    /// Name of at most 15 bytes.
    pub name: String,
    /// Whether it has ended, and is only there until its parent asks: views leave it out one after another.
    pub exited: bool,
    /// The views that know it.
    pub views: ProcessViews,
}

impl SeenProcess {
    /// Whether something hides it: it has not ended, and is not in the list of tasks or not in the table of ids.
    pub fn is_hidden(&self) -> bool {
        !self.exited && [self.views.list, self.views.id_table].contains(&Some(false))
    }
}

/// The processes of all views, by id; and the views that could not be had.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct ProcessSurvey {
    /// The processes, in ascending order of their ids.
    pub processes: Vec<SeenProcess>,
    /// Views that failed, wholly or in part: their name and why.
    pub problems: Vec<(&'static str, Error)>,
}

/// Errors of one view that are kept.
const MAX_PROBLEMS: usize = 16;

/// A way to the processes.
struct View {
    name: &'static str,
    of: fn(&mut ProcessViews) -> &mut Option<bool>,
}

const LIST: View = View { name: "the task list", of: |views| &mut views.list };
const ID_TABLE: View = View { name: "the table of process ids", of: |views| &mut views.id_table };
const CHILDREN: View = View { name: "the children of threads", of: |views| &mut views.children };

/// What is known so far: views of processes by the address of their first threads.
#[derive(Default)]
struct Seen {
    processes: FxHashMap<VirtAddr, ProcessViews>,
    problems: Vec<(&'static str, Error)>,
}

impl Seen {
    fn problem(&mut self, view: &'static str, error: Error) {
        // What ended meanwhile is nowhere any more.
        let is_gone = matches!(error.kind(), ErrorKind::Gone { .. });
        if !is_gone && self.problems.iter().filter(|(of, _)| *of == view).count() < MAX_PROBLEMS {
            self.problems.push((view, error));
        }
    }

    /// Notes a process of a view, or why it could not be read.
    fn add(&mut self, view: &View, process: Result<VirtAddr>) {
        match process {
            Ok(at) => *(view.of)(self.processes.entry(at).or_default()) = Some(true),
            Err(error) => self.problem(view.name, error),
        }
    }

    /// A view that had no problem does not know the others.
    fn end(&mut self, view: &View) {
        if self.problems.iter().all(|(of, _)| *of != view.name) {
            self.processes.values_mut().for_each(|views| _ = (view.of)(views).get_or_insert(false));
        }
    }
}

impl<D: X86Driver> Linux<'_, D> {
    /// Processes by every view: the list of tasks, the table of process ids, and the children of each thread. Of a running guest the views are of different
    /// moments: pause it, or what came or went meanwhile seems to hide.
    ///
    /// A view that fails is no error of the whole: it is told in [`ProcessSurvey::problems`].
    pub fn survey_processes(&self) -> ProcessSurvey {
        let mut seen = Seen::default();
        for process in self.processes() {
            seen.add(&LIST, process.map(|process| process.address()));
        }
        for thread in self.threads_by_id() {
            // Of a process, its first thread.
            let process = thread.and_then(|thread| Ok((thread.pid()? == thread.tgid()?).then_some(thread.address())));
            if let Some(process) = process.transpose() {
                seen.add(&ID_TABLE, process);
            }
        }
        self.see_children(&mut seen);
        [LIST, ID_TABLE, CHILDREN].iter().for_each(|view| seen.end(view));
        let mut processes = Vec::new();
        for (object, views) in core::mem::take(&mut seen.processes) {
            let task = self.task_at(object);
            let row = || {
                let exited = matches!(task.state()?, State::Zombie | State::Dead);
                Ok(SeenProcess { object, pid: task.pid()?, name: task.name()?, exited, views })
            };
            match row() {
                Ok(row) => processes.push(row),
                Err(error) => seen.problem("processes that views name", error),
            }
        }
        processes.sort_by_key(|process| (process.pid, process.object));
        ProcessSurvey { processes, problems: seen.problems }
    }

    /// The children of each thread, theirs, and so on. The first task has all that have no other parent.
    fn see_children(&self, seen: &mut Seen) {
        let (sibling, pid) = (self.layout.task.sibling, self.layout.task.pid);
        let identity = |node| self.read(sibling.owner(node)?, pid);
        let mut known = FxHashSet::default();
        let mut pending = vec![self.idle_task()];
        while let Some(parent) = pending.pop() {
            let head = self.layout.task.children.of(parent.address());
            let nodes = head.map(|head| list::nodes(&self.space, head, "the children of a thread", MAX_TASKS, identity));
            for node in list::rows(nodes) {
                let child = match node.and_then(|node| Ok(Task::new(self, sibling.owner(node.at)?, node.identity))) {
                    Ok(child) => child,
                    Err(error) => {
                        seen.problem(CHILDREN.name, error);
                        continue;
                    }
                };
                seen.add(&CHILDREN, Ok(child.address()));
                for thread in child.threads() {
                    match thread {
                        Ok(thread) if known.insert(thread.address()) => pending.push(thread),
                        Ok(_) => {}
                        Err(error) => seen.problem(CHILDREN.name, error),
                    }
                }
            }
        }
    }
}
