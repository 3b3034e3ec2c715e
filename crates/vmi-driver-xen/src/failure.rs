//! Failures of Xen as errors of core: which domain, what was being done, why.

use std::sync::Arc;

use vmi_core::{Error, ErrorKind};

use crate::{CallError, InterfaceError};

/// Makes errors about one domain.
#[derive(Clone, Debug)]
pub(crate) struct Failures(Arc<str>);

impl Failures {
    pub(crate) fn new(machine: &str) -> Self {
        Self(machine.into())
    }

    /// The domain.
    pub(crate) fn machine(&self) -> &str {
        &self.0
    }

    /// A library that cannot be used, or that cannot reach Xen.
    #[cold]
    pub(crate) fn interface(&self, action: &str, error: InterfaceError) -> Error {
        match error {
            InterfaceError::Library(error) => self.other(action, error),
            InterfaceError::Call(error) => self.call(action, error),
        }
    }

    /// A call that failed. Xen says `ESRCH` of a domain that it does not know.
    #[cold]
    pub(crate) fn call(&self, action: &str, error: CallError) -> Error {
        if error.errno() == Some(nix::libc::ESRCH) {
            self.ended("Xen knows no domain of its number any more")
        } else {
            self.other(action, error)
        }
    }

    #[cold]
    pub(crate) fn ended(&self, why: impl Into<String>) -> Error {
        ErrorKind::Ended { machine: self.0.to_string(), why: why.into() }.into()
    }

    #[cold]
    pub(crate) fn other(&self, action: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        ErrorKind::Driver { back_end: self.0.to_string(), action: action.into(), source: source.into() }.into()
    }
}
