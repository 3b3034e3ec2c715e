//! The handle on one machine.

use core::ffi::c_char;
use core::fmt;
use core::mem::MaybeUninit;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmi::{AnyDriver, Capability, Driver as _, Liveness, Target, Vcpus as _, Vmi, owned};

use crate::border::{self, Slot, Text};
use crate::error::{Failure, Result, vmi_error, vmi_status};
use crate::options::{self, vmi_options};
use crate::table::{self, Handle, Object};

/// One machine: a memory image, a snapshot or a running guest. Any thread may use it, several at once.
#[derive(Debug)]
pub struct vmi_machine {
    _opaque: [u8; 0],
}

impl Handle for vmi_machine {
    type Object = Machine;
}

/// A machine in the table.
#[derive(Debug)]
pub struct Machine(pub(crate) Arc<Shared>);

/// A machine, as all that reads it shares it.
pub struct Shared {
    pub(crate) machine: owned::Machine,
    /// Handles of what came from it, which end with it.
    children: Mutex<HashSet<usize>>,
    closed: AtomicBool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("machine", &self.machine).finish_non_exhaustive()
    }
}

impl Object for Machine {
    const NAME: &'static str = "vmi_machine";

    fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
        let children = core::mem::take(&mut *self.0.children());
        children.into_iter().for_each(table::close_key);
    }
}

impl Machine {
    pub(crate) fn new(machine: owned::Machine) -> Self {
        Self(Arc::new(Shared { machine, children: Mutex::default(), closed: AtomicBool::new(false) }))
    }

    pub(crate) fn vmi(&self) -> &Vmi<AnyDriver> {
        self.0.machine.vmi()
    }
}

impl Shared {
    fn children(&self) -> std::sync::MutexGuard<'_, HashSet<usize>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives C an object that ends with this machine.
    pub(crate) fn put<H: Handle>(&self, slot: Slot<'_, H>, object: H::Object) -> Result<()> {
        let key = table::insert(object)?;
        self.children().insert(key);
        // Closed meanwhile by another thread: whoever comes second closes the child.
        if self.closed.load(Ordering::SeqCst) {
            table::close_key(key);
            return Err(Failure::new(vmi_status::Closed, "the vmi_machine was closed meanwhile"));
        }
        slot.put_key(key);
        Ok(())
    }

    /// Closes such an object.
    pub(crate) fn close_child<H: Handle>(&self, handle: *mut H) {
        self.children().remove(&handle.addr());
        table::close(handle);
    }
}

/// What a machine is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_machine_info {
    /// Bytes of guest-physical memory in all regions.
    pub memory_size: u64,
    /// First address behind the highest region.
    pub memory_end: u64,
    /// Regions of the memory map.
    pub region_count: usize,
    /// How many vCPUs the source shows; 0 if it shows none.
    pub vcpu_count: u32,
    /// What the source can do: some of VMI_CAN_WRITE_MEMORY and its siblings.
    pub capabilities: u32,
    /// Whether memory never changes: an image or a snapshot.
    pub frozen: bool,
}

/// Guest memory can be written.
pub const VMI_CAN_WRITE_MEMORY: u32 = 1;
/// vCPU registers can be read.
pub const VMI_CAN_READ_REGISTERS: u32 = 2;
/// vCPU registers can be set.
pub const VMI_CAN_WRITE_REGISTERS: u32 = 4;
/// The guest can be paused and resumed.
pub const VMI_CAN_PAUSE: u32 = 8;
/// Breakpoints, watchpoints and single steps can be had.
pub const VMI_CAN_REPORT_EVENTS: u32 = 16;

/// A run of guest-physical memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct vmi_region {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
}

/// Opens a memory image, compressed or not, or a running guest: "guest.lime", "qemu:/run/guest.qmp". A path need not be UTF-8. `options` may be NULL.
/// Closed with vmi_machine_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_machine_open(
    target: Text,
    options: *mut vmi_options,
    machine: Option<&mut MaybeUninit<*mut vmi_machine>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let machine = border::slot(machine)?;
        let target = Target::from(target.path("the target")?.into_os_string());
        let options = options::for_open(options)?;
        let opened = vmi::open_with(target, options).map_err(|error| Failure::of(vmi_status::Open, &error))?;
        machine.put(Machine::new(owned::Machine::new(opened)))
    })
}

/// What the machine is.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_machine_get_info(
    machine: *mut vmi_machine,
    info: Option<&mut MaybeUninit<vmi_machine_info>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let info = border::place(info, "the place for the information")?;
        let machine = table::get(machine)?;
        let vmi = machine.vmi();
        let driver = vmi.driver();
        let bit = |capability| match capability {
            Capability::WriteMemory => VMI_CAN_WRITE_MEMORY,
            Capability::Vcpus => VMI_CAN_READ_REGISTERS,
            Capability::WriteVcpus => VMI_CAN_WRITE_REGISTERS,
            Capability::Control => VMI_CAN_PAUSE,
            Capability::Events => VMI_CAN_REPORT_EVENTS,
            _ => 0,
        };
        let memory = &vmi.machine().memory;
        info.write(vmi_machine_info {
            memory_size: memory.total(),
            memory_end: memory.end().get(),
            region_count: memory.regions().len(),
            vcpu_count: driver.vcpu_count(),
            capabilities: machine.0.machine.capabilities().into_iter().fold(0, |all, capability| all | bit(capability)),
            frozen: vmi.machine().liveness == Liveness::Frozen,
        });
        Ok(())
    })
}

/// The back end and the guest, in words. Freed with vmi_string_free.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_machine_get_name(
    machine: *mut vmi_machine,
    name: Option<&mut MaybeUninit<*mut c_char>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::text_place(name)?;
        place.write(border::owned(border::c_string(&table::get(machine)?.vmi().machine().name)));
        Ok(())
    })
}

/// Where guest-physical memory is, ascending; what lies between is a hole. Fills `regions` with as many as `capacity`; `count` is how many there are.
///
/// # Safety
/// `regions` is NULL with a capacity of 0, or has room for `capacity` regions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmi_machine_get_memory_map(
    machine: *mut vmi_machine,
    regions: *mut vmi_region,
    capacity: usize,
    count: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let count = border::place(count, "the place for the count")?;
        let machine = table::get(machine)?;
        let all = machine.vmi().machine().memory.regions().iter();
        let all: Vec<_> = all.map(|region| vmi_region { start: region.start().get(), end: region.end().get() }).collect();
        // SAFETY: the caller's promise.
        unsafe { border::put_items(regions, capacity, &all) }?;
        count.write(all.len());
        Ok(())
    })
}

/// Whether the machine is still there: VMI_STATUS_ENDED if not. Mapped memory stays readable after its guest has ended.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_machine_check(machine: *mut vmi_machine, error: Option<&mut MaybeUninit<*mut vmi_error>>) -> vmi_status {
    border::call(error, || Ok(table::get(machine)?.vmi().driver().check()?))
}

/// Closes a machine, and all guests, memories, pauses and event sessions that came from it: their handles answer VMI_STATUS_CLOSED from now on, and a guest that was
/// held runs on. Lists, errors and snapshots stay. Memory that vmi_memory_view lent is gone. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_machine_close(machine: *mut vmi_machine) {
    border::plain((), || table::close(machine));
}
