//! Why the `pmemaccess` socket did not serve.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use vmi_core::PhysAddr;

/// What was asked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Reading guest memory.
    Read,
    /// Writing guest memory.
    Write,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "reading",
            Self::Write => "writing",
        })
    }
}

/// What to do about a dead connection.
const AGAIN: &str =
    "this connection cannot be used any more: give QEMU's monitor the command `pmemaccess` again and connect anew";

/// Why the `pmemaccess` socket did not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PmemError {
    /// The socket could not be reached.
    #[error("cannot connect to the pmemaccess socket {}: {source}; {}", path.display(), advice(source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others are connected already; the server takes only one client.
    #[error(
        "the pmemaccess socket {} has its one client already: end that one, or give QEMU's monitor the command `pmemaccess` with another path",
        path.display()
    )]
    Busy {
        /// The socket.
        path: PathBuf,
    },
    /// The server refused: no memory there, or a part of the range is not RAM. The connection goes on.
    #[error("{operation} {len} bytes at guest-physical address {at}: QEMU refused; there is no RAM at a part of that range")]
    Refused {
        /// What was asked.
        operation: Operation,
        /// First address of the refused request: a page or less for a read.
        at: PhysAddr,
        /// Length of the refused request in bytes.
        len: usize,
        /// Bytes before it that were served.
        done: usize,
    },
    /// The server closed the connection before its answer was whole.
    #[error("{operation} at guest-physical address {at}: the server closed the pmemaccess socket {}; QEMU has ended, or {AGAIN}", progress(*received, *expected))]
    Closed {
        /// What was asked.
        operation: Operation,
        /// First address of the request.
        at: PhysAddr,
        /// Bytes of the answer that came.
        received: usize,
        /// Bytes of a whole answer.
        expected: usize,
        /// Bytes before this request that were served.
        done: usize,
    },
    /// No whole answer within the time limit.
    #[error(
        "{operation} at guest-physical address {at}: the time limit of {limit:?} ran out {}; {AGAIN}. If nothing ever comes, another client may be connected",
        progress(*received, *expected)
    )]
    TimedOut {
        /// What was asked.
        operation: Operation,
        /// First address of the request.
        at: PhysAddr,
        /// Bytes of the answer that came.
        received: usize,
        /// Bytes of a whole answer.
        expected: usize,
        /// The limit.
        limit: Duration,
        /// Bytes before this request that were served.
        done: usize,
    },
    /// The server does not keep to the protocol.
    #[error(
        "{operation} at guest-physical address {at}: {what}: whoever listens there does not speak pmemaccess as it is known; {AGAIN}"
    )]
    OutOfStep {
        /// What was asked.
        operation: Operation,
        /// First address of the request.
        at: PhysAddr,
        /// What came.
        what: String,
        /// Bytes before this request that were served.
        done: usize,
    },
    /// The socket failed.
    #[error("{operation} at guest-physical address {at}: the pmemaccess socket failed: {source}; {AGAIN}")]
    Stream {
        /// What was asked.
        operation: Operation,
        /// First address of the request.
        at: PhysAddr,
        /// What the system said.
        source: io::Error,
        /// Bytes before this request that were served.
        done: usize,
    },
    /// An earlier operation failed so that the connection cannot be used any more.
    #[error("the pmemaccess connection is dead since an earlier failure ({reason})")]
    Dead {
        /// That failure.
        reason: String,
    },
    /// The range leaves the 64-bit address range.
    #[error("a range of {len} bytes at guest-physical address {at} leaves the address range")]
    OutOfRange {
        /// First address.
        at: PhysAddr,
        /// Length in bytes.
        len: usize,
    },
}

impl PmemError {
    /// Bytes at the start of the buffer that were read (or written) before the failure.
    pub fn done(&self) -> usize {
        match self {
            Self::Refused { done, .. }
            | Self::Closed { done, .. }
            | Self::TimedOut { done, .. }
            | Self::OutOfStep { done, .. }
            | Self::Stream { done, .. } => *done,
            Self::Connect { .. } | Self::Busy { .. } | Self::Dead { .. } | Self::OutOfRange { .. } => 0,
        }
    }

    /// Whether the connection cannot be used any more.
    pub fn is_dead(&self) -> bool {
        match self {
            Self::Closed { .. } | Self::TimedOut { .. } | Self::OutOfStep { .. } | Self::Stream { .. } | Self::Dead { .. } => {
                true
            }
            Self::Refused { .. } | Self::OutOfRange { .. } | Self::Connect { .. } | Self::Busy { .. } => false,
        }
    }

    /// The same failure as vmi-core tells it; `back_end` names the guest. A refused read is a hole.
    pub fn into_core(self, back_end: &str) -> vmi_core::Error {
        use vmi_core::ErrorKind;
        let done = self.done();
        let kind = match self {
            Self::Refused { operation: Operation::Read, at, .. } => ErrorKind::Hole { at },
            Self::OutOfRange { at, len } => ErrorKind::OutOfRange { at: at.get(), len },
            other => ErrorKind::Driver {
                back_end: back_end.to_owned(),
                action: "the pmemaccess socket".to_owned(),
                source: Box::new(other),
            },
        };
        vmi_core::Error::from(kind).after(done)
    }

    /// Counts `bytes` as served before the failure.
    pub(super) fn after(mut self, bytes: usize) -> Self {
        match &mut self {
            Self::Refused { done, .. }
            | Self::Closed { done, .. }
            | Self::TimedOut { done, .. }
            | Self::OutOfStep { done, .. }
            | Self::Stream { done, .. } => *done = done.saturating_add(bytes),
            Self::Connect { .. } | Self::Busy { .. } | Self::Dead { .. } | Self::OutOfRange { .. } => {}
        }
        self
    }
}

/// How far an answer got, as the end of a sentence.
fn progress(received: usize, expected: usize) -> String {
    match received {
        0 => "before the answer began".to_owned(),
        _ => format!("after {received} of {expected} bytes of the answer"),
    }
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "nobody listens there: give QEMU's monitor the command `pmemaccess` with this path first (each serves one connection)"
        }
        io::ErrorKind::PermissionDenied => "run as root or as the user of QEMU",
        _ => "check the path",
    }
}
