//! QEMU's monitor: commands by the QEMU Machine Protocol (QEMU: docs/interop/qmp-spec.rst), and through it the human monitor.

mod error;
mod socket;

pub use error::MonitorError;
pub(crate) use error::beginning;
pub use socket::{QmpOptions, QmpSocket};

use core::fmt;
use std::os::fd::BorrowedFd;

use serde::Deserialize;
use serde_json::{Value, json};

/// A way to give commands to QEMU: its own socket, or a management layer that passes them on.
pub trait Monitor: fmt::Debug + Send + Sync {
    /// Runs a QMP command; gives what stands under `return`.
    ///
    /// # Errors
    /// [`MonitorError::Refused`] if QEMU refuses it, others if QEMU cannot be reached.
    fn execute(&self, command: &str, arguments: Value) -> Result<Value, MonitorError>;

    /// What this monitor is, for messages: `QMP socket /run/guest.qmp`.
    fn describe(&self) -> String;

    /// Runs a QMP command and hands QEMU an open file beside it, which commands like `getfd` ask for.
    ///
    /// # Errors
    /// As [`Monitor::execute`]; [`MonitorError::NoFiles`] if this monitor does not pass files.
    fn execute_with_file(&self, command: &str, arguments: Value, file: BorrowedFd<'_>) -> Result<Value, MonitorError> {
        let _ = (arguments, file);
        Err(MonitorError::NoFiles { monitor: self.describe(), command: command.to_owned() })
    }

    /// The connection itself, if it goes straight to QEMU: for a guardian that inherits it.
    fn connection(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Runs a line of the human monitor; gives its text, with line feeds alone.
    ///
    /// # Errors
    /// As [`Monitor::execute`].
    fn human(&self, line: &str) -> Result<String, MonitorError> {
        let text = self.execute("human-monitor-command", json!({ "command-line": line }))?;
        match text {
            Value::String(text) => Ok(text.replace("\r\n", "\n")),
            other => Err(MonitorError::unexpected(self.describe(), "human-monitor-command", &other)),
        }
    }

    /// Stops all vCPUs.
    ///
    /// # Errors
    /// As [`Monitor::execute`].
    fn stop(&self) -> Result<(), MonitorError> {
        self.execute("stop", json!({})).map(drop)
    }

    /// Lets all vCPUs run.
    ///
    /// # Errors
    /// As [`Monitor::execute`].
    fn cont(&self) -> Result<(), MonitorError> {
        self.execute("cont", json!({})).map(drop)
    }

    /// Whether the vCPUs run.
    ///
    /// # Errors
    /// As [`Monitor::execute`].
    fn status(&self) -> Result<RunState, MonitorError> {
        query(self, "query-status")
    }
}

/// Runs a command without arguments and takes its answer apart.
///
/// # Errors
/// As [`Monitor::execute`], and [`MonitorError::Unexpected`] if the answer has another form.
pub(crate) fn query<T, M>(monitor: &M, command: &str) -> Result<T, MonitorError>
where
    T: for<'de> Deserialize<'de>,
    M: Monitor + ?Sized,
{
    let answer = monitor.execute(command, json!({}))?;
    T::deserialize(&answer).map_err(|_| MonitorError::unexpected(monitor.describe(), command, &answer))
}

/// What `query-status` says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RunState {
    /// Whether the vCPUs run.
    pub running: bool,
    /// QEMU's word for the state: `running`, `paused`, `prelaunch`, `shutdown`, and others.
    pub status: String,
}
