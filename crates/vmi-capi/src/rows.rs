//! What lists have in common, and lists of strings.
//!
//! A list is read in one go when it is made, which is the shortest time of a running guest, and gone through with its `next` function. It keeps the strings that its
//! rows point at.

use core::ffi::c_char;
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::ffi::CString;

use vmi::owned;

use crate::border;
use crate::error::{Failure, Result, vmi_error, vmi_status};
use crate::guest::vmi_guest;
use crate::table::{self, Handle, Object};

/// A row with the strings that C sees of it.
pub(crate) trait Row: Send + Sync + 'static {
    /// The name of its list.
    const LIST: &'static str;
    /// What C gets.
    type C;

    /// As C gets it: it points into this row.
    fn c(&self) -> Self::C;
}

/// Rows, and how far they were gone through.
#[derive(Debug)]
pub struct List<R> {
    rows: Vec<Result<R>>,
    next: AtomicUsize,
}

impl<R> List<R> {
    pub(crate) fn new(rows: Vec<Result<R>>) -> Self {
        Self { rows, next: AtomicUsize::new(0) }
    }

    /// Of the library's rows.
    pub(crate) fn of<T>(rows: vmi::Rows<'_, T>, of: impl Fn(T) -> R) -> Self {
        Self::new(rows.map(|row| row.map(&of).map_err(Failure::from)).collect())
    }
}

impl<R: Row> Object for List<R> {
    const NAME: &'static str = R::LIST;
}

/// The body of each `next` function.
pub(crate) fn next<H: Handle<Object = List<R>>, R: Row>(
    list: *mut H,
    row: Option<&mut MaybeUninit<R::C>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call_for(error, || {
        let place = border::place(row, "the place for the row")?;
        let list = table::get(list)?;
        let take = |next: usize| (next < list.rows.len()).then(|| next.saturating_add(1));
        let Ok(index) = list.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) else { return Ok(vmi_status::End) };
        match list.rows.get(index) {
            Some(Ok(row)) => {
                place.write(row.c());
                Ok(vmi_status::Ok)
            }
            Some(Err(failure)) => Err(failure.clone()),
            None => Ok(vmi_status::End),
        }
    })
}

/// An optional string as a pointer.
pub(crate) fn pointer(text: Option<&CString>) -> *const c_char {
    text.map_or(ptr::null(), |text| text.as_ptr())
}

/// Strings. Any thread may use it; each one is given once.
#[derive(Debug)]
pub struct vmi_strings {
    _opaque: [u8; 0],
}

impl Handle for vmi_strings {
    type Object = List<StringRow>;
}

/// A string in a list.
#[derive(Debug)]
pub struct StringRow(CString);

impl Row for StringRow {
    const LIST: &'static str = "vmi_strings";
    type C = *const c_char;

    fn c(&self) -> *const c_char {
        self.0.as_ptr()
    }
}

/// A list of strings.
pub(crate) fn strings(all: impl IntoIterator<Item = String>) -> List<StringRow> {
    List::new(all.into_iter().map(|text| Ok(StringRow(border::c_string(&text)))).collect())
}

/// Reads a list of a guest: the body of each function that makes one.
pub(crate) fn list<H: Handle<Object = List<R>>, R: Row>(
    guest: *mut vmi_guest,
    out: Option<&mut MaybeUninit<*mut H>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
    read: impl FnOnce(&owned::Guest) -> Result<List<R>>,
) -> vmi_status {
    border::call(error, || {
        let slot = border::slot(out)?;
        let guest = table::get(guest)?;
        slot.put(read(&guest.guest)?)
    })
}

/// The next string, which belongs to the list; see vmi_processes_next.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_strings_next(
    strings: *mut vmi_strings,
    string: Option<&mut MaybeUninit<*const c_char>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    next(strings, string, error)
}

/// Closes a list and frees its strings. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_strings_close(strings: *mut vmi_strings) {
    border::plain((), || table::close(strings));
}
