//! libxenctrl: what the crate `xenctrl` lacks or does unsoundly (xenctrl.h).
//!
//! The library has an own name for each release, as its interface may change with it. The functions here have had these types from Xen 4.17 to 4.20
//! (tools/include/xenctrl.h of each release). Three of them fill structures:
//!
//! - `xc_domain_getinfolist` an array of `xen_domctl_getdomaininfo`. Fields are appended to it at times; those that are used here lie before `cpupool` and have lain there
//!   since Xen 4.2. It is asked for one domain at a time, into a buffer that is larger than any version of the structure.
//! - `xc_vcpu_getcontext` a `vcpu_guest_context`, whose layout is part of the guest's interface and therefore fixed.
//! - `xc_domain_hvm_getcontext` save records, which tell their lengths.

use std::ffi::{c_int, c_uint};
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::foreign_memory::InterfaceError;
use super::logger::{self, Logger};
use super::{CallError, LibraryError, Names, library};
use crate::domain_info::{DomainInfo, INFO_ROOM, RawDomainInfo};

/// An opaque `xc_interface`.
#[repr(C)]
pub(super) struct Handle {
    _opaque: [u8; 0],
}

/// Save records of a domain with 128 vCPUs take some hundred kilobytes; with the largest AVX-512 states 128 × 8 KiB.
const MAX_RECORDS: usize = 16 << 20;

/// `vcpu_guest_context_any_t`: 5168 bytes on x86-64 (xen/include/public/arch-x86/xen.h); what follows stays zero.
pub(crate) const CONTEXT_ROOM: usize = 8192;

/// Room for a `vcpu_guest_context`, aligned as that is.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
pub(crate) struct ContextBuffer(pub(crate) [u8; CONTEXT_ROOM]);

/// The releases that are known.
const NAMES: Names = Names {
    files: &["libxenctrl.so.4.17", "libxenctrl.so.4.18", "libxenctrl.so.4.19", "libxenctrl.so.4.20"],
    package: "libxenmisc4.17 (or that of the Xen that runs)",
};

library! {
    /// The functions of libxenctrl.
    struct Functions = NAMES;
    fn xc_interface_open(logger: *mut Logger, builder_logger: *mut Logger, flags: c_uint) -> *mut Handle;
    fn xc_interface_close(handle: *mut Handle) -> c_int;
    fn xc_domain_pause(handle: *mut Handle, domain: u32) -> c_int;
    fn xc_domain_unpause(handle: *mut Handle, domain: u32) -> c_int;
    fn xc_domain_getinfolist(handle: *mut Handle, first: u32, max: c_uint, info: *mut RawDomainInfo) -> c_int;
    fn xc_domain_maximum_gpfn(handle: *mut Handle, domain: u32, last: *mut u64) -> c_int;
    fn xc_domain_get_guest_width(handle: *mut Handle, domain: u32, width: *mut c_uint) -> c_int;
    fn xc_domain_hvm_getcontext(handle: *mut Handle, domain: u32, buffer: *mut u8, size: u32) -> c_int;
    fn xc_domain_hvm_setcontext(handle: *mut Handle, domain: u32, buffer: *mut u8, size: u32) -> c_int;
    fn xc_vcpu_getcontext(handle: *mut Handle, domain: u32, vcpu: u32, context: *mut ContextBuffer) -> c_int;
    fn xc_vcpu_setcontext(handle: *mut Handle, domain: u32, vcpu: u32, context: *mut ContextBuffer) -> c_int;
    // Not in the header, but exported for Xen's other libraries.
    ?fn xc_get_pfn_type_batch(handle: *mut Handle, domain: u32, count: c_uint, frames: *mut u64) -> c_int;
}

/// The toolstack's way to Xen.
#[derive(Debug)]
pub(crate) struct Control {
    /// A handle may be used by one thread at a time: it holds the last error.
    handle: Mutex<Owned>,
    functions: Functions,
}

#[derive(Debug)]
struct Owned(NonNull<Handle>);

// SAFETY: the handle is not tied to the thread that opened it (xenctrl.h, XC_OPENFLAG_NON_REENTRANT is not set), and it lives behind a lock.
unsafe impl Send for Owned {}

impl Control {
    /// Opens the library of the Xen that runs and its way to it (/dev/xen/privcmd).
    ///
    /// Where libraries of several releases are installed, the first that Xen understands is taken: to the others it says `EACCES`, as the version of its control
    /// interface differs (xen/common/domctl.c, `XEN_DOMCTL_INTERFACE_VERSION`).
    pub(crate) fn open() -> Result<Self, InterfaceError> {
        let mut failure = None;
        for file in NAMES.files.chunks(1) {
            let control = match Functions::open_as(Names { files: file, ..NAMES }) {
                Ok(functions) => Self::with(functions)?,
                Err(error @ LibraryError::NoFunction { .. }) => {
                    failure = failure.or(Some(error.into()));
                    continue;
                }
                Err(LibraryError::Missing { .. }) => continue,
            };
            match control.domain_from(0) {
                Ok(_) => return Ok(control),
                Err(error) => failure = Some(error.into()),
            }
        }
        match failure {
            Some(error) => Err(error),
            // None of them is there: says so of all.
            None => Self::with(Functions::open()?),
        }
    }

    fn with(functions: Functions) -> Result<Self, InterfaceError> {
        // SAFETY: the logger lives for ever; no flag is set.
        let handle = unsafe { (functions.xc_interface_open)(logger::silent(), logger::silent(), 0) };
        let handle = NonNull::new(handle).ok_or_else(|| CallError::last("xc_interface_open"))?;
        Ok(Self { handle: Mutex::new(Owned(handle)), functions })
    }

    /// The file name of the library that serves.
    pub(crate) fn library(&self) -> &'static str {
        self.functions.library.name()
    }

    fn lock(&self) -> MutexGuard<'_, Owned> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one to the toolstack's pauses of the domain.
    pub(crate) fn pause(&self, domain: u32) -> Result<(), CallError> {
        // SAFETY: the handle is open.
        check("xc_domain_pause", unsafe { (self.functions.xc_domain_pause)(self.lock().0.as_ptr(), domain) })
    }

    /// Takes one off.
    pub(crate) fn unpause(&self, domain: u32) -> Result<(), CallError> {
        // SAFETY: the handle is open.
        check("xc_domain_unpause", unsafe { (self.functions.xc_domain_unpause)(self.lock().0.as_ptr(), domain) })
    }

    /// The first domain whose number is `first` or above; `None` if there is none.
    pub(crate) fn domain_from(&self, first: u32) -> Result<Option<DomainInfo>, CallError> {
        let mut info = RawDomainInfo::new();
        // SAFETY: the handle is open; the buffer has room for one structure of any version.
        let count = unsafe { (self.functions.xc_domain_getinfolist)(self.lock().0.as_ptr(), first, 1, &raw mut info) };
        check("xc_domain_getinfolist", count)?;
        const { assert!(INFO_ROOM == size_of::<RawDomainInfo>()) };
        Ok((count > 0).then(|| info.decode()))
    }

    /// The highest frame number in use.
    pub(crate) fn maximum_gpfn(&self, domain: u32) -> Result<u64, CallError> {
        let mut last = 0;
        // SAFETY: the handle is open.
        let result = unsafe { (self.functions.xc_domain_maximum_gpfn)(self.lock().0.as_ptr(), domain, &raw mut last) };
        check("xc_domain_maximum_gpfn", result).map(|()| last)
    }

    /// Bytes in a word of the domain's interface to Xen: 4 or 8.
    pub(crate) fn guest_width(&self, domain: u32) -> Result<u32, CallError> {
        let mut width = 0;
        // SAFETY: the handle is open.
        let result = unsafe { (self.functions.xc_domain_get_guest_width)(self.lock().0.as_ptr(), domain, &raw mut width) };
        check("xc_domain_get_guest_width", result).map(|()| width)
    }

    /// The save records of a domain with hardware support.
    pub(crate) fn hvm_context(&self, domain: u32) -> Result<Vec<u8>, CallError> {
        const FUNCTION: &str = "xc_domain_hvm_getcontext";
        let handle = self.lock();
        // SAFETY: the handle is open; without a buffer the length is told.
        let len = unsafe { (self.functions.xc_domain_hvm_getcontext)(handle.0.as_ptr(), domain, ptr::null_mut(), 0) };
        check(FUNCTION, len)?;
        let len = usize::try_from(len).unwrap_or_default();
        if len > MAX_RECORDS {
            return Err(CallError::of(FUNCTION, nix::libc::EFBIG));
        }
        let mut buffer = vec![0u8; len];
        // SAFETY: the handle is open; the buffer has the length that is told, which is at most 16 MiB.
        let used =
            unsafe { (self.functions.xc_domain_hvm_getcontext)(handle.0.as_ptr(), domain, buffer.as_mut_ptr(), len as u32) };
        check(FUNCTION, used)?;
        buffer.truncate(usize::try_from(used).unwrap_or_default());
        Ok(buffer)
    }

    /// Loads save records into a domain with hardware support.
    pub(crate) fn set_hvm_context(&self, domain: u32, records: &mut [u8]) -> Result<(), CallError> {
        const FUNCTION: &str = "xc_domain_hvm_setcontext";
        let len = u32::try_from(records.len()).map_err(|_| CallError::of(FUNCTION, nix::libc::EFBIG))?;
        // SAFETY: the handle is open; the buffer has the length that is told.
        let result =
            unsafe { (self.functions.xc_domain_hvm_setcontext)(self.lock().0.as_ptr(), domain, records.as_mut_ptr(), len) };
        check(FUNCTION, result)
    }

    /// The `vcpu_guest_context` of a vCPU.
    pub(crate) fn vcpu_context(&self, domain: u32, vcpu: u32) -> Result<Box<ContextBuffer>, CallError> {
        let mut context = Box::new(ContextBuffer([0; CONTEXT_ROOM]));
        // SAFETY: the handle is open; the buffer is larger than the structure.
        let result = unsafe { (self.functions.xc_vcpu_getcontext)(self.lock().0.as_ptr(), domain, vcpu, &raw mut *context) };
        check("xc_vcpu_getcontext", result).map(|()| context)
    }

    /// Sets the `vcpu_guest_context` of a vCPU.
    pub(crate) fn set_vcpu_context(&self, domain: u32, vcpu: u32, context: &mut ContextBuffer) -> Result<(), CallError> {
        // SAFETY: the handle is open; the buffer is larger than the structure.
        let result = unsafe { (self.functions.xc_vcpu_setcontext)(self.lock().0.as_ptr(), domain, vcpu, &raw mut *context) };
        check("xc_vcpu_setcontext", result)
    }

    /// Replaces each of up to 1024 frame numbers by the type of its page (domctl.h, `XEN_DOMCTL_PFINFO_*`). `None` if this version of the library does
    /// not offer it.
    pub(crate) fn page_types(&self, domain: u32, frames: &mut [u64]) -> Option<Result<(), CallError>> {
        let function = self.functions.xc_get_pfn_type_batch?;
        // SAFETY: the handle is open; the array has as many elements as are told, at most what fits a C integer.
        let result = unsafe { function(self.lock().0.as_ptr(), domain, frames.len() as c_uint, frames.as_mut_ptr()) };
        Some(check("xc_get_pfn_type_batch", result))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // SAFETY: the handle is open and nobody else uses it.
        unsafe { (self.functions.xc_interface_close)(self.lock().0.as_ptr()) };
    }
}

/// Negative results are failures, told by `errno`.
fn check(function: &'static str, result: c_int) -> Result<(), CallError> {
    if result < 0 { Err(CallError::last(function)) } else { Ok(()) }
}
