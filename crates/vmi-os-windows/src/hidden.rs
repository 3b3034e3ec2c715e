//! Processes by every view that there is of them, side by side: what hides from one is seen by another.

use rustc_hash::FxHashMap;
use vmi_arch_x86::X86Driver;
use vmi_core::{Error, Memory, PhysAddr, VirtAddr};

use crate::Windows;
use crate::pool_scan::PROCESS;

/// Which ways led to a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessViews {
    /// The list of active processes, `PsActiveProcessHead`.
    pub list: bool,
    /// The table of process and thread ids, `PspCidTable`.
    pub id_table: bool,
    /// A thread that belongs to it, in the table of ids or found by its pool tag.
    pub threads: bool,
    /// The handle that the subsystem's process, `csrss.exe`, holds to each process that it serves.
    pub subsystem: bool,
    /// Its pool tag, in physical memory.
    pub pool: bool,
}

/// A process, and which views know it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SeenProcess {
    /// Where its `_EPROCESS` is in the kernel's memory; `None` if it was found in physical memory only, and nothing there tells.
    pub object: Option<VirtAddr>,
    /// Where it is in physical memory, if it was found there.
    pub physical: Option<PhysAddr>,
    /// Process id.
    pub pid: u32,
    /// Name of at most 15 characters.
    pub name: String,
    /// Whether it has ended. Then it is missing in lists because of that, and not because something hides it.
    pub exited: bool,
    /// The views that know it.
    pub views: ProcessViews,
}

impl SeenProcess {
    /// Whether something hides it: it runs, and is not in the list of active processes.
    ///
    /// What only the scan of physical memory has found need not be in use any more: it may be what an ended process left behind. That case is no
    /// hidden process for this method, unless a thread or a table still knows it.
    pub fn is_hidden(&self) -> bool {
        let views = self.views;
        !self.exited && !views.list && (views.id_table || views.threads || views.subsystem)
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

/// Errors of one view that are kept: a broken table has one on every page.
const MAX_PROBLEMS: usize = 16;

/// Processes by the address of their objects while they are collected.
type Seen = FxHashMap<VirtAddr, ProcessViews>;

impl<D: X86Driver> Windows<'_, D> {
    /// Processes by every view: the list of active processes, the table of ids, the owners of threads, the handles of the subsystem, and the tags in
    /// physical memory. All of physical memory is read twice for the last.
    ///
    /// A view that fails is no error of the whole: it is told in [`ProcessSurvey::problems`].
    pub fn survey_processes(&self) -> ProcessSurvey {
        let mut survey = ProcessSurvey::default();
        let mut seen = Seen::default();
        self.seen_in_list(&mut seen, &mut survey);
        self.seen_by_ids(&mut seen, &mut survey);
        self.seen_by_subsystem(&mut seen, &mut survey);
        match self.scan_threads() {
            Ok(threads) => {
                for process in threads.iter().filter_map(|thread| thread.process) {
                    seen.entry(process).or_default().threads = true;
                }
            }
            Err(error) => survey.problem("threads by pool tag", error),
        }
        let mut pool = self.scan_processes().unwrap_or_else(|error| {
            survey.problem("processes by pool tag", error);
            Vec::new()
        });
        // Every object that is known by its address is somewhere in physical memory.
        let mut by_physical = FxHashMap::default();
        for &object in seen.keys() {
            if let Ok(translation) = self.space.translate(object) {
                by_physical.insert(translation.at, object);
            }
        }
        for found in &mut pool {
            found.object = by_physical.get(&found.physical).copied().or(found.object);
            if let Some(object) = found.object {
                seen.entry(object).or_default().pool = true;
            }
        }
        for (&object, &views) in &seen {
            let process = self.process_at(object);
            let row = process.pid().and_then(|pid| Ok((pid, process.name()?, process.has_exited()?)));
            // What a thread in memory that is no more in use names as its owner need not be a process any more.
            let is_process = self.space.read::<u8>(object).is_ok_and(|kind| kind & 0x7f == PROCESS);
            match row {
                Ok(_) if !is_process && !views.list => {}
                Ok((pid, name, exited)) => {
                    let physical = self.space.translate(object).ok().map(|translation| translation.at);
                    survey.processes.push(SeenProcess { object: Some(object), physical, pid, name, exited, views });
                }
                Err(error) => survey.problem("processes that views name", error),
            }
        }
        for found in pool.into_iter().filter(|found| found.object.is_none()) {
            let views = ProcessViews { pool: true, ..ProcessViews::default() };
            let exited = found.exited != 0;
            let physical = Some(found.physical);
            survey.processes.push(SeenProcess { object: None, physical, pid: found.pid, name: found.name, exited, views });
        }
        survey.processes.sort_by_key(|process| (process.pid, process.object, process.physical));
        survey
    }

    fn seen_in_list(&self, seen: &mut Seen, survey: &mut ProcessSurvey) {
        for process in self.processes() {
            match process {
                Ok(process) => seen.entry(process.address()).or_default().list = true,
                Err(error) => survey.problem("the list of active processes", error),
            }
        }
    }

    fn seen_by_ids(&self, seen: &mut Seen, survey: &mut ProcessSurvey) {
        const VIEW: &str = "the table of ids";
        let table = match self.id_table() {
            Ok(table) => table,
            Err(error) => return survey.problem(VIEW, error),
        };
        for entry in table.entries() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    survey.problem(VIEW, error);
                    continue;
                }
            };
            let object = self.object_at(entry.pointer);
            match object.type_name().as_deref() {
                Ok("Process") => seen.entry(object.address()).or_default().id_table = true,
                Ok("Thread") => match self.thread_at(object.address()).process() {
                    Ok(process) => seen.entry(process.address()).or_default().threads = true,
                    Err(error) => survey.problem(VIEW, error),
                },
                Ok(_) => {}
                // Without types an object that says of itself the id by which it is found is a process.
                Err(_) => {
                    if self.process_at(object.address()).pid().is_ok_and(|pid| u64::from(pid) == entry.handle) {
                        seen.entry(object.address()).or_default().id_table = true;
                    }
                }
            }
        }
    }

    fn seen_by_subsystem(&self, seen: &mut Seen, survey: &mut ProcessSurvey) {
        for process in self.processes().flatten() {
            if !process.name().is_ok_and(|name| name.eq_ignore_ascii_case("csrss.exe")) {
                continue;
            }
            for handle in process.handles() {
                match handle.and_then(|handle| Ok((handle.object(), handle.object().type_name()?))) {
                    Ok((object, kind)) if kind == "Process" => seen.entry(object.address()).or_default().subsystem = true,
                    Ok(_) => {}
                    Err(error) => survey.problem("the handles of csrss.exe", error),
                }
            }
        }
    }
}

impl ProcessSurvey {
    /// Notes what failed.
    fn problem(&mut self, view: &'static str, error: Error) {
        if self.problems.iter().filter(|(other, _)| *other == view).count() < MAX_PROBLEMS {
            self.problems.push((view, error));
        }
    }
}
