//! What crosses between C and Rust: calls that do not unwind, strings, places for results, buffers.
//!
//! Apart from calls of what is declared unsafe here (buffers with a length, in `memory` and a few others), this is the one place with unsafe code: what C
//! promises in `vmi.h` is relied on here.

use core::ffi::{CStr, c_char, c_void};
use core::mem::MaybeUninit;
use core::panic::AssertUnwindSafe;
use core::{ptr, slice};
use std::ffi::CString;
use std::panic::catch_unwind;

use crate::error::{Failure, Result, vmi_error, vmi_status};
use crate::table::{self, Handle, Object as _};

/// An address that is not known.
pub const VMI_UNKNOWN_ADDRESS: u64 = 0xffff_ffff_ffff_ffff;
/// A process, user or group id that is not known.
pub const VMI_UNKNOWN_ID: u32 = 0xffff_ffff;
/// No limit of time.
pub const VMI_FOREVER: u64 = 0xffff_ffff_ffff_ffff;

/// A string of C: UTF-8 that ends with a zero byte, or NULL. It is read during the call only.
///
/// Values of this type come from C alone, as arguments of exported functions. `vmi.h` says what C promises: the pointer is NULL, or a string that stays as it is
/// until the call returns.
#[repr(transparent)]
#[derive(Debug)]
pub struct Text(*const c_char);

impl Text {
    /// As if it came from C.
    ///
    /// # Safety
    /// `pointer` is NULL, or points at a zero-terminated string that is neither freed nor changed while the value exists.
    pub const unsafe fn new(pointer: *const c_char) -> Self {
        Self(pointer)
    }

    /// The bytes; `None` for NULL.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: not NULL, so it is a zero-terminated string for as long as `self` (the type's invariant).
        Some(unsafe { CStr::from_ptr(self.0) }.to_bytes())
    }

    /// The text, which must be there and be UTF-8.
    pub(crate) fn required(&self, what: &str) -> Result<&str> {
        let bytes = self.bytes().ok_or_else(|| Failure::null(what))?;
        core::str::from_utf8(bytes).map_err(|error| Failure::argument(format!("{what} is not UTF-8: {error}")))
    }

    /// The text as a path, which need not be UTF-8.
    pub(crate) fn path(&self, what: &str) -> Result<std::path::PathBuf> {
        use std::os::unix::ffi::OsStrExt as _;
        let bytes = self.bytes().ok_or_else(|| Failure::null(what))?;
        Ok(std::path::PathBuf::from(std::ffi::OsStr::from_bytes(bytes)))
    }
}

/// Text of the guest as a string of C. Zero bytes within it become U+FFFD, as C would take the first for the end.
pub(crate) fn c_string(text: &str) -> CString {
    CString::new(text).unwrap_or_else(|_| CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default())
}

/// Runs the body of an exported function: an error becomes an object for the caller, a panic an error.
pub fn call(error: Option<&mut MaybeUninit<*mut vmi_error>>, body: impl FnOnce() -> Result<()>) -> vmi_status {
    call_for(error, || body().map(|()| vmi_status::Ok))
}

/// As [`call`], for a body that may also say [`vmi_status::End`].
pub fn call_for(error: Option<&mut MaybeUninit<*mut vmi_error>>, body: impl FnOnce() -> Result<vmi_status>) -> vmi_status {
    // What a panic leaves half done is an object behind a handle, which the caller is told to close.
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(panicked(&*panic)));
    let (status, failure) = match outcome {
        Ok(status) => (status, None),
        Err(failure) => (failure.status, Some(failure)),
    };
    if let Some(place) = error {
        // Without room for an error object the caller has the status.
        let key = failure.and_then(|failure| table::insert(failure).ok());
        place.write(key.map_or(ptr::null_mut(), table::handle));
    }
    status
}

/// Runs the body of an exported function that cannot fail; `otherwise` is answered if it panics.
pub(crate) fn plain<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(otherwise)
}

#[cold]
fn panicked(panic: &(dyn core::any::Any + Send)) -> Failure {
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Failure::new(vmi_status::Internal, format!("a defect of this library: {}", said.unwrap_or("a panic")))
}

/// The place for a result, which must be there.
pub(crate) fn place<'a, T>(out: Option<&'a mut MaybeUninit<T>>, what: &str) -> Result<&'a mut MaybeUninit<T>> {
    out.ok_or_else(|| Failure::null(what))
}

/// The place for a handle: NULL until there is one.
#[derive(Debug)]
pub(crate) struct Slot<'a, H>(&'a mut MaybeUninit<*mut H>);

/// The place for a handle, which must be there.
pub(crate) fn slot<'a, H: Handle>(out: Option<&'a mut MaybeUninit<*mut H>>) -> Result<Slot<'a, H>> {
    let out = out.ok_or_else(|| Failure::null(&format!("the place for the {}", H::Object::NAME)))?;
    out.write(ptr::null_mut());
    Ok(Slot(out))
}

impl<H: Handle> Slot<'_, H> {
    /// Gives the object to C.
    pub(crate) fn put(self, object: H::Object) -> Result<()> {
        self.put_key(table::insert(object)?);
        Ok(())
    }

    /// Gives an object to C that is in the table.
    pub(crate) fn put_key(self, key: usize) {
        self.0.write(table::handle(key));
    }
}

/// A string that C owns from now on, and gives back with `vmi_string_free`.
pub(crate) fn owned(text: CString) -> *mut c_char {
    text.into_raw()
}

/// The place for a string that the caller will own: NULL until there is one.
pub(crate) fn text_place(out: Option<&mut MaybeUninit<*mut c_char>>) -> Result<&mut MaybeUninit<*mut c_char>> {
    let out = place(out, "the place for the string")?;
    out.write(ptr::null_mut());
    Ok(out)
}

/// Frees a string that a function of this library gave to the caller. NULL is left alone; each string is freed once.
///
/// # Safety
/// `string` is NULL, or came from this library as a string that the caller owns, and was not freed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmi_string_free(string: *mut c_char) {
    if !string.is_null() {
        // SAFETY: the caller's promise: it came from `CString::into_raw` in `owned`, and is given back once.
        drop(unsafe { CString::from_raw(string) });
    }
}

/// A caller's buffer as bytes to fill.
///
/// # Safety
/// `buffer` is NULL, or points at `length` bytes that nothing else reads or writes until the call returns.
pub(crate) unsafe fn bytes_to_fill<'a>(buffer: *mut c_void, length: usize) -> Result<&'a mut [u8]> {
    checked(buffer.addr(), length)?;
    if length == 0 {
        return Ok(&mut []);
    }
    // SAFETY: not NULL, within the address range, and the caller's for the call alone. Whatever the bytes hold, they are bytes.
    Ok(unsafe { slice::from_raw_parts_mut(buffer.cast(), length) })
}

/// A caller's bytes.
///
/// # Safety
/// `data` is NULL, or points at `length` bytes that nothing writes until the call returns.
pub(crate) unsafe fn bytes_given<'a>(data: *const c_void, length: usize) -> Result<&'a [u8]> {
    // SAFETY: the same promise.
    unsafe { items_given(data.cast(), length) }
}

/// A caller's array of numbers.
///
/// # Safety
/// `items` is NULL, or points at `count` items that nothing writes until the call returns.
pub(crate) unsafe fn items_given<'a, T: Copy>(items: *const T, count: usize) -> Result<&'a [T]> {
    checked(items.addr(), count.saturating_mul(size_of::<T>()))?;
    if count == 0 {
        return Ok(&[]);
    }
    if !items.is_aligned() {
        return Err(Failure::argument("the array is not aligned"));
    }
    // SAFETY: not NULL, aligned, within the address range, and unchanged for the call.
    Ok(unsafe { slice::from_raw_parts(items, count) })
}

/// Puts as many of `values` into a caller's array as it holds; how many there are is another result.
///
/// # Safety
/// `items` is NULL, or points at room for `capacity` items that nothing else reads or writes until the call returns.
pub(crate) unsafe fn put_items<T: Copy>(items: *mut T, capacity: usize, values: &[T]) -> Result<()> {
    checked(items.addr(), capacity.saturating_mul(size_of::<T>()))?;
    if !items.is_aligned() {
        return Err(Failure::argument("the array is not aligned"));
    }
    let count = values.len().min(capacity);
    if count != 0 {
        // SAFETY: not NULL, aligned, room for `count` items that is the caller's alone; `values` is memory of ours.
        unsafe { ptr::copy_nonoverlapping(values.as_ptr(), items, count) };
    }
    Ok(())
}

/// Whether a buffer can be: one with a length has an address, and ends within the address range.
fn checked(address: usize, bytes: usize) -> Result<()> {
    if address == 0 && bytes != 0 {
        return Err(Failure::null("the buffer"));
    }
    if bytes > isize::MAX.unsigned_abs() || address.checked_add(bytes).is_none() {
        return Err(Failure::new(vmi_status::OutOfRange, format!("a buffer of {bytes} bytes leaves the address range")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error() {
        let mut error = MaybeUninit::new(ptr::null_mut());
        let status = call(Some(&mut error), || panic!("on purpose, {}", 7));
        // SAFETY: it was initialised.
        let error = unsafe { error.assume_init() };
        assert_eq!(status, vmi_status::Internal);
        assert_eq!(crate::error::vmi_error_status(error), vmi_status::Internal);
        // SAFETY: the error is open.
        let message = unsafe { CStr::from_ptr(crate::error::vmi_error_message(error)) };
        assert!(message.to_str().unwrap().ends_with("on purpose, 7"), "{message:?}");
        crate::error::vmi_error_close(error);
        assert_eq!(crate::error::vmi_error_status(error), vmi_status::Closed);
        assert_eq!(plain(5, || panic!("again")), 5);
    }

    #[test]
    fn zero_bytes_do_not_end_a_name() {
        assert_eq!(c_string("a\0b").to_str().unwrap(), "a\u{fffd}b");
    }

    #[test]
    fn buffers_that_cannot_be_are_refused() {
        let mut byte = 0u8;
        let at: *mut c_void = (&raw mut byte).cast();
        // SAFETY: refused before anything is read.
        let status = |buffer, length| unsafe { bytes_to_fill(buffer, length) }.map(|_| ()).map_err(|failure| failure.status);
        assert_eq!(status(ptr::null_mut(), 0), Ok(()));
        assert_eq!(status(ptr::null_mut(), 1), Err(vmi_status::Null));
        assert_eq!(status(at, 1), Ok(()));
        assert_eq!(status(at, usize::MAX), Err(vmi_status::OutOfRange));
        assert_eq!(status(at, isize::MAX as usize + 1), Err(vmi_status::OutOfRange));
    }
}
