//! Threads: `_ETHREAD`, and `_KTHREAD` at its start.

use core::fmt;
use std::time::SystemTime;

use vmi_arch_x86::X86Driver;
use vmi_core::{ErrorKind, KernelField, Result, State, VirtAddr, list, list::rows, live};

use crate::file_time::moment;
use crate::{Process, Windows};

/// File times above this are after the year 3000. Until Server 2003 a thread's creation time is shifted left by 3 bits, which puts any real one far beyond it.
const YEAR_3000: u64 = 441_481_536_000_000_000;

/// Why a thread waits: the names of `KWAIT_REASON` (wdm.h in Microsoft's WDK, and the kernel's public symbols for those behind `WrDispatchInt`), by value.
const WAIT_REASONS: [&str; 41] = [
    "Executive",
    "FreePage",
    "PageIn",
    "PoolAllocation",
    "DelayExecution",
    "Suspended",
    "UserRequest",
    "WrExecutive",
    "WrFreePage",
    "WrPageIn",
    "WrPoolAllocation",
    "WrDelayExecution",
    "WrSuspended",
    "WrUserRequest",
    "WrSpare0",
    "WrQueue",
    "WrLpcReceive",
    "WrLpcReply",
    "WrVirtualMemory",
    "WrPageOut",
    "WrRendezvous",
    "WrKeyedEvent",
    "WrTerminated",
    "WrProcessInSwap",
    "WrCpuRateControl",
    "WrCalloutStack",
    "WrKernel",
    "WrResource",
    "WrPushLock",
    "WrMutex",
    "WrQuantumEnd",
    "WrDispatchInt",
    "WrPreempted",
    "WrYieldExecution",
    "WrFastMutex",
    "WrGuardedMutex",
    "WrRundown",
    "WrAlertByThreadId",
    "WrDeferredPreempt",
    "WrPhysicalFault",
    "WrIoRing",
];

/// What a thread is doing: `KTHREAD_STATE` of the kernel's public symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ThreadState {
    /// Being made.
    Initialized,
    /// Ready to run.
    Ready,
    /// Running.
    Running,
    /// Chosen to run next on a processor.
    Standby,
    /// Ended.
    Terminated,
    /// Waiting.
    Waiting,
    /// Ready, but its kernel stack is not in memory.
    Transition,
    /// Ready, with no processor chosen yet.
    DeferredReady,
    /// Waiting for a gate (Windows Vista and Server 2003).
    GateWait,
    /// Ready, but its process is not in memory.
    WaitingForProcessInSwap,
    /// A number that none of these has.
    Other(u8),
}

impl From<u8> for ThreadState {
    fn from(state: u8) -> Self {
        match state {
            0 => Self::Initialized,
            1 => Self::Ready,
            2 => Self::Running,
            3 => Self::Standby,
            4 => Self::Terminated,
            5 => Self::Waiting,
            6 => Self::Transition,
            7 => Self::DeferredReady,
            8 => Self::GateWait,
            9 => Self::WaitingForProcessInSwap,
            other => Self::Other(other),
        }
    }
}

/// Why a thread waits, or waited last (`KWAIT_REASON`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WaitReason(pub u8);

impl WaitReason {
    /// Whether it waits because somebody suspended it.
    pub const fn is_suspended(self) -> bool {
        matches!(self.0, 5 | 12)
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match WAIT_REASONS.get(usize::from(self.0)) {
            Some(name) => f.write_str(name),
            None => write!(f, "wait reason {}", self.0),
        }
    }
}

/// A thread. Its fields are read when asked for; if a running guest has ended it by then, [`ErrorKind::Gone`] is the error.
pub struct Thread<'w, 'v, D: X86Driver> {
    pub(crate) windows: &'w Windows<'v, D>,
    at: VirtAddr,
    /// Its node in the list of its process.
    node: VirtAddr,
    /// Its id when it was found in a running guest.
    found: Option<u32>,
}

impl<D: X86Driver> Clone for Thread<'_, '_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: X86Driver> Copy for Thread<'_, '_, D> {}

impl<'v, D: X86Driver> Windows<'v, D> {
    /// All threads of all processes, by process.
    pub fn threads(&self) -> impl Iterator<Item = Result<Thread<'_, 'v, D>>> {
        self.processes().flat_map(|process| rows(process.map(|process| process.threads())))
    }

    /// The thread whose `_ETHREAD` is at `at`. Nothing is checked.
    pub fn thread_at(&self, at: VirtAddr) -> Thread<'_, 'v, D> {
        Thread { windows: self, at, node: at, found: None }
    }
}

impl<'w, 'v, D: X86Driver> Thread<'w, 'v, D> {
    pub(crate) fn new(windows: &'w Windows<'v, D>, at: VirtAddr, node: VirtAddr, found: Option<u32>) -> Self {
        Self { windows, at, node, found }
    }

    /// What was read of it, if it still is the thread that was found.
    pub(crate) fn whole<T>(&self, read: Result<T>) -> Result<T> {
        let Some(found) = self.found else { return read };
        let same = self.windows.id(self.at, self.windows.layout.thread.tid).is_ok_and(|tid| tid == found);
        if same && list::holds(&self.windows.space, self.node) {
            return read;
        }
        Err(ErrorKind::Gone { what: format!("thread {found}") }.into())
    }

    /// The same thread for reads that are not proven one by one.
    pub(crate) fn unproven(&self) -> Self {
        Self { found: None, ..*self }
    }

    fn number(&self, member: KernelField) -> Result<u64> {
        self.whole(self.windows.number(self.at, member))
    }

    /// Where its `_ETHREAD` is.
    pub fn address(&self) -> VirtAddr {
        self.at
    }

    /// Thread id.
    ///
    /// # Errors
    /// As reading memory; [`ErrorKind::NoType`] if the guest's types do not have the member. The same holds for all methods that follow.
    pub fn tid(&self) -> Result<u32> {
        self.whole(self.windows.id(self.at, self.windows.layout.thread.tid))
    }

    /// Id of the process that it belongs to.
    ///
    /// # Errors
    /// As [`Thread::tid`].
    pub fn pid(&self) -> Result<u32> {
        self.whole(self.windows.id(self.at, self.windows.layout.thread.pid))
    }

    /// The process that it belongs to.
    ///
    /// # Errors
    /// As [`Thread::tid`].
    pub fn process(&self) -> Result<Process<'w, 'v, D>> {
        let layout = &self.windows.layout;
        let member = [layout.kernel_thread.process, layout.thread.process].into_iter().find(|member| member.exists());
        match member {
            Some(member) => Ok(self.windows.process_at(self.whole(self.windows.pointer(self.at, member))?)),
            None => self.attached_process(),
        }
    }

    /// The process whose memory it sees now: its own, unless it has attached itself to another one.
    ///
    /// # Errors
    /// As [`Thread::tid`].
    pub fn attached_process(&self) -> Result<Process<'w, 'v, D>> {
        let layout = &self.windows.layout;
        let at = if layout.kernel_thread.attached.exists() {
            layout.kernel_thread.attached.of(self.at)?
        } else {
            layout.apc_state.process.of(layout.kernel_thread.apc_state.of(self.at)?)?
        };
        Ok(self.windows.process_at(self.whole(self.windows.space.read_pointer(at))?))
    }

    /// Where it started, in most programs inside of ntdll.dll.
    ///
    /// # Errors
    /// As [`Thread::tid`].
    pub fn start_address(&self) -> Result<VirtAddr> {
        self.whole(self.windows.pointer(self.at, self.windows.layout.thread.start))
    }

    /// Where it was told to start by the program. Some systems overwrite it with other data later.
    ///
    /// # Errors
    /// As [`Thread::tid`].
    pub fn win32_start_address(&self) -> Result<VirtAddr> {
        self.whole(self.windows.pointer(self.at, self.windows.layout.thread.win32_start))
    }

    /// What it is doing.
    ///
    /// # Errors
    /// As [`Thread::tid`].
    pub fn state(&self) -> Result<ThreadState> {
        Ok(ThreadState::from(self.number(self.windows.layout.kernel_thread.state)? as u8))
    }

    /// Why it waits, or waited last.
    ///
    /// # Errors
    /// As [`Thread::tid`].
    pub fn wait_reason(&self) -> Result<WaitReason> {
        Ok(WaitReason(self.number(self.windows.layout.kernel_thread.wait_reason)? as u8))
    }

    /// Its priority now, 0 to 31.
    ///
    /// # Errors
    /// As [`Thread::tid`].
    pub fn priority(&self) -> Result<u8> {
        Ok(self.number(self.windows.layout.kernel_thread.priority)? as u8)
    }

    /// The priority to which it returns.
    ///
    /// # Errors
    /// As [`Thread::tid`].
    pub fn base_priority(&self) -> Result<u8> {
        Ok(self.number(self.windows.layout.kernel_thread.base_priority)? as u8)
    }

    /// How often it was given a processor.
    ///
    /// # Errors
    /// As [`Thread::tid`].
    pub fn context_switches(&self) -> Result<u32> {
        Ok(self.number(self.windows.layout.kernel_thread.switches)? as u32)
    }

    /// Where its thread environment block is, in its process's memory; `None` for a thread of the kernel.
    ///
    /// # Errors
    /// As [`Thread::tid`].
    pub fn teb_address(&self) -> Result<Option<VirtAddr>> {
        self.whole(self.windows.pointer_or_null(self.at, self.windows.layout.kernel_thread.teb))
    }

    /// When it was created.
    ///
    /// # Errors
    /// As [`Thread::tid`].
    pub fn create_time(&self) -> Result<Option<SystemTime>> {
        let time = self.number(self.windows.layout.thread.created)?;
        Ok(moment(if time > YEAR_3000 { time >> 3 } else { time }))
    }

    /// When it ended; `None` if it has not. Until then the kernel uses the same bytes for another purpose.
    ///
    /// # Errors
    /// As [`Thread::tid`].
    pub fn exit_time(&self) -> Result<Option<SystemTime>> {
        if self.state()? != ThreadState::Terminated {
            return Ok(None);
        }
        Ok(moment(self.number(self.windows.layout.thread.exited)?))
    }

    /// The name that its program gave to it (since Windows 10 1607); `None` if it has none.
    ///
    /// # Errors
    /// As reading memory.
    pub fn name(&self) -> Result<Option<String>> {
        let (windows, member) = (self.windows, self.windows.layout.thread.name);
        if !member.exists() {
            return Ok(None);
        }
        let pointer = || windows.pointer_or_null(self.at, member);
        let name = live::behind(windows.vmi(), "the name of a thread", pointer, |at| at.map(|at| windows.string(at)).transpose());
        Ok(self.whole(name)?.filter(|name| !name.is_empty()))
    }

    /// What it is doing, in terms that all systems share.
    ///
    /// # Errors
    /// As [`Thread::tid`].
    pub fn general_state(&self) -> Result<State> {
        Ok(match self.state()? {
            ThreadState::Ready | ThreadState::Running | ThreadState::Standby | ThreadState::DeferredReady => State::Running,
            ThreadState::Terminated => State::Dead,
            ThreadState::Waiting if self.wait_reason().is_ok_and(WaitReason::is_suspended) => State::Stopped,
            ThreadState::Waiting => State::Sleeping,
            ThreadState::GateWait => State::Uninterruptible,
            _ => State::Other,
        })
    }
}

impl<D: X86Driver> fmt::Debug for Thread<'_, '_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Thread").field("address", &self.at).field("tid", &self.tid().ok()).finish()
    }
}
