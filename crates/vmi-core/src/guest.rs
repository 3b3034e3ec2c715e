//! What all guest operating systems share, as plain rows: one tool serves Linux and Windows alike.
//!
//! Depth belongs to the types of each operating-system crate; these rows are what a list prints. A field that the system does not
//! have, or that could not be found out in this guest, is `None`.

use std::time::SystemTime;

use crate::{Note, PhysAddr, ProcessSurvey, Result, Symbols, Translation, VcpuId, VirtAddr};

/// Rows that may fail one by one: an error is an item, never an early end.
pub type Rows<'a, T> = Box<dyn Iterator<Item = Result<T>> + 'a>;

/// A guest operating system that was found in a machine.
pub trait Guest {
    /// The system and its version in one line: `Linux 6.1.0-50-cloud-amd64`.
    fn version(&self) -> String;

    /// What is remarkable about how this guest was read, one sentence each: what was inferred, what could not be had.
    fn remarks(&self) -> Vec<String>;

    /// What tools that read a dump of this guest look for in its notes (Linux: VMCOREINFO). Empty if it cannot be had.
    fn dump_notes(&self) -> Vec<Note>;

    /// The processes, kernel ones included.
    fn processes(&self) -> Rows<'_, Process>;

    /// Processes by every view that the system has of them: what hides from one is seen by another. Of a running guest the views are of different moments: pause
    /// it, or what comes or goes meanwhile seems to hide. A view that fails is no error of the whole: it is told in [`ProcessSurvey::problems`].
    fn survey_processes(&self) -> ProcessSurvey;

    /// All threads of all processes.
    fn threads(&self) -> Rows<'_, Thread>;

    /// The loaded kernel modules.
    fn modules(&self) -> Rows<'_, Module>;

    /// The memory areas of a process, in ascending order.
    fn memory_areas(&self, pid: u32) -> Rows<'_, MemoryArea>;

    /// The kernel's log, oldest record first.
    fn kernel_log(&self) -> Rows<'_, LogRecord>;

    /// The kernel's symbols, its modules' included.
    fn symbols(&self) -> &Symbols;

    /// The process that a vCPU runs. Certain only while the vCPU stands still.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the back end does not show registers,
    /// [`ErrorKind::NoObject`](crate::ErrorKind::NoObject) if they fit no process: in firmware, or in a kernel thread of a system that does not tell.
    fn running_on(&self, vcpu: VcpuId) -> Result<Process>;

    /// The process whose page tables start at `root`, flags left aside. Kernel threads have none of their own, and run on those of others.
    ///
    /// # Errors
    /// What reading the processes reports.
    fn process_of(&self, root: PhysAddr) -> Result<Option<Process>>;

    /// The roots of all page tables that a process runs on: one, or with page-table isolation two; none for a kernel thread.
    fn page_tables(&self, process: &Process) -> Vec<PhysAddr>;

    /// Where a virtual address lies: in a process if `pid` names one, else in the kernel.
    ///
    /// # Errors
    /// [`ErrorKind::NoObject`](crate::ErrorKind::NoObject) if there is no such process, [`ErrorKind::Fault`](crate::ErrorKind::Fault) if it does not map
    /// the address.
    fn translate(&self, pid: Option<u32>, at: VirtAddr) -> Result<Translation>;

    /// Fills `buf` with virtual memory: of a process if `pid` names one, else of the kernel.
    ///
    /// # Errors
    /// As [`Guest::translate`] and [`Memory::read_into`](crate::Memory::read_into).
    fn read_virtual(&self, pid: Option<u32>, at: VirtAddr, buf: &mut [u8]) -> Result<()>;
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Process {
    /// Process id (Linux: tgid).
    pub pid: u32,
    /// Id of the parent process.
    pub parent_pid: Option<u32>,
    /// Short name (Linux: comm).
    pub name: String,
    /// What the process is doing.
    pub state: Option<State>,
    /// Effective user id, in the initial user namespace.
    pub uid: Option<u32>,
    /// Effective group id, in the initial user namespace.
    pub gid: Option<u32>,
    /// Whether it is a kernel thread: it has no user memory of its own.
    pub kernel: bool,
    /// When it started.
    pub started: Option<SystemTime>,
    /// Arguments, the first being the program; `None` if they cannot be read (kernel threads have none).
    pub command_line: Option<Vec<String>>,
    /// Root of its page tables.
    pub page_table: Option<PhysAddr>,
    /// Where its structure is in kernel memory (Linux: task_struct).
    pub object: VirtAddr,
}

impl Process {
    /// A process of which nothing but id, name and object is known; the other fields can be set one by one.
    pub fn new(pid: u32, name: String, object: VirtAddr) -> Self {
        Self {
            pid,
            parent_pid: None,
            name,
            state: None,
            uid: None,
            gid: None,
            kernel: false,
            started: None,
            command_line: None,
            page_table: None,
            object,
        }
    }
}

/// What a process or thread is doing, in the letters of `ps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Running or ready to run (`R`).
    Running,
    /// Waiting, can be interrupted (`S`).
    Sleeping,
    /// Waiting, cannot be interrupted (`D`).
    Uninterruptible,
    /// Stopped by a signal (`T`).
    Stopped,
    /// Stopped by a debugger (`t`).
    Traced,
    /// Ended, not yet reaped by its parent (`Z`).
    Zombie,
    /// Ended and being taken apart (`X`).
    Dead,
    /// A kernel thread with nothing to do (`I`).
    Idle,
    /// Parked (`P`).
    Parked,
    /// None of these.
    Other,
}

impl State {
    /// The letter that `ps` and Linux's `/proc/PID/stat` print; `?` for [`State::Other`].
    pub const fn letter(self) -> char {
        match self {
            Self::Running => 'R',
            Self::Sleeping => 'S',
            Self::Uninterruptible => 'D',
            Self::Stopped => 'T',
            Self::Traced => 't',
            Self::Zombie => 'Z',
            Self::Dead => 'X',
            Self::Idle => 'I',
            Self::Parked => 'P',
            Self::Other => '?',
        }
    }
}

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Thread {
    /// Thread id.
    pub tid: u32,
    /// Id of its process.
    pub pid: u32,
    /// Short name.
    pub name: String,
    /// What the thread is doing.
    pub state: Option<State>,
    /// Where its structure is in kernel memory.
    pub object: VirtAddr,
}

impl Thread {
    /// A thread in an unknown state.
    pub fn new(tid: u32, pid: u32, name: String, object: VirtAddr) -> Self {
        Self { tid, pid, name, state: None, object }
    }
}

/// A loaded kernel module.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Module {
    /// Name.
    pub name: String,
    /// First address.
    pub base: VirtAddr,
    /// Bytes of memory it takes, in all its parts.
    pub size: u64,
    /// How many hold a reference to it.
    pub references: Option<u32>,
    /// Where its structure is in kernel memory.
    pub object: VirtAddr,
}

impl Module {
    /// A module without a reference count.
    pub fn new(name: String, base: VirtAddr, size: u64, object: VirtAddr) -> Self {
        Self { name, base, size, references: None, object }
    }
}

/// A run of a process's virtual memory with the same properties.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryArea {
    /// First address.
    pub start: VirtAddr,
    /// First address behind it.
    pub end: VirtAddr,
    /// The process may read it.
    pub read: bool,
    /// The process may write it.
    pub write: bool,
    /// The process may run code in it.
    pub execute: bool,
    /// Writes are seen by others that map the same.
    pub shared: bool,
    /// Offset into the mapped file in bytes.
    pub offset: u64,
    /// The mapped file's path, or the purpose in brackets: `[heap]`, `[stack]`.
    pub name: Option<String>,
}

impl MemoryArea {
    /// An area without any rights and name.
    pub fn new(start: VirtAddr, end: VirtAddr) -> Self {
        Self { start, end, read: false, write: false, execute: false, shared: false, offset: 0, name: None }
    }
}

/// One record of the kernel's log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogRecord {
    /// Its number, counted from boot.
    pub sequence: u64,
    /// Nanoseconds since boot.
    pub nanoseconds: u64,
    /// Severity, 0 (emergency) to 7 (debug).
    pub level: u8,
    /// The text, without a final line end.
    pub text: String,
}

impl LogRecord {
    /// A record.
    pub fn new(sequence: u64, nanoseconds: u64, level: u8, text: String) -> Self {
        Self { sequence, nanoseconds, level, text }
    }
}
