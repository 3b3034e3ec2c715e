//! What a system has beside processes: kernel modules, memory areas, the kernel's log.

use core::ffi::c_char;
use core::mem::MaybeUninit;
use std::ffi::CString;

use vmi::Guest as _;

use crate::border::{self, VMI_UNKNOWN_ID};
use crate::error::{vmi_error, vmi_status};
use crate::guest::vmi_guest;
use crate::rows::{List, Row, list, next, pointer};
use crate::table::{self, Handle};

/// Kernel modules. Any thread may use it; each row is given once.
#[derive(Debug)]
pub struct vmi_modules {
    _opaque: [u8; 0],
}

impl Handle for vmi_modules {
    type Object = List<ModuleRow>;
}

/// A loaded kernel module. Its string belongs to the list: valid until that is closed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_module {
    /// Name.
    pub name: *const c_char,
    /// First address.
    pub base: u64,
    /// Bytes of memory it takes, in all its parts.
    pub size: u64,
    /// Where its structure is in kernel memory.
    pub object: u64,
    /// How many hold a reference to it, or VMI_UNKNOWN_ID.
    pub references: u32,
}

/// A module in a list.
#[derive(Debug)]
pub struct ModuleRow {
    row: vmi::Module,
    name: CString,
}

impl Row for ModuleRow {
    const LIST: &'static str = "vmi_modules";
    type C = vmi_module;

    fn c(&self) -> vmi_module {
        vmi_module {
            name: self.name.as_ptr(),
            base: self.row.base.get(),
            size: self.row.size,
            object: self.row.object.get(),
            references: self.row.references.unwrap_or(VMI_UNKNOWN_ID),
        }
    }
}

/// Memory areas. Any thread may use it; each row is given once.
#[derive(Debug)]
pub struct vmi_memory_areas {
    _opaque: [u8; 0],
}

impl Handle for vmi_memory_areas {
    type Object = List<MemoryAreaRow>;
}

/// A run of a process's virtual memory with the same properties. Its string belongs to the list: valid until that is closed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_memory_area {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Offset into the mapped file in bytes.
    pub offset: u64,
    /// The mapped file's path, or the purpose in brackets; NULL if it has none.
    pub name: *const c_char,
    /// The process may read it.
    pub read: bool,
    /// The process may write it.
    pub write: bool,
    /// The process may run code in it.
    pub execute: bool,
    /// Writes are seen by others that map the same.
    pub shared: bool,
}

/// A memory area in a list.
#[derive(Debug)]
pub struct MemoryAreaRow {
    row: vmi::MemoryArea,
    name: Option<CString>,
}

impl Row for MemoryAreaRow {
    const LIST: &'static str = "vmi_memory_areas";
    type C = vmi_memory_area;

    fn c(&self) -> vmi_memory_area {
        vmi_memory_area {
            start: self.row.start.get(),
            end: self.row.end.get(),
            offset: self.row.offset,
            name: pointer(self.name.as_ref()),
            read: self.row.read,
            write: self.row.write,
            execute: self.row.execute,
            shared: self.row.shared,
        }
    }
}

/// Records of the kernel's log. Any thread may use it; each row is given once.
#[derive(Debug)]
pub struct vmi_log {
    _opaque: [u8; 0],
}

impl Handle for vmi_log {
    type Object = List<LogRow>;
}

/// One record of the kernel's log. Its string belongs to the list: valid until that is closed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_log_record {
    /// Its number, counted from boot.
    pub sequence: u64,
    /// Nanoseconds since boot.
    pub nanoseconds: u64,
    /// The text, without a final line end.
    pub text: *const c_char,
    /// Severity, 0 (emergency) to 7 (debug).
    pub level: u32,
}

/// A record in a list.
#[derive(Debug)]
pub struct LogRow {
    row: vmi::LogRecord,
    text: CString,
}

impl Row for LogRow {
    const LIST: &'static str = "vmi_log";
    type C = vmi_log_record;

    fn c(&self) -> vmi_log_record {
        vmi_log_record {
            sequence: self.row.sequence,
            nanoseconds: self.row.nanoseconds,
            text: self.text.as_ptr(),
            level: u32::from(self.row.level),
        }
    }
}

/// The loaded kernel modules. Closed with vmi_modules_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_list_modules(
    guest: *mut vmi_guest,
    modules: Option<&mut MaybeUninit<*mut vmi_modules>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    let row = |row: vmi::Module| ModuleRow { name: border::c_string(&row.name), row };
    list(guest, modules, error, |guest| Ok(List::of(guest.modules(), row)))
}

/// The next module; see vmi_processes_next.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_modules_next(
    modules: *mut vmi_modules,
    module: Option<&mut MaybeUninit<vmi_module>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    next(modules, module, error)
}

/// Closes a list and frees its strings. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_modules_close(modules: *mut vmi_modules) {
    border::plain((), || table::close(modules));
}

/// The memory areas of a process, ascending. Closed with vmi_memory_areas_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_list_memory_areas(
    guest: *mut vmi_guest,
    pid: u32,
    areas: Option<&mut MaybeUninit<*mut vmi_memory_areas>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    let row = |row: vmi::MemoryArea| MemoryAreaRow { name: row.name.as_deref().map(border::c_string), row };
    list(guest, areas, error, |guest| Ok(List::of(guest.memory_areas(pid), row)))
}

/// The next memory area; see vmi_processes_next.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_memory_areas_next(
    areas: *mut vmi_memory_areas,
    area: Option<&mut MaybeUninit<vmi_memory_area>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    next(areas, area, error)
}

/// Closes a list and frees its strings. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_memory_areas_close(areas: *mut vmi_memory_areas) {
    border::plain((), || table::close(areas));
}

/// The kernel's log, oldest record first. Closed with vmi_log_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_read_log(
    guest: *mut vmi_guest,
    log: Option<&mut MaybeUninit<*mut vmi_log>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    let row = |row: vmi::LogRecord| LogRow { text: border::c_string(&row.text), row };
    list(guest, log, error, |guest| Ok(List::of(guest.kernel_log(), row)))
}

/// The next record; see vmi_processes_next.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_log_next(
    log: *mut vmi_log,
    record: Option<&mut MaybeUninit<vmi_log_record>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    next(log, record, error)
}

/// Closes a list and frees its strings. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_log_close(log: *mut vmi_log) {
    border::plain((), || table::close(log));
}
