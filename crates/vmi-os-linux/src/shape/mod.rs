//! Kernels that describe themselves by nothing: `init_task` found by content, and the few offsets that are needed inferred by shape.
//!
//! Debian's i386 kernels, for one, carry no BTF, and their kallsyms hold text only. Each member is found by what its values are in
//! all tasks of the machine and must be the only one that looks like it; what is in doubt is left out and named in
//! [`Inferred::remarks`]. Kernels whose structures are shuffled (`CONFIG_RANDSTRUCT`) are not understood.

mod area_fields;
mod areas;
mod children;
mod credentials;
mod files;
mod findings;
mod image;
mod init_mm;
mod kernel_log;
mod maple_tree;
mod module_fields;
mod module_list;
mod page_tables;
mod process_ids;
mod record_log;
mod sample;
mod search;
mod task_fields;
mod task_list;
mod task_state;
mod tasks;
mod thread_group;
mod timekeeper;
mod types;
mod user_ranges;
mod view;

use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{PhysAddr, Symbols, VirtAddr, Vmi, live};

pub use types::InferredTypes;

use findings::Findings;
use init_mm::InitMm;
use tasks::Tasks;
use view::View;

/// What is known of the kernel beforehand. All of it may be missing.
#[derive(Clone, Copy, Debug)]
pub struct Hints<'a> {
    /// The symbols that are known: none, text only, or all.
    pub symbols: &'a Symbols,
    /// Bytes in a pointer of the kernel, 4 or 8.
    pub pointer_size: Option<usize>,
    /// The kernel's paging mode and the root of its page tables.
    pub tables: Option<(PagingMode, PhysAddr)>,
}

impl Hints<'_> {
    fn widths(&self) -> impl Iterator<Item = u64> {
        let known = self.tables.map(|(mode, _)| vmi_core::Paging::pointer_size(mode)).or(self.pointer_size);
        [8usize, 4].into_iter().filter(move |width| known.is_none_or(|known| known == *width)).map(|width| width as u64)
    }
}

/// What inference found.
#[derive(Debug)]
pub struct Inferred {
    /// The members that could be found out.
    pub types: InferredTypes,
    /// Symbols that no table named, with their addresses.
    pub symbols: Vec<(String, VirtAddr)>,
    /// The kernel's paging mode.
    pub mode: PagingMode,
    /// The root of the kernel's own page tables.
    pub root: PhysAddr,
    /// How this was found, and what could not be: one sentence each.
    pub remarks: Vec<String>,
}

/// Why nothing could be inferred.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// No list of tasks.
    #[error(
        "of {names} places named as the first idle task{} none leads to a closed list of tasks{}",
        if *.more { " (more were not looked at)" } else { "" },
        if *.exhausted { "; the search was given up after too many list nodes" } else { "" }
    )]
    NoTaskList {
        /// How many places hold the name of the first idle task.
        names: usize,
        /// There are more places like that than were looked at.
        more: bool,
        /// The bound on visited list nodes was reached.
        exhausted: bool,
    },
    /// The list of tasks was found, but not where in a task it is.
    #[error("the list of tasks was found, but no member of the first three names their parent: is the structure shuffled?")]
    NoBase,
    /// No page-table root that maps the tasks where they are.
    #[error("the tasks were found, but no page tables that map them")]
    NoPageTables,
}

/// How often a running guest is looked at: a list that changes while it is read looks like none.
const MAX_LOOKS: usize = 3;

/// Finds `init_task` by content, and infers by shape what the kernel does not describe.
///
/// In a running guest, what changed halfway may be missing from the result. Pause it for all that there is.
///
/// # Errors
/// What was found missing: see [`ShapeError`].
pub fn infer<D: X86Driver>(vmi: &Vmi<D>, hints: &Hints<'_>) -> Result<Inferred, ShapeError> {
    let mut left = MAX_LOOKS;
    loop {
        left = left.saturating_sub(1);
        match look(vmi, hints) {
            Err(_) if left > 0 && live::runs(vmi) => {}
            other => return other,
        }
    }
}

/// See [`infer`].
fn look<D: X86Driver>(vmi: &Vmi<D>, hints: &Hints<'_>) -> Result<Inferred, ShapeError> {
    let list = task_list::find(vmi, hints)?;
    let view = &list.view;
    let tasks = Tasks::read(&list)?;
    let mut findings = Findings::new(view.width());
    let found = task_fields::infer(view, &tasks, &mut findings);
    let spaces = page_tables::find(vmi, view, &tasks, &found.mm).ok_or(ShapeError::NoPageTables)?;
    spaces.record(&mut findings);
    task_state::infer(&tasks.sample, spaces.mm, &mut findings);
    credentials::infer(view, &tasks, &mut findings);
    if let Some(leader) = found.group_leader {
        children::infer(view, &tasks, leader, &mut findings);
        thread_group::infer(view, &tasks, leader, &mut findings);
        if let Some(pid) = found.pid {
            process_ids::infer(view, &tasks, leader, pid, hints.symbols, &mut findings);
        }
    }
    let init_task = tasks.init_task();
    findings.symbol("init_task", VirtAddr::new(init_task));
    let ranges = user_ranges::infer(&spaces, &mut findings);
    if let Some(ranges) = &ranges {
        let areas = areas::find(view, &spaces, ranges, &mut findings);
        if let Some(file) = area_fields::infer(view, &areas, hints.symbols, &mut findings) {
            let width = view.width();
            let files = areas.iter().filter_map(|area| area.object.word(file, width)).filter(|at| *at != 0);
            files::infer(view, files, hints.symbols, &mut findings);
        }
    }
    let init_mm = ranges.and_then(|ranges| init_mm::find(vmi, view, &spaces, ranges.start_code, init_task));
    if let Some(found) = init_mm {
        findings.symbol("init_mm", found.at);
        let name = if view.width() == 4 { "swapper_pg_dir" } else { "init_top_pgt" };
        findings.symbol(name, found.table);
    }
    let root = match (hints.tables, init_mm) {
        (_, Some(InitMm { root, .. })) | (Some((_, root)), None) => root,
        (None, None) => {
            findings.remark("the kernel's own page tables were not found: those of process 1 stand in for them");
            spaces.init_root(view).ok_or(ShapeError::NoPageTables)?
        }
    };
    kernel_log::infer(view, init_task, hints.symbols, &mut findings);
    timekeeper::infer(view, init_task, &mut findings);
    modules(&View::paged(vmi, spaces.mode, root, view.budget()), hints, init_task, &mut findings);
    if view.budget().is_spent() {
        findings.remark("the search was given up after too many reads: this memory leads in circles");
    }
    let remarks = findings.remarks(tasks.sample.objects.len());
    Ok(Inferred { types: findings.types, symbols: findings.symbols, mode: spaces.mode, root, remarks })
}

fn modules<D: X86Driver>(space: &View<'_, D>, hints: &Hints<'_>, init_task: u64, findings: &mut Findings) {
    let known = hints.symbols.find("modules").map(|symbol| symbol.address);
    match module_list::find(space, init_task, known) {
        Some(list) => {
            if known.is_none() {
                findings.symbol("modules", VirtAddr::new(list.head));
            }
            module_fields::infer(space, &list, findings);
        }
        None => findings.remark("no loaded module was found: either there is none, or the list of modules could not be told"),
    }
}

#[cfg(test)]
mod tests;
