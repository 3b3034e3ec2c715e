//! libxenstore: what the toolstack has written down of domains (xenstore.h).

use std::ffi::{CString, c_char, c_uint, c_ulong, c_void};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use super::foreign_memory::InterfaceError;
use super::{CallError, Names, library};

/// An opaque `xs_handle`.
#[repr(C)]
pub(super) struct Handle {
    _opaque: [u8; 0],
}

library! {
    /// The functions of libxenstore. Its interface is stable.
    struct Functions = Names { files: &["libxenstore.so.4", "libxenstore.so.3.0"], package: "libxenstore4" };
    fn xs_open(flags: c_ulong) -> *mut Handle;
    fn xs_close(handle: *mut Handle);
    fn xs_read(handle: *mut Handle, transaction: u32, path: *const c_char, len: *mut c_uint) -> *mut c_void;
}

/// The longest value that the xenstore protocol carries (xen/include/public/io/xs_wire.h, `XENSTORE_PAYLOAD_MAX`).
pub(crate) const MAX_VALUE: usize = 4096;

/// A connection to xenstored.
#[derive(Debug)]
pub(crate) struct XenStore {
    handle: Mutex<Owned>,
    functions: Functions,
}

#[derive(Debug)]
struct Owned(NonNull<Handle>);

// SAFETY: the handle is not tied to the thread that opened it, and it lives behind a lock.
unsafe impl Send for Owned {}

impl XenStore {
    /// Connects.
    pub(crate) fn open() -> Result<Self, InterfaceError> {
        let functions = Functions::open()?;
        // SAFETY: no flag is set.
        let handle = unsafe { (functions.xs_open)(0) };
        let handle = NonNull::new(handle).ok_or_else(|| CallError::last("xs_open"))?;
        Ok(Self { handle: Mutex::new(Owned(handle)), functions })
    }

    /// The value at `path`; `None` if there is none.
    pub(crate) fn read(&self, path: &str) -> Result<Option<Vec<u8>>, CallError> {
        let Ok(path) = CString::new(path) else { return Ok(None) };
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut len: c_uint = 0;
        // SAFETY: the handle is open, the path ends with a zero, and no transaction (XBT_NULL) is named.
        let value = unsafe { (self.functions.xs_read)(handle.0.as_ptr(), 0, path.as_ptr(), &raw mut len) };
        let Some(value) = NonNull::new(value.cast::<u8>()) else {
            let error = CallError::last("xs_read");
            return if error.errno() == Some(nix::libc::ENOENT) { Ok(None) } else { Err(error) };
        };
        let len = usize::try_from(len).unwrap_or(0).min(MAX_VALUE);
        // SAFETY: the library gives `len` bytes, and a zero behind them, in memory of malloc that is the caller's.
        let bytes = unsafe { std::slice::from_raw_parts(value.as_ptr(), len) }.to_vec();
        // SAFETY: as above; nothing refers to it any more.
        unsafe { nix::libc::free(value.as_ptr().cast()) };
        Ok(Some(bytes))
    }
}

impl Drop for XenStore {
    fn drop(&mut self) {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the handle is open and nobody else uses it.
        unsafe { (self.functions.xs_close)(handle.0.as_ptr()) };
    }
}
