//! What memories read: guest-physical memory, what page tables map, the kernel, a process.

use core::ops::Range;
use std::sync::{Arc, OnceLock};

use self_cell::self_cell;
use vmi::linux::ProcessMemory;
use vmi::x86::PagingMode;
use vmi::{Address as _, AddressSpace, AnyDriver, Guest, Memory as Readable, PhysAddr, Translation, VirtAddr};

use crate::guest::Attached;
use crate::machine::Shared;

/// What is read.
pub(crate) enum Source {
    Physical,
    Kernel(Arc<Attached>),
    Process { guest: Arc<Attached>, pid: u32 },
    Tables { root: PhysAddr, mode: PagingMode },
}

/// What a source borrows of its machine, kept between calls.
enum Kept<'v> {
    Tables(AddressSpace<'v, AnyDriver>),
    /// Of a frozen Linux guest: what was found there stays true.
    Process(Box<ProcessMemory<'v, AnyDriver>>),
    /// Found anew for each read: in a running guest a process may end at any time.
    Nothing,
}

self_cell!(
    struct KeptCell {
        owner: Arc<Shared>,
        #[covariant]
        dependent: Kept,
    }
);

/// Virtual memory through what all operating systems share.
struct OfGuest<'g> {
    guest: &'g dyn Guest,
    vmi: &'g vmi::Vmi<AnyDriver>,
    pid: Option<u32>,
}

impl Readable for OfGuest<'_> {
    type Addr = VirtAddr;

    fn read_into(&self, at: VirtAddr, buf: &mut [u8]) -> vmi::Result<()> {
        self.guest.read_virtual(self.pid, at, buf)
    }

    fn slice(&self, at: VirtAddr, len: usize) -> Option<&[u8]> {
        let start = self.guest.translate(self.pid, at).ok()?;
        let mut covered = start.rest_of_page();
        while covered < len as u64 {
            let next = self.guest.translate(self.pid, at.checked_add(covered)?).ok()?;
            if next.at.offset_from(start.at) != Some(covered) {
                return None;
            }
            covered = covered.checked_add(next.rest_of_page())?;
        }
        self.vmi.slice(start.at, len)
    }
}

/// Any memory, addressed by number.
pub(crate) trait ByNumber {
    fn fill(&self, at: u64, buf: &mut [u8]) -> vmi::Result<()>;
    fn fill_lossy(&self, at: u64, buf: &mut [u8]) -> vmi::Result<Vec<Range<usize>>>;
    fn c_string(&self, at: u64, limit: usize) -> vmi::Result<Vec<u8>>;
    fn utf16(&self, at: u64, limit: usize) -> vmi::Result<Vec<u16>>;
    fn lent(&self, at: u64, len: usize) -> Option<&[u8]>;
}

impl<M: Readable> ByNumber for M
where
    M::Addr: From<u64>,
{
    fn fill(&self, at: u64, buf: &mut [u8]) -> vmi::Result<()> {
        self.read_into(at.into(), buf)
    }

    fn fill_lossy(&self, at: u64, buf: &mut [u8]) -> vmi::Result<Vec<Range<usize>>> {
        self.read_lossy(at.into(), buf)
    }

    fn c_string(&self, at: u64, limit: usize) -> vmi::Result<Vec<u8>> {
        self.read_c_string(at.into(), limit)
    }

    fn utf16(&self, at: u64, limit: usize) -> vmi::Result<Vec<u16>> {
        self.read_utf16(at.into(), limit)
    }

    fn lent(&self, at: u64, len: usize) -> Option<&[u8]> {
        self.slice(at.into(), len)
    }
}

/// A source of one machine.
pub struct Reader {
    pub(crate) shared: Arc<Shared>,
    pub(crate) source: Source,
    kept: OnceLock<KeptCell>,
}

impl core::fmt::Debug for Reader {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Reader").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, source: Source) -> Self {
        Self { shared, source, kept: OnceLock::new() }
    }

    /// What the source keeps between calls, made at the first.
    fn kept_tables(&self) -> &KeptCell {
        self.kept.get_or_init(|| {
            KeptCell::new(self.shared.clone(), |shared| match &self.source {
                Source::Tables { root, mode } => Kept::Tables(shared.vmi.address_space(*root, *mode)),
                _ => Kept::Nothing,
            })
        })
    }

    /// The memory of a process, if it may be kept.
    fn kept_process(&self, guest: &Attached, pid: u32) -> vmi::Result<&KeptCell> {
        if let Some(kept) = self.kept.get() {
            return Ok(kept);
        }
        let made = KeptCell::try_new(self.shared.clone(), |shared| -> vmi::Result<Kept<'_>> {
            if shared.vmi.machine().liveness == vmi::Liveness::Live {
                return Ok(Kept::Nothing);
            }
            // The memory borrows the machine alone, so it is looked for by a second layer over the same kernel.
            let Some(kernel) = guest.layer().linux_kernel() else { return Ok(Kept::Nothing) };
            let again = vmi::linux::Linux::with_kernel(&shared.vmi, kernel.clone());
            let again = again.map_err(|_| vmi::Error::from(vmi::ErrorKind::NoObject { what: "kernel".to_owned() }))?;
            Ok(again.process(pid)?.memory()?.map_or(Kept::Nothing, |memory| Kept::Process(Box::new(memory))))
        })?;
        Ok(self.kept.get_or_init(|| made))
    }

    /// Calls `action` with the memory.
    pub(crate) fn with<T>(&self, action: impl FnOnce(&dyn ByNumber) -> vmi::Result<T>) -> vmi::Result<T> {
        let vmi = &self.shared.vmi;
        match &self.source {
            Source::Physical => action(vmi),
            Source::Tables { .. } => match self.kept_tables().borrow_dependent() {
                Kept::Tables(space) => action(space),
                _ => action(vmi),
            },
            Source::Kernel(guest) => action(&OfGuest { guest: guest.guest(), vmi, pid: None }),
            Source::Process { guest, pid } => match self.kept_process(guest, *pid)?.borrow_dependent() {
                Kept::Process(memory) => action(&**memory),
                _ => action(&OfGuest { guest: guest.guest(), vmi, pid: Some(*pid) }),
            },
        }
    }

    /// The translation of a virtual address; that of a physical one is itself.
    pub(crate) fn translate(&self, at: u64) -> vmi::Result<Translation> {
        let at = VirtAddr::new(at);
        match &self.source {
            Source::Physical => {
                let access = vmi::Access { write: true, execute: true, user: true };
                Ok(Translation { at: PhysAddr::new(at.get()), page_shift: 12, access })
            }
            Source::Tables { .. } => match self.kept_tables().borrow_dependent() {
                Kept::Tables(space) => space.translate(at),
                _ => Err(at.out_of_range(1)),
            },
            Source::Kernel(guest) => guest.guest().translate(None, at),
            Source::Process { guest, pid } => match self.kept_process(guest, *pid)?.borrow_dependent() {
                Kept::Process(memory) => memory.translate(at),
                _ => guest.guest().translate(Some(*pid), at),
            },
        }
    }

    /// Writes; virtual memory by pages, and nothing is written if a part of it has no place.
    pub(crate) fn write(&self, at: u64, data: &[u8]) -> vmi::Result<()> {
        if matches!(self.source, Source::Physical) {
            return self.shared.vmi.write(PhysAddr::new(at), data);
        }
        let mut places = Vec::new();
        let mut done = 0usize;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let start = VirtAddr::new(at);
            let here = start.checked_add(done as u64).ok_or_else(|| start.out_of_range(data.len()))?;
            let translation = self.translate(here.get())?;
            let len = usize::try_from(translation.rest_of_page()).unwrap_or(usize::MAX).min(rest.len());
            places.push((translation.at, done, len));
            done = done.saturating_add(len);
        }
        for (physical, offset, len) in places {
            let part = data.get(offset..offset.saturating_add(len)).unwrap_or_default();
            self.shared.vmi.write(physical, part).map_err(|error| error.after(offset))?;
        }
        Ok(())
    }

    /// Whether it is guest-physical memory, whose addresses are not translated.
    pub(crate) fn is_physical(&self) -> bool {
        matches!(self.source, Source::Physical)
    }

    /// The guest whose symbols name places in it.
    pub(crate) fn guest(&self) -> Option<&Arc<Attached>> {
        match &self.source {
            Source::Kernel(guest) | Source::Process { guest, .. } => Some(guest),
            Source::Physical | Source::Tables { .. } => None,
        }
    }
}
