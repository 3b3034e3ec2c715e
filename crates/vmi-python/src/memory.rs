//! Memory as Python reads it: physical, of the kernel, of a process, of any page tables.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyMemoryView, PyString};
use vmi::owned::{self, AnyAddr};
use vmi::x86::PagingMode;
use vmi::{Address as _, Memory as _, PAGE_SIZE, PhysAddr, VirtAddr};

use crate::address;
use crate::errors::{Raise, exception};
use crate::frozen_view::{FrozenView, not_lent};
use crate::machine::{Handle, Shared};

/// Reads of mapped memory above this let other threads of Python run; a shorter one takes less time than asking them.
const LONG: usize = 64 << 10;
/// What one call reads at most where the machine has less memory: a wrong length is an exception, not the end of this process.
const MAX_READ: u64 = 64 << 20;
/// What goes into a caller's buffer at a time.
const PIECE: usize = 1 << 20;

/// Memory of a machine: guest-physical, or virtual through page tables.
///
/// A read fills what was asked for or raises an exception, whose `done` says how many bytes were good. Only `zread` pads.
/// Addresses are numbers; for the memory of a guest also symbols: "init_task", "init_task+0x10".
#[pyclass(frozen, module = "vmi")]
#[derive(Clone)]
pub(crate) struct Memory {
    handle: Handle,
    /// `None`: guest-physical memory, which does not keep a closed machine.
    of: Option<owned::Memory>,
}

/// The names of paging modes.
const MODES: [(&str, PagingMode); 4] =
    [("32-bit", PagingMode::Bits32), ("pae", PagingMode::Pae), ("4-level", PagingMode::Level4), ("5-level", PagingMode::Level5)];

impl Memory {
    /// Guest-physical memory.
    pub(crate) fn physical(handle: Handle) -> Self {
        Self { handle, of: None }
    }

    pub(crate) fn of(handle: Handle, memory: owned::Memory) -> Self {
        Self { handle, of: Some(memory) }
    }

    /// What page tables map.
    pub(crate) fn of_tables(handle: &Handle, root: u64, mode: &str) -> PyResult<Self> {
        let shared = handle.get()?;
        let found = MODES.iter().find(|(name, _)| *name == mode).map(|(_, mode)| *mode);
        let wrong = || PyValueError::new_err(format!("no paging mode `{mode}`: 32-bit, pae, 4-level, 5-level"));
        let mode = found.ok_or_else(wrong)?;
        Ok(Self::of(handle.clone(), shared.machine.address_space(PhysAddr::new(root), mode)))
    }

    fn memory<'m>(&'m self, shared: &'m Shared) -> &'m owned::Memory {
        self.of.as_ref().unwrap_or(&shared.physical)
    }

    /// The address that Python means.
    pub(crate) fn at(&self, py: Python<'_>, at: &Bound<'_, PyAny>) -> PyResult<u64> {
        if !at.is_instance_of::<PyString>() {
            return address::number(at);
        }
        self.handle.check()?;
        match self.of.as_ref().and_then(owned::Memory::guest) {
            Some(guest) => address::place(py, guest, at),
            None => Err(PyTypeError::new_err("a symbol has a virtual address: read it through guest.kernel")),
        }
    }

    /// Whether reading so many bytes takes less time than asking other threads of Python to run meanwhile.
    fn is_short(&self, shared: &Shared, len: usize) -> bool {
        shared.mapped && len <= LONG && self.of.as_ref().is_none_or(|memory| memory.pid().is_none())
    }

    /// Calls `action` with the memory; other threads of Python run meanwhile if it may take long.
    #[inline]
    fn run<T: Send>(
        &self,
        py: Python<'_>,
        shared: &Shared,
        len: usize,
        action: impl FnOnce(&owned::Memory) -> vmi::Result<T> + Send,
    ) -> PyResult<T> {
        let memory = self.memory(shared);
        let done = if self.is_short(shared, len) { action(memory) } else { py.detach(|| action(memory)) };
        done.raise(py)
    }

    /// Reads a few bytes for values of types.
    pub(crate) fn bytes<const N: usize>(&self, py: Python<'_>, at: u64) -> PyResult<[u8; N]> {
        let shared = self.handle.get()?;
        let mut bytes = [0; N];
        self.run(py, &shared, N, |memory| memory.read_into(AnyAddr(at), &mut bytes))?;
        Ok(bytes)
    }

    /// Fills a buffer for values of types.
    pub(crate) fn fill(&self, py: Python<'_>, at: u64, buf: &mut [u8]) -> PyResult<()> {
        let shared = self.handle.get()?;
        let len = buf.len();
        self.run(py, &shared, len, |memory| memory.read_into(AnyAddr(at), buf))
    }

    /// A C string for values of types.
    pub(crate) fn c_string(&self, py: Python<'_>, at: u64, limit: usize) -> PyResult<Vec<u8>> {
        let shared = self.handle.get()?;
        self.run(py, &shared, limit.min(PAGE_SIZE as usize), |memory| memory.read_c_string(AnyAddr(at), limit))
    }
}

/// Refuses lengths that no machine of this size can have.
fn reasonable(shared: &Shared, length: usize) -> PyResult<()> {
    let limit = shared.vmi().machine().memory.end().get().max(MAX_READ);
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
        let shared = self.handle.get()?;
        reasonable(&shared, length)?;
        PyBytes::new_with(py, length, |buf| self.run(py, &shared, length, |memory| memory.read_into(AnyAddr(at), buf)))
    }

    /// Fills a writable buffer of bytes: a bytearray, a memoryview, a numpy array. What was read before a failure is in it.
    pub(crate) fn read_into(&self, py: Python<'_>, at: &Bound<'_, PyAny>, buffer: &Bound<'_, PyAny>) -> PyResult<()> {
        let at = self.at(py, at)?;
        let shared = self.handle.get()?;
        let target = WritableBytes::of(buffer)?;
        let mut piece = vec![0; target.len.min(PIECE)];
        let mut done = 0usize;
        while done < target.len {
            let len = target.len.saturating_sub(done).min(PIECE);
            let buf = piece.get_mut(..len).unwrap_or_default();
            let start = VirtAddr::new(at);
            let here = start.checked_add(done as u64).ok_or_else(|| start.out_of_range(target.len).after(done)).raise(py)?;
            let mut good = len;
            let memory = self.memory(&shared);
            let read = |buf: &mut [u8]| memory.read_into(here.into(), buf);
            let read = if self.is_short(&shared, len) { read(buf) } else { py.detach(|| read(buf)) };
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
        let shared = self.handle.get()?;
        reasonable(&shared, length)?;
        let mut padded = Vec::new();
        let bytes = PyBytes::new_with(py, length, |buf| {
            padded = self.run(py, &shared, length, |memory| memory.read_lossy(AnyAddr(at), buf))?;
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
        let narrow = self.memory(&*self.handle.get()?).pointer_size() == 4;
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
        let shared = self.handle.get()?;
        let units = self.run(py, &shared, limit.min(PAGE_SIZE as usize), |memory| memory.read_utf16(AnyAddr(at), limit))?;
        Ok(String::from_utf16_lossy(&units))
    }

    /// Writes `data`, any object with a buffer of bytes. Virtual memory is written where the page tables say; nothing is written if a
    /// part of the range is not mapped.
    pub(crate) fn write(&self, py: Python<'_>, at: &Bound<'_, PyAny>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let at = self.at(py, at)?;
        let shared = self.handle.get()?;
        let data = match data.cast::<PyBytes>() {
            Ok(bytes) => bytes.as_bytes().to_vec(),
            Err(_) => PyBuffer::<u8>::get(data)?.to_vec(py)?,
        };
        let memory = self.memory(&shared);
        py.detach(|| memory.write(AnyAddr(at), &data)).raise(py)
    }

    /// Lends frozen memory without copying it, as a read-only memoryview: numpy.frombuffer takes it as it is. BufferError says why not.
    pub(crate) fn view<'py>(&self, py: Python<'py>, at: &Bound<'py, PyAny>, length: usize) -> PyResult<Bound<'py, PyMemoryView>> {
        let at = self.at(py, at)?;
        let shared = self.handle.get()?;
        let frozen = shared.vmi().machine().liveness == vmi::Liveness::Frozen;
        let memory = self.memory(&shared);
        let start = py.detach(|| match memory.slice(AnyAddr(at), length) {
            Some(_) => memory.translate(VirtAddr::new(at)).map(Some),
            None => Ok(None),
        });
        match start.raise(py)? {
            Some(start) => FrozenView::memoryview(py, shared, start.at, length),
            None => Err(not_lent(frozen)),
        }
    }

    /// Where a virtual address lies in guest-physical memory.
    fn translate(&self, py: Python<'_>, at: &Bound<'_, PyAny>) -> PyResult<Translation> {
        let at = self.at(py, at)?;
        let shared = self.handle.get()?;
        let memory = self.memory(&shared);
        if memory.is_physical() {
            return Err(PyTypeError::new_err("physical memory is not translated"));
        }
        Ok(py.detach(|| memory.translate(VirtAddr::new(at))).raise(py)?.into())
    }

    fn __repr__(&self) -> String {
        let Some(memory) = &self.of else { return "<vmi.Memory, physical>".to_owned() };
        match (memory.root(), memory.pid()) {
            (Some(root), _) => format!("<vmi.Memory of page tables at {root}>"),
            (_, Some(pid)) => format!("<vmi.Memory of process {pid}>"),
            _ => "<vmi.Memory of the kernel>".to_owned(),
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
