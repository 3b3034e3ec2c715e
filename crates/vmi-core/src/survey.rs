//! Processes by every view that their system has of them, side by side: what hides from one is seen by another.

use core::fmt;

use rustc_hash::FxHashMap;

use crate::{Error, ErrorKind, PhysAddr, Result, VirtAddr};

/// A way to the processes of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProcessView {
    /// The system's list: of Linux that of tasks, of Windows `PsActiveProcessHead`.
    List,
    /// The table of ids: of Linux the one that the guest's own `/proc` is made from, of Windows `PspCidTable`.
    IdTable,
    /// Of Linux: the children of each thread, from the first task on.
    Children,
    /// Of Windows: a thread that belongs to it, in the table of ids or found by its pool tag.
    Threads,
    /// Of Windows: the handle that the subsystem's process, `csrss.exe`, holds to each process that it serves.
    Subsystem,
    /// Of Windows: its pool tag, in physical memory.
    Pool,
}

impl ProcessView {
    /// Its name in one word: `list`, `id_table`, `children`, `threads`, `subsystem`, `pool`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::IdTable => "id_table",
            Self::Children => "children",
            Self::Threads => "threads",
            Self::Subsystem => "subsystem",
            Self::Pool => "pool",
        }
    }
}

impl fmt::Display for ProcessView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A process, and which views of its system know it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SeenProcess {
    /// Process id.
    pub pid: u32,
    /// Short name.
    pub name: String,
    /// Whether something hides it: it has not ended, and a view does not know it that knows all others. Of Linux these views are the list and the table of ids;
    /// of Windows it is the list, if the table of ids, a thread or the subsystem knows it: what the scan alone has found may be left of one that has ended.
    pub hidden: bool,
    /// Whether it has ended. Then views leave it out because of that, one after another.
    pub exited: bool,
    /// Each view that the system has, and whether it knows the process; `None` if the view could not be had whole, and so does not say that the process is
    /// not there.
    pub views: Vec<(ProcessView, Option<bool>)>,
    /// Where its structure is in kernel memory; `None` if only the scan of physical memory has found it, and nothing there tells.
    pub object: Option<VirtAddr>,
    /// Where its structure is in physical memory, if that was looked up.
    pub physical: Option<PhysAddr>,
}

impl SeenProcess {
    /// A process of which id, name and whether it has ended are known; the other fields can be set one by one.
    pub fn new(pid: u32, name: String, exited: bool) -> Self {
        Self { pid, name, hidden: false, exited, views: Vec::new(), object: None, physical: None }
    }

    /// Whether a view knows it; `None` if the view could not be had whole, or if the system has none such.
    pub fn known_to(&self, view: ProcessView) -> Option<bool> {
        self.views.iter().find(|(of, _)| *of == view).and_then(|(_, known)| *known)
    }
}

/// The processes of all views, and why views could not be had.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct ProcessSurvey {
    /// The processes, in ascending order of their ids.
    pub processes: Vec<SeenProcess>,
    /// Views that failed, wholly or in part, and why; also, by a view that names it, why a process could not be described. Of each view the first ones.
    pub problems: Vec<(ProcessView, Error)>,
}

/// Some of the views.
#[derive(Clone, Copy, Debug, Default)]
struct Views(u8);

impl Views {
    const fn of(view: ProcessView) -> Self {
        Self(1 << view as u8)
    }

    const fn contains(self, view: ProcessView) -> bool {
        self.0 & Self::of(view).0 != 0
    }

    fn insert(&mut self, view: ProcessView) {
        self.0 |= Self::of(view).0;
    }
}

/// Problems of one view that are kept: a broken table has one on every page.
const MAX_PROBLEMS: usize = 16;

/// What the views of a system have shown, while they are gone through one after another.
#[derive(Debug)]
pub struct Sightings {
    views: &'static [ProcessView],
    /// By the addresses of their objects.
    found: FxHashMap<VirtAddr, Views>,
    /// Those whose addresses are not known.
    elsewhere: Vec<(SeenProcess, Views)>,
    /// Views that were not had whole.
    broken: Views,
    problems: Vec<(ProcessView, Error)>,
}

impl Sightings {
    /// Nothing yet, of a system that has these views.
    pub fn new(views: &'static [ProcessView]) -> Self {
        Self { views, found: FxHashMap::default(), elsewhere: Vec::new(), broken: Views::default(), problems: Vec::new() }
    }

    /// Notes that a view knows the process whose object is at an address; or why it could not be read, as [`Sightings::problem`].
    pub fn add(&mut self, view: ProcessView, process: Result<VirtAddr>) {
        match process {
            Ok(object) => self.found.entry(object).or_default().insert(view),
            Err(error) => self.problem(view, error),
        }
    }

    /// Notes that a view knows a process whose object has no known address.
    pub fn add_elsewhere(&mut self, view: ProcessView, process: SeenProcess) {
        self.elsewhere.push((process, Views::of(view)));
    }

    /// Notes that a view failed, wholly or in part: from now on it says of no process that it is not there. What ended meanwhile
    /// ([`ErrorKind::Gone`]) is nowhere any more, and no problem.
    pub fn problem(&mut self, view: ProcessView, error: Error) {
        if !matches!(error.kind(), ErrorKind::Gone { .. }) {
            self.broken.insert(view);
            self.keep(view, error);
        }
    }

    fn keep(&mut self, view: ProcessView, error: Error) {
        if self.problems.iter().filter(|(of, _)| *of == view).count() < MAX_PROBLEMS {
            self.problems.push((view, error));
        }
    }

    /// The addresses of all objects so far, in no order.
    pub fn objects(&self) -> impl Iterator<Item = VirtAddr> {
        self.found.keys().copied()
    }

    /// Forgets what `view` does not know and `is_process` denies.
    pub fn retain(&mut self, view: ProcessView, is_process: impl Fn(VirtAddr) -> bool) {
        self.found.retain(|&object, known| known.contains(view) || is_process(object));
    }

    /// The survey: each process as `describe` reads it from its object, and whether something hides it as `hides` says by its other fields.
    pub fn into_survey(
        mut self,
        describe: impl Fn(VirtAddr) -> Result<SeenProcess>,
        hides: impl Fn(&SeenProcess) -> bool,
    ) -> ProcessSurvey {
        let mut all = core::mem::take(&mut self.elsewhere);
        let mut found: Vec<_> = core::mem::take(&mut self.found).into_iter().collect();
        found.sort_unstable_by_key(|(object, _)| *object);
        for (object, known) in found {
            match describe(object) {
                Ok(process) => all.push((SeenProcess { object: Some(object), ..process }, known)),
                Err(error) if matches!(error.kind(), ErrorKind::Gone { .. }) => {}
                Err(error) => {
                    if let Some(&view) = self.views.iter().find(|&&view| known.contains(view)) {
                        self.keep(view, error);
                    }
                }
            }
        }
        let knows = |known: Views, view| {
            let says = known.contains(view) || !self.broken.contains(view);
            says.then_some(known.contains(view))
        };
        let row = |(mut process, known): (SeenProcess, Views)| {
            process.views = self.views.iter().map(|&view| (view, knows(known, view))).collect();
            process.hidden = hides(&process);
            process
        };
        let mut processes: Vec<_> = all.into_iter().map(row).collect();
        processes.sort_by_key(|process| (process.pid, process.object, process.physical));
        ProcessSurvey { processes, problems: self.problems }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIEWS: &[ProcessView] = &[ProcessView::List, ProcessView::IdTable];

    fn absent() -> Error {
        Error::corrupt("a list", VirtAddr::new(0x1000))
    }

    fn survey(sightings: Sightings) -> ProcessSurvey {
        let describe = |object: VirtAddr| match object.get() {
            0xbad => Err(absent()),
            0xdead => Err(ErrorKind::Gone { what: "process 57005".to_owned() }.into()),
            object => Ok(SeenProcess::new(object as u32, "process".to_owned(), false)),
        };
        sightings.into_survey(describe, |process| process.known_to(ProcessView::List) == Some(false))
    }

    #[test]
    fn who_knows_whom() {
        let mut sightings = Sightings::new(VIEWS);
        sightings.add(ProcessView::List, Ok(VirtAddr::new(2)));
        for object in [3, 2] {
            sightings.add(ProcessView::IdTable, Ok(VirtAddr::new(object)));
        }
        sightings.add(ProcessView::IdTable, Err(ErrorKind::Gone { what: "a process".to_owned() }.into()));
        sightings.add_elsewhere(ProcessView::IdTable, SeenProcess::new(1, "elsewhere".to_owned(), true));
        let ProcessSurvey { processes, problems } = survey(sightings);
        assert!(problems.is_empty(), "{problems:?}");
        let rows: Vec<_> = processes.iter().map(|row| (row.pid, row.object.map(VirtAddr::get), row.hidden)).collect();
        assert_eq!(rows, [(1, None, true), (2, Some(2), false), (3, Some(3), true)]);
        assert_eq!(processes[1].views, [(ProcessView::List, Some(true)), (ProcessView::IdTable, Some(true))]);
        assert_eq!(processes[2].views, [(ProcessView::List, Some(false)), (ProcessView::IdTable, Some(true))]);
        assert_eq!(processes[2].known_to(ProcessView::Pool), None);
    }

    #[test]
    fn a_view_that_broke_says_of_nobody_that_it_is_not_there() {
        let mut sightings = Sightings::new(VIEWS);
        sightings.add(ProcessView::List, Ok(VirtAddr::new(2)));
        sightings.add(ProcessView::IdTable, Ok(VirtAddr::new(3)));
        for _ in 0..100 {
            sightings.add(ProcessView::List, Err(absent()));
        }
        let ProcessSurvey { processes, problems } = survey(sightings);
        assert_eq!(problems.len(), MAX_PROBLEMS);
        assert!(problems.iter().all(|(view, _)| *view == ProcessView::List));
        let seen: Vec<_> = processes.iter().map(|row| (row.known_to(ProcessView::List), row.hidden)).collect();
        assert_eq!(seen, [(Some(true), false), (None, false)]);
    }

    #[test]
    fn who_cannot_be_described_is_a_problem_but_breaks_no_view() {
        let mut sightings = Sightings::new(VIEWS);
        for object in [0xbad, 0xdead, 5] {
            sightings.add(ProcessView::IdTable, Ok(VirtAddr::new(object)));
        }
        let ProcessSurvey { processes, problems } = survey(sightings);
        assert!(matches!(problems[..], [(ProcessView::IdTable, _)]), "{problems:?}");
        assert!(processes.len() == 1 && processes[0].hidden, "{processes:?}");
    }

    #[test]
    fn what_is_no_process_is_forgotten_unless_the_list_has_it() {
        let mut sightings = Sightings::new(VIEWS);
        sightings.add(ProcessView::List, Ok(VirtAddr::new(2)));
        for object in [3, 4] {
            sightings.add(ProcessView::IdTable, Ok(VirtAddr::new(object)));
        }
        sightings.retain(ProcessView::List, |object| object.get() == 4);
        let mut left: Vec<_> = sightings.objects().map(VirtAddr::get).collect();
        left.sort_unstable();
        assert_eq!(left, [2, 4]);
    }
}
