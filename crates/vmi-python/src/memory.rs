//! Memory as Python reads it: physical, of the kernel, of a process, of any page tables.

use std::sync::{Arc, OnceLock};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyMemoryView, PyString};
use self_cell::self_cell;
use vmi::linux::ProcessMemory;
use vmi::x86::PagingMode;
use vmi::{Address as _, AddressSpace, AnyDriver, Guest, Memory as Readable, PAGE_SIZE, PhysAddr, VirtAddr};

use crate::address;
use crate::errors::{Raise, exception};
use crate::frozen_view::{FrozenView, not_lent};
use crate::guest::Attached;
use crate::machine::{Handle, Shared};

/// Reads of mapped memory above this let other threads of Python run; a shorter one takes less time than asking them.
const LONG: usize = 64 << 10;
/// What one call reads at most where the machine has less memory: a wrong length is an exception, not the end of this process.
const MAX_READ: u64 = 64 << 20;
/// What goes into a caller's buffer at a time.
const PIECE: usize = 1 << 20;

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
trait ByNumber {
    fn fill(&self, at: u64, buf: &mut [u8]) -> vmi::Result<()>;
    fn fill_lossy(&self, at: u64, buf: &mut [u8]) -> vmi::Result<Vec<core::ops::Range<usize>>>;
    fn c_string(&self, at: u64, limit: usize) -> vmi::Result<Vec<u8>>;
    fn utf16(&self, at: u64, limit: usize) -> vmi::Result<Vec<u16>>;
    fn lends(&self, at: u64, len: usize) -> bool;
}

impl<M: Readable> ByNumber for M
where
    M::Addr: From<u64>,
{
    fn fill(&self, at: u64, buf: &mut [u8]) -> vmi::Result<()> {
        self.read_into(at.into(), buf)
    }

    fn fill_lossy(&self, at: u64, buf: &mut [u8]) -> vmi::Result<Vec<core::ops::Range<usize>>> {
        self.read_lossy(at.into(), buf)
    }

    fn c_string(&self, at: u64, limit: usize) -> vmi::Result<Vec<u8>> {
        self.read_c_string(at.into(), limit)
    }

    fn utf16(&self, at: u64, limit: usize) -> vmi::Result<Vec<u16>> {
        self.read_utf16(at.into(), limit)
    }

    fn lends(&self, at: u64, len: usize) -> bool {
        self.slice(at.into(), len).is_some()
    }
}

struct Inner {
    handle: Handle,
    source: Source,
    kept: OnceLock<KeptCell>,
}

/// Memory of a machine: guest-physical, or virtual through page tables.
///
/// A read fills what was asked for or raises an exception, whose `done` says how many bytes were good. Only `zread` pads.
/// Addresses are numbers; for the memory of a guest also symbols: "init_task", "init_task+0x10".
#[pyclass(frozen, module = "vmi")]
#[derive(Clone)]
pub(crate) struct Memory(Arc<Inner>);

/// The names of paging modes.
const MODES: [(&str, PagingMode); 4] =
    [("32-bit", PagingMode::Bits32), ("pae", PagingMode::Pae), ("4-level", PagingMode::Level4), ("5-level", PagingMode::Level5)];

impl Memory {
    pub(crate) fn new(handle: Handle, source: Source) -> Self {
        Self(Arc::new(Inner { handle, source, kept: OnceLock::new() }))
    }

    /// What page tables map.
    pub(crate) fn of_tables(handle: &Handle, root: u64, mode: &str) -> PyResult<Self> {
        handle.check()?;
        let found = MODES.iter().find(|(name, _)| *name == mode).map(|(_, mode)| *mode);
        let wrong = || PyValueError::new_err(format!("no paging mode `{mode}`: 32-bit, pae, 4-level, 5-level"));
        let mode = found.ok_or_else(wrong)?;
        Ok(Self::new(handle.clone(), Source::Tables { root: PhysAddr::new(root), mode }))
    }

    /// The guest that the memory belongs to, and the process.
    fn guest(&self) -> Option<(&Arc<Attached>, Option<u32>)> {
        match &self.0.source {
            Source::Kernel(guest) => Some((guest, None)),
            Source::Process { guest, pid } => Some((guest, Some(*pid))),
            Source::Physical | Source::Tables { .. } => None,
        }
    }

    /// The address that Python means.
    pub(crate) fn at(&self, py: Python<'_>, at: &Bound<'_, PyAny>) -> PyResult<u64> {
        if !at.is_instance_of::<PyString>() {
            return address::number(at);
        }
        match self.guest() {
            Some((guest, _)) => guest.place(py, at),
            None => Err(PyTypeError::new_err("a symbol has a virtual address: read it through guest.kernel")),
        }
    }

    /// What the source keeps between calls, made at the first.
    fn kept(&self, shared: &Arc<Shared>) -> &KeptCell {
        self.0.kept.get_or_init(|| {
            KeptCell::new(shared.clone(), |shared| match &self.0.source {
                Source::Tables { root, mode } => Kept::Tables(shared.vmi.address_space(*root, *mode)),
                _ => Kept::Nothing,
            })
        })
    }

    /// The memory of a process, if it may be kept.
    fn kept_process(&self, shared: &Arc<Shared>, pid: u32) -> vmi::Result<&KeptCell> {
        if let Some(kept) = self.0.kept.get() {
            return Ok(kept);
        }
        let made = KeptCell::try_new(shared.clone(), |shared| -> vmi::Result<Kept<'_>> {
            if shared.vmi.machine().liveness == vmi::Liveness::Live {
                return Ok(Kept::Nothing);
            }
            let Source::Process { guest, .. } = &self.0.source else { return Ok(Kept::Nothing) };
            // The memory borrows the machine alone, so it is looked for through the roots that the guest tells.
            let Some(kernel) = guest.layer().linux_kernel() else { return Ok(Kept::Nothing) };
            let again = vmi::linux::Linux::with_kernel(&shared.vmi, kernel.clone());
            let again = again.map_err(|_| vmi::Error::from(vmi::ErrorKind::NoObject { what: "kernel".to_owned() }))?;
            Ok(again.process(pid)?.memory()?.map_or(Kept::Nothing, |memory| Kept::Process(Box::new(memory))))
        })?;
        Ok(self.0.kept.get_or_init(|| made))
    }

    /// Calls `action` with the memory.
    fn with<T>(&self, shared: &Arc<Shared>, action: impl FnOnce(&dyn ByNumber) -> vmi::Result<T>) -> vmi::Result<T> {
        match &self.0.source {
            Source::Physical => action(&shared.vmi),
            Source::Tables { .. } => match self.kept(shared).borrow_dependent() {
                Kept::Tables(space) => action(space),
                _ => action(&shared.vmi),
            },
            Source::Kernel(guest) => action(&OfGuest { guest: guest.guest(), vmi: &shared.vmi, pid: None }),
            Source::Process { guest, pid } => match self.kept_process(shared, *pid)?.borrow_dependent() {
                Kept::Process(memory) => action(&**memory),
                _ => action(&OfGuest { guest: guest.guest(), vmi: &shared.vmi, pid: Some(*pid) }),
            },
        }
    }

    /// As [`Memory::with`]; other threads of Python run meanwhile if it may take long.
    #[inline]
    fn run<T: Send>(
        &self,
        py: Python<'_>,
        shared: &Arc<Shared>,
        len: usize,
        action: impl FnOnce(&dyn ByNumber) -> vmi::Result<T> + Send,
    ) -> PyResult<T> {
        let short = shared.mapped && len <= LONG && !matches!(self.0.source, Source::Process { .. });
        let done = if short { self.with(shared, action) } else { py.detach(|| self.with(shared, action)) };
        done.raise(py)
    }

    /// Reads a few bytes for values of types.
    pub(crate) fn bytes<const N: usize>(&self, py: Python<'_>, at: u64) -> PyResult<[u8; N]> {
        let shared = self.0.handle.get()?;
        let mut bytes = [0; N];
        self.run(py, &shared, N, |memory| memory.fill(at, &mut bytes))?;
        Ok(bytes)
    }

    /// Fills a buffer for values of types.
    pub(crate) fn fill(&self, py: Python<'_>, at: u64, buf: &mut [u8]) -> PyResult<()> {
        let shared = self.0.handle.get()?;
        let len = buf.len();
        self.run(py, &shared, len, |memory| memory.fill(at, buf))
    }

    /// A C string for values of types.
    pub(crate) fn c_string(&self, py: Python<'_>, at: u64, limit: usize) -> PyResult<Vec<u8>> {
        let shared = self.0.handle.get()?;
        self.run(py, &shared, limit.min(PAGE_SIZE as usize), |memory| memory.c_string(at, limit))
    }

    fn translate_number(&self, shared: &Arc<Shared>, at: u64) -> vmi::Result<vmi::Translation> {
        let at = VirtAddr::new(at);
        match &self.0.source {
            Source::Physical => {
                let access = vmi::Access { write: true, execute: true, user: true };
                Ok(vmi::Translation { at: PhysAddr::new(at.get()), page_shift: 12, access })
            }
            Source::Tables { .. } => match self.kept(shared).borrow_dependent() {
                Kept::Tables(space) => space.translate(at),
                _ => Err(at.out_of_range(1)),
            },
            Source::Kernel(guest) => guest.guest().translate(None, at),
            Source::Process { guest, pid } => match self.kept_process(shared, *pid)?.borrow_dependent() {
                Kept::Process(memory) => memory.translate(at),
                _ => guest.guest().translate(Some(*pid), at),
            },
        }
    }

    /// Writes by pages; nothing is written if a part of it has no place.
    fn write_by_pages(&self, shared: &Arc<Shared>, at: u64, data: &[u8]) -> vmi::Result<()> {
        let mut places = Vec::new();
        let mut done = 0usize;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let start = VirtAddr::new(at);
            let here = start.checked_add(done as u64).ok_or_else(|| start.out_of_range(data.len()))?;
            let translation = self.translate_number(shared, here.get())?;
            let len = usize::try_from(translation.rest_of_page()).unwrap_or(usize::MAX).min(rest.len());
            places.push((translation.at, done, len));
            done = done.saturating_add(len);
        }
        for (physical, offset, len) in places {
            let part = data.get(offset..offset.saturating_add(len)).unwrap_or_default();
            shared.vmi.write(physical, part).map_err(|error| error.after(offset))?;
        }
        Ok(())
    }
}

/// Refuses lengths that no machine of this size can have.
fn reasonable(shared: &Shared, length: usize) -> PyResult<()> {
    let limit = shared.vmi.machine().memory.end().get().max(MAX_READ);
    if length as u64 > limit {
        let message = format!("{length} bytes are more than this machine's memory ends at ({limit} bytes): read in pieces");
        return Err(PyValueError::new_err(message));
    }
    Ok(())
}

#[pymethods]
impl Memory {
    /// Reads `length` bytes.
    pub(crate) fn read<'py>(&self, py: Python<'py>, at: &Bound<'py, PyAny>, length: usize) -> PyResult<Bound<'py, PyBytes>> {
        let at = self.at(py, at)?;
        let shared = self.0.handle.get()?;
        reasonable(&shared, length)?;
        PyBytes::new_with(py, length, |buf| self.run(py, &shared, length, |memory| memory.fill(at, buf)))
    }

    /// Fills a writable buffer of bytes: a bytearray, a memoryview, a numpy array. What was read before a failure is in it.
    pub(crate) fn read_into(&self, py: Python<'_>, at: &Bound<'_, PyAny>, buffer: &Bound<'_, PyAny>) -> PyResult<()> {
        let at = self.at(py, at)?;
        let shared = self.0.handle.get()?;
        let target = WritableBytes::of(buffer)?;
        let mut piece = vec![0; target.len.min(PIECE)];
        let mut done = 0usize;
        while done < target.len {
            let len = target.len.saturating_sub(done).min(PIECE);
            let buf = piece.get_mut(..len).unwrap_or_default();
            let start = VirtAddr::new(at);
            let here = start.checked_add(done as u64).ok_or_else(|| start.out_of_range(target.len).after(done)).raise(py)?;
            let mut good = len;
            let short = shared.mapped && len <= LONG && !matches!(self.0.source, Source::Process { .. });
            let read = |buf: &mut [u8]| self.with(&shared, |memory| memory.fill(here.get(), buf));
            let read = if short { read(buf) } else { py.detach(|| read(buf)) };
            if let Err(error) = &read {
                good = error.done().min(len);
            }
            target.put(py, done, buf.get(..good).unwrap_or_default())?;
            read.map_err(|error| exception(py, &error.after(done)))?;
            done = done.saturating_add(len);
        }
        Ok(())
    }

    /// Reads with zeros for what is not there: the bytes, and the padded ranges as (start, end) offsets into them.
    #[allow(clippy::type_complexity, reason = "Python's tuple")]
    pub(crate) fn zread<'py>(
        &self,
        py: Python<'py>,
        at: &Bound<'py, PyAny>,
        length: usize,
    ) -> PyResult<(Bound<'py, PyBytes>, Vec<(usize, usize)>)> {
        let at = self.at(py, at)?;
        let shared = self.0.handle.get()?;
        reasonable(&shared, length)?;
        let mut padded = Vec::new();
        let bytes = PyBytes::new_with(py, length, |buf| {
            padded = self.run(py, &shared, length, |memory| memory.fill_lossy(at, buf))?;
            Ok(())
        })?;
        Ok((bytes, padded.into_iter().map(|range| (range.start, range.end)).collect()))
    }

    /// Reads a byte.
    fn read_u8(&self, py: Python<'_>, at: &Bound<'_, PyAny>) -> PyResult<u8> {
        Ok(u8::from_le_bytes(self.bytes(py, self.at(py, at)?)?))
    }

    /// Reads a little-endian number of 16 bits.
    fn read_u16(&self, py: Python<'_>, at: &Bound<'_, PyAny>) -> PyResult<u16> {
        Ok(u16::from_le_bytes(self.bytes(py, self.at(py, at)?)?))
    }

    /// Reads a little-endian number of 32 bits.
    fn read_u32(&self, py: Python<'_>, at: &Bound<'_, PyAny>) -> PyResult<u32> {
        Ok(u32::from_le_bytes(self.bytes(py, self.at(py, at)?)?))
    }

    /// Reads a little-endian number of 64 bits.
    fn read_u64(&self, py: Python<'_>, at: &Bound<'_, PyAny>) -> PyResult<u64> {
        Ok(u64::from_le_bytes(self.bytes(py, self.at(py, at)?)?))
    }

    /// Reads a pointer of the guest's width.
    fn read_pointer(&self, py: Python<'_>, at: &Bound<'_, PyAny>) -> PyResult<u64> {
        let narrow = match (&self.0.source, self.guest()) {
            (Source::Tables { mode, .. }, _) => !mode.is_long(),
            (_, Some((guest, _))) => guest.types().pointer_size() == 4,
            (_, None) => false,
        };
        let at = self.at(py, at)?;
        if narrow { Ok(u64::from(u32::from_le_bytes(self.bytes(py, at)?))) } else { Ok(u64::from_le_bytes(self.bytes(py, at)?)) }
    }

    /// Reads the bytes of a C string, without its end, of at most `limit` bytes with it.
    #[pyo3(signature = (at, limit=4096))]
    fn read_c_string<'py>(&self, py: Python<'py>, at: &Bound<'py, PyAny>, limit: usize) -> PyResult<Bound<'py, PyBytes>> {
        let at = self.at(py, at)?;
        Ok(PyBytes::new(py, &self.c_string(py, at, limit)?))
    }

    /// Reads a zero-terminated string of UTF-16, of at most `limit` units with its end. Lone surrogates become U+FFFD.
    #[pyo3(signature = (at, limit=4096))]
    fn read_utf16(&self, py: Python<'_>, at: &Bound<'_, PyAny>, limit: usize) -> PyResult<String> {
        let at = self.at(py, at)?;
        let shared = self.0.handle.get()?;
        let units = self.run(py, &shared, limit.min(PAGE_SIZE as usize), |memory| memory.utf16(at, limit))?;
        Ok(String::from_utf16_lossy(&units))
    }

    /// Writes `data`, any object with a buffer of bytes. Virtual memory is written where the page tables say; nothing is written if a
    /// part of the range is not mapped.
    pub(crate) fn write(&self, py: Python<'_>, at: &Bound<'_, PyAny>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let at = self.at(py, at)?;
        let shared = self.0.handle.get()?;
        let data = match data.cast::<PyBytes>() {
            Ok(bytes) => bytes.as_bytes().to_vec(),
            Err(_) => PyBuffer::<u8>::get(data)?.to_vec(py)?,
        };
        py.detach(|| match self.0.source {
            Source::Physical => shared.vmi.write(PhysAddr::new(at), &data),
            _ => self.write_by_pages(&shared, at, &data),
        })
        .raise(py)
    }

    /// Lends frozen memory without copying it, as a read-only memoryview: numpy.frombuffer takes it as it is. BufferError says why not.
    pub(crate) fn view<'py>(&self, py: Python<'py>, at: &Bound<'py, PyAny>, length: usize) -> PyResult<Bound<'py, PyMemoryView>> {
        let at = self.at(py, at)?;
        let shared = self.0.handle.get()?;
        let frozen = shared.vmi.machine().liveness == vmi::Liveness::Frozen;
        let start = py.detach(|| {
            if !self.with(&shared, |memory| Ok(memory.lends(at, length)))? {
                return Ok(None);
            }
            self.translate_number(&shared, at).map(Some)
        });
        match start.raise(py)? {
            Some(start) => FrozenView::memoryview(py, shared, start.at, length),
            None => Err(not_lent(frozen)),
        }
    }

    /// Where a virtual address lies in guest-physical memory.
    fn translate(&self, py: Python<'_>, at: &Bound<'_, PyAny>) -> PyResult<Translation> {
        let at = self.at(py, at)?;
        let shared = self.0.handle.get()?;
        if matches!(self.0.source, Source::Physical) {
            return Err(PyTypeError::new_err("physical memory is not translated"));
        }
        Ok(py.detach(|| self.translate_number(&shared, at)).raise(py)?.into())
    }

    fn __repr__(&self) -> String {
        match &self.0.source {
            Source::Physical => "<vmi.Memory, physical>".to_owned(),
            Source::Kernel(_) => "<vmi.Memory of the kernel>".to_owned(),
            Source::Process { pid, .. } => format!("<vmi.Memory of process {pid}>"),
            Source::Tables { root, .. } => format!("<vmi.Memory of page tables at {root}>"),
        }
    }
}

/// A caller's buffer that bytes are put into.
struct WritableBytes<'py> {
    view: Bound<'py, PyMemoryView>,
    len: usize,
}

impl<'py> WritableBytes<'py> {
    fn of(buffer: &Bound<'py, PyAny>) -> PyResult<Self> {
        let any = PyBuffer::<u8>::get(buffer);
        let view = PyMemoryView::from(buffer)?;
        if view.getattr("readonly")?.extract()? {
            return Err(PyBufferError::new_err("the buffer is read-only"));
        }
        if !view.getattr("c_contiguous")?.extract::<bool>()? {
            return Err(PyBufferError::new_err("the buffer is not contiguous"));
        }
        // As bytes, whatever its items are.
        let view = match any {
            Ok(_) if view.getattr("ndim")?.extract::<usize>()? == 1 => view,
            _ => view.call_method1("cast", ("B",))?.cast_into::<PyMemoryView>()?,
        };
        let len = view.getattr("nbytes")?.extract()?;
        Ok(Self { view, len })
    }

    fn put(&self, py: Python<'py>, offset: usize, bytes: &[u8]) -> PyResult<()> {
        let end = offset.saturating_add(bytes.len());
        if offset == 0 && end == self.len {
            return PyBuffer::<u8>::get(self.view.as_any())?.copy_from_slice(py, bytes);
        }
        let slice = pyo3::types::PySlice::new(py, isize::try_from(offset)?, isize::try_from(end)?, 1);
        let part = self.view.get_item(slice)?;
        PyBuffer::<u8>::get(&part)?.copy_from_slice(py, bytes)
    }
}

/// Where a virtual address lies in guest-physical memory.
#[pyclass(frozen, get_all, module = "vmi")]
pub(crate) struct Translation {
    /// The guest-physical address.
    at: u64,
    /// Bytes of the page that maps it.
    page_size: u64,
    /// Writes are allowed.
    write: bool,
    /// Instruction fetches are allowed.
    execute: bool,
    /// User mode may access the page.
    user: bool,
}

impl From<vmi::Translation> for Translation {
    fn from(found: vmi::Translation) -> Self {
        let vmi::Access { write, execute, user } = found.access;
        Self { at: found.at.get(), page_size: found.page_size(), write, execute, user }
    }
}

#[pymethods]
impl Translation {
    fn __int__(&self) -> u64 {
        self.at
    }

    fn __index__(&self) -> u64 {
        self.at
    }

    /// The attributes as a dictionary.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("at", self.at)?;
        dict.set_item("page_size", self.page_size)?;
        dict.set_item("write", self.write)?;
        dict.set_item("execute", self.execute)?;
        dict.set_item("user", self.user)?;
        Ok(dict)
    }

    fn __repr__(&self) -> String {
        let access = vmi::Access { write: self.write, execute: self.execute, user: self.user };
        format!("Translation({:#x}, page_size={}, {access})", self.at, self.page_size)
    }
}

/// The name of a paging mode.
pub(crate) fn mode_name(mode: PagingMode) -> &'static str {
    MODES.iter().find(|(_, other)| *other == mode).map_or("unknown", |(name, _)| name)
}
