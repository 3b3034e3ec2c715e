//! Processes by every view that their system has of them.

use core::ffi::c_char;
use core::mem::MaybeUninit;
use std::ffi::CString;

use vmi::{Guest as _, PhysAddr, ProcessView, SeenProcess, VirtAddr};

use crate::border::{self, VMI_UNKNOWN_ADDRESS};
use crate::error::{Failure, vmi_error, vmi_status};
use crate::guest::vmi_guest;
use crate::rows::{List, Row, list, next};
use crate::table::{self, Handle};

/// The system's list: of Linux that of tasks, of Windows PsActiveProcessHead.
pub const VMI_PROCESS_VIEW_LIST: u32 = 1;
/// The table of ids: of Linux the one that the guest's own /proc is made from, of Windows PspCidTable.
pub const VMI_PROCESS_VIEW_ID_TABLE: u32 = 2;
/// Of Linux: the children of each thread, from the first task on.
pub const VMI_PROCESS_VIEW_CHILDREN: u32 = 4;
/// Of Windows: a thread that belongs to it, in the table of ids or found by its pool tag.
pub const VMI_PROCESS_VIEW_THREADS: u32 = 8;
/// Of Windows: the handle that csrss.exe holds to each process that it serves.
pub const VMI_PROCESS_VIEW_SUBSYSTEM: u32 = 16;
/// Of Windows: its pool tag, in physical memory.
pub const VMI_PROCESS_VIEW_POOL: u32 = 32;

fn bit(view: ProcessView) -> u32 {
    match view {
        ProcessView::List => VMI_PROCESS_VIEW_LIST,
        ProcessView::IdTable => VMI_PROCESS_VIEW_ID_TABLE,
        ProcessView::Children => VMI_PROCESS_VIEW_CHILDREN,
        ProcessView::Threads => VMI_PROCESS_VIEW_THREADS,
        ProcessView::Subsystem => VMI_PROCESS_VIEW_SUBSYSTEM,
        ProcessView::Pool => VMI_PROCESS_VIEW_POOL,
    }
}

/// Processes of all views. Any thread may use it; each row is given once.
#[derive(Debug)]
pub struct vmi_seen_processes {
    _opaque: [u8; 0],
}

impl Handle for vmi_seen_processes {
    type Object = List<SeenProcessRow>;
}

/// A process, and which views of its system know it. Its string belongs to the list: valid until that is closed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_seen_process {
    /// Process id.
    pub pid: u32,
    /// The views that know it: VMI_PROCESS_VIEW_LIST and its siblings.
    pub known_to: u32,
    /// The views that do not know it. What is in neither the system has not, or it could not be had whole.
    pub unknown_to: u32,
    /// Whether something hides it: it has not ended, and a view does not know it that knows all others.
    pub hidden: bool,
    /// Whether it has ended: views leave it out because of that, one after another.
    pub exited: bool,
    /// Short name.
    pub name: *const c_char,
    /// Where its structure is in kernel memory: task_struct of a Linux guest, _EPROCESS of a Windows one. VMI_UNKNOWN_ADDRESS if only the scan of physical memory has
    /// found it, and nothing there tells.
    pub object: u64,
    /// Where its structure is in physical memory, or VMI_UNKNOWN_ADDRESS.
    pub physical: u64,
}

/// A process in a list.
#[derive(Debug)]
pub struct SeenProcessRow {
    row: SeenProcess,
    name: CString,
}

impl From<SeenProcess> for SeenProcessRow {
    fn from(row: SeenProcess) -> Self {
        Self { name: border::c_string(&row.name), row }
    }
}

impl Row for SeenProcessRow {
    const LIST: &'static str = "vmi_seen_processes";
    type C = vmi_seen_process;

    fn c(&self) -> vmi_seen_process {
        let bits = |wanted| {
            let views = self.row.views.iter().filter(|(_, known)| *known == Some(wanted));
            views.fold(0, |bits, (view, _)| bits | bit(*view))
        };
        vmi_seen_process {
            pid: self.row.pid,
            known_to: bits(true),
            unknown_to: bits(false),
            hidden: self.row.hidden,
            exited: self.row.exited,
            name: self.name.as_ptr(),
            object: self.row.object.map_or(VMI_UNKNOWN_ADDRESS, VirtAddr::get),
            physical: self.row.physical.map_or(VMI_UNKNOWN_ADDRESS, PhysAddr::get),
        }
    }
}

/// The processes by every view that the system has of them, in the order of their ids: what hides from one is seen by another. Of a running guest the views are of
/// different moments: pause it, or what comes or goes meanwhile seems to hide. Behind the processes come the errors of views that failed, wholly or in part.
/// Closed with vmi_seen_processes_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_survey_processes(
    guest: *mut vmi_guest,
    processes: Option<&mut MaybeUninit<*mut vmi_seen_processes>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    list(guest, processes, error, |guest| {
        let survey = guest.survey_processes();
        let rows = survey.processes.into_iter().map(|process| Ok(process.into()));
        let problems = survey.problems.into_iter().map(|(_, error)| Err(Failure::from(error)));
        Ok(List::new(rows.chain(problems).collect()))
    })
}

/// The next process; see vmi_processes_next.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_seen_processes_next(
    processes: *mut vmi_seen_processes,
    process: Option<&mut MaybeUninit<vmi_seen_process>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    next(processes, process, error)
}

/// Closes a list and frees its strings. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_seen_processes_close(processes: *mut vmi_seen_processes) {
    border::plain((), || table::close(processes));
}
