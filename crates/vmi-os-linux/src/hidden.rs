//! Processes by every view that there is of them: what hides from one is seen by another.

use rustc_hash::FxHashSet;
use vmi_arch_x86::X86Driver;
use vmi_core::{ProcessSurvey, ProcessView, SeenProcess, Sightings, State, list};

use crate::linux::MAX_TASKS;
use crate::{Linux, Task};

const VIEWS: &[ProcessView] = &[ProcessView::List, ProcessView::IdTable, ProcessView::Children];

/// Whether something hides a process: the list of tasks and the table of ids know whoever has not ended.
fn hides(process: &SeenProcess) -> bool {
    !process.exited && [ProcessView::List, ProcessView::IdTable].iter().any(|&view| process.known_to(view) == Some(false))
}

impl<D: X86Driver> Linux<'_, D> {
    /// Processes by every view: the list of tasks, the table of process ids ([`Linux::threads_by_id`]), and the children of each thread. Of a running guest the
    /// views are of different moments: pause it, or what came or went meanwhile seems to hide.
    ///
    /// A view that fails is no error of the whole: it is told in [`ProcessSurvey::problems`].
    pub fn survey_processes(&self) -> ProcessSurvey {
        let mut seen = Sightings::new(VIEWS);
        for process in self.processes() {
            seen.add(ProcessView::List, process.map(|process| process.address()));
        }
        for thread in self.threads_by_id() {
            // Of a process, its first thread.
            let process = thread.and_then(|thread| Ok((thread.pid()? == thread.tgid()?).then_some(thread.address())));
            if let Some(process) = process.transpose() {
                seen.add(ProcessView::IdTable, process);
            }
        }
        self.see_children(&mut seen);
        let describe = |object| {
            let task = self.task_at(object);
            let exited = matches!(task.state()?, State::Zombie | State::Dead);
            Ok(SeenProcess::new(task.pid()?, task.name()?, exited))
        };
        seen.into_survey(describe, hides)
    }

    /// The children of each thread, theirs, and so on. The first task has all that have no other parent.
    fn see_children(&self, seen: &mut Sightings) {
        const VIEW: ProcessView = ProcessView::Children;
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
                        seen.problem(VIEW, error);
                        continue;
                    }
                };
                seen.add(VIEW, Ok(child.address()));
                for thread in child.threads() {
                    match thread {
                        Ok(thread) if known.insert(thread.address()) => pending.push(thread),
                        Ok(_) => {}
                        Err(error) => seen.problem(VIEW, error),
                    }
                }
            }
        }
    }
}
