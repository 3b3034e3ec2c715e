//! The operating system inside a machine.

use core::ffi::c_char;
use core::mem::MaybeUninit;
use std::sync::Arc;

use vmi::owned::{self, Place};
use vmi::{Guest as _, System};

use crate::border;
use crate::error::{Failure, Result, vmi_error, vmi_status};
use crate::machine::{Shared, vmi_machine};
use crate::mappings::{number_of, vmi_paging_mode};
use crate::options::{self, vmi_options};
use crate::rows::{self, vmi_strings};
use crate::table::{self, Handle, Object};

/// An operating system that was found in a machine. Any thread may use it, several at once.
#[derive(Debug)]
pub struct vmi_guest {
    _opaque: [u8; 0],
}

impl Handle for vmi_guest {
    type Object = Guest;
}

/// A guest in the table.
#[derive(Debug)]
pub struct Guest {
    pub(crate) guest: owned::Guest,
    pub(crate) shared: Arc<Shared>,
}

impl Object for Guest {
    const NAME: &'static str = "vmi_guest";
}

impl Guest {
    /// The address of `name` or `name+offset`.
    pub(crate) fn address(&self, text: &str) -> Result<u64> {
        address(&self.guest, text)
    }
}

/// The address of `name` or `name+offset` in a guest.
pub(crate) fn address(guest: &owned::Guest, text: &str) -> Result<u64> {
    let place = Place::parse(text).map_err(|error| Failure::argument(error.to_string()))?;
    Ok(guest.address(place)?.get())
}

/// Which system a guest runs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmi_system {
    /// None of the others.
    Unknown = 0,
    /// Linux.
    Linux = 1,
    /// Windows.
    Windows = 2,
}

/// Finds the operating system inside a machine, with no configuration. `options` may be NULL; vmi_options_add_symbols helps a kernel that does not describe itself.
/// Closed with vmi_guest_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_attach(
    machine: *mut vmi_machine,
    options: *mut vmi_options,
    guest: Option<&mut MaybeUninit<*mut vmi_guest>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let guest = border::slot(guest)?;
        let shared = table::get(machine)?.0.clone();
        let known = options::for_attach(options)?;
        let found = shared.machine.attach_with(&known).map_err(|error| Failure::of(vmi_status::Attach, &error))?;
        shared.put(guest, Guest { guest: found, shared: shared.clone() })
    })
}

/// Which system it is.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_get_system(
    guest: *mut vmi_guest,
    system: Option<&mut MaybeUninit<vmi_system>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::place(system, "the place for the system")?;
        place.write(table::get(guest)?.guest.with(|system| match system {
            System::Linux(_) => vmi_system::Linux,
            System::Windows(_) => vmi_system::Windows,
            _ => vmi_system::Unknown,
        }));
        Ok(())
    })
}

/// The system and its version in one line. Freed with vmi_string_free.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_get_version(
    guest: *mut vmi_guest,
    version: Option<&mut MaybeUninit<*mut c_char>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::text_place(version)?;
        place.write(border::owned(border::c_string(&table::get(guest)?.guest.version())));
        Ok(())
    })
}

/// What is remarkable about how this guest was read, one sentence each. Closed with vmi_strings_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_get_remarks(
    guest: *mut vmi_guest,
    remarks: Option<&mut MaybeUninit<*mut vmi_strings>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let remarks = border::slot(remarks)?;
        remarks.put(rows::strings(table::get(guest)?.guest.remarks()))
    })
}

/// Root of the kernel's own page tables (of a Windows guest those of the process System), and how they translate, for vmi_machine_address_space. `mode` may be NULL.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_get_kernel_page_table(
    guest: *mut vmi_guest,
    root: Option<&mut MaybeUninit<u64>>,
    mode: Option<&mut MaybeUninit<vmi_paging_mode>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::place(root, "the place for the root")?;
        let (root, paging) = table::get(guest)?.guest.with(|system| system.page_tables());
        place.write(root.get());
        if let Some(mode) = mode {
            mode.write(number_of(Some(paging)));
        }
        Ok(())
    })
}

/// How far a Linux kernel was moved from where it was linked, in bytes (KASLR). VMI_STATUS_UNSUPPORTED for a system whose kernel has no such place.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_get_slide(
    guest: *mut vmi_guest,
    slide: Option<&mut MaybeUninit<u64>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::place(slide, "the place for the slide")?;
        let none = || Failure::new(vmi_status::Unsupported, "the kernel of this system is linked for no place");
        place.write(table::get(guest)?.guest.with(|system| system.slide())?.ok_or_else(none)?);
        Ok(())
    })
}

/// Closes a guest. Its machine and what was listed stay. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_close(guest: *mut vmi_guest) {
    border::plain((), || {
        if let Ok(object) = table::get(guest) {
            object.shared.close_child(guest);
        }
    });
}
