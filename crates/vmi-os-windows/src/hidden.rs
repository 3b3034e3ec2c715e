//! Processes by every view that there is of them: what hides from one is seen by another.

use rustc_hash::FxHashMap;
use vmi_arch_x86::X86Driver;
use vmi_core::{Memory, ProcessSurvey, ProcessView, SeenProcess, Sightings};

use crate::Windows;
use crate::pool_scan::PROCESS;

const VIEWS: &[ProcessView] =
    &[ProcessView::List, ProcessView::IdTable, ProcessView::Threads, ProcessView::Subsystem, ProcessView::Pool];

/// Whether something hides a process: it runs, and is not in the list of active processes.
///
/// What only the scan of physical memory has found need not be in use any more: it may be what an ended process left behind. That is hidden only if a thread
/// or a table still knows it.
fn hides(process: &SeenProcess) -> bool {
    let others = [ProcessView::IdTable, ProcessView::Threads, ProcessView::Subsystem];
    let used = others.iter().any(|&view| process.known_to(view) == Some(true));
    !process.exited && used && process.known_to(ProcessView::List) == Some(false)
}

impl<D: X86Driver> Windows<'_, D> {
    /// Processes by every view: the list of active processes, the table of ids, the owners of threads, the handles of the subsystem, and the tags in
    /// physical memory. All of physical memory is read twice for the last.
    ///
    /// A view that fails is no error of the whole: it is told in [`ProcessSurvey::problems`].
    pub fn survey_processes(&self) -> ProcessSurvey {
        let mut seen = Sightings::new(VIEWS);
        for process in self.processes() {
            seen.add(ProcessView::List, process.map(|process| process.address()));
        }
        self.see_by_ids(&mut seen);
        self.see_by_subsystem(&mut seen);
        match self.scan_threads() {
            Ok(threads) => {
                for process in threads.iter().filter_map(|thread| thread.process) {
                    seen.add(ProcessView::Threads, Ok(process));
                }
            }
            Err(error) => seen.problem(ProcessView::Threads, error),
        }
        self.see_by_tag(&mut seen);
        // What a thread in memory that is no more in use names as its owner need not be a process any more.
        seen.retain(ProcessView::List, |object| self.space.read::<u8>(object).is_ok_and(|kind| kind & 0x7f == PROCESS));
        let describe = |object| {
            let process = self.process_at(object);
            let mut row = SeenProcess::new(process.pid()?, process.name()?, process.has_exited()?);
            row.physical = self.space.translate(object).ok().map(|translation| translation.at);
            Ok(row)
        };
        seen.into_survey(describe, hides)
    }

    fn see_by_ids(&self, seen: &mut Sightings) {
        let table = match self.id_table() {
            Ok(table) => table,
            Err(error) => return seen.problem(ProcessView::IdTable, error),
        };
        for entry in table.entries() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    seen.problem(ProcessView::IdTable, error);
                    continue;
                }
            };
            let object = self.object_at(entry.pointer);
            match object.type_name().as_deref() {
                Ok("Process") => seen.add(ProcessView::IdTable, Ok(object.address())),
                Ok("Thread") => {
                    let process = self.thread_at(object.address()).process();
                    seen.add(ProcessView::Threads, process.map(|process| process.address()));
                }
                Ok(_) => {}
                // Without types an object that says of itself the id by which it is found is a process.
                Err(_) => {
                    if self.process_at(object.address()).pid().is_ok_and(|pid| u64::from(pid) == entry.handle) {
                        seen.add(ProcessView::IdTable, Ok(object.address()));
                    }
                }
            }
        }
    }

    fn see_by_subsystem(&self, seen: &mut Sightings) {
        for process in self.processes().flatten() {
            if !process.name().is_ok_and(|name| name.eq_ignore_ascii_case("csrss.exe")) {
                continue;
            }
            for handle in process.handles() {
                match handle.and_then(|handle| Ok((handle.object(), handle.object().type_name()?))) {
                    Ok((object, kind)) if kind == "Process" => seen.add(ProcessView::Subsystem, Ok(object.address())),
                    Ok(_) => {}
                    Err(error) => seen.problem(ProcessView::Subsystem, error),
                }
            }
        }
    }

    /// Goes behind the other views: every object that they know by its address is somewhere in physical memory.
    fn see_by_tag(&self, seen: &mut Sightings) {
        let pool = match self.scan_processes() {
            Ok(pool) => pool,
            Err(error) => return seen.problem(ProcessView::Pool, error),
        };
        let mut by_physical = FxHashMap::default();
        for object in seen.objects() {
            if let Ok(translation) = self.space.translate(object) {
                by_physical.insert(translation.at, object);
            }
        }
        for found in pool {
            match by_physical.get(&found.physical).copied().or(found.object) {
                Some(object) => seen.add(ProcessView::Pool, Ok(object)),
                None => {
                    let mut process = SeenProcess::new(found.pid, found.name, found.exited != 0);
                    process.physical = Some(found.physical);
                    seen.add_elsewhere(ProcessView::Pool, process);
                }
            }
        }
    }
}
