//! The part of libxenctrl that has to do with events: monitors, access rights of pages, views.
//!
//! Types are those of xenctrl.h of Xen 4.17; 4.18 to 4.20 have the same (`xc_monitor_write_ctrlreg` with its `bitmask` since 4.8, `xc_monitor_mov_to_msr` with
//! `onchangeonly` since 4.14). The crate `xenctrl` 0.9 lacks these two arguments, and the others altogether.

use std::ffi::{c_int, c_uint, c_void};

use super::foreign_memory::InterfaceError;
use super::logger::{self, Logger};
use super::{CallError, Names, library};

#[repr(C)]
#[derive(Debug)]
struct Handle {
    _opaque: [u8; 0],
}

library! {
    struct Functions = Names {
        files: &["libxenctrl.so.4.20", "libxenctrl.so.4.19", "libxenctrl.so.4.18", "libxenctrl.so.4.17"],
        package: "libxenmisc4.17 (or that of your version)",
    };
    fn xc_interface_open(logger: *mut Logger, dombuild_logger: *mut Logger, flags: c_uint) -> *mut Handle;
    fn xc_interface_close(xch: *mut Handle) -> c_int;
    fn xc_domain_pause(xch: *mut Handle, domid: u32) -> c_int;
    fn xc_domain_unpause(xch: *mut Handle, domid: u32) -> c_int;
    fn xc_domain_debug_control(xch: *mut Handle, domid: u32, sop: u32, vcpu: u32) -> c_int;
    fn xc_vm_event_get_version(xch: *mut Handle) -> c_int;
    fn xc_monitor_enable(xch: *mut Handle, domid: u32, port: *mut u32) -> *mut c_void;
    fn xc_monitor_disable(xch: *mut Handle, domid: u32) -> c_int;
    fn xc_monitor_get_capabilities(xch: *mut Handle, domid: u32, capabilities: *mut u32) -> c_int;
    fn xc_monitor_write_ctrlreg(
        xch: *mut Handle, domid: u32, index: u16, enable: bool, sync: bool, bitmask: u64, onchangeonly: bool
    ) -> c_int;
    fn xc_monitor_mov_to_msr(xch: *mut Handle, domid: u32, msr: u32, enable: bool, onchangeonly: bool) -> c_int;
    fn xc_monitor_singlestep(xch: *mut Handle, domid: u32, enable: bool) -> c_int;
    fn xc_monitor_software_breakpoint(xch: *mut Handle, domid: u32, enable: bool) -> c_int;
    fn xc_monitor_descriptor_access(xch: *mut Handle, domid: u32, enable: bool) -> c_int;
    fn xc_monitor_guest_request(xch: *mut Handle, domid: u32, enable: bool, sync: bool, allow_userspace: bool) -> c_int;
    fn xc_monitor_debug_exceptions(xch: *mut Handle, domid: u32, enable: bool, sync: bool) -> c_int;
    fn xc_monitor_cpuid(xch: *mut Handle, domid: u32, enable: bool) -> c_int;
    fn xc_monitor_privileged_call(xch: *mut Handle, domid: u32, enable: bool) -> c_int;
    fn xc_monitor_emul_unimplemented(xch: *mut Handle, domid: u32, enable: bool) -> c_int;
    fn xc_set_mem_access(xch: *mut Handle, domid: u32, access: c_uint, first: u64, count: u32) -> c_int;
    fn xc_altp2m_get_domain_state(xch: *mut Handle, domid: u32, state: *mut bool) -> c_int;
    fn xc_altp2m_set_domain_state(xch: *mut Handle, domid: u32, state: bool) -> c_int;
    fn xc_altp2m_create_view(xch: *mut Handle, domid: u32, access: c_uint, view: *mut u16) -> c_int;
    fn xc_altp2m_destroy_view(xch: *mut Handle, domid: u32, view: u16) -> c_int;
    fn xc_altp2m_switch_to_view(xch: *mut Handle, domid: u32, view: u16) -> c_int;
    fn xc_altp2m_set_mem_access(xch: *mut Handle, domid: u32, view: u16, gfn: u64, access: c_uint) -> c_int;
    fn xc_altp2m_change_gfn(xch: *mut Handle, domid: u32, view: u16, old: u64, new: u64) -> c_int;
    ?fn xc_monitor_vmexit(xch: *mut Handle, domid: u32, enable: bool, sync: bool) -> c_int;
}

/// A monitor that is on or off for the whole domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Monitor {
    ControlRegister { index: u16, on_change: bool },
    Msr { index: u32, on_change: bool },
    SingleStep,
    SoftwareBreakpoint,
    DescriptorAccess,
    GuestRequest,
    DebugExceptions,
    Cpuid,
    PrivilegedCall,
    EmulUnimplemented,
    VmExit,
}

/// The control interface, for one domain.
#[derive(Debug)]
pub(crate) struct MonitorCalls {
    functions: Functions,
    handle: *mut Handle,
    domain: u32,
}

// SAFETY: libxenctrl's handle may be used by one thread at a time (xenctrl.h, `XC_OPENFLAG_NON_REENTRANT`); `MonitorCalls` is not `Sync`.
unsafe impl Send for MonitorCalls {}

/// The number that a call gives, as a result.
fn checked(function: &'static str, result: c_int) -> Result<(), CallError> {
    if result < 0 { Err(CallError::last(function)) } else { Ok(()) }
}

/// A call on the domain: `$self.call!(name, arguments)`.
macro_rules! call {
    ($self:ident.$function:ident($($argument:expr),*)) => {{
        // SAFETY: the handle is open, and what is passed besides are numbers, which Xen checks.
        checked(stringify!($function), unsafe { ($self.functions.$function)($self.handle, $self.domain $(, $argument)*) })
    }};
}

impl MonitorCalls {
    pub(crate) fn open(domain: u32) -> Result<Self, InterfaceError> {
        let functions = Functions::open()?;
        // SAFETY: the logger lives for ever; no flag is set.
        let handle = unsafe { (functions.xc_interface_open)(logger::silent(), logger::silent(), 0) };
        if handle.is_null() {
            return Err(CallError::last("xc_interface_open").into());
        }
        Ok(Self { functions, handle, domain })
    }

    pub(crate) fn pause(&self) -> Result<(), CallError> {
        call!(self.xc_domain_pause())
    }

    pub(crate) fn unpause(&self) -> Result<(), CallError> {
        call!(self.xc_domain_unpause())
    }

    /// The version of the event interface that the hypervisor speaks.
    pub(crate) fn interface_version(&self) -> Result<u32, CallError> {
        // SAFETY: the handle is open.
        let version = unsafe { (self.functions.xc_vm_event_get_version)(self.handle) };
        u32::try_from(version).map_err(|_| CallError::last("xc_vm_event_get_version"))
    }

    /// `1 << XEN_DOMCTL_MONITOR_EVENT_*` of what the hypervisor can monitor.
    pub(crate) fn capabilities(&self) -> Result<u32, CallError> {
        let mut capabilities = 0;
        call!(self.xc_monitor_get_capabilities(&raw mut capabilities))?;
        Ok(capabilities)
    }

    /// Turns the ring on: its page, and the port of its event channel.
    pub(crate) fn enable(&self) -> Result<(*mut c_void, u32), CallError> {
        let mut port = 0;
        // SAFETY: the handle is open, and `port` is there for the call.
        let page = unsafe { (self.functions.xc_monitor_enable)(self.handle, self.domain, &raw mut port) };
        if page.is_null() { Err(CallError::last("xc_monitor_enable")) } else { Ok((page, port)) }
    }

    /// Turns the ring off: all monitors end. vCPUs that wait for an answer wait on.
    pub(crate) fn disable(&self) -> Result<(), CallError> {
        call!(self.xc_monitor_disable())
    }

    pub(crate) fn set(&self, monitor: Monitor, on: bool) -> Result<(), CallError> {
        match monitor {
            Monitor::ControlRegister { index, on_change } => call!(self.xc_monitor_write_ctrlreg(index, on, true, 0, on_change)),
            Monitor::Msr { index, on_change } => call!(self.xc_monitor_mov_to_msr(index, on, on_change)),
            Monitor::SingleStep => call!(self.xc_monitor_singlestep(on)),
            Monitor::SoftwareBreakpoint => call!(self.xc_monitor_software_breakpoint(on)),
            Monitor::DescriptorAccess => call!(self.xc_monitor_descriptor_access(on)),
            Monitor::GuestRequest => call!(self.xc_monitor_guest_request(on, true, true)),
            Monitor::DebugExceptions => call!(self.xc_monitor_debug_exceptions(on, true)),
            Monitor::Cpuid => call!(self.xc_monitor_cpuid(on)),
            Monitor::PrivilegedCall => call!(self.xc_monitor_privileged_call(on)),
            Monitor::EmulUnimplemented => call!(self.xc_monitor_emul_unimplemented(on)),
            Monitor::VmExit => match self.functions.xc_monitor_vmexit {
                // SAFETY: as in `call!`.
                Some(function) => checked("xc_monitor_vmexit", unsafe { function(self.handle, self.domain, on, true) }),
                None => Err(CallError::of("xc_monitor_vmexit", nix::errno::Errno::ENOSYS as i32)),
            },
        }
    }

    /// Single steps of a vCPU begin or end, whatever it is doing.
    pub(crate) fn single_step(&self, vcpu: u32, on: bool) -> Result<(), CallError> {
        call!(self.xc_domain_debug_control(u32::from(on), vcpu))
    }

    /// Says how frames may be accessed: `XENMEM_access_*`.
    pub(crate) fn set_access(&self, first: u64, count: u32, access: u32) -> Result<(), CallError> {
        call!(self.xc_set_mem_access(access, first, count))
    }

    /// Whether views are in use.
    pub(crate) fn views_on(&self) -> Result<bool, CallError> {
        let mut state = false;
        call!(self.xc_altp2m_get_domain_state(&raw mut state))?;
        Ok(state)
    }

    pub(crate) fn set_views_on(&self, on: bool) -> Result<(), CallError> {
        call!(self.xc_altp2m_set_domain_state(on))
    }

    pub(crate) fn create_view(&self, access: u32) -> Result<u16, CallError> {
        let mut view = 0;
        call!(self.xc_altp2m_create_view(access, &raw mut view))?;
        Ok(view)
    }

    pub(crate) fn destroy_view(&self, view: u16) -> Result<(), CallError> {
        call!(self.xc_altp2m_destroy_view(view))
    }

    pub(crate) fn switch_view(&self, view: u16) -> Result<(), CallError> {
        call!(self.xc_altp2m_switch_to_view(view))
    }

    pub(crate) fn set_view_access(&self, view: u16, frame: u64, access: u32) -> Result<(), CallError> {
        call!(self.xc_altp2m_set_mem_access(view, frame, access))
    }

    /// Shows frame `new` where `old` is; `u64::MAX` shows `old` itself again.
    pub(crate) fn change_frame(&self, view: u16, old: u64, new: u64) -> Result<(), CallError> {
        call!(self.xc_altp2m_change_gfn(view, old, new))
    }
}

impl Drop for MonitorCalls {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and nobody uses it any more.
        unsafe { (self.functions.xc_interface_close)(self.handle) };
    }
}
