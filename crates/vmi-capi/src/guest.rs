//! The operating system inside a machine.

use core::ffi::c_char;
use core::fmt;
use core::mem::MaybeUninit;
use std::sync::Arc;

use self_cell::self_cell;
use vmi::{AnyDriver, AttachOptions, ErrorKind, Process, TypeSource, Vmi};

use crate::border;
use crate::error::{Failure, Result, vmi_error, vmi_status};
use crate::layer::Layer;
use crate::machine::{Shared, vmi_machine};
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
pub struct Guest(pub(crate) Arc<Attached>);

impl Object for Guest {
    const NAME: &'static str = "vmi_guest";
}

/// The layer of the system that was found. As a trait object it is covariant in the borrow, whatever the layer keeps.
type System<'v> = Box<dyn Layer + 'v>;

self_cell!(
    struct Cell {
        owner: Arc<Shared>,
        #[covariant]
        dependent: System,
    }
);

/// A guest together with the machine that it borrows.
pub struct Attached(Cell);

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Attached").field(&self.guest().version()).finish()
    }
}

impl Attached {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.0.borrow_owner()
    }

    pub(crate) fn layer(&self) -> &dyn Layer {
        &**self.0.borrow_dependent()
    }

    pub(crate) fn guest(&self) -> &dyn vmi::Guest {
        self.layer()
    }

    pub(crate) fn types(&self) -> &dyn TypeSource {
        self.layer().types()
    }

    /// The process with this id.
    pub(crate) fn process(&self, pid: u32) -> Result<Process> {
        let mut failed = None;
        for row in self.guest().processes() {
            match row {
                Ok(process) if process.pid == pid => return Ok(process),
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| ErrorKind::NoObject { what: format!("process {pid}") }.into()).into())
    }

    /// The address of `name` or `name+offset`.
    pub(crate) fn address(&self, text: &str) -> Result<u64> {
        let (name, offset) = text.split_once('+').unwrap_or((text, "0"));
        let offset = offset.trim();
        let parsed = match offset.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => offset.parse(),
        };
        let offset = parsed.map_err(|_| Failure::argument(format!("`{text}`: what is behind the plus is no number")))?;
        Ok(self.guest().symbols().address(name.trim())?.wrapping_add(offset).get())
    }
}

/// Finds the system.
fn find<'v>(vmi: &'v Vmi<AnyDriver>, known: &AttachOptions) -> Result<System<'v>> {
    match vmi::attach_system(vmi, known).map_err(|error| Failure::of(vmi_status::Attach, &error))? {
        vmi::System::Linux(linux) => Ok(linux),
        vmi::System::Windows(windows) => Ok(windows),
        _ => Err(Failure::new(vmi_status::Attach, "this system has no layer in the C library")),
    }
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
        let cell = Cell::try_new(shared.clone(), |shared| find(&shared.vmi, &known))?;
        shared.put(guest, Guest(Arc::new(Attached(cell))))
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
        place.write(match table::get(guest)?.0.layer().system() {
            "linux" => vmi_system::Linux,
            "windows" => vmi_system::Windows,
            _ => vmi_system::Unknown,
        });
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
        place.write(border::owned(border::c_string(&table::get(guest)?.0.guest().version())));
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
        remarks.put(rows::strings(table::get(guest)?.0.guest().remarks()))
    })
}

/// Closes a guest. Its machine and what was listed stay. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_guest_close(guest: *mut vmi_guest) {
    border::plain((), || {
        if let Ok(object) = table::get(guest) {
            object.0.shared().close_child(guest);
        }
    });
}
