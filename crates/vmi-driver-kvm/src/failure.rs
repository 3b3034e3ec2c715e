//! Failures of QEMU as errors of core: which guest, what was being done, why.

use std::sync::Arc;

use vmi_core::{Error, ErrorKind};

use crate::gdb::{GdbCause, GdbError};
use crate::qmp::MonitorError;

/// Makes errors about one machine.
#[derive(Clone, Debug)]
pub(crate) struct Failures(Arc<str>);

impl Failures {
    pub(crate) fn new(machine: &str) -> Self {
        Self(machine.into())
    }

    pub(crate) fn machine(&self) -> &str {
        &self.0
    }

    #[cold]
    pub(crate) fn gdb(&self, action: &str, error: GdbError) -> Error {
        match error.cause() {
            GdbCause::Closed | GdbCause::Exited => self.ended(error.to_string()),
            _ => {
                let done = error.done();
                self.other(action, error).after(done)
            }
        }
    }

    #[cold]
    pub(crate) fn monitor(&self, action: &str, error: MonitorError) -> Error {
        if error.is_closed() { self.ended(error.to_string()) } else { self.other(action, error) }
    }

    #[cold]
    pub(crate) fn ended(&self, why: impl Into<String>) -> Error {
        ErrorKind::Ended { machine: self.0.to_string(), why: why.into() }.into()
    }

    #[cold]
    pub(crate) fn other(&self, action: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        ErrorKind::Driver { back_end: self.0.to_string(), action: action.to_owned(), source: source.into() }.into()
    }
}
