//! The handle on a Linux guest.

use core::fmt;
use std::sync::{Arc, OnceLock};

use vmi_arch_x86::X86Driver;
use vmi_core::{
    AddressSpace, Error, ErrorKind, KernelField, Memory, PhysAddr, Result, Symbols, TypeSource, VirtAddr, Vmi,
    list::{self, rows},
};
use zerocopy::{FromBytes, IntoBytes};

use crate::btf::Btf;
use crate::layout::Layout;
use crate::{Kernel, Task, discover};

/// More tasks than a kernel can have (PID_MAX_LIMIT, include/linux/threads.h).
pub(crate) const MAX_TASKS: usize = 1 << 22;
/// Bytes of the banner that are compared at attach.
const SWAPPER: &[u8] = b"swapper";

/// A Linux guest: its processes, modules, log and symbols.
///
/// # Running guests
///
/// A running guest changes what is read meanwhile. Its lists are read as one: all that was there from the call to the end is in them exactly
/// once, what came or went meanwhile may be. What contradicts itself is read again, with growing pauses, and is at last an error that
/// says so ([`ErrorKind::Changing`]). An object that has gone away before its fields are read gives [`ErrorKind::Gone`], never the
/// fields of what lies in its place now. Two lists are of two moments.
///
/// For one moment, pause the guest. While it stands still it is read as an image is, with nothing to be tried again, and translations are
/// remembered:
///
/// ```no_run
/// # fn list<D: vmi_arch_x86::X86Driver + vmi_core::Control>(vmi: &vmi_core::Vmi<D>) -> Result<(), Box<dyn std::error::Error>> {
/// # use vmi_os_linux::Linux;
/// let linux = Linux::attach(vmi)?;
/// let paused = vmi.pause()?;
/// let processes: Vec<_> = linux.processes().collect::<Result<_, _>>()?;
/// let modules: Vec<_> = linux.modules().collect::<Result<_, _>>()?;
/// drop(paused); // the guest runs on
/// # Ok(())
/// # }
/// ```
///
/// A list that was begun in a paused guest and is read on after it was resumed ends in an error.
///
/// # Example
///
/// ```no_run
/// # fn list<D: vmi_arch_x86::X86Driver>(vmi: &vmi_core::Vmi<D>) -> Result<(), Box<dyn std::error::Error>> {
/// use vmi_os_linux::Linux;
///
/// let linux = Linux::attach(vmi)?;
/// for task in linux.processes() {
///     let task = task?;
///     println!("{:>6} {:>6} {}", task.pid()?, task.parent_pid()?, task.name()?);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Linux<'v, D: X86Driver> {
    pub(crate) space: AddressSpace<'v, D>,
    pub(crate) layout: Layout,
    kernel: Kernel,
    pub(crate) init_task: VirtAddr,
    all_symbols: OnceLock<(Symbols, Vec<String>)>,
    /// The kernel's BTF, once types of a module were asked for.
    pub(crate) base_btf: OnceLock<Arc<Btf>>,
}

/// Why a machine could not be read as a Linux guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// No kernel was found.
    #[error(transparent)]
    Discover(#[from] discover::DiscoverError),
    /// A kernel was found, but its first task is not where the symbols and types say.
    #[error("the kernel's first task cannot be read: {source}; the symbols or types may belong to another kernel")]
    FirstTask {
        /// What failed.
        #[source]
        source: Error,
    },
}

impl<'v, D: X86Driver> Linux<'v, D> {
    /// Finds the kernel in the machine's memory. Nothing else is needed; see [`discover`].
    ///
    /// A running guest need not be paused for this: symbols and types do not change while it runs, and what does is read again
    /// where it contradicts itself. Only a kernel that does not describe itself, whose structures are inferred from its objects
    /// ([`shape`](crate::shape)), may tell more while it is paused.
    ///
    /// # Errors
    /// [`AttachError::Discover`] if there is no Linux kernel or it cannot be made out, else as [`Linux::with_kernel`].
    pub fn attach(vmi: &'v Vmi<D>) -> Result<Self, AttachError> {
        Self::with_kernel(vmi, discover::find(vmi)?)
    }

    /// Reads the machine by a kernel that was found before, or put together from files.
    ///
    /// # Errors
    /// [`AttachError::FirstTask`] if `init_task` is not there or is not named `swapper`.
    pub fn with_kernel(vmi: &'v Vmi<D>, kernel: Kernel) -> Result<Self, AttachError> {
        let space = vmi.address_space(kernel.root, kernel.mode);
        let layout = Layout::new(&*kernel.types);
        let init_task = kernel.symbols.address("init_task").map_err(|source| AttachError::FirstTask { source })?;
        let linux = Self { space, layout, kernel, init_task, all_symbols: OnceLock::new(), base_btf: OnceLock::new() };
        let check = || {
            let at = linux.layout.task.comm.of(init_task)?;
            if linux.space.read::<[u8; SWAPPER.len()]>(at)? == SWAPPER {
                return Ok(());
            }
            Err(Error::corrupt("the first task is not named `swapper`", at))
        };
        check().map_err(|source| AttachError::FirstTask { source })?;
        Ok(linux)
    }

    /// The machine.
    pub fn vmi(&self) -> &'v Vmi<D> {
        self.space.vmi()
    }

    /// What was found out about the kernel: banner, symbols without those of modules, types, remarks.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The kernel's banner: `Linux version 6.1.0-50-cloud-amd64 (...) ...`.
    pub fn banner(&self) -> &str {
        &self.kernel.banner
    }

    /// The kernel's own address space.
    pub fn kernel_space(&self) -> &AddressSpace<'v, D> {
        &self.space
    }

    /// Layouts of the kernel's structures.
    pub fn types(&self) -> &dyn TypeSource {
        &*self.kernel.types
    }

    /// The symbols of the kernel and, in their present state, of its modules and BPF programs: what /proc/kallsyms holds.
    ///
    /// Modules are read at the first call, once. What of them could not be read is told by [`Linux::symbol_remarks`].
    pub fn symbols(&self) -> &Symbols {
        &self.all_symbols.get_or_init(|| self.read_all_symbols()).0
    }

    /// What could not be read of the modules' symbols, one sentence each.
    pub fn symbol_remarks(&self) -> &[String] {
        &self.all_symbols.get_or_init(|| self.read_all_symbols()).1
    }

    /// As [`Linux::symbol_remarks`], if the modules' symbols were read.
    pub(crate) fn symbol_remarks_so_far(&self) -> Option<&[String]> {
        self.all_symbols.get().map(|(_, remarks)| remarks.as_slice())
    }

    /// The processes in the order in which they started, kernel threads included; a process is its first thread.
    ///
    /// The idle task (pid 0), which is the head of the list and not part of it, is left out, as in /proc.
    pub fn processes(&self) -> impl Iterator<Item = Result<Task<'_, 'v, D>>> {
        let (tasks, pid) = (self.layout.task.tasks, self.layout.task.pid);
        let identity = move |node| self.read(tasks.owner(node)?, pid);
        rows(tasks.of(self.init_task).map(|head| list::nodes(&self.space, head, "the task list", MAX_TASKS, identity))).map(
            move |node| {
                let node = node?;
                Ok(Task::new(self, tasks.owner(node.at)?, node.identity))
            },
        )
    }

    /// All threads of all processes; those of a process follow each other, its first thread first.
    pub fn threads(&self) -> impl Iterator<Item = Result<Task<'_, 'v, D>>> {
        self.processes().flat_map(|process| rows(process.map(|process| process.threads())))
    }

    /// The process with this id.
    ///
    /// # Errors
    /// [`ErrorKind::NoObject`] if there is none; the first error of the list.
    pub fn process(&self, pid: u32) -> Result<Task<'_, 'v, D>> {
        for task in self.processes() {
            let task = task?;
            match task.tgid() {
                Ok(id) if id == pid => return Ok(task),
                Err(error) if matches!(error.kind(), ErrorKind::Gone { .. }) => {}
                other => _ = other?,
            }
        }
        Err(ErrorKind::NoObject { what: format!("process {pid}") }.into())
    }

    /// The task whose `struct task_struct` is at `at`. Nothing is checked.
    pub fn task_at(&self, at: VirtAddr) -> Task<'_, 'v, D> {
        Task::new(self, at, None)
    }

    /// The task that a CPU runs when there is nothing to do, `init_task`: pid 0.
    pub fn idle_task(&self) -> Task<'_, 'v, D> {
        Task::new(self, self.init_task, None)
    }

    /// The address of a symbol of the kernel itself.
    pub(crate) fn symbol(&self, name: &str) -> Result<VirtAddr> {
        self.kernel.symbols.address(name)
    }

    /// Reads a member of the object at `object`.
    #[inline]
    pub(crate) fn read<T: FromBytes + IntoBytes>(&self, object: VirtAddr, member: KernelField) -> Result<T> {
        self.space.read(member.of(object)?)
    }

    /// Reads a pointer, or a number as wide as one, of the object at `object`.
    #[inline]
    pub(crate) fn pointer(&self, object: VirtAddr, member: KernelField) -> Result<VirtAddr> {
        self.space.read_pointer(member.of(object)?)
    }

    /// As [`Linux::pointer`], with a null pointer as `None`.
    #[inline]
    pub(crate) fn pointer_or_null(&self, object: VirtAddr, member: KernelField) -> Result<Option<VirtAddr>> {
        Ok(Some(self.pointer(object, member)?).filter(|pointer| !pointer.is_null()))
    }

    /// Where the kernel's own pointer `at` leads in guest-physical memory.
    pub(crate) fn physical(&self, at: VirtAddr) -> Result<PhysAddr> {
        Ok(self.space.translate(at)?.at)
    }
}

impl<D: X86Driver> fmt::Debug for Linux<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Linux").field("banner", &self.kernel.banner).field("space", &self.space).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_guest::{INIT_TASK, TestGuest};

    /// Ids of all processes, and the error that ended them.
    fn pids(guest: TestGuest) -> (Vec<u32>, Option<Error>) {
        let (vmi, kernel) = guest.build();
        let linux = Linux::with_kernel(&vmi, kernel).unwrap();
        let mut pids = Vec::new();
        for task in linux.processes() {
            match task.and_then(|task| task.pid()) {
                Ok(pid) => pids.push(pid),
                Err(error) => return (pids, Some(error)),
            }
        }
        (pids, None)
    }

    fn three_tasks() -> TestGuest {
        let mut guest = TestGuest::new();
        guest.task(0x9000, INIT_TASK, 1, "init");
        guest.task(0xa000, 0x9000, 2, "kthreadd");
        guest.task(0xb000, 0xa000, 7, "sleep");
        guest
    }

    #[test]
    fn the_list_without_its_head() {
        let (pids, error) = pids(three_tasks());
        assert_eq!(pids, [1, 2, 7]);
        assert!(error.is_none());
    }

    /// LibVMI defect 11: a task list that leads back into itself was walked for ever.
    #[test]
    fn libvmi_11_a_task_list_in_a_circle_ends_in_an_error() {
        let mut guest = three_tasks();
        guest.put(0xb010, &[0xa010]);
        let (pids, error) = pids(guest);
        assert_eq!(pids[..3], [1, 2, 7]);
        assert!(matches!(error.unwrap().kind(), ErrorKind::Corrupt { what, .. } if what.contains("circle")));
    }

    /// memflow: an unreadable entry ended the process list as if it were complete.
    #[test]
    fn memflow_a_task_list_into_a_hole_is_not_a_shorter_list() {
        let mut guest = three_tasks();
        guest.put(0xa010, &[0x3f00_0010]);
        let (pids, error) = pids(guest);
        assert_eq!(pids, [1, 2]);
        assert!(error.unwrap().is_absent());
    }

    #[test]
    fn a_kernel_that_is_another_one_is_refused() {
        let mut guest = TestGuest::new();
        guest.text(INIT_TASK + 0x30, "nothing here");
        let (vmi, kernel) = guest.build();
        let error = Linux::with_kernel(&vmi, kernel).unwrap_err();
        assert!(error.to_string().contains("another kernel"), "{error}");
    }

    #[test]
    fn a_process_that_is_not_there() {
        let (vmi, kernel) = three_tasks().build();
        let linux = Linux::with_kernel(&vmi, kernel).unwrap();
        assert_eq!(linux.process(7).unwrap().name().unwrap(), "sleep");
        assert!(matches!(linux.process(8).unwrap_err().kind(), ErrorKind::NoObject { .. }));
    }

    /// A member that the types do not describe takes only what needs it, and the error names it.
    #[test]
    fn a_missing_member_disables_one_feature() {
        let (vmi, kernel) = three_tasks().build();
        let linux = Linux::with_kernel(&vmi, kernel).unwrap();
        let task = linux.process(7).unwrap();
        let error = task.uid().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NoType { name, .. } if name == "task_struct.real_cred"), "{error}");
        let mut threads = task.threads();
        assert!(matches!(threads.next(), Some(Err(error)) if error.to_string().contains("task_struct.signal")));
        assert!(threads.next().is_none());
    }
}
