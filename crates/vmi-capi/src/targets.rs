//! The running guests of this host.

use core::ffi::c_char;
use core::mem::MaybeUninit;
use core::ptr;
use std::ffi::CString;

use crate::border;
use crate::error::{vmi_error, vmi_status};
use crate::rows::{self, List, Row};
use crate::table::{self, Handle};

/// Running guests that were found. Any thread may use it; each row is given once.
#[derive(Debug)]
pub struct vmi_targets {
    _opaque: [u8; 0],
}

impl Handle for vmi_targets {
    type Object = List<TargetRow>;
}

/// A running guest that was found on this host. Its strings belong to the list: valid until that is closed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_target {
    /// What vmi_machine_open takes; NULL if there is no way in.
    pub target: *const c_char,
    /// The guest's name; NULL if it has none.
    pub name: *const c_char,
    /// How much memory it was given, as whoever started it wrote that; NULL if that is not known.
    pub memory: *const c_char,
    /// The ways to its memory that are open to this user, best first, with commas between them.
    pub roads: *const c_char,
    /// What is not possible and why, a sentence in each line; empty if all is.
    pub problems: *const c_char,
    /// The process that runs it, or VMI_UNKNOWN_ID.
    pub pid: u32,
    /// Whether it can be paused and resumed.
    pub control: bool,
    /// Whether it reports events.
    pub events: bool,
}

/// A found guest in a list.
#[derive(Debug)]
pub struct TargetRow {
    target: Option<CString>,
    name: Option<CString>,
    memory: Option<CString>,
    roads: CString,
    problems: CString,
    pid: Option<u32>,
    control: bool,
    events: bool,
}

impl From<vmi::FoundGuest> for TargetRow {
    fn from(guest: vmi::FoundGuest) -> Self {
        let roads: Vec<String> = guest.roads.iter().map(ToString::to_string).collect();
        Self {
            target: guest.target.map(|target| border::c_string(&target.to_string())),
            name: guest.name.as_deref().map(border::c_string),
            memory: guest.memory.as_deref().map(border::c_string),
            roads: border::c_string(&roads.join(",")),
            problems: border::c_string(&guest.problems.join("\n")),
            pid: guest.pid,
            control: guest.control,
            events: guest.events,
        }
    }
}

impl Row for TargetRow {
    const LIST: &'static str = "vmi_targets";
    type C = vmi_target;

    fn c(&self) -> vmi_target {
        let pointer = |text: &Option<CString>| text.as_ref().map_or(ptr::null(), |text| text.as_ptr());
        vmi_target {
            target: pointer(&self.target),
            name: pointer(&self.name),
            memory: pointer(&self.memory),
            roads: self.roads.as_ptr(),
            problems: self.problems.as_ptr(),
            pid: self.pid.unwrap_or(border::VMI_UNKNOWN_ID),
            control: self.control,
            events: self.events,
        }
    }
}

/// The running guests of this host that this user can see. Nothing is opened. Closed with vmi_targets_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_targets_find(
    targets: Option<&mut MaybeUninit<*mut vmi_targets>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let slot = border::slot(targets)?;
        slot.put(List::new(vmi::targets().into_iter().map(|guest| Ok(guest.into())).collect()))
    })
}

/// The next guest; see vmi_processes_next.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_targets_next(
    targets: *mut vmi_targets,
    target: Option<&mut MaybeUninit<vmi_target>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    rows::next(targets, target, error)
}

/// Closes a list and frees its strings. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_targets_close(targets: *mut vmi_targets) {
    border::plain((), || table::close(targets));
}
