//! The handle on a Windows guest.

use core::fmt;
use std::sync::OnceLock;

use vmi_arch_x86::X86Driver;
use vmi_core::{
    AddressSpace, Error, ErrorKind, KernelField, Memory, Paging, Result, Symbols, TypeSource, VirtAddr, Vmi,
    list::{self, rows},
};
use zerocopy::{FromBytes, IntoBytes};

use crate::layout::Layout;
use crate::object_state::ObjectState;
use crate::process_memory::Pages;
use crate::triage::{self, SavedObject};
use crate::unicode_string::{self, Width};
use crate::{Kernel, Process, discover};

/// More processes than a system can have: ids are multiples of four, below 2^26 (Russinovich, "Pushing the Limits of Windows: Processes and Threads").
const MAX_PROCESSES: usize = 1 << 24;
/// The id of the process System since Windows XP.
const SYSTEM_PID: u32 = 4;

/// A Windows guest: its processes, modules, handles and symbols.
///
/// # Running guests
///
/// A running guest changes what is read meanwhile. Its lists are read as one: all that was there from the call to the end is in them exactly
/// once, what came or went meanwhile may be. What contradicts itself is read again, with growing pauses, and is at last an error that
/// says so ([`ErrorKind::Changing`]). An object that has gone away before its fields are read gives [`ErrorKind::Gone`], never the
/// fields of what lies in its place now. Two lists are of two moments. For one moment, pause the guest.
///
/// # Dumps without physical memory
///
/// A triage dump holds a few structures of the kernel. What is in it is read as from any other machine, and each list ends with the error that says
/// which memory is not there.
///
/// # Example
///
/// ```no_run
/// # fn list<D: vmi_arch_x86::X86Driver>(vmi: &vmi_core::Vmi<D>) -> Result<(), Box<dyn std::error::Error>> {
/// use vmi_os_windows::Windows;
///
/// let windows = Windows::attach(vmi)?;
/// for process in windows.processes() {
///     let process = process?;
///     println!("{:>6} {:>6} {}", process.pid()?, process.parent_pid()?, process.name()?);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Windows<'v, D: X86Driver> {
    pub(crate) space: AddressSpace<'v, D>,
    pub(crate) layout: Layout,
    /// What is known about objects; see [`ObjectState`].
    pub(crate) objects: ObjectState<'v, D>,
    kernel: Kernel,
    /// The process System.
    system: VirtAddr,
    /// The list of processes.
    process_list: VirtAddr,
    /// See [`Windows::invalid_entry_mask`].
    pub(crate) invalid_mask: OnceLock<Option<u64>>,
    /// Objects that a triage dump has outside of its virtual memory.
    saved: Vec<SavedObject>,
}

/// Why a machine could not be read as a Windows guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// No kernel was found.
    #[error(transparent)]
    Discover(#[from] discover::DiscoverError),
    /// A kernel was found, but its first process is not where the symbols and types say.
    #[error("the process System cannot be read: {source}; the symbols or types may belong to another kernel")]
    SystemProcess {
        /// What failed.
        #[source]
        source: Error,
    },
}

impl<'v, D: X86Driver> Windows<'v, D> {
    /// Finds the kernel in the machine's memory. Nothing else is needed; see [`discover`].
    ///
    /// A running guest need not be paused for this. Only a kernel whose structures are inferred from its objects ([`shape`](crate::shape)) may tell more
    /// while it is paused.
    ///
    /// # Errors
    /// [`AttachError::Discover`] if there is no Windows kernel or it cannot be made out, else as [`Windows::with_kernel`].
    pub fn attach(vmi: &'v Vmi<D>) -> Result<Self, AttachError> {
        Self::with_kernel(vmi, discover::find(vmi)?)
    }

    /// Reads the machine by a kernel that was found before, or put together from files.
    ///
    /// The process System must be where the variable `PsInitialSystemProcess` says, or else first in the list `PsActiveProcessHead`.
    ///
    /// # Errors
    /// [`AttachError::SystemProcess`] if it is in neither place.
    pub fn with_kernel(vmi: &'v Vmi<D>, kernel: Kernel) -> Result<Self, AttachError> {
        let space = vmi.address_space(kernel.root, kernel.mode);
        let layout = Layout::new(&*kernel.types);
        let (system, process_list) = (VirtAddr::ZERO, VirtAddr::ZERO);
        let (invalid_mask, saved) = (OnceLock::new(), triage::saved_objects(vmi, &layout));
        let objects = ObjectState::new(&*kernel.types);
        let mut windows = Self { space, layout, objects, kernel, system, process_list, invalid_mask, saved };
        windows.system = windows.find_system().map_err(|source| AttachError::SystemProcess { source })?;
        windows.process_list = windows.find_process_list().map_err(|source| AttachError::SystemProcess { source })?;
        Ok(windows)
    }

    fn find_system(&self) -> Result<VirtAddr> {
        let by_variable = || self.checked_system(self.kernel_pointer(self.symbol("PsInitialSystemProcess")?)?);
        let by_list = || {
            let head = self.symbol("PsActiveProcessHead")?;
            self.checked_system(self.layout.process.links.owner(self.kernel_pointer(head)?)?)
        };
        // A triage dump holds the list's head, but not the variable.
        by_variable().or_else(|error| by_list().map_err(|other| if other.is_absent() { error } else { other }))
    }

    /// `process`, if it is the process System.
    fn checked_system(&self, process: VirtAddr) -> Result<VirtAddr> {
        let object = self.process_at(process);
        let (name, pid) = (object.name()?, object.pid()?);
        if name == "System" && pid == SYSTEM_PID {
            return Ok(process);
        }
        Err(Error::corrupt(format!("the first process is named {name:?} and has the id {pid}"), process))
    }

    /// The head of the list of processes. System is the first one in it: where the variable is not known, the node before it is the head.
    fn find_process_list(&self) -> Result<VirtAddr> {
        self.symbol("PsActiveProcessHead").or_else(|missing| {
            let links = self.layout.process.links.of(self.system)?;
            let before = self.kernel_pointer(links.wrapping_add(self.width().bytes()))?;
            let inside = before.offset_from(self.kernel.base).is_some_and(|offset| offset < self.kernel.size);
            if inside { Ok(before) } else { Err(missing) }
        })
    }

    /// The machine.
    pub fn vmi(&self) -> &'v Vmi<D> {
        self.space.vmi()
    }

    /// What was found out about the kernel.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The kernel's own address space.
    pub fn kernel_space(&self) -> &AddressSpace<'v, D> {
        &self.space
    }

    /// Layouts of the kernel's structures.
    pub fn types(&self) -> &dyn TypeSource {
        &*self.kernel.types
    }

    /// The kernel's symbols.
    pub fn symbols(&self) -> &Symbols {
        &self.kernel.symbols
    }

    /// The build of the kernel: as discovery found it, else as the variable `NtBuildNumber` says.
    pub fn build(&self) -> Option<u32> {
        let variable = || Some(KernelMemory(self).read::<u32>(self.symbol("NtBuildNumber").ok()?).ok()? & 0xffff);
        self.kernel.build.or_else(variable)
    }

    /// The processes in the order in which they started: System first. Those that have ended stay in the list as long as somebody holds a handle to
    /// them; see [`Process::exit_time`].
    ///
    /// The idle process (pid 0) is not in the list.
    pub fn processes(&self) -> impl Iterator<Item = Result<Process<'_, 'v, D>>> {
        let (links, pid) = (self.layout.process.links, self.layout.process.pid);
        let identity = move |node| self.id(links.owner(node)?, pid);
        let nodes = list::nodes(&self.space, self.process_list, "the process list", MAX_PROCESSES, identity);
        rows(links.offset().map(|_| nodes)).map(move |node| {
            let node = node?;
            Ok(Process::new(self, links.owner(node.at)?, node.identity))
        })
    }

    /// The process with this id that has not ended; if all with this id have ended, the first of them.
    ///
    /// # Errors
    /// [`ErrorKind::NoObject`] if there is none; the first error of the list, if it comes before.
    pub fn process(&self, pid: u32) -> Result<Process<'_, 'v, D>> {
        let mut ended = None;
        for process in self.processes() {
            let process = match process {
                Ok(process) => process,
                Err(error) => return ended.ok_or(error),
            };
            match process.pid() {
                Ok(id) if id == pid && process.has_exited().unwrap_or(false) => ended = ended.or(Some(process)),
                Ok(id) if id == pid => return Ok(process),
                Err(error) if !matches!(error.kind(), ErrorKind::Gone { .. }) => return ended.ok_or(error),
                _ => {}
            }
        }
        ended.ok_or_else(|| ErrorKind::NoObject { what: format!("process {pid}") }.into())
    }

    /// The process whose `_EPROCESS` is at `at`. Nothing is checked.
    pub fn process_at(&self, at: VirtAddr) -> Process<'_, 'v, D> {
        Process::new(self, at, None)
    }

    /// The process System: pid 4, whose threads are those of the kernel and its drivers.
    pub fn system_process(&self) -> Process<'_, 'v, D> {
        Process::new(self, self.system, None)
    }

    /// How wide the kernel's pointers are.
    pub(crate) fn width(&self) -> Width {
        Width::of(self.space.mode().pointer_size())
    }

    /// The address of a symbol of the kernel itself.
    pub(crate) fn symbol(&self, name: &str) -> Result<VirtAddr> {
        let at = self.kernel.symbols.address(name)?;
        // What a 32-bit kernel's debugger data says is sign-extended.
        Ok(match self.width() {
            Width::Bits32 => VirtAddr::new(at.get() & 0xffff_ffff),
            Width::Bits64 => at,
        })
    }

    /// Reads the kernel's memory, pages included that are on their way to the disk.
    #[inline]
    pub(crate) fn read_kernel(&self, at: VirtAddr, buf: &mut [u8]) -> Result<()> {
        match self.space.read_into(at, buf) {
            Err(error) if error.is_absent() => match self.saved.iter().find_map(|saved| saved.place(at, buf.len())) {
                Some(place) => self.vmi().read_into(place, buf),
                None => Pages::of_kernel(self).read_on(at, buf, error),
            },
            other => other,
        }
    }

    /// Reads a pointer in the kernel's memory.
    #[inline]
    pub(crate) fn kernel_pointer(&self, at: VirtAddr) -> Result<VirtAddr> {
        self.width().pointer(&KernelMemory(self), at)
    }

    /// Reads a member of the object at `object`.
    #[inline]
    pub(crate) fn read<T: FromBytes + IntoBytes>(&self, object: VirtAddr, member: KernelField) -> Result<T> {
        KernelMemory(self).read(member.of(object)?)
    }

    /// Reads a pointer, or a number as wide as one, of the object at `object`.
    #[inline]
    pub(crate) fn pointer(&self, object: VirtAddr, member: KernelField) -> Result<VirtAddr> {
        self.kernel_pointer(member.of(object)?)
    }

    /// As [`Windows::pointer`], with a null pointer as `None`.
    #[inline]
    pub(crate) fn pointer_or_null(&self, object: VirtAddr, member: KernelField) -> Result<Option<VirtAddr>> {
        Ok(Some(self.pointer(object, member)?).filter(|pointer| !pointer.is_null()))
    }

    /// Reads a number of whatever width the member has, up to 8 bytes; of a bitfield its value.
    pub(crate) fn number(&self, object: VirtAddr, member: KernelField) -> Result<u64> {
        let at = member.of(object)?;
        let size = usize::try_from(member.size()?).unwrap_or(usize::MAX).min(8);
        let mut bytes = [0; 8];
        if let Some(part) = bytes.get_mut(..size) {
            self.read_kernel(at, part)?;
        }
        member.number(u64::from_le_bytes(bytes))
    }

    /// Reads an id of a process or thread, which is as wide as a pointer; the upper half of it is not used.
    pub(crate) fn id(&self, object: VirtAddr, member: KernelField) -> Result<u32> {
        Ok(self.pointer(object, member)?.get() as u32)
    }

    /// Reads a pointer whose lowest bits count references (`_EX_FAST_REF`: 3 bits in a 32-bit kernel, else 4); `None` for null.
    pub(crate) fn fast_reference(&self, object: VirtAddr, member: KernelField) -> Result<Option<VirtAddr>> {
        let mask = match self.width() {
            Width::Bits32 => 0x7,
            Width::Bits64 => 0xf,
        };
        let pointer = VirtAddr::new(self.pointer(object, member)?.get() & !mask);
        Ok(Some(pointer).filter(|pointer| !pointer.is_null()))
    }

    /// Reads the string whose `UNICODE_STRING` is at `at` in the kernel's memory.
    pub(crate) fn string(&self, at: VirtAddr) -> Result<String> {
        unicode_string::read(&KernelMemory(self), at, self.width())
    }

    /// Whether `at` is an address of the kernel's: in the upper half of all addresses. (A 32-bit system that was started with `/3GB` gives user
    /// memory a part of that half too.)
    pub(crate) fn is_kernel_address(&self, at: VirtAddr) -> bool {
        match self.width() {
            Width::Bits32 => at.get() >= 0x8000_0000,
            Width::Bits64 => at.get() >> 63 == 1,
        }
    }
}

/// The kernel's memory, pages included that are on their way to the disk.
pub(crate) struct KernelMemory<'w, 'v, D: X86Driver>(pub(crate) &'w Windows<'v, D>);

impl<D: X86Driver> Memory for KernelMemory<'_, '_, D> {
    type Addr = VirtAddr;

    #[inline]
    fn read_into(&self, at: VirtAddr, buf: &mut [u8]) -> Result<()> {
        self.0.read_kernel(at, buf)
    }
}

impl<D: X86Driver> fmt::Debug for Windows<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Windows").field("build", &self.kernel.build).field("space", &self.space).finish_non_exhaustive()
    }
}
