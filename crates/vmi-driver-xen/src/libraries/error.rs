//! Why a library of Xen did not serve.

use std::io;

/// A library of Xen that is missing, or is not the one it is taken for.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// None of the names that serve can be opened.
    #[error(
        "no {} on this host ({}); Xen's libraries are in dom0, in Debian's package `{package}`. This program knows Xen 4.17 to 4.20",
        files.join(" or "), why.join("; ")
    )]
    Missing {
        /// The file names that were tried.
        files: &'static [&'static str],
        /// The Debian package that brings it.
        package: &'static str,
        /// What the loader said of each.
        why: Box<[String]>,
    },
    /// The library lacks a function.
    #[error("{library} has no function `{function}`: a version of Xen that this program does not know; 4.17 to 4.20 are known")]
    NoFunction {
        /// The library.
        library: &'static str,
        /// The function.
        function: &'static str,
    },
}

/// A call of one of Xen's libraries that failed.
#[derive(Debug, thiserror::Error)]
#[error("{function}: {source}{}", advice(source))]
pub struct CallError {
    /// The function.
    function: &'static str,
    /// What `errno` said.
    source: io::Error,
}

impl CallError {
    /// The failure of `function` that just happened: keeps `errno`, so nothing may be called in between.
    pub(crate) fn last(function: &'static str) -> Self {
        Self { function, source: io::Error::last_os_error() }
    }

    /// The failure of `function` with a number of `errno`.
    pub(crate) fn of(function: &'static str, errno: i32) -> Self {
        Self { function, source: io::Error::from_raw_os_error(errno) }
    }

    /// The function that failed.
    pub fn function(&self) -> &'static str {
        self.function
    }

    /// `errno`; none if the library did not set it.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error().filter(|errno| *errno != 0)
    }
}

/// What the user can do about an error of the operating system.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            ". Run as root in dom0: Xen lets nobody else look at other domains (and a security policy, if there is one, has to allow it)"
        }
        io::ErrorKind::NotFound => {
            ". Is this dom0 of a running Xen? /dev/xen/privcmd, /dev/xen/evtchn and /proc/xen come with the kernel modules xen-privcmd, xen-evtchn and xenfs"
        }
        _ => "",
    }
}
