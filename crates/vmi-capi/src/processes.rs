//! Processes and threads.

use core::ffi::c_char;
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::AtomicPtr;
use std::ffi::CString;
use std::time::UNIX_EPOCH;

use vmi::{Guest as _, PhysAddr, VcpuId};

use crate::border::{self, VMI_UNKNOWN_ADDRESS, VMI_UNKNOWN_ID};
use crate::error::{vmi_error, vmi_status};
use crate::guest::vmi_guest;
use crate::rows::{List, Row, list, next, strings, vmi_strings};
use crate::table::{self, Handle};

/// Processes. Any thread may use it; each row is given once.
#[derive(Debug)]
pub struct vmi_processes {
    _opaque: [u8; 0],
}

impl Handle for vmi_processes {
    type Object = List<ProcessRow>;
}

/// A process, as it was when it was listed. Its strings belong to the list: valid until that is closed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_process {
    /// Process id.
    pub pid: u32,
    /// Id of the parent process, or VMI_UNKNOWN_ID.
    pub parent_pid: u32,
    /// Effective user id, or VMI_UNKNOWN_ID.
    pub uid: u32,
    /// Effective group id, or VMI_UNKNOWN_ID.
    pub gid: u32,
    /// Short name.
    pub name: *const c_char,
    /// Arguments, the first being the program; NULL if they cannot be read. Behind the last one there is NULL.
    pub arguments: *const *const c_char,
    /// How many arguments there are.
    pub argument_count: usize,
    /// When it started, in nanoseconds since 1970; 0 if that is not known.
    pub started: u64,
    /// Root of its page tables, or VMI_UNKNOWN_ADDRESS.
    pub page_table: u64,
    /// Where its structure is in kernel memory: task_struct of a Linux guest, _EPROCESS of a Windows one.
    pub object: u64,
    /// What it is doing, as the letter that ps prints; 0 if that is not known.
    pub state: c_char,
    /// Whether it is a kernel thread: it has no user memory of its own.
    pub kernel: bool,
}

/// A process in a list.
#[derive(Debug)]
pub struct ProcessRow {
    row: vmi::Process,
    name: CString,
    /// What `pointers` point at; a string of C stays where it is when the row is moved.
    _arguments: Vec<CString>,
    /// NULL at the end; empty if the arguments are not known. Atomic, so that the list may be shared among threads: it never changes.
    pointers: Vec<AtomicPtr<c_char>>,
}

impl From<vmi::Process> for ProcessRow {
    fn from(row: vmi::Process) -> Self {
        let name = border::c_string(&row.name);
        let known = row.command_line.is_some();
        let arguments: Vec<CString> = row.command_line.iter().flatten().map(|text| border::c_string(text)).collect();
        let mut pointers: Vec<_> = arguments.iter().map(|text| AtomicPtr::new(text.as_ptr().cast_mut())).collect();
        if known {
            pointers.push(AtomicPtr::default());
        }
        Self { row, name, _arguments: arguments, pointers }
    }
}

fn letter(state: Option<vmi::State>) -> c_char {
    state.map_or(0, |state| u8::try_from(state.letter()).unwrap_or(b'?') as c_char)
}

impl Row for ProcessRow {
    const LIST: &'static str = "vmi_processes";
    type C = vmi_process;

    fn c(&self) -> vmi_process {
        let since = self.row.started.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        vmi_process {
            pid: self.row.pid,
            parent_pid: self.row.parent_pid.unwrap_or(VMI_UNKNOWN_ID),
            uid: self.row.uid.unwrap_or(VMI_UNKNOWN_ID),
            gid: self.row.gid.unwrap_or(VMI_UNKNOWN_ID),
            name: self.name.as_ptr(),
            // An atomic pointer has the same representation as a pointer.
            arguments: if self.pointers.is_empty() { ptr::null() } else { self.pointers.as_ptr().cast() },
            argument_count: self.pointers.len().saturating_sub(1),
            started: since.and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or(0),
            page_table: self.row.page_table.map_or(VMI_UNKNOWN_ADDRESS, vmi::PhysAddr::get),
            object: self.row.object.get(),
            state: letter(self.row.state),
            kernel: self.row.kernel,
        }
    }
}

/// Threads. Any thread may use it; each row is given once.
#[derive(Debug)]
pub struct vmi_threads {
    _opaque: [u8; 0],
}

impl Handle for vmi_threads {
    type Object = List<ThreadRow>;
}

/// A thread, as it was when it was listed. Its string belongs to the list: valid until that is closed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_thread {
    /// Thread id.
    pub tid: u32,
    /// Id of its process.
    pub pid: u32,
    /// Short name.
    pub name: *const c_char,
    /// Where its structure is in kernel memory.
    pub object: u64,
    /// What it is doing, as the letter that ps prints; 0 if that is not known.
    pub state: c_char,
}

/// A thread in a list.
#[derive(Debug)]
pub struct ThreadRow {
    row: vmi::Thread,
    name: CString,
}

impl Row for ThreadRow {
    const LIST: &'static str = "vmi_threads";
    type C = vmi_thread;

    fn c(&self) -> vmi_thread {
        vmi_thread {
            tid: self.row.tid,
            pid: self.row.pid,
            name: self.name.as_ptr(),
            object: self.row.object.get(),
            state: letter(self.row.state),
        }
    }
}

/// The processes, kernel ones included. Closed with vmi_processes_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_list_processes(
    guest: *mut vmi_guest,
    processes: Option<&mut MaybeUninit<*mut vmi_processes>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    list(guest, processes, error, |guest| Ok(List::of(guest.processes(), ProcessRow::from)))
}

/// The process with this id, as a list of one; VMI_STATUS_NO_OBJECT if there is none. Closed with vmi_processes_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_find_process(
    guest: *mut vmi_guest,
    pid: u32,
    processes: Option<&mut MaybeUninit<*mut vmi_processes>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    list(guest, processes, error, |guest| Ok(List::new(vec![Ok(guest.process(pid)?.into())])))
}

/// The process that a vCPU runs, as a list of one. Certain only while the guest stands still. Closed with vmi_processes_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_running_on(
    guest: *mut vmi_guest,
    vcpu: u32,
    processes: Option<&mut MaybeUninit<*mut vmi_processes>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    list(guest, processes, error, |guest| Ok(List::new(vec![Ok(guest.running_on(VcpuId(vcpu))?.into())])))
}

/// The process whose page tables start at `root`, as a list of one, or of none. Closed with vmi_processes_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_process_of(
    guest: *mut vmi_guest,
    root: u64,
    processes: Option<&mut MaybeUninit<*mut vmi_processes>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    list(guest, processes, error, |guest| {
        let found = guest.process_of(PhysAddr::new(root))?;
        Ok(List::new(found.into_iter().map(|process| Ok(process.into())).collect()))
    })
}

/// The next process, into `process`: VMI_STATUS_OK, or VMI_STATUS_END behind the last one. A row that could not be read is an error in its place; the next call goes on
/// behind it.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_processes_next(
    processes: *mut vmi_processes,
    process: Option<&mut MaybeUninit<vmi_process>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    next(processes, process, error)
}

/// Closes a list and frees its strings. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_processes_close(processes: *mut vmi_processes) {
    border::plain((), || table::close(processes));
}

/// The roots of all page tables that a process runs on: with page-table isolation two, for a kernel thread none. Fills `roots` with as many as `capacity`; `count` is how
/// many there are.
///
/// # Safety
/// `roots` is NULL with a capacity of 0, or has room for `capacity` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmi_guest_get_page_tables(
    guest: *mut vmi_guest,
    pid: u32,
    roots: *mut u64,
    capacity: usize,
    count: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let count = border::place(count, "the place for the count")?;
        let guest = table::get(guest)?;
        let process = guest.guest.process(pid)?;
        let all: Vec<u64> = guest.guest.page_tables(&process).into_iter().map(PhysAddr::get).collect();
        // SAFETY: the caller's promise.
        unsafe { border::put_items(roots, capacity, &all) }?;
        count.write(all.len());
        Ok(())
    })
}

/// The environment of a process, "NAME=value" each: under Linux the one that it was started with. Closed with vmi_strings_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_get_environment(
    guest: *mut vmi_guest,
    pid: u32,
    environment: Option<&mut MaybeUninit<*mut vmi_strings>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    list(guest, environment, error, |guest| Ok(strings(guest.environment(&guest.process(pid)?)?)))
}

/// The path of the program that a process runs, as the kernel knows it; NULL if it has none. Freed with vmi_string_free.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_get_executable(
    guest: *mut vmi_guest,
    pid: u32,
    path: Option<&mut MaybeUninit<*mut c_char>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::text_place(path)?;
        let guest = table::get(guest)?;
        if let Some(path) = guest.guest.executable(&guest.guest.process(pid)?)? {
            place.write(border::owned(border::c_string(&path)));
        }
        Ok(())
    })
}

/// All threads of all processes. Closed with vmi_threads_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_list_threads(
    guest: *mut vmi_guest,
    threads: Option<&mut MaybeUninit<*mut vmi_threads>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    let row = |row: vmi::Thread| ThreadRow { name: border::c_string(&row.name), row };
    list(guest, threads, error, |guest| Ok(List::of(guest.threads(), row)))
}

/// The next thread; see vmi_processes_next.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_threads_next(
    threads: *mut vmi_threads,
    thread: Option<&mut MaybeUninit<vmi_thread>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    next(threads, thread, error)
}

/// Closes a list and frees its strings. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_threads_close(threads: *mut vmi_threads) {
    border::plain((), || table::close(threads));
}
