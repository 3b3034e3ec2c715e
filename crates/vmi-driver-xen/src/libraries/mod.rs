//! Xen's own libraries, opened at run time by their versioned names.
//!
//! Nothing is linked: one program serves Xen 4.17 to 4.20, and says which library is missing where there is no Xen. Each library has a file that declares the
//! functions it is asked for with [`library!`](library) and wraps them. A function's type is that of the header of Xen 4.17 in Debian 12 (`libxen-dev`); the libraries with
//! a stable interface (all but libxenctrl) have kept it since Xen 4.8 (tools/libs/*/lib*.map).
//!
//! Errors keep `errno` ([`CallError`]).
#![allow(unsafe_code)]

pub(crate) mod control;
pub(crate) mod device_model;
mod error;
pub(crate) mod event_channel;
pub(crate) mod foreign_memory;
mod logger;
pub(crate) mod monitor_calls;
pub(crate) mod xenstore;

use std::ffi::CStr;

pub use error::{CallError, LibraryError};
pub use foreign_memory::InterfaceError;

/// What a library is called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    /// File names that serve, the best first.
    pub(crate) files: &'static [&'static str],
    /// The Debian package that brings it.
    pub(crate) package: &'static str,
}

/// A library that is open. It stays open as long as this lives, and so must whoever uses a function of it.
#[derive(Debug)]
pub(crate) struct Library {
    library: libloading::Library,
    /// The file name that served.
    name: &'static str,
}

impl Library {
    /// Opens the first that there is.
    pub(crate) fn open(names: Names) -> Result<Self, LibraryError> {
        let mut why = Vec::new();
        for &name in names.files {
            // SAFETY: Xen's libraries have no initialisers that ask for anything of their user (they have none but the C library's).
            match unsafe { libloading::Library::new(name) } {
                Ok(library) => return Ok(Self { library, name }),
                Err(error) => why.push(error.to_string()),
            }
        }
        Err(LibraryError::Missing { files: names.files, package: names.package, why: why.into() })
    }

    /// The file name that served.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The function called `name`.
    ///
    /// # Safety
    /// `F` is an `unsafe extern "C"` function pointer of the type that the library's header gives `name`, and the result is not used after `self` is dropped.
    pub(crate) unsafe fn function<F: Copy>(&self, name: &'static CStr) -> Result<F, LibraryError> {
        // SAFETY: as the caller promises.
        let found = unsafe { self.library.get::<F>(name.to_bytes_with_nul()) };
        found
            .map(|symbol| *symbol)
            .map_err(|_| LibraryError::NoFunction { library: self.name, function: name.to_str().unwrap_or_default() })
    }
}

/// Declares a library: a structure that has the functions as fields, each under the name that it has in the library, and holds the library open.
///
/// A function behind `?` may be missing, for what only some versions have; its field is an `Option`.
///
/// ```ignore
/// library! {
///     /// The functions of libxenevtchn.
///     pub(crate) struct EventChannelFunctions = Names { files: &["libxenevtchn.so.1"], package: "libxenevtchn1" };
///     fn xenevtchn_fd(xce: *mut Handle) -> c_int;
///     ?fn xenevtchn_restrict(xce: *mut Handle, domid: u16) -> c_int;
/// }
/// let functions = EventChannelFunctions::open()?;
/// // SAFETY: the handle is open.
/// let fd = unsafe { (functions.xenevtchn_fd)(handle) };
/// ```
macro_rules! library {
    (
        $(#[$doc:meta])* $vis:vis struct $name:ident = $names:expr;
        $(fn $function:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)?;)*
        $(?fn $optional:ident($($optional_arg:ident: $optional_type:ty),* $(,)?) $(-> $optional_result:ty)?;)*
    ) => {
        $(#[$doc])*
        #[derive(Debug)]
        $vis struct $name {
            $(pub(super) $function: unsafe extern "C" fn($($arg: $type),*) $(-> $result)?,)*
            $(pub(super) $optional: Option<unsafe extern "C" fn($($optional_arg: $optional_type),*) $(-> $optional_result)?>,)*
            /// Dropped last: the functions are in it.
            #[allow(dead_code)]
            pub(super) library: $crate::libraries::Library,
        }

        impl $name {
            /// Opens the library and finds its functions.
            #[allow(dead_code)]
            pub(super) fn open() -> Result<Self, $crate::libraries::LibraryError> {
                Self::open_as($names)
            }

            /// The same for a library of other names.
            #[allow(dead_code)]
            pub(super) fn open_as(names: $crate::libraries::Names) -> Result<Self, $crate::libraries::LibraryError> {
                let library = $crate::libraries::Library::open(names)?;
                $(
                    // SAFETY: the type is that of the header, and the structure that holds the function holds the library too.
                    let $function = unsafe { library.function($crate::libraries::c_name!($function)) }?;
                )*
                $(
                    // SAFETY: as above.
                    let $optional = unsafe { library.function($crate::libraries::c_name!($optional)) }.ok();
                )*
                Ok(Self { $($function,)* $($optional,)* library })
            }
        }
    };
}

/// An identifier as a C string.
macro_rules! c_name {
    ($name:ident) => {
        const {
            match ::std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => c"",
            }
        }
    };
}

#[allow(unused_imports)]
pub(crate) use {c_name, library};

#[cfg(test)]
mod tests {
    use std::ffi::c_int;

    use super::*;

    library! {
        /// A library that every Linux has.
        struct Libc = Names { files: &["libno-such-library.so.7", "libc.so.6"], package: "libc6" };
        fn abs(value: c_int) -> c_int;
        ?fn no_such_function(value: c_int) -> c_int;
    }

    #[test]
    fn the_first_name_that_there_is_serves() {
        let libc = Libc::open().unwrap();
        assert_eq!(libc.library.name(), "libc.so.6");
        assert!(libc.no_such_function.is_none());
        // SAFETY: abs(3) is free of preconditions for all values but the lowest.
        assert_eq!(unsafe { (libc.abs)(-7) }, 7);
    }

    #[test]
    fn a_missing_library_is_named_with_its_package() {
        let error = Library::open(Names { files: &["libno-such-library.so.7"], package: "libno7" }).unwrap_err().to_string();
        assert!(error.contains("libno-such-library.so.7") && error.contains("libno7"), "{error}");
    }

    #[test]
    fn a_missing_function_is_named_with_its_library() {
        let libc = Library::open(Names { files: &["libc.so.6"], package: "libc6" }).unwrap();
        // SAFETY: never called.
        let found = unsafe { libc.function::<unsafe extern "C" fn()>(c"no_such_function") };
        let error = found.unwrap_err().to_string();
        assert!(error.contains("no_such_function") && error.contains("libc.so.6"), "{error}");
    }
}
