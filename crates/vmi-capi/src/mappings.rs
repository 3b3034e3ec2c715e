//! What page tables map.

use core::ffi::{c_char, c_void};
use core::mem::MaybeUninit;
use core::ptr;

use vmi::x86::{Mapping, PagingMode};
use vmi::{PhysAddr, VirtAddr};

use crate::border;
use crate::error::{Failure, Result, vmi_error, vmi_status};
use crate::machine::vmi_machine;
use crate::table;

/// How virtual addresses are translated.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmi_paging_mode {
    /// Not at all, or not known.
    None = 0,
    /// 32-bit paging, two levels.
    Bits32 = 1,
    /// PAE, three levels.
    Pae = 2,
    /// 64-bit with four levels.
    Level4 = 3,
    /// 64-bit with five levels.
    Level5 = 4,
}

const MODES: [(vmi_paging_mode, PagingMode); 4] = [
    (vmi_paging_mode::Bits32, PagingMode::Bits32),
    (vmi_paging_mode::Pae, PagingMode::Pae),
    (vmi_paging_mode::Level4, PagingMode::Level4),
    (vmi_paging_mode::Level5, PagingMode::Level5),
];

/// The mode of a number.
pub(crate) fn mode_of(number: u32) -> Result<PagingMode> {
    let found = MODES.into_iter().find(|(known, _)| *known as u32 == number);
    found.map(|(_, mode)| mode).ok_or_else(|| Failure::argument(format!("{number} is no vmi_paging_mode")))
}

/// The number of a mode.
pub(crate) fn number_of(mode: Option<PagingMode>) -> vmi_paging_mode {
    MODES.into_iter().find(|(_, known)| Some(*known) == mode).map_or(vmi_paging_mode::None, |(number, _)| number)
}

/// What a vmi_mapping tells.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmi_mapping_kind {
    /// A run of pages that are mapped one behind the other.
    Pages = 0,
    /// A page table that was gone through before: behind it lies what lies at `target`, a virtual address.
    Repeated = 1,
    /// Something that could not be read; see `message`. The rest goes on behind it.
    Unreadable = 2,
}

/// A part of what page tables map.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_mapping {
    /// What it is: a vmi_mapping_kind.
    pub kind: u32,
    /// First virtual address; of something unreadable VMI_UNKNOWN_ADDRESS if that is not known.
    pub at: u64,
    /// Bytes; 0 of something unreadable.
    pub length: u64,
    /// Pages: the first guest-physical address. A repeated table: the virtual address where it was gone through.
    pub target: u64,
    /// Bytes of each page; 0 if these are none.
    pub page_size: u64,
    /// Writes are allowed.
    pub write: bool,
    /// Instruction fetches are allowed.
    pub execute: bool,
    /// User mode may access it.
    pub user: bool,
    /// Why it could not be read, valid during the callback; NULL of the others.
    pub message: *const c_char,
}

/// Takes a mapping, valid during the call. 0 goes on; anything else ends the call, which then answers VMI_STATUS_CALLBACK. It must not throw a C++ exception or jump
/// out; it may call this library.
pub type vmi_mapping_callback = Option<extern "C" fn(mapping: *const vmi_mapping, user_data: *mut c_void) -> u32>;

/// Calls `callback` with `user_data` for everything that the page tables at `root` map from `first` to `last`, both included, ascending. `mode` is a vmi_paging_mode.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_machine_each_mapping(
    machine: *mut vmi_machine,
    root: u64,
    mode: u32,
    first: u64,
    last: u64,
    callback: vmi_mapping_callback,
    user_data: *mut c_void,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let callback = callback.ok_or_else(|| Failure::null("the callback"))?;
        let machine = table::get(machine)?;
        let mode = mode_of(mode)?;
        let range = VirtAddr::new(first)..=VirtAddr::new(last);
        let empty = vmi_mapping {
            kind: vmi_mapping_kind::Unreadable as u32,
            at: border::VMI_UNKNOWN_ADDRESS,
            length: 0,
            target: border::VMI_UNKNOWN_ADDRESS,
            page_size: 0,
            write: false,
            execute: false,
            user: false,
            message: ptr::null(),
        };
        for found in mode.mappings(machine.vmi(), PhysAddr::new(root), range) {
            let mut text = None;
            let mapping = match found {
                Ok(Mapping::Pages(run)) => vmi_mapping {
                    kind: vmi_mapping_kind::Pages as u32,
                    at: run.at.get(),
                    length: run.len,
                    target: run.target.get(),
                    page_size: 1u64.wrapping_shl(u32::from(run.page_shift)),
                    write: run.access.write,
                    execute: run.access.execute,
                    user: run.access.user,
                    ..empty
                },
                Ok(Mapping::Repeated(repeated)) => vmi_mapping {
                    kind: vmi_mapping_kind::Repeated as u32,
                    at: repeated.at.get(),
                    length: repeated.len,
                    target: repeated.first.get(),
                    write: repeated.access.write,
                    execute: repeated.access.execute,
                    user: repeated.access.user,
                    ..empty
                },
                Err(error) => {
                    let at = match error.kind() {
                        vmi::ErrorKind::Fault(fault) => fault.at.get(),
                        _ => border::VMI_UNKNOWN_ADDRESS,
                    };
                    let message = text.insert(border::c_string(&error.to_string())).as_ptr();
                    vmi_mapping { at, message, ..empty }
                }
            };
            match callback(&raw const mapping, user_data) {
                0 => {}
                said => return Err(Failure::new(vmi_status::Callback, format!("the callback answered {said}"))),
            }
        }
        Ok(())
    })
}
