//! libxenevtchn: the channel by which Xen says that there is something on the ring (xenevtchn.h of Xen 4.17; a stable interface).

use std::ffi::{c_int, c_uint};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::foreign_memory::InterfaceError;
use super::logger::{self, Logger};
use super::{CallError, Names, library};

#[repr(C)]
#[derive(Debug)]
struct Handle {
    _opaque: [u8; 0],
}

library! {
    struct Functions = Names { files: &["libxenevtchn.so.1"], package: "libxenevtchn1" };
    fn xenevtchn_open(logger: *mut Logger, flags: c_uint) -> *mut Handle;
    fn xenevtchn_close(xce: *mut Handle) -> c_int;
    fn xenevtchn_fd(xce: *mut Handle) -> c_int;
    fn xenevtchn_bind_interdomain(xce: *mut Handle, domid: u32, remote_port: u32) -> c_int;
    fn xenevtchn_notify(xce: *mut Handle, port: u32) -> c_int;
    fn xenevtchn_pending(xce: *mut Handle) -> c_int;
    fn xenevtchn_unmask(xce: *mut Handle, port: u32) -> c_int;
}

/// An event channel that is bound to a port of a domain. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct EventChannel {
    functions: Arc<Functions>,
    handle: *mut Handle,
    port: u32,
}

// SAFETY: the handle is used by one thread at a time, as `EventChannel` is not `Sync`; the library keeps nothing for each thread.
unsafe impl Send for EventChannel {}

impl EventChannel {
    /// Binds a port of a domain.
    pub(crate) fn bind(domain: u32, remote_port: u32) -> Result<Self, InterfaceError> {
        let functions = Arc::new(Functions::open()?);
        // SAFETY: the logger lives for ever; no flag is set.
        let handle = unsafe { (functions.xenevtchn_open)(logger::silent(), 0) };
        if handle.is_null() {
            return Err(CallError::last("xenevtchn_open").into());
        }
        // From here on dropping closes the handle.
        let mut channel = Self { functions, handle, port: 0 };
        // SAFETY: the handle is open.
        let port = unsafe { (channel.functions.xenevtchn_bind_interdomain)(handle, domain, remote_port) };
        channel.port = u32::try_from(port).map_err(|_| CallError::last("xenevtchn_bind_interdomain"))?;
        Ok(channel)
    }

    /// Readable when the channel has something to say.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the handle is open.
        let fd = unsafe { (self.functions.xenevtchn_fd)(self.handle) };
        // SAFETY: the descriptor belongs to the handle, which is open as long as `self` is borrowed.
        (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// Tells the other end that there is something on the ring.
    pub(crate) fn notify(&self) -> Result<(), CallError> {
        // SAFETY: the handle is open.
        let failed = unsafe { (self.functions.xenevtchn_notify)(self.handle, self.port) } != 0;
        if failed { Err(CallError::last("xenevtchn_notify")) } else { Ok(()) }
    }

    /// Takes note of what the channel said, so that it speaks again. Blocks if it said nothing.
    pub(crate) fn acknowledge(&self) -> Result<(), CallError> {
        // SAFETY: the handle is open.
        let port = unsafe { (self.functions.xenevtchn_pending)(self.handle) };
        let port = u32::try_from(port).map_err(|_| CallError::last("xenevtchn_pending"))?;
        // SAFETY: the handle is open.
        let failed = unsafe { (self.functions.xenevtchn_unmask)(self.handle, port) } != 0;
        if failed { Err(CallError::last("xenevtchn_unmask")) } else { Ok(()) }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and nobody uses it any more. Closing unbinds the port.
        unsafe { (self.functions.xenevtchn_close)(self.handle) };
    }
}
