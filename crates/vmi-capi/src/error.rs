//! What a function answers, and the error objects that say more.

use core::ffi::c_char;
use std::ffi::CString;

use vmi::ErrorKind;
use vmi::owned::SessionError;

use crate::border::{self, VMI_UNKNOWN_ADDRESS};
use crate::table::{self, Handle, Object};

/// How a call went.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmi_status {
    /// It did what was asked.
    Ok = 0,
    /// There is no more: no further row of a list, no event within the time.
    End = 1,
    /// A pointer or handle that is needed is NULL.
    Null = 2,
    /// The handle was closed, or never was one.
    Closed = 3,
    /// The handle stands for something else.
    WrongHandle = 4,
    /// An argument has no meaning: an unknown constant, text that is not UTF-8.
    Argument = 5,
    /// The object cannot do this now: a second event session, a trap while an event is held.
    State = 6,
    /// A callback asked to stop.
    Callback = 7,
    /// A defect of this library. The object that was used may be in an undefined state: close it.
    Internal = 8,
    /// No memory at a guest-physical address.
    Hole = 16,
    /// The page tables do not map a virtual address.
    Fault = 17,
    /// The page is not in memory: the system has put its contents elsewhere.
    PagedOut = 18,
    /// Memory that can be read but not written.
    ReadOnly = 19,
    /// A range leaves the address range.
    OutOfRange = 20,
    /// A string without an end within the limit.
    Unterminated = 21,
    /// A structure of the guest that contradicts itself.
    Corrupt = 22,
    /// More elements than a bound.
    Limit = 23,
    /// No such symbol.
    NoSymbol = 24,
    /// No such type or member.
    NoType = 25,
    /// No such object in the guest, as a process id that no process has.
    NoObject = 26,
    /// The guest runs, and changed this each time it was read.
    Changing = 27,
    /// An object of a running guest went away while it was read.
    Gone = 28,
    /// The source cannot do this.
    Unsupported = 29,
    /// The machine is no more.
    Ended = 30,
    /// The back end failed.
    Driver = 31,
    /// The target could not be opened.
    Open = 32,
    /// No operating system was recognised.
    Attach = 33,
    /// An image could not be written.
    WriteImage = 34,
    /// Something else; the message says what.
    Other = 35,
}

/// Why a call failed: kind, message, and how far it got. Made by the call, closed by the caller with vmi_error_close. Never changes; any thread may use it.
#[derive(Debug)]
pub struct vmi_error {
    _opaque: [u8; 0],
}

impl Handle for vmi_error {
    type Object = Failure;
}

/// Result of what a function does inside.
pub(crate) type Result<T> = core::result::Result<T, Failure>;

/// Why a call failed, on the way to C.
#[derive(Clone, Debug)]
pub struct Failure {
    pub(crate) status: vmi_status,
    message: CString,
    done: usize,
    address: u64,
}

impl Object for Failure {
    const NAME: &'static str = "vmi_error";
}

impl Failure {
    #[cold]
    pub(crate) fn new(status: vmi_status, message: impl AsRef<str>) -> Self {
        Self { status, message: border::c_string(message.as_ref()), done: 0, address: VMI_UNKNOWN_ADDRESS }
    }

    /// Something that is needed is NULL.
    #[cold]
    pub(crate) fn null(what: &str) -> Self {
        Self::new(vmi_status::Null, format!("{what} is NULL"))
    }

    /// An argument without a meaning.
    #[cold]
    pub(crate) fn argument(message: impl AsRef<str>) -> Self {
        Self::new(vmi_status::Argument, message)
    }

    /// An error with all its causes.
    #[cold]
    pub(crate) fn of(status: vmi_status, error: &dyn std::error::Error) -> Self {
        Self::new(status, vmi::with_causes(error))
    }
}

impl From<vmi::Error> for Failure {
    #[cold]
    fn from(error: vmi::Error) -> Self {
        use vmi_status as S;
        let status = match error.kind() {
            ErrorKind::Hole { .. } => S::Hole,
            ErrorKind::ReadOnly { .. } => S::ReadOnly,
            ErrorKind::Fault(_) => S::Fault,
            ErrorKind::PagedOut { .. } => S::PagedOut,
            ErrorKind::OutOfRange { .. } => S::OutOfRange,
            ErrorKind::Unterminated { .. } => S::Unterminated,
            ErrorKind::Corrupt { .. } => S::Corrupt,
            ErrorKind::Limit { .. } => S::Limit,
            ErrorKind::NoSymbol { .. } => S::NoSymbol,
            ErrorKind::NoType { .. } => S::NoType,
            ErrorKind::NoObject { .. } => S::NoObject,
            ErrorKind::Changing { .. } => S::Changing,
            ErrorKind::Gone { .. } => S::Gone,
            ErrorKind::Unsupported { .. } => S::Unsupported,
            ErrorKind::Ended { .. } => S::Ended,
            ErrorKind::Driver { .. } => S::Driver,
            _ => S::Other,
        };
        let address = error.kind().address().unwrap_or(VMI_UNKNOWN_ADDRESS);
        Self { done: error.done(), address, ..Self::of(status, &error) }
    }
}

impl From<SessionError> for Failure {
    #[cold]
    fn from(error: SessionError) -> Self {
        let status = match error {
            SessionError::Guest(error) => return error.into(),
            SessionError::Busy | SessionError::Held | SessionError::Answered => vmi_status::State,
            SessionError::Closed => vmi_status::Closed,
            SessionError::Thread(_) => vmi_status::Driver,
            _ => vmi_status::Other,
        };
        Self::of(status, &error)
    }
}

/// The kind of an error: what the call returned. VMI_STATUS_NULL or VMI_STATUS_CLOSED if `error` is no open error.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_error_status(error: *mut vmi_error) -> vmi_status {
    border::plain(vmi_status::Internal, || match table::get(error) {
        Ok(failure) => failure.status,
        Err(failure) => failure.status,
    })
}

/// What went wrong, where, and why, in words. Never NULL. Belongs to the error: valid until that is closed.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_error_message(error: *mut vmi_error) -> *const c_char {
    border::plain(c"a defect of this library".as_ptr(), || match table::get(error) {
        // The table holds the error as long as it is open.
        Ok(failure) => failure.message.as_ptr(),
        Err(_) => c"no error".as_ptr(),
    })
}

/// How many bytes of a read or write were good before it failed. 0 if `error` is no open error.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_error_done(error: *mut vmi_error) -> usize {
    border::plain(0, || table::get(error).map_or(0, |failure| failure.done))
}

/// The address at which it failed, guest-physical or virtual as the message says; VMI_UNKNOWN_ADDRESS if it has none.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_error_address(error: *mut vmi_error) -> u64 {
    border::plain(VMI_UNKNOWN_ADDRESS, || table::get(error).map_or(VMI_UNKNOWN_ADDRESS, |failure| failure.address))
}

/// Closes an error. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_error_close(error: *mut vmi_error) {
    border::plain((), || table::close(error));
}

/// The name of a status, as "VMI_STATUS_HOLE"; "unknown" for a number that is none. Never freed.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_status_name(status: u32) -> *const c_char {
    macro_rules! names {
        ($($variant:ident $name:literal),* $(,)?) => {
            match status { $(number if number == vmi_status::$variant as u32 => $name,)* _ => c"unknown" }
        };
    }
    names!(
        Ok c"VMI_STATUS_OK", End c"VMI_STATUS_END", Null c"VMI_STATUS_NULL", Closed c"VMI_STATUS_CLOSED",
        WrongHandle c"VMI_STATUS_WRONG_HANDLE", Argument c"VMI_STATUS_ARGUMENT", State c"VMI_STATUS_STATE",
        Callback c"VMI_STATUS_CALLBACK", Internal c"VMI_STATUS_INTERNAL", Hole c"VMI_STATUS_HOLE", Fault c"VMI_STATUS_FAULT",
        PagedOut c"VMI_STATUS_PAGED_OUT", ReadOnly c"VMI_STATUS_READ_ONLY", OutOfRange c"VMI_STATUS_OUT_OF_RANGE",
        Unterminated c"VMI_STATUS_UNTERMINATED", Corrupt c"VMI_STATUS_CORRUPT", Limit c"VMI_STATUS_LIMIT",
        NoSymbol c"VMI_STATUS_NO_SYMBOL", NoType c"VMI_STATUS_NO_TYPE", NoObject c"VMI_STATUS_NO_OBJECT",
        Changing c"VMI_STATUS_CHANGING", Gone c"VMI_STATUS_GONE", Unsupported c"VMI_STATUS_UNSUPPORTED", Ended c"VMI_STATUS_ENDED",
        Driver c"VMI_STATUS_DRIVER", Open c"VMI_STATUS_OPEN", Attach c"VMI_STATUS_ATTACH", WriteImage c"VMI_STATUS_WRITE_IMAGE",
        Other c"VMI_STATUS_OTHER",
    )
    .as_ptr()
}
