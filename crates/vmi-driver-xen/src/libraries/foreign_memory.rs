//! libxenforeignmemory: pages of other domains, mapped into this process (xenforeignmemory.h).

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use vmi_core::PAGE_SIZE;

use super::logger::{self, Logger};
use super::{CallError, LibraryError, Names, library};

/// An opaque `xenforeignmemory_handle`.
#[repr(C)]
pub(super) struct Handle {
    _opaque: [u8; 0],
}

library! {
    /// The functions of libxenforeignmemory. Its interface is stable.
    struct Functions = Names { files: &["libxenforeignmemory.so.1"], package: "libxenforeignmemory1" };
    fn xenforeignmemory_open(logger: *mut Logger, flags: c_uint) -> *mut Handle;
    fn xenforeignmemory_close(handle: *mut Handle) -> c_int;
    fn xenforeignmemory_map(handle: *mut Handle, domain: u32, protection: c_int, pages: usize, frames: *const u64, errors: *mut c_int) -> *mut c_void;
    fn xenforeignmemory_map2(handle: *mut Handle, domain: u32, place: *mut c_void, protection: c_int, flags: c_int, pages: usize, frames: *const u64, errors: *mut c_int) -> *mut c_void;
    fn xenforeignmemory_unmap(handle: *mut Handle, address: *mut c_void, pages: usize) -> c_int;
}

/// The way to other domains' pages.
#[derive(Debug)]
pub(crate) struct ForeignMemory {
    handle: NonNull<Handle>,
    functions: Functions,
}

// SAFETY: the handle is a file descriptor and a logger, neither of which changes after opening (tools/libs/foreignmemory/private.h, core.c, linux.c); a
// mapping is one `mmap` and one `ioctl`.
unsafe impl Send for ForeignMemory {}
// SAFETY: as above.
unsafe impl Sync for ForeignMemory {}

/// Why libxenforeignmemory or another library could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InterfaceError {
    /// The library cannot be used.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// It cannot reach Xen.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl ForeignMemory {
    /// Opens the library and its way to Xen (/dev/xen/privcmd).
    pub(crate) fn open() -> Result<Arc<Self>, InterfaceError> {
        let functions = Functions::open()?;
        // SAFETY: the logger lives for ever; no flag is set.
        let handle = unsafe { (functions.xenforeignmemory_open)(logger::silent(), 0) };
        let handle = NonNull::new(handle).ok_or_else(|| CallError::last("xenforeignmemory_open"))?;
        Ok(Arc::new(Self { handle, functions }))
    }

    /// Maps `frames` of `domain`, one behind the other. [`Mapped::errors`] says which pages are there.
    pub(crate) fn map(self: &Arc<Self>, domain: u32, frames: &[u64], writable: bool) -> Result<Mapped, CallError> {
        let protection = if writable { nix::libc::PROT_READ | nix::libc::PROT_WRITE } else { nix::libc::PROT_READ };
        let mut errors: Box<[c_int]> = vec![0; frames.len()].into();
        // SAFETY: the handle is open; both arrays have as many elements as there are pages.
        let address = unsafe {
            (self.functions.xenforeignmemory_map)(
                self.handle.as_ptr(),
                domain,
                protection,
                frames.len(),
                frames.as_ptr(),
                errors.as_mut_ptr(),
            )
        };
        let address = NonNull::new(address.cast::<u8>()).ok_or_else(|| CallError::last("xenforeignmemory_map"))?;
        Ok(Mapped { memory: Arc::clone(self), address, errors, writable })
    }
}

impl ForeignMemory {
    /// Maps `frames` of `domain` for reading at `place`, instead of what is mapped there. For each page zero, or the number of `errno` that says why it is not there, negative.
    ///
    /// The library maps a device at the place and then has the kernel fill it in; if that fails it unmaps the place (tools/libs/foreignmemory/linux.c,
    /// `osdep_xenforeignmemory_map`). Of a page that is not there, touching ends the process with SIGBUS.
    ///
    /// # Safety
    /// The place is as long as all pages, belongs to the caller, and nobody uses it.
    pub(crate) unsafe fn map_at(&self, domain: u32, place: NonNull<u8>, frames: &[u64]) -> Result<Box<[c_int]>, CallError> {
        let mut errors: Box<[c_int]> = vec![0; frames.len()].into();
        // SAFETY: the handle is open; both arrays have as many elements as there are pages; the place may be replaced, as the caller says.
        let address = unsafe {
            (self.functions.xenforeignmemory_map2)(
                self.handle.as_ptr(),
                domain,
                place.as_ptr().cast(),
                nix::libc::PROT_READ,
                nix::libc::MAP_FIXED,
                frames.len(),
                frames.as_ptr(),
                errors.as_mut_ptr(),
            )
        };
        if address.is_null() { Err(CallError::last("xenforeignmemory_map2")) } else { Ok(errors) }
    }
}

impl Drop for ForeignMemory {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and all mappings made through it are gone, as each holds a reference to `self`.
        unsafe { (self.functions.xenforeignmemory_close)(self.handle.as_ptr()) };
    }
}

/// Pages of another domain, mapped one behind the other until this is dropped.
#[derive(Debug)]
pub(crate) struct Mapped {
    memory: Arc<ForeignMemory>,
    address: NonNull<u8>,
    /// For each page zero, or the number of `errno` that says why it is not there (positive or negative).
    errors: Box<[c_int]>,
    writable: bool,
}

// SAFETY: a mapping belongs to the process, not to a thread; who copies from it uses volatile accesses.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Where the mapping starts. A page that [`Mapped::is_there`] denies must not be touched: that ends the process with SIGBUS.
    pub(crate) fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// How many pages it has.
    pub(crate) fn pages(&self) -> usize {
        self.errors.len()
    }

    /// Whether the page of this number is mapped.
    pub(crate) fn is_there(&self, page: usize) -> bool {
        self.errors.get(page) == Some(&0)
    }

    /// Why the page is not there: a number of `errno`.
    pub(crate) fn error(&self, page: usize) -> Option<i32> {
        self.errors.get(page).map(|error| error.saturating_abs()).filter(|error| *error != 0)
    }

    /// Copies a page; says whether it is there.
    pub(crate) fn copy(&self, page: usize, to: &mut [u8; PAGE_SIZE as usize]) -> bool {
        if !self.is_there(page) {
            return false;
        }
        // The page's number is below the number of pages of the mapping.
        let host = self.address.as_ptr().wrapping_add(page.wrapping_mul(PAGE_SIZE as usize)).cast::<u64>();
        for (index, word) in to.chunks_exact_mut(8).enumerate() {
            // SAFETY: the page is mapped and aligned, and the index below the number of words in it. The other domain may write meanwhile: a volatile load of a word.
            let value = unsafe { host.wrapping_add(index).read_volatile() };
            word.copy_from_slice(&value.to_le_bytes());
        }
        true
    }

    /// Whether it may be written.
    pub(crate) fn writable(&self) -> bool {
        self.writable
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let functions = &self.memory.functions;
        // SAFETY: the mapping was made through this handle with this number of pages, and nobody can use it any more.
        let result = unsafe {
            (functions.xenforeignmemory_unmap)(self.memory.handle.as_ptr(), self.address.as_ptr().cast(), self.errors.len())
        };
        if result != 0 {
            let error = CallError::last("xenforeignmemory_unmap");
            tracing::error!(%error, "memory of a domain stays mapped");
        }
    }
}
