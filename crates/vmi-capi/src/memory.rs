//! Reading and writing memory.

use core::ffi::{c_char, c_void};
use core::mem::MaybeUninit;
use std::ffi::CString;
use std::sync::Arc;

use vmi::owned::{self, AnyAddr};
use vmi::{Memory as _, PhysAddr, VirtAddr};

use crate::border::{self, Slot, Text};
use crate::error::{Failure, Result, vmi_error, vmi_status};
use crate::guest::{self, vmi_guest};
use crate::machine::{Shared, vmi_machine};
use crate::mappings::mode_of;
use crate::table::{self, Handle, Object};

/// Memory that addresses are of: guest-physical, of the kernel, of a process, of any page tables. Any thread may use it, several at once.
///
/// A read fills all of what was asked for, or fails; vmi_error_done says how many bytes were good. Only vmi_memory_read_lossy pads.
#[derive(Debug)]
pub struct vmi_memory {
    _opaque: [u8; 0],
}

impl Handle for vmi_memory {
    type Object = Memory;
}

/// A memory in the table.
#[derive(Debug)]
pub struct Memory {
    memory: owned::Memory,
    shared: Arc<Shared>,
}

impl Object for Memory {
    const NAME: &'static str = "vmi_memory";
}

/// Strings beyond this are refused: no limit that a caller passes by mistake makes this process take all memory.
const MAX_STRING: usize = 64 << 20;

fn put(slot: Slot<'_, vmi_memory>, shared: &Arc<Shared>, memory: owned::Memory) -> Result<()> {
    shared.put(slot, Memory { memory, shared: shared.clone() })
}

/// The guest-physical memory of a machine. Closed with vmi_memory_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_machine_physical_memory(
    machine: *mut vmi_machine,
    memory: Option<&mut MaybeUninit<*mut vmi_memory>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let memory = border::slot(memory)?;
        let shared = &table::get(machine)?.0;
        put(memory, shared, shared.machine.memory())
    })
}

/// The memory that the page tables at `root` map. `mode` is a vmi_paging_mode. Closed with vmi_memory_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_machine_address_space(
    machine: *mut vmi_machine,
    root: u64,
    mode: u32,
    memory: Option<&mut MaybeUninit<*mut vmi_memory>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let memory = border::slot(memory)?;
        let mode = mode_of(mode)?;
        let shared = &table::get(machine)?.0;
        put(memory, shared, shared.machine.address_space(PhysAddr::new(root), mode))
    })
}

/// The kernel's memory. Closed with vmi_memory_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_kernel_memory(
    guest: *mut vmi_guest,
    memory: Option<&mut MaybeUninit<*mut vmi_memory>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let memory = border::slot(memory)?;
        let guest = table::get(guest)?;
        put(memory, &guest.shared, guest.guest.kernel_memory())
    })
}

/// The memory of the process with this id, which is looked for at each use. Closed with vmi_memory_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_process_memory(
    guest: *mut vmi_guest,
    pid: u32,
    memory: Option<&mut MaybeUninit<*mut vmi_memory>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let memory = border::slot(memory)?;
        let guest = table::get(guest)?;
        guest.guest.process(pid)?;
        put(memory, &guest.shared, guest.guest.process_memory(pid))
    })
}

/// Reads `length` bytes of guest-physical memory: as vmi_memory_read, without a vmi_memory.
///
/// # Safety
/// `buffer` has room for `length` bytes, which nothing else uses during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmi_machine_read(
    machine: *mut vmi_machine,
    at: u64,
    buffer: *mut c_void,
    length: usize,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let machine = table::get(machine)?;
        // SAFETY: the caller's promise.
        let buffer = unsafe { border::bytes_to_fill(buffer, length) }?;
        Ok(machine.vmi().read_into(PhysAddr::new(at), buffer)?)
    })
}

/// Writes `length` bytes of guest-physical memory.
///
/// # Safety
/// `data` has `length` bytes, which nothing changes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmi_machine_write(
    machine: *mut vmi_machine,
    at: u64,
    data: *const c_void,
    length: usize,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let machine = table::get(machine)?;
        // SAFETY: the caller's promise.
        let data = unsafe { border::bytes_given(data, length) }?;
        Ok(machine.vmi().write(PhysAddr::new(at), data)?)
    })
}

/// Reads `length` bytes. After a failure the first vmi_error_done bytes of `buffer` are good.
///
/// # Safety
/// `buffer` has room for `length` bytes, which nothing else uses during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmi_memory_read(
    memory: *mut vmi_memory,
    at: u64,
    buffer: *mut c_void,
    length: usize,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let memory = table::get(memory)?;
        // SAFETY: the caller's promise.
        let buffer = unsafe { border::bytes_to_fill(buffer, length) }?;
        Ok(memory.memory.read_into(AnyAddr(at), buffer)?)
    })
}

/// Reads `length` bytes at a symbol of the memory's guest: "init_task", "init_task+0x10". Not for memory of a machine, which has no symbols.
///
/// # Safety
/// As vmi_memory_read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmi_memory_read_symbol(
    memory: *mut vmi_memory,
    symbol: Text,
    buffer: *mut c_void,
    length: usize,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let memory = table::get(memory)?;
        // SAFETY: the caller's promise.
        let buffer = unsafe { border::bytes_to_fill(buffer, length) }?;
        let at = at_symbol(&memory, &symbol)?;
        Ok(memory.memory.read_into(AnyAddr(at), buffer)?)
    })
}

/// Writes `length` bytes at a symbol of the memory's guest, as vmi_memory_read_symbol reads.
///
/// # Safety
/// As vmi_memory_write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmi_memory_write_symbol(
    memory: *mut vmi_memory,
    symbol: Text,
    data: *const c_void,
    length: usize,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let memory = table::get(memory)?;
        // SAFETY: the caller's promise.
        let data = unsafe { border::bytes_given(data, length) }?;
        Ok(memory.memory.write(AnyAddr(at_symbol(&memory, &symbol)?), data)?)
    })
}

fn at_symbol(memory: &Memory, symbol: &Text) -> Result<u64> {
    let no_guest = || Failure::argument("memory of a machine has no symbols: use that of a guest");
    guest::address(memory.memory.guest().ok_or_else(no_guest)?, symbol.required("the symbol")?)
}

/// A part of a buffer, as offsets into it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct vmi_range {
    /// First byte.
    pub start: usize,
    /// First byte behind it.
    pub end: usize,
}

/// Reads with zeros for what is not there. Fills `padded` with as many of the padded parts, ascending, as `capacity`; `count`, which may be NULL, is how many there
/// are.
///
/// # Safety
/// As vmi_memory_read; `padded` is NULL with a capacity of 0, or has room for `capacity` ranges.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmi_memory_read_lossy(
    memory: *mut vmi_memory,
    at: u64,
    buffer: *mut c_void,
    length: usize,
    padded: *mut vmi_range,
    capacity: usize,
    count: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let memory = table::get(memory)?;
        // SAFETY: the caller's promise.
        let buffer = unsafe { border::bytes_to_fill(buffer, length) }?;
        let ranges = memory.memory.read_lossy(AnyAddr(at), buffer)?;
        let ranges: Vec<_> = ranges.into_iter().map(|range| vmi_range { start: range.start, end: range.end }).collect();
        // SAFETY: the caller's promise.
        unsafe { border::put_items(padded, capacity, &ranges) }?;
        if let Some(count) = count {
            count.write(ranges.len());
        }
        Ok(())
    })
}

fn number<const N: usize>(memory: *mut vmi_memory, at: u64) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    table::get(memory)?.memory.read_into(AnyAddr(at), &mut bytes)?;
    Ok(bytes)
}

/// Reads a byte.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_memory_read_u8(
    memory: *mut vmi_memory,
    at: u64,
    value: Option<&mut MaybeUninit<u8>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        border::place(value, "the place for the value")?.write(u8::from_le_bytes(number(memory, at)?));
        Ok(())
    })
}

/// Reads a little-endian number of 16 bits.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_memory_read_u16(
    memory: *mut vmi_memory,
    at: u64,
    value: Option<&mut MaybeUninit<u16>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        border::place(value, "the place for the value")?.write(u16::from_le_bytes(number(memory, at)?));
        Ok(())
    })
}

/// Reads a little-endian number of 32 bits.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_memory_read_u32(
    memory: *mut vmi_memory,
    at: u64,
    value: Option<&mut MaybeUninit<u32>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        border::place(value, "the place for the value")?.write(u32::from_le_bytes(number(memory, at)?));
        Ok(())
    })
}

/// Reads a little-endian number of 64 bits.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_memory_read_u64(
    memory: *mut vmi_memory,
    at: u64,
    value: Option<&mut MaybeUninit<u64>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        border::place(value, "the place for the value")?.write(u64::from_le_bytes(number(memory, at)?));
        Ok(())
    })
}

/// Reads a C string of at most `limit` bytes with its end, in the guest's own encoding. Freed with vmi_string_free.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_memory_read_string(
    memory: *mut vmi_memory,
    at: u64,
    limit: usize,
    string: Option<&mut MaybeUninit<*mut c_char>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::text_place(string)?;
        let bytes = table::get(memory)?.memory.read_c_string(AnyAddr(at), limit.min(MAX_STRING))?;
        let string = CString::new(bytes).map_err(|error| Failure::of(vmi_status::Internal, &error))?;
        place.write(border::owned(string));
        Ok(())
    })
}

/// Reads a zero-terminated string of at most `limit` little-endian UTF-16 units with its end, as UTF-8. Freed with vmi_string_free.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_memory_read_utf16(
    memory: *mut vmi_memory,
    at: u64,
    limit: usize,
    string: Option<&mut MaybeUninit<*mut c_char>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::text_place(string)?;
        let units = table::get(memory)?.memory.read_utf16(AnyAddr(at), limit.min(MAX_STRING))?;
        place.write(border::owned(border::c_string(&String::from_utf16_lossy(&units))));
        Ok(())
    })
}

/// Writes `length` bytes. Of virtual memory all pages must be there, else nothing is written.
///
/// # Safety
/// `data` has `length` bytes, which nothing changes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmi_memory_write(
    memory: *mut vmi_memory,
    at: u64,
    data: *const c_void,
    length: usize,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let memory = table::get(memory)?;
        // SAFETY: the caller's promise.
        let data = unsafe { border::bytes_given(data, length) }?;
        Ok(memory.memory.write(AnyAddr(at), data)?)
    })
}

/// Lends `length` bytes without copying them: only of frozen memory that is mapped and in one piece, else VMI_STATUS_UNSUPPORTED. Valid until the machine is closed.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_memory_view(
    memory: *mut vmi_memory,
    at: u64,
    length: usize,
    data: Option<&mut MaybeUninit<*const u8>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let data = border::place(data, "the place for the data")?;
        data.write(core::ptr::null());
        let memory = table::get(memory)?;
        let lent = memory.memory.slice(AnyAddr(at), length).map(<[u8]>::as_ptr);
        let why = "this memory cannot be lent: it belongs to a running guest, or is not mapped in one piece; read it, or take a snapshot";
        data.write(lent.ok_or_else(|| Failure::new(vmi_status::Unsupported, why))?);
        Ok(())
    })
}

/// Where a virtual address lies in guest-physical memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_translation {
    /// The guest-physical address.
    pub at: u64,
    /// Bytes of the page that maps it.
    pub page_size: u64,
    /// Writes are allowed.
    pub write: bool,
    /// Instruction fetches are allowed.
    pub execute: bool,
    /// User mode may access the page.
    pub user: bool,
}

/// Where a virtual address lies in guest-physical memory. The message of a failure says at which level and entry the page tables end.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_memory_translate(
    memory: *mut vmi_memory,
    at: u64,
    translation: Option<&mut MaybeUninit<vmi_translation>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::place(translation, "the place for the translation")?;
        let memory = table::get(memory)?;
        if memory.memory.is_physical() {
            return Err(Failure::argument("guest-physical addresses are not translated"));
        }
        let found = memory.memory.translate(VirtAddr::new(at))?;
        let vmi::Access { write, execute, user } = found.access;
        place.write(vmi_translation { at: found.at.get(), page_size: found.page_size(), write, execute, user });
        Ok(())
    })
}

/// Closes a memory. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_memory_close(memory: *mut vmi_memory) {
    border::plain((), || {
        if let Ok(object) = table::get(memory) {
            object.shared.close_child(memory);
        }
    });
}
