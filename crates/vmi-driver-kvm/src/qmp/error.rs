//! Why QEMU's monitor gave no answer.

use std::io;
use std::time::Duration;

use serde_json::Value;

/// Why a command to QEMU's monitor failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MonitorError {
    /// The socket could not be reached.
    #[error("{monitor}: cannot connect: {source}{}", connect_advice(source))]
    Connect {
        /// Which monitor.
        monitor: String,
        /// The cause.
        source: io::Error,
    },
    /// The socket accepts the connection, but QEMU does not greet.
    #[error(
        "{monitor}: no greeting within {limit:?}: a QMP socket serves one client at a time, and another seems to have it. End that one, or give QEMU a second \
         `-qmp unix:PATH,server=on,wait=off`; for a guest of libvirt use a target `libvirt:NAME`"
    )]
    Taken {
        /// Which monitor.
        monitor: String,
        /// How long was waited.
        limit: Duration,
    },
    /// What answers is no QMP.
    #[error(
        "{monitor}: what answers is not QMP: it says `{said}`. A human monitor (`-monitor`) does not serve; give the path of `-qmp`"
    )]
    NotQmp {
        /// Which monitor.
        monitor: String,
        /// The beginning of what it said.
        said: String,
    },
    /// QEMU refuses the command.
    #[error("{monitor}: QEMU refuses `{command}`: {description}")]
    Refused {
        /// Which monitor.
        monitor: String,
        /// The command.
        command: String,
        /// QEMU's class of error: `GenericError`, `CommandNotFound`, and others.
        class: String,
        /// QEMU's reason.
        description: String,
    },
    /// This way to the monitor does not pass open files.
    #[error("{monitor}: `{command}` needs an open file, which this way to QEMU's monitor does not pass on")]
    NoFiles {
        /// Which monitor.
        monitor: String,
        /// The command.
        command: String,
    },
    /// The answer has a form that this version does not know.
    #[error("{monitor}: the answer to `{command}` has an unknown form: `{answer}`")]
    Unexpected {
        /// Which monitor.
        monitor: String,
        /// The command.
        command: String,
        /// The beginning of the answer.
        answer: String,
    },
    /// QEMU closed the connection: it ended, or its monitor was taken away.
    #[error("{monitor}: the connection ended during `{command}`: QEMU has exited, or was killed")]
    Closed {
        /// Which monitor.
        monitor: String,
        /// The command.
        command: String,
    },
    /// No answer in time.
    #[error("{monitor}: no answer to `{command}` within {limit:?}")]
    TimedOut {
        /// Which monitor.
        monitor: String,
        /// The command.
        command: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection failed in another way.
    #[error("{monitor}: `{command}`: {source}")]
    Io {
        /// Which monitor.
        monitor: String,
        /// The command.
        command: String,
        /// The cause.
        source: io::Error,
    },
}

impl MonitorError {
    pub(crate) fn unexpected(monitor: String, command: &str, answer: &Value) -> Self {
        Self::Unexpected { monitor, command: command.to_owned(), answer: beginning(&answer.to_string()) }
    }

    /// Whether QEMU is gone, as far as this tells.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed { .. })
    }
}

/// The first characters of what a stranger said, fit to be printed.
pub(crate) fn beginning(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '.' } else { c }).take(120).collect()
}

fn connect_advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => ". Is the guest running, and is this the path of its `-qmp unix:PATH,server=on,wait=off`?",
        io::ErrorKind::ConnectionRefused => ". Nothing listens there: the guest that made this socket has ended",
        io::ErrorKind::PermissionDenied => ". Run as the user whose QEMU this is, or as root",
        _ => "",
    }
}
