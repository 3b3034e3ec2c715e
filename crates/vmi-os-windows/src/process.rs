//! Processes: `_EPROCESS`, and `_KPROCESS` at its start.

use core::fmt;
use std::time::SystemTime;

use vmi_arch_x86::X86Driver;
use vmi_core::{
    AddressSpace, Error, ErrorKind, KernelField, Memory, PhysAddr, Result, VirtAddr,
    list::{self, rows},
    live,
};

use crate::file_time::moment;
use crate::{Protection, Thread, Windows};

/// More threads than a system can have; see `MAX_PROCESSES`.
const MAX_THREADS: usize = 1 << 24;
/// The most bytes of a short name: 16, of which the last one is zero; newer kernels have 15 and a zero byte behind them.
const NAME_LEN: usize = 16;
/// STATUS_PENDING: what the exit status is while the process runs.
const PENDING: u32 = 0x103;

/// A process. Its fields are read when asked for.
///
/// In a running guest a process may end at any time, and another object may come to lie in its place. Every method therefore looks again, after it
/// has read, whether the process still is the one that was listed: if not, [`ErrorKind::Gone`] is the error, never the data of another.
pub struct Process<'w, 'v, D: X86Driver> {
    pub(crate) windows: &'w Windows<'v, D>,
    at: VirtAddr,
    /// Its id when it was found in a running guest: what tells whether it still is the same.
    found: Option<u32>,
}

impl<D: X86Driver> Clone for Process<'_, '_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: X86Driver> Copy for Process<'_, '_, D> {}

impl<'w, 'v, D: X86Driver> Process<'w, 'v, D> {
    pub(crate) fn new(windows: &'w Windows<'v, D>, at: VirtAddr, found: Option<u32>) -> Self {
        Self { windows, at, found }
    }

    /// What was read of it, if it still is the process that was found: it has the same id and is still in the list.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] if it is not, whatever the outcome of the read was.
    pub(crate) fn whole<T>(&self, read: Result<T>) -> Result<T> {
        let Some(found) = self.found else { return read };
        let layout = &self.windows.layout.process;
        let same = self.windows.id(self.at, layout.pid).is_ok_and(|pid| pid == found);
        if same && list::holds(&self.windows.space, layout.links.of(self.at)?) {
            return read;
        }
        Err(ErrorKind::Gone { what: format!("process {found}") }.into())
    }

    /// The same process for reads that are not proven one by one: their outcome goes through [`Process::whole`] in the end.
    pub(crate) fn unproven(&self) -> Self {
        Self { found: None, ..*self }
    }

    fn number(&self, member: KernelField) -> Result<u64> {
        self.whole(self.windows.number(self.at, member))
    }

    /// What `read` finds in the object that `member` points to; `None` for a null pointer. The object stayed the same meanwhile.
    pub(crate) fn behind<T>(
        &self,
        what: &'static str,
        member: KernelField,
        read: impl Fn(VirtAddr) -> Result<T>,
    ) -> Result<Option<T>> {
        let pointer = || self.windows.pointer_or_null(self.at, member);
        self.whole(live::behind(self.windows.vmi(), what, pointer, |at| at.map(&read).transpose()))
    }

    /// Where its `_EPROCESS` is.
    pub fn address(&self) -> VirtAddr {
        self.at
    }

    /// Process id.
    ///
    /// # Errors
    /// As [`Memory::read_into`]; [`ErrorKind::NoType`] if the guest's types do not have the member. The same holds for all
    /// methods that follow, unless they say more.
    pub fn pid(&self) -> Result<u32> {
        self.whole(self.windows.id(self.at, self.windows.layout.process.pid))
    }

    /// Id of the process that started it, which may have ended since, and its id may be another one's by now.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn parent_pid(&self) -> Result<u32> {
        self.whole(self.windows.id(self.at, self.windows.layout.process.parent))
    }

    /// The file name of its program without the folder, cut off after 14 or 15 bytes (`ImageFileName`). See [`Process::image_path`] for all of it.
    ///
    /// The bytes are in the code page of the system; those that are not ASCII are replaced.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn name(&self) -> Result<String> {
        let member = self.windows.layout.process.name;
        let mut bytes = [0u8; NAME_LEN];
        let size = usize::try_from(member.size()?).unwrap_or(NAME_LEN).min(NAME_LEN);
        if let Some(part) = bytes.get_mut(..size) {
            self.whole(self.windows.read_kernel(member.of(self.at)?, part))?;
        }
        let name = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(name.iter().map(|&byte| if byte.is_ascii() { char::from(byte) } else { char::REPLACEMENT_CHARACTER }).collect())
    }

    /// The path of its program as the kernel knows it: `\Device\HarddiskVolume2\Windows\System32\smss.exe` (`SeAuditProcessCreationInfo`). `None` if
    /// it has none, as System.
    ///
    /// # Errors
    /// As [`Process::pid`]; [`ErrorKind::Corrupt`] for a string that cannot be.
    pub fn image_path(&self) -> Result<Option<String>> {
        // _OBJECT_NAME_INFORMATION is a UNICODE_STRING.
        let path = self.behind("the path of a process", self.windows.layout.process.audit, |name| self.windows.string(name))?;
        Ok(path.filter(|path| !path.is_empty()))
    }

    /// When it was created; `None` for a process that has no such time.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn create_time(&self) -> Result<Option<SystemTime>> {
        Ok(moment(self.number(self.windows.layout.process.created)?))
    }

    /// When it ended; `None` if it runs.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn exit_time(&self) -> Result<Option<SystemTime>> {
        Ok(moment(self.number(self.windows.layout.process.exited)?))
    }

    /// Whether it has ended. Such a process has no memory and no threads any more.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn has_exited(&self) -> Result<bool> {
        Ok(self.number(self.windows.layout.process.exited)? != 0)
    }

    /// What it ended with, as the program gave it; `None` if it runs.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn exit_status(&self) -> Result<Option<u32>> {
        let status = self.number(self.windows.layout.process.exit_status)? as u32;
        Ok(if status == PENDING && !self.has_exited().unwrap_or(false) { None } else { Some(status) })
    }

    /// The session that it belongs to: 0 has the services, 1 the first user at the screen. `None` if it belongs to none, as System.
    ///
    /// The structure lies in memory that the processes of the session share, so that it is read in the process's own address space.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn session(&self) -> Result<Option<u32>> {
        let layout = &self.windows.layout;
        let id = if layout.session.id.exists() { layout.session.id } else { layout.new_session.id };
        self.behind("the session of a process", layout.process.session, |session| self.address_space()?.read(id.of(session)?))
    }

    /// Who may open it and for what, beside its token; `None` if the kernel does not protect processes so (before Windows 8.1).
    ///
    /// # Errors
    /// As [`Memory::read_into`].
    pub fn protection(&self) -> Result<Option<Protection>> {
        let member = self.windows.layout.process.protection;
        if !member.exists() {
            return Ok(None);
        }
        Ok(Some(Protection::from_level(self.number(member)? as u8)))
    }

    /// How many handles it has open, where the kernel counts them in one place (before Windows 8.1). `None` if it has no table of handles any more.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn handle_count(&self) -> Result<Option<u32>> {
        let count = self.windows.layout.handle_count.count;
        let table = self.windows.layout.process.handles;
        self.behind("the handles of a process", table, |table| Ok(self.windows.number(table, count)? as u32))
    }

    /// Where its table of handles is (`_HANDLE_TABLE`); `None` if it has none, as when it has ended.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn handle_table(&self) -> Result<Option<VirtAddr>> {
        self.whole(self.windows.pointer_or_null(self.at, self.windows.layout.process.handles))
    }

    /// How many threads it has.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn thread_count(&self) -> Result<u32> {
        Ok(self.number(self.windows.layout.process.active_threads)? as u32)
    }

    /// Where its program was loaded (`SectionBaseAddress`); `None` if it has none.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn image_base(&self) -> Result<Option<VirtAddr>> {
        self.whole(self.windows.pointer_or_null(self.at, self.windows.layout.process.section_base))
    }

    /// Where its process environment block is, in its own memory; `None` if it has none, as System.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn peb_address(&self) -> Result<Option<VirtAddr>> {
        self.whole(self.windows.pointer_or_null(self.at, self.windows.layout.process.peb))
    }

    /// Where its 32-bit process environment block is, if it is a 32-bit process of a 64-bit system (WoW64); else `None`.
    ///
    /// Until Windows 8.1 the kernel has that address itself; since Windows 10 it points to a structure of the kernel (`_EWOW64PROCESS`) that has it.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn wow64_peb_address(&self) -> Result<Option<VirtAddr>> {
        let layout = &self.windows.layout;
        if !self.windows.space.mode().is_long() || !layout.process.wow64.exists() {
            return Ok(None);
        }
        let peb = self.behind("the 32-bit part of a process", layout.process.wow64, |at| {
            if !self.windows.is_kernel_address(at) {
                return Ok(at);
            }
            let offset = if layout.wow64.peb.exists() { layout.wow64.peb.offset()? } else { 0 };
            self.windows.kernel_pointer(at.wrapping_add(offset))
        })?;
        Ok(peb.filter(|peb| !peb.is_null()))
    }

    /// Whether it is a 32-bit process of a 64-bit system.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn is_wow64(&self) -> Result<bool> {
        Ok(self.wow64_peb_address()?.is_some())
    }

    /// Whether it has no user memory of a program: System, Registry, the compressed memory.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn is_kernel_process(&self) -> Result<bool> {
        Ok(self.peb_address()?.is_none() && !self.has_exited().unwrap_or(false))
    }

    /// The root of its page tables, without the flags that CR3 has beside the address. The kernel is mapped in them too.
    ///
    /// # Errors
    /// As [`Process::pid`].
    pub fn page_table(&self) -> Result<PhysAddr> {
        let root = PhysAddr::new(self.number(self.windows.layout.kernel_process.page_table)?);
        Ok(self.windows.space.mode().top_table(root))
    }

    /// The root of the page tables that its own code runs on, where that sees next to nothing of the kernel (KVA shadow, since 2018); `None` if the
    /// system has no such tables or the process needs none.
    ///
    /// # Errors
    /// As [`Memory::read_into`].
    pub fn user_page_table(&self) -> Result<Option<PhysAddr>> {
        let member = self.windows.layout.kernel_process.user_page_table;
        if !member.exists() {
            return Ok(None);
        }
        let root = self.windows.space.mode().top_table(PhysAddr::new(self.number(member)?));
        // Where there are none the field is zero, or has only flags.
        Ok(Some(root).filter(|root| *root != PhysAddr::ZERO))
    }

    /// What the processor sees of its memory, in the kernel.
    ///
    /// # Errors
    /// As [`Process::pid`]; [`ErrorKind::NoObject`] if it has no page tables any more.
    pub fn address_space(&self) -> Result<AddressSpace<'v, D>> {
        let root = self.page_table()?;
        if root == PhysAddr::ZERO {
            return Err(Error::from(ErrorKind::NoObject { what: format!("memory of the process at {}", self.at) }));
        }
        Ok(self.windows.vmi().address_space(root, self.windows.space.mode()))
    }

    /// Its threads, in the order in which they started.
    pub fn threads(&self) -> impl Iterator<Item = Result<Thread<'w, 'v, D>>> + use<'w, 'v, D> {
        let (windows, layout) = (self.windows, &self.windows.layout);
        // The executive and the scheduler have a list each. Either may be missing in what is known of the types.
        let of_executive = (layout.process.threads, layout.thread.links);
        let of_scheduler = (layout.kernel_process.threads, layout.kernel_thread.links);
        let exists = |(head, links): (KernelField, KernelField)| head.exists() && links.exists();
        let (head, links) = if exists(of_executive) || !exists(of_scheduler) { of_executive } else { of_scheduler };
        let identity = move |node| windows.id(links.owner(node)?, windows.layout.thread.tid);
        let start = || {
            let (head, _) = (head.of(self.at)?, links.offset()?);
            Ok(list::nodes(&windows.space, head, "the threads of a process", MAX_THREADS, identity))
        };
        let nodes = self.whole(start());
        rows(nodes).map(move |node| {
            let node = node?;
            Ok(Thread::new(windows, links.owner(node.at)?, links.of(links.owner(node.at)?)?, node.identity))
        })
    }
}

impl<D: X86Driver> fmt::Debug for Process<'_, '_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("address", &self.at)
            .field("pid", &self.pid().ok())
            .field("name", &self.name().ok())
            .finish()
    }
}
