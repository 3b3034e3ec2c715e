//! Processes and threads: `struct task_struct` (include/linux/sched.h).

use core::fmt;
use core::time::Duration;

use vmi_arch_x86::X86Driver;
use vmi_core::{
    AddressSpace, Error, ErrorKind, KernelField, Memory, Paging, PhysAddr, Result, State, VirtAddr,
    list::{self, rows},
    live,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{Linux, ProcessMemory, path};

/// More threads than a process can have; see `MAX_TASKS`.
const MAX_THREADS: usize = 1 << 22;
/// TASK_COMM_LEN.
const COMM_LEN: usize = 16;
/// PF_KTHREAD.
const KERNEL_THREAD: u32 = 0x0020_0000;
/// Arguments and environment take at most three quarters of 8 MiB of stack (fs/exec.c, since 4.13, commit da029c11e6b1); before, a quarter of
/// the stack's limit. A program can declare more with prctl(PR_SET_MM), which is refused here.
const MAX_ARGUMENTS: u64 = 6 << 20;
/// What /proc/PID/cmdline shows at most of a title that a program wrote over its arguments.
const MAX_TITLE: u64 = 4096;

/// A thread, or the first thread of a process and as such the process. Its fields are read when asked for.
///
/// Ids are those of the initial pid namespace.
///
/// In a running guest a task may end at any time, and another may come to lie in its place. Every method therefore looks again, after it
/// has read, whether the task still is the one that was listed: if not, [`ErrorKind::Gone`] is the error, never the data of another.
pub struct Task<'l, 'v, D: X86Driver> {
    pub(crate) linux: &'l Linux<'v, D>,
    at: VirtAddr,
    /// Its own id when it was found in a running guest: what tells whether it still is the same.
    pub(crate) found: Option<u32>,
}

impl<D: X86Driver> Clone for Task<'_, '_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: X86Driver> Copy for Task<'_, '_, D> {}

impl<'l, 'v, D: X86Driver> Task<'l, 'v, D> {
    pub(crate) fn new(linux: &'l Linux<'v, D>, at: VirtAddr, found: Option<u32>) -> Self {
        Self { linux, at, found }
    }

    /// What was read of it, if it still is the task that was found.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] if it is not, whatever the outcome of the read was.
    pub(crate) fn whole<T>(&self, read: Result<T>) -> Result<T> {
        let Some(found) = self.found else { return read };
        let (linux, layout) = (self.linux, &self.linux.layout.task);
        match linux.read::<u32>(self.at, layout.pid) {
            // What is freed keeps its id until it is used again, but it has lost its user (exit_creds() in kernel/cred.c).
            Ok(pid) if pid == found && read.is_err() && layout.real_cred.exists() => {
                match linux.pointer_or_null(self.at, layout.real_cred) {
                    Ok(None) => Err(self.gone(found)),
                    _ => read,
                }
            }
            Ok(pid) if pid == found => read,
            Err(error) if !error.is_absent() => Err(error),
            Ok(_) | Err(_) => Err(self.gone(found)),
        }
    }

    /// The same task for reads that are not proven one by one: their outcome goes through [`Task::whole`] in the end.
    pub(crate) fn unproven(&self) -> Self {
        Self { found: None, ..*self }
    }

    fn gone(&self, found: u32) -> Error {
        ErrorKind::Gone { what: format!("task {found}") }.into()
    }

    /// Reads a member.
    fn member<T: FromBytes + IntoBytes>(&self, member: KernelField) -> Result<T> {
        self.whole(self.linux.read(self.at, member))
    }

    /// What `read` finds in the object that `member` points to. The object stayed the same meanwhile.
    fn behind<T>(&self, what: &'static str, member: KernelField, read: impl Fn(VirtAddr) -> Result<T>) -> Result<T> {
        self.whole(live::behind(self.linux.vmi(), what, || self.linux.pointer(self.at, member), |at| read(*at)))
    }

    /// As [`Task::behind`], in its memory; `None` if it has none of its own.
    fn in_memory<T>(&self, what: &'static str, read: impl Fn(VirtAddr) -> Result<T>) -> Result<Option<T>> {
        let member = self.linux.layout.task.mm;
        self.behind(what, member, |mm| if mm.is_null() { Ok(None) } else { read(mm).map(Some) })
    }

    /// Where its `struct task_struct` is.
    pub fn address(&self) -> VirtAddr {
        self.at
    }

    /// The thread's own id. Of a process, which is its first thread, it is the process id.
    ///
    /// # Errors
    /// As [`Memory::read_into`]; [`ErrorKind::NoType`] if the guest's types do not have the member. The same holds for all
    /// methods that follow, unless they say more.
    pub fn pid(&self) -> Result<u32> {
        self.member(self.linux.layout.task.pid)
    }

    /// Id of the process that the thread belongs to.
    ///
    /// # Errors
    /// As [`Task::pid`].
    pub fn tgid(&self) -> Result<u32> {
        self.member(self.linux.layout.task.tgid)
    }

    /// Id of the parent process: of the thread group that `real_parent` belongs to, as /proc shows it (a debugger is not a parent).
    /// The first tasks have parent 0.
    ///
    /// # Errors
    /// As [`Task::pid`].
    pub fn parent_pid(&self) -> Result<u32> {
        let layout = &self.linux.layout.task;
        self.behind("the parent of a task", layout.real_parent, |parent| self.linux.read(parent, layout.tgid))
    }

    /// Name of at most 15 bytes (`comm`), what is not UTF-8 replaced. /proc appends to the names of kernel workers what they work on.
    ///
    /// # Errors
    /// As [`Task::pid`]; [`ErrorKind::Unterminated`] if no zero byte ends the name.
    pub fn name(&self) -> Result<String> {
        let at = self.linux.layout.task.comm.of(self.at)?;
        let comm: [u8; COMM_LEN] = self.whole(self.linux.space.read(at))?;
        match comm.split(|&byte| byte == 0).next() {
            Some(name) if name.len() < COMM_LEN => Ok(String::from_utf8_lossy(name).into_owned()),
            _ => Err(ErrorKind::Unterminated { at: at.get(), limit: COMM_LEN }.into()),
        }
    }

    /// What the task is doing, as /proc/PID/stat tells it.
    ///
    /// Follows `task_state_index` in include/linux/sched.h: the bits up to `TASK_PARKED` (0x40) are those of 4.14 and later
    /// (commit 8ef9925b02c2), and a kernel thread that waits without counting as load is idle (4.14, commit 06eb61844d84; before, /proc
    /// called it uninterruptible). Tasks that wait for a lock of a realtime kernel (TASK_RTLOCK_WAIT, since 5.15) or are
    /// frozen (6.1, commit f5d39b020809) are uninterruptible.
    ///
    /// # Errors
    /// As [`Task::pid`].
    pub fn state(&self) -> Result<State> {
        const IDLE: u32 = 0x402; // TASK_UNINTERRUPTIBLE | TASK_NOLOAD
        const LOCK_WAIT: u32 = 0x1000;
        const FROZEN: u32 = 0x8000;
        let layout = &self.linux.layout.task;
        let exit: u32 = self.member(layout.exit_state)?;
        if exit & 0x20 != 0 {
            return Ok(State::Zombie);
        }
        if exit & 0x10 != 0 {
            return Ok(State::Dead);
        }
        // A long before 5.14; all bits are in its low half.
        let state: u32 = self.member(layout.state)?;
        if state & IDLE == IDLE {
            return Ok(State::Idle);
        }
        if state & (LOCK_WAIT | FROZEN) != 0 {
            return Ok(State::Uninterruptible);
        }
        Ok(match state & 0x4f {
            0 => State::Running,
            bits if bits & 0x40 != 0 => State::Parked,
            bits if bits & 8 != 0 => State::Traced,
            bits if bits & 4 != 0 => State::Stopped,
            bits if bits & 2 != 0 => State::Uninterruptible,
            _ => State::Sleeping,
        })
    }

    /// Effective user id, in the initial user namespace.
    ///
    /// # Errors
    /// As [`Task::pid`].
    pub fn uid(&self) -> Result<u32> {
        let layout = &self.linux.layout;
        self.behind("the user of a task", layout.task.real_cred, |cred| self.linux.read(cred, layout.cred.euid))
    }

    /// Effective group id, in the initial user namespace.
    ///
    /// # Errors
    /// As [`Task::pid`].
    pub fn gid(&self) -> Result<u32> {
        let layout = &self.linux.layout;
        self.behind("the group of a task", layout.task.real_cred, |cred| self.linux.read(cred, layout.cred.egid))
    }

    /// When it started, counted from boot, time asleep included.
    ///
    /// # Errors
    /// As [`Task::pid`].
    pub fn start_time(&self) -> Result<Duration> {
        self.member(self.linux.layout.task.start).map(Duration::from_nanos)
    }

    /// Whether it is a kernel thread: it never returns to user mode and has no user memory of its own.
    ///
    /// # Errors
    /// As [`Task::pid`].
    pub fn is_kernel_thread(&self) -> Result<bool> {
        if !self.linux.layout.task.flags.exists() {
            // Types inferred by shape may lack the flags. Besides kernel threads only zombies have no memory.
            return Ok(self.mm()?.is_none() && !matches!(self.state(), Ok(State::Zombie | State::Dead)));
        }
        let flags: u32 = self.member(self.linux.layout.task.flags)?;
        Ok(flags & KERNEL_THREAD != 0)
    }

    /// Where its `struct mm_struct` is; `None` for kernel threads and for tasks that gave up their memory when they ended.
    ///
    /// # Errors
    /// As [`Task::pid`].
    pub fn mm(&self) -> Result<Option<VirtAddr>> {
        self.whole(self.linux.pointer_or_null(self.at, self.linux.layout.task.mm))
    }

    /// The root of its page tables. The kernel's half is mapped in it too.
    ///
    /// # Errors
    /// As [`Task::pid`].
    pub fn page_table(&self) -> Result<Option<PhysAddr>> {
        let pgd = self.linux.layout.mm.pgd;
        self.in_memory("the page tables of a task", |mm| self.linux.physical(self.linux.pointer(mm, pgd)?))
    }

    /// Its memory, pages included that it may not touch itself; `None` if it has none of its own, see [`Task::mm`].
    ///
    /// # Errors
    /// As [`Task::pid`].
    pub fn memory(&self) -> Result<Option<ProcessMemory<'v, D>>> {
        Ok(self.address_space()?.map(ProcessMemory::new))
    }

    /// What the processor sees of its memory; `None` if it has none of its own, see [`Task::mm`].
    ///
    /// # Errors
    /// As [`Task::pid`].
    pub fn address_space(&self) -> Result<Option<AddressSpace<'v, D>>> {
        let root = self.page_table()?;
        Ok(root.map(|root| self.linux.vmi().address_space(root, self.linux.space.mode())))
    }

    /// Its arguments, the first being the program's name, as /proc/PID/cmdline tells them; none if it has no memory.
    ///
    /// A program that wrote over the end of its arguments has a title instead (setproctitle(3)), which is one argument.
    ///
    /// # Errors
    /// As [`Task::pid`], also if a page of them is not in memory; [`ErrorKind::Corrupt`] if their bounds cannot be.
    pub fn command_line(&self) -> Result<Vec<String>> {
        self.in_memory("the arguments of a task", |mm| self.arguments(mm)).map(Option::unwrap_or_default)
    }

    fn arguments(&self, mm: VirtAddr) -> Result<Vec<String>> {
        let layout = &self.linux.layout.mm;
        if !self.has_arguments(mm)? {
            return Ok(Vec::new());
        }
        let start = self.linux.pointer(mm, layout.arg_start)?;
        let bytes = self.read_between(mm, start, self.linux.pointer(mm, layout.arg_end)?)?;
        if bytes.last().is_none_or(|&last| last == 0) {
            return Ok(strings(&bytes));
        }
        let end = self.linux.pointer(mm, layout.env_end)?.min(start.wrapping_add(MAX_TITLE));
        let bytes = self.read_between(mm, start, end)?;
        let title = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(vec![String::from_utf8_lossy(title).into_owned()])
    }

    /// The environment that it was started with, as /proc/PID/environ tells it: `NAME=value` each; none if it has no memory.
    ///
    /// # Errors
    /// As [`Task::command_line`].
    pub fn environment(&self) -> Result<Vec<String>> {
        let layout = &self.linux.layout.mm;
        let environment = self.in_memory("the environment of a task", |mm| {
            if !self.has_arguments(mm)? {
                return Ok(Vec::new());
            }
            let (start, end) = (self.linux.pointer(mm, layout.env_start)?, self.linux.pointer(mm, layout.env_end)?);
            Ok(strings(&self.read_between(mm, start, end)?))
        });
        environment.map(Option::unwrap_or_default)
    }

    /// Whether its program has been started so far that it has arguments and an environment. While execve(2) runs, the end of both
    /// is zero, and /proc shows none (fs/proc/base.c).
    fn has_arguments(&self, mm: VirtAddr) -> Result<bool> {
        let env_end = self.linux.layout.mm.env_end;
        Ok(!env_end.exists() || !self.linux.pointer(mm, env_end)?.is_null())
    }

    /// The memory from `start` to `end`, which the program itself declared.
    ///
    /// Each page is translated once, so there is no address space here: its translation cache would cost more than the walks.
    fn read_between(&self, mm: VirtAddr, start: VirtAddr, end: VirtAddr) -> Result<Vec<u8>> {
        let len = end.offset_from(start).filter(|&len| len <= MAX_ARGUMENTS);
        let len = len.ok_or_else(|| Error::corrupt(format!("arguments from {start} to {end}"), start))?;
        let (vmi, mode) = (self.linux.vmi(), self.linux.space.mode());
        let root = self.linux.physical(self.linux.pointer(mm, self.linux.layout.mm.pgd)?)?;
        let mut bytes = vec![0; len as usize];
        let mut here = start;
        let mut rest = &mut bytes[..];
        while !rest.is_empty() {
            let translation = mode.translate(vmi, root, here)?;
            let piece = rest.len().min(usize::try_from(translation.rest_of_page()).unwrap_or(usize::MAX));
            let (part, behind) = rest.split_at_mut(piece);
            vmi.read_into(translation.at, part)?;
            here = here.wrapping_add(piece as u64);
            rest = behind;
        }
        Ok(bytes)
    }

    /// Path of the program that it runs; `None` if it has no memory.
    ///
    /// # Errors
    /// As [`Task::pid`] and [`Linux::path`].
    pub fn executable(&self) -> Result<Option<String>> {
        let (linux, exe_file) = (self.linux, self.linux.layout.mm.exe_file);
        let path = self.in_memory("the program of a task", |mm| {
            let file = || linux.pointer_or_null(mm, exe_file);
            live::behind(linux.vmi(), "the program of a task", file, |file| {
                file.map(|file| path::of_file(linux, file)).transpose()
            })
        });
        path.map(Option::flatten)
    }

    /// The threads of its process, itself included, the first thread first.
    ///
    /// Since 3.14 (commit 0c740d0afc3b) they are on the list `signal->thread_head`; the older `thread_group` is gone since 6.7
    /// (commit 8e1f385104ac).
    pub fn threads(&self) -> impl Iterator<Item = Result<Task<'l, 'v, D>>> + use<'l, 'v, D> {
        let Self { linux, at, found } = *self;
        let (node, pid) = (linux.layout.task.thread_node, linux.layout.task.pid);
        let identity = move |at| linux.read(node.owner(at)?, pid);
        let threads = self.behind("the threads of a process", linux.layout.task.signal, |signal| {
            if signal.is_null() {
                // A task gives its group up when it ends, and stays until all of its kernel's readers have left.
                return Err(found.map_or_else(|| Error::corrupt("a task without a thread group", at), |pid| self.gone(pid)));
            }
            let head = linux.layout.signal.thread_head.of(signal)?;
            Ok(list::nodes(&linux.space, head, "a thread list", MAX_THREADS, identity))
        });
        rows(threads).map(move |thread| {
            let thread = thread?;
            Ok(Task::new(linux, node.owner(thread.at)?, thread.identity))
        })
    }
}

impl<D: X86Driver> fmt::Debug for Task<'_, '_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("address", &self.at).field("pid", &self.pid().ok()).field("name", &self.name().ok()).finish()
    }
}

/// Zero-terminated strings, one after another.
fn strings(bytes: &[u8]) -> Vec<String> {
    let Some(bytes) = bytes.strip_suffix(&[0]).or(Some(bytes).filter(|bytes| !bytes.is_empty())) else { return Vec::new() };
    bytes.split(|&byte| byte == 0).map(|string| String::from_utf8_lossy(string).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_guest::{INIT_TASK, TestGuest};

    const TASK: u64 = 0x9000;
    const MM: u64 = 0xc000;

    /// init with memory: pgd 0x0, arg_start 0x8, arg_end 0x10, env_start 0x18, env_end 0x20.
    fn guest() -> TestGuest {
        let mut guest = TestGuest::new();
        guest.task(TASK, INIT_TASK, 1, "init");
        guest.put(TASK + 0x50, &[INIT_TASK, MM]);
        for (index, name) in ["pgd", "arg_start", "arg_end", "env_start", "env_end"].into_iter().enumerate() {
            guest.types.member("mm_struct", name, 8 * index as u64, 8);
        }
        guest.put(MM, &[0x1000, 0x20000, 0x2000b, 0x2000b, 0x20013]);
        guest.text(0x20000, concat!("sleep\0", "1001\0", "HOME=/\0\0"));
        guest
    }

    fn with_task<T>(
        guest: TestGuest,
        read: impl FnOnce(Task<'_, '_, vmi_core::synthetic::SyntheticDriver<vmi_arch_x86::X86>>) -> T,
    ) -> T {
        let (vmi, kernel) = guest.build();
        let linux = Linux::with_kernel(&vmi, kernel).unwrap();
        read(linux.process(1).unwrap())
    }

    #[test]
    fn states_as_proc_tells_them() {
        // state, exit_state, letter: values of include/linux/sched.h.
        for (state, exit, letter) in [
            (0, 0, 'R'),
            (1, 0, 'S'),
            (2, 0, 'D'),
            (0x402, 0, 'I'),
            (0x2402, 0, 'I'),
            (0x2001, 0, 'S'),
            (0x104, 0, 'T'),
            (0x8, 0, 't'),
            (0x80, 0x20, 'Z'),
            (0x80, 0x10, 'X'),
            (0x80, 0x30, 'Z'),
            (0x40, 0, 'P'),
            (0x1000, 0, 'D'),
            (0x8000, 0, 'D'),
            (0x200, 0, 'R'),
        ] {
            let mut guest = guest();
            guest.put(TASK + 0x40, &[state]);
            guest.put32(TASK + 0x48, &[exit]);
            assert_eq!(with_task(guest, |task| task.state().unwrap().letter()), letter, "{state:#x} {exit:#x}");
        }
    }

    #[test]
    fn arguments_and_environment() {
        with_task(guest(), |task| {
            assert_eq!(task.command_line().unwrap(), ["sleep", "1001"]);
            assert_eq!(task.environment().unwrap(), ["HOME=/", ""]);
            assert!(!task.is_kernel_thread().unwrap());
            assert_eq!(task.parent_pid().unwrap(), 0);
        });
    }

    #[test]
    fn a_title_written_over_the_arguments_goes_on_into_the_environment() {
        let mut guest = guest();
        guest.text(0x20000, "sleep: until 10:01\0\0");
        with_task(guest, |task| assert_eq!(task.command_line().unwrap(), ["sleep: until 10:01"]));
    }

    #[test]
    fn a_program_that_is_just_being_started_has_no_arguments_yet() {
        let mut guest = guest();
        guest.put(MM + 8, &[0x20000, 0, 0, 0]);
        with_task(guest, |task| {
            assert_eq!(task.command_line().unwrap(), [""; 0]);
            assert_eq!(task.environment().unwrap(), [""; 0]);
        });
    }

    /// Bounds are the program's own (prctl(PR_SET_MM)): no reader may trust them.
    #[test]
    fn arguments_with_bounds_that_cannot_be() {
        for (start, end) in [(0x20000, 0x1000), (0, u64::MAX), (0x20000, 0x20001 + (6 << 20))] {
            let mut guest = guest();
            guest.put(MM + 8, &[start, end]);
            let error = with_task(guest, |task| task.command_line().unwrap_err());
            assert!(matches!(error.kind(), ErrorKind::Corrupt { .. }), "{error}");
        }
    }

    #[test]
    fn a_kernel_thread_has_no_memory_and_no_arguments() {
        let mut guest = guest();
        guest.put(TASK + 0x58, &[0]);
        guest.put32(TASK + 0x4c, &[KERNEL_THREAD]);
        with_task(guest, |task| {
            assert!(task.is_kernel_thread().unwrap());
            assert!(task.address_space().unwrap().is_none());
            assert_eq!(task.command_line().unwrap(), [""; 0]);
        });
    }

    #[test]
    fn a_name_without_an_end_is_an_error() {
        let mut guest = guest();
        guest.text(TASK + 0x30, "0123456789abcdef");
        let error = with_task(guest, |task| task.name().unwrap_err());
        assert!(matches!(error.kind(), ErrorKind::Unterminated { limit: 16, .. }), "{error}");
    }

    #[test]
    fn strings_with_and_without_an_end() {
        assert_eq!(strings(b""), [""; 0]);
        assert_eq!(strings(b"\0"), [""]);
        assert_eq!(strings(b"a\0\0b\0"), ["a", "", "b"]);
        assert_eq!(strings(b"a\0b"), ["a", "b"]);
    }
}
