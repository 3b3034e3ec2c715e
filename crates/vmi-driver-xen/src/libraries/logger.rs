//! The logger that Xen's libraries are given: they print to standard error otherwise, also for failures that are part of their work.

use std::ffi::{c_char, c_int, c_uint, c_ulong, c_void};

/// `xentoollog_logger` (xentoollog.h).
#[repr(C)]
pub(super) struct Logger {
    /// `void vmessage(logger, level, errnoval, context, format, va_list)`; on x86-64 a `va_list` is handed over as a pointer (System V ABI, section 3.5.7).
    vmessage: unsafe extern "C" fn(*mut Self, c_uint, c_int, *const c_char, *const c_char, *mut c_void),
    progress: unsafe extern "C" fn(*mut Self, *const c_char, *const c_char, c_int, c_ulong, c_ulong),
    destroy: unsafe extern "C" fn(*mut Self),
}

static SILENT: Logger = Logger { vmessage, progress, destroy };

/// A logger that says nothing: errors are told by return values and `errno`.
pub(super) fn silent() -> *mut Logger {
    // The libraries call through the pointer and do not write to it: what a logger keeps behind the three functions is its own.
    (&raw const SILENT).cast_mut()
}

unsafe extern "C" fn vmessage(_: *mut Logger, _: c_uint, _: c_int, _: *const c_char, _: *const c_char, _: *mut c_void) {}
unsafe extern "C" fn progress(_: *mut Logger, _: *const c_char, _: *const c_char, _: c_int, _: c_ulong, _: c_ulong) {}
unsafe extern "C" fn destroy(_: *mut Logger) {}
