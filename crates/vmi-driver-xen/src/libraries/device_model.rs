//! libxendevicemodel: injection of events into vCPUs (xendevicemodel.h of Xen 4.17; a stable interface).

use std::ffi::{c_int, c_uint};

use super::foreign_memory::InterfaceError;
use super::logger::{self, Logger};
use super::{CallError, Names, library};

#[repr(C)]
#[derive(Debug)]
struct Handle {
    _opaque: [u8; 0],
}

library! {
    struct Functions = Names { files: &["libxendevicemodel.so.1"], package: "libxendevicemodel1" };
    fn xendevicemodel_open(logger: *mut Logger, flags: c_uint) -> *mut Handle;
    fn xendevicemodel_close(dmod: *mut Handle) -> c_int;
    fn xendevicemodel_inject_event(
        dmod: *mut Handle, domid: u16, vcpu: c_int, vector: u8, kind: u8, error_code: u32, insn_len: u8, extra: u64
    ) -> c_int;
}

/// The kinds of event of `XEN_DMOP_inject_event` (xen/include/public/hvm/dm_op.h).
pub(crate) mod kind {
    pub(crate) const EXTERNAL_INTERRUPT: u8 = 0;
    pub(crate) const NMI: u8 = 2;
    pub(crate) const HARDWARE_EXCEPTION: u8 = 3;
    pub(crate) const SOFTWARE_EXCEPTION: u8 = 6;
}

/// An event that a vCPU is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Injected {
    pub(crate) vector: u8,
    pub(crate) kind: u8,
    /// `None` where the vector has none.
    pub(crate) error_code: Option<u32>,
    pub(crate) length: u8,
    /// CR2 of a page fault, conditions of a debug exception.
    pub(crate) extra: u64,
}

/// A handle on the device-model interface.
#[derive(Debug)]
pub(crate) struct DeviceModel {
    functions: Functions,
    handle: *mut Handle,
}

// SAFETY: the handle is used by one thread at a time, as `DeviceModel` is not `Sync`; the library keeps nothing for each thread.
unsafe impl Send for DeviceModel {}

impl DeviceModel {
    pub(crate) fn open() -> Result<Self, InterfaceError> {
        let functions = Functions::open()?;
        // SAFETY: the logger lives for ever; no flag is set.
        let handle = unsafe { (functions.xendevicemodel_open)(logger::silent(), 0) };
        if handle.is_null() {
            return Err(CallError::last("xendevicemodel_open").into());
        }
        Ok(Self { functions, handle })
    }

    pub(crate) fn inject(&self, domain: u16, vcpu: u32, event: Injected) -> Result<(), CallError> {
        let Injected { vector, kind, error_code, length, extra } = event;
        let vcpu = c_int::try_from(vcpu).unwrap_or(c_int::MAX);
        // SAFETY: the handle is open; the rest are numbers, which Xen checks.
        let failed = unsafe {
            (self.functions.xendevicemodel_inject_event)(
                self.handle,
                domain,
                vcpu,
                vector,
                kind,
                error_code.unwrap_or(u32::MAX),
                length,
                extra,
            )
        };
        if failed != 0 { Err(CallError::last("xendevicemodel_inject_event")) } else { Ok(()) }
    }
}

impl Drop for DeviceModel {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and nobody uses it any more.
        unsafe { (self.functions.xendevicemodel_close)(self.handle) };
    }
}
