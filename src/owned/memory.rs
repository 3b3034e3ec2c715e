//! Memory of a machine: guest-physical, or virtual in one of the ways in which it is had.

use core::fmt;
use core::ops::Range;
use std::sync::{Arc, OnceLock};

use self_cell::self_cell;
use vmi_arch_x86::PagingMode;
use vmi_core::{
    Access, Address as _, AddressSpace, Guest as _, Memory as Readable, PhysAddr, Result, Translation, VirtAddr, Vmi,
};
use vmi_os_linux::ProcessMemory;

use super::{AnyAddr, Guest, Machine};
use crate::AnyDriver;

/// Memory of a machine, chosen at run time: guest-physical, of the kernel, of a process, or of any page tables. A clone is a handle on the same one.
///
/// It is a [`vmi_core::Memory`] whose addresses are [`AnyAddr`]. Made by [`Machine::memory`], [`Machine::address_space`], [`Guest::kernel_memory`] and
/// [`Guest::process_memory`].
#[derive(Clone)]
pub struct Memory(Source);

#[derive(Clone)]
enum Source {
    Physical(Machine),
    Tables(Arc<TablesCell>),
    Kernel(Guest),
    Process(Arc<OfProcess>),
}

self_cell!(
    struct TablesCell {
        owner: Machine,
        #[covariant]
        dependent: Tables,
    }
);

type Tables<'v> = AddressSpace<'v, AnyDriver>;

/// The memory of a process that its guest lends, if it may be kept.
pub(super) type Kept<'v> = Option<Box<ProcessMemory<'v, AnyDriver>>>;

self_cell!(
    struct ProcessCell {
        owner: Guest,
        #[covariant]
        dependent: Kept,
    }
);

struct OfProcess {
    guest: Guest,
    pid: u32,
    kept: OnceLock<ProcessCell>,
}

impl OfProcess {
    /// What is kept between calls, made at the first; nothing where the process must be found anew for each.
    fn kept(&self) -> Result<Option<&ProcessMemory<'_, AnyDriver>>> {
        let cell = match self.kept.get() {
            Some(cell) => cell,
            None => {
                let made = ProcessCell::try_new(self.guest.clone(), |guest| guest.lasting_memory(self.pid))?;
                self.kept.get_or_init(|| made)
            }
        };
        Ok(cell.borrow_dependent().as_deref())
    }
}

/// Virtual memory through what all operating systems share.
struct OfGuest<'g> {
    guest: &'g Guest,
    pid: Option<u32>,
}

impl Readable for OfGuest<'_> {
    type Addr = VirtAddr;

    fn read_into(&self, at: VirtAddr, buf: &mut [u8]) -> Result<()> {
        self.guest.read_virtual(self.pid, at, buf)
    }
}

impl<'g> OfGuest<'g> {
    /// As [`Readable::slice`], for as long as the guest lives.
    fn lent(&self, at: VirtAddr, len: usize) -> Option<&'g [u8]> {
        let start = self.guest.translate(self.pid, at).ok()?;
        let mut covered = start.rest_of_page();
        while covered < len as u64 {
            let next = self.guest.translate(self.pid, at.checked_add(covered)?).ok()?;
            if next.at.offset_from(start.at) != Some(covered) {
                return None;
            }
            covered = covered.checked_add(next.rest_of_page())?;
        }
        self.guest.machine().vmi().slice(start.at, len)
    }
}

impl Memory {
    pub(super) fn physical(machine: Machine) -> Self {
        Self(Source::Physical(machine))
    }

    pub(super) fn of_tables(machine: Machine, root: PhysAddr, mode: PagingMode) -> Self {
        Self(Source::Tables(Arc::new(TablesCell::new(machine, |machine| machine.vmi().address_space(root, mode)))))
    }

    pub(super) fn of_kernel(guest: Guest) -> Self {
        Self(Source::Kernel(guest))
    }

    pub(super) fn of_process(guest: Guest, pid: u32) -> Self {
        Self(Source::Process(Arc::new(OfProcess { guest, pid, kept: OnceLock::new() })))
    }

    /// The machine that it belongs to.
    pub fn machine(&self) -> &Machine {
        match &self.0 {
            Source::Physical(machine) => machine,
            Source::Tables(tables) => tables.borrow_owner(),
            Source::Kernel(guest) => guest.machine(),
            Source::Process(process) => process.guest.machine(),
        }
    }

    fn vmi(&self) -> &Vmi<AnyDriver> {
        self.machine().vmi()
    }

    /// The guest whose symbols name places in it; `None` for memory of a machine, which has no symbols.
    pub fn guest(&self) -> Option<&Guest> {
        match &self.0 {
            Source::Kernel(guest) => Some(guest),
            Source::Process(process) => Some(&process.guest),
            Source::Physical(_) | Source::Tables(_) => None,
        }
    }

    /// The process whose memory it is.
    pub fn pid(&self) -> Option<u32> {
        match &self.0 {
            Source::Process(process) => Some(process.pid),
            _ => None,
        }
    }

    /// The root of the page tables that it was made of by [`Machine::address_space`].
    pub fn root(&self) -> Option<PhysAddr> {
        match &self.0 {
            Source::Tables(tables) => Some(tables.borrow_dependent().root()),
            _ => None,
        }
    }

    /// Whether it is guest-physical memory, whose addresses are not translated.
    pub fn is_physical(&self) -> bool {
        matches!(self.0, Source::Physical(_))
    }

    /// Bytes of a pointer of the kernel whose memory it is; of page tables, of an address that they map.
    pub fn pointer_size(&self) -> u64 {
        match &self.0 {
            Source::Physical(_) => 8,
            Source::Tables(tables) => {
                if tables.borrow_dependent().mode().is_long() {
                    8
                } else {
                    4
                }
            }
            Source::Kernel(guest) => guest.types().pointer_size(),
            Source::Process(process) => process.guest.types().pointer_size(),
        }
    }

    /// Where a virtual address lies in guest-physical memory. A physical one lies at itself.
    ///
    /// # Errors
    /// [`ErrorKind::Fault`](vmi_core::ErrorKind::Fault) if it is not mapped, [`ErrorKind::NoObject`](vmi_core::ErrorKind::NoObject) if there is no such process.
    pub fn translate(&self, at: VirtAddr) -> Result<Translation> {
        match &self.0 {
            Source::Physical(_) => {
                let access = Access { write: true, execute: true, user: true };
                Ok(Translation { at: PhysAddr::new(at.get()), page_shift: 12, access })
            }
            Source::Tables(tables) => tables.borrow_dependent().translate(at),
            Source::Kernel(guest) => guest.translate(None, at),
            Source::Process(process) => match process.kept()? {
                Some(memory) => memory.translate(at),
                None => process.guest.translate(Some(process.pid), at),
            },
        }
    }

    /// Writes; virtual memory where its page tables say, and nothing if a part of the range is not mapped.
    ///
    /// # Errors
    /// As [`Memory::translate`] and [`Vmi::write`]. [`Error::done`](vmi_core::Error::done) bytes were written.
    pub fn write(&self, at: AnyAddr, data: &[u8]) -> Result<()> {
        if self.is_physical() {
            return self.vmi().write(PhysAddr::new(at.get()), data);
        }
        let mut places = Vec::new();
        let mut done = 0usize;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let here = at.checked_add(done as u64).ok_or_else(|| at.out_of_range(data.len()))?;
            let translation = self.translate(VirtAddr::new(here.get()))?;
            let len = usize::try_from(translation.rest_of_page()).unwrap_or(usize::MAX).min(rest.len());
            places.push((translation.at, done, len));
            done = done.saturating_add(len);
        }
        for (physical, offset, len) in places {
            let part = data.get(offset..offset.saturating_add(len)).unwrap_or_default();
            self.vmi().write(physical, part).map_err(|error| error.after(offset))?;
        }
        Ok(())
    }
}

/// Calls a method of [`Readable`] on whatever memory it is.
macro_rules! dispatch {
    ($self:ident, $memory:ident, $at:ident => $call:expr) => {
        match &$self.0 {
            Source::Physical(machine) => {
                let ($memory, $at) = (machine.vmi(), PhysAddr::new($at.get()));
                $call
            }
            Source::Tables(tables) => {
                let ($memory, $at) = (tables.borrow_dependent(), VirtAddr::new($at.get()));
                $call
            }
            Source::Kernel(guest) => {
                let ($memory, $at) = (&OfGuest { guest, pid: None }, VirtAddr::new($at.get()));
                $call
            }
            Source::Process(process) => {
                let $at = VirtAddr::new($at.get());
                match process.kept()? {
                    Some($memory) => $call,
                    None => {
                        let $memory = &OfGuest { guest: &process.guest, pid: Some(process.pid) };
                        $call
                    }
                }
            }
        }
    };
}

impl Readable for Memory {
    type Addr = AnyAddr;

    fn read_into(&self, at: AnyAddr, buf: &mut [u8]) -> Result<()> {
        dispatch!(self, memory, at => memory.read_into(at, buf))
    }

    fn next_present(&self, at: AnyAddr) -> Option<AnyAddr> {
        match &self.0 {
            Source::Physical(machine) => machine.vmi().next_present(PhysAddr::new(at.get())).map(AnyAddr::from),
            Source::Tables(tables) => tables.borrow_dependent().next_present(VirtAddr::new(at.get())).map(AnyAddr::from),
            // Pages are the unit of what is there.
            Source::Kernel(_) | Source::Process(_) => {
                let past = vmi_core::PAGE_SIZE.wrapping_sub(at.get() % vmi_core::PAGE_SIZE);
                at.checked_add(past)
            }
        }
    }

    fn slice(&self, at: AnyAddr, len: usize) -> Option<&[u8]> {
        let at = at.get();
        match &self.0 {
            Source::Physical(machine) => machine.vmi().slice(PhysAddr::new(at), len),
            Source::Tables(tables) => tables.borrow_dependent().slice(VirtAddr::new(at), len),
            Source::Kernel(guest) => OfGuest { guest, pid: None }.lent(VirtAddr::new(at), len),
            Source::Process(process) => match process.kept().ok()? {
                Some(memory) => memory.slice(VirtAddr::new(at), len),
                None => OfGuest { guest: &process.guest, pid: Some(process.pid) }.lent(VirtAddr::new(at), len),
            },
        }
    }

    fn read_lossy(&self, at: AnyAddr, buf: &mut [u8]) -> Result<Vec<Range<usize>>> {
        dispatch!(self, memory, at => memory.read_lossy(at, buf))
    }

    fn read_c_string(&self, at: AnyAddr, limit: usize) -> Result<Vec<u8>> {
        dispatch!(self, memory, at => memory.read_c_string(at, limit))
    }

    fn read_utf16(&self, at: AnyAddr, limit: usize) -> Result<Vec<u16>> {
        dispatch!(self, memory, at => memory.read_utf16(at, limit))
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Memory");
        debug.field("machine", self.machine());
        match &self.0 {
            Source::Physical(_) => debug.field("of", &"physical"),
            Source::Tables(tables) => debug.field("root", &tables.borrow_dependent().root()),
            Source::Kernel(_) => debug.field("of", &"kernel"),
            Source::Process(process) => debug.field("pid", &process.pid),
        };
        debug.finish()
    }
}
