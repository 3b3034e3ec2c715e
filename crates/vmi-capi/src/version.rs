//! The version of the library.

use core::ffi::c_char;

/// Major version of this header.
pub const VMI_VERSION_MAJOR: u32 = 0;
/// Minor version of this header.
pub const VMI_VERSION_MINOR: u32 = 1;
/// Patch version of this header.
pub const VMI_VERSION_PATCH: u32 = 0;

/// The version of the library that the program runs with, as "0.1.0". Never freed.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
