//! One error type for everything that happens after a source is open.
//!
//! [`Error`] is one pointer wide, so that a `Result<u64>` travels in registers. It says what went wrong
//! ([`ErrorKind`]) and how many bytes of a read were good before it did ([`Error::done`]).

use core::fmt;

use crate::{EventAbility, Fault, PhysAddr, VirtAddr};

/// Result of reading, translating or interpreting guest memory.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// Why an operation on a guest failed, and how far it got.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    done: usize,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Guest-physical memory that does not exist: a hole between regions, beyond the end, or a page the image left out.
    #[error("no memory at guest-physical address {at}: a hole in the memory map of this source")]
    Hole {
        /// The first address that could not be read.
        at: PhysAddr,
    },
    /// Guest-physical memory that can be read but not written: a ROM, or RAM to which this source has no write access.
    #[error("guest-physical memory at {at} cannot be written: it is a ROM or open for reading only")]
    ReadOnly {
        /// The first address that could not be written.
        at: PhysAddr,
    },
    /// A virtual address that the guest's page tables do not map.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Virtual memory that exists, but is in no page of memory now: the system has put its contents elsewhere, or has not made the page yet.
    #[error("the page at {at} is not in memory: {why}")]
    PagedOut {
        /// An address in the page.
        at: VirtAddr,
        /// Where its contents are instead, in words: `in page file 0 at offset 0x3000`.
        why: String,
    },
    /// The range leaves the 64-bit address range.
    #[error("a range of {len} bytes at {at:#x} leaves the address range")]
    OutOfRange {
        /// First address of the range.
        at: u64,
        /// Length of the range in bytes.
        len: usize,
    },
    /// No terminator within the given bound.
    #[error("the string at {at:#x} has no terminator within {limit} bytes")]
    Unterminated {
        /// First address of the string.
        at: u64,
        /// The bound in bytes.
        limit: usize,
    },
    /// A structure of the guest that contradicts itself: a list in a circle, a length that cannot be, a bad tag.
    #[error("{what} (at {at})")]
    Corrupt {
        /// What was found, in words.
        what: String,
        /// Where.
        at: VirtAddr,
    },
    /// More elements than the bound that protects the reader.
    #[error("{what} has more than {limit} elements; read on with a higher limit if that is right")]
    Limit {
        /// The list, tree or table.
        what: String,
        /// The bound.
        limit: usize,
    },
    /// No such symbol in the profile.
    #[error("no symbol `{name}` in this guest's profile")]
    NoSymbol {
        /// The name that was asked for.
        name: String,
    },
    /// No such type or member in the profile.
    #[error("no `{name}` in this guest's type information: {why}")]
    NoType {
        /// `structure` or `structure.member`.
        name: String,
        /// What was missing, and what to supply.
        why: String,
    },
    /// No such object in the guest (a process id that no process has).
    #[error("no {what} in this guest")]
    NoObject {
        /// The object that was asked for.
        what: String,
    },
    /// The guest runs, and changed this each time it was read.
    #[error(
        "{what} kept changing while it was read ({attempts} attempts); pause the guest for a consistent view; last seen: {last}"
    )]
    Changing {
        /// The list, tree or object.
        what: String,
        /// How often it was read.
        attempts: u32,
        /// What was wrong the last time.
        last: String,
    },
    /// An object of a running guest that was no more there when it was read.
    #[error("{what} went away while it was read")]
    Gone {
        /// The object.
        what: String,
    },
    /// The back end cannot do this.
    #[error("{back_end} does not support {capability}")]
    Unsupported {
        /// What was asked for.
        capability: Capability,
        /// The source that cannot do it.
        back_end: String,
    },
    /// The machine is no more: the guest powered off, or its process ended.
    #[error("{machine} is gone: {why}")]
    Ended {
        /// The machine.
        machine: String,
        /// How that is known.
        why: String,
    },
    /// The back end failed.
    #[error("{back_end}: {action}: {source}")]
    Driver {
        /// The source.
        back_end: String,
        /// What it was doing.
        action: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ErrorKind {
    /// The address at which it failed, guest-physical or virtual as the message says; `None` if it has none.
    pub const fn address(&self) -> Option<u64> {
        match self {
            Self::Hole { at } | Self::ReadOnly { at } => Some(at.get()),
            Self::Fault(fault) => Some(fault.at.get()),
            Self::PagedOut { at, .. } | Self::Corrupt { at, .. } => Some(at.get()),
            Self::OutOfRange { at, .. } | Self::Unterminated { at, .. } => Some(*at),
            _ => None,
        }
    }
}

/// What a back end may be able to do beyond reading memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// Writing guest memory ([`WriteMemory`](crate::WriteMemory)).
    WriteMemory,
    /// Reading vCPU registers ([`Vcpus`](crate::Vcpus)).
    Vcpus,
    /// Pausing and resuming the guest ([`Control`](crate::Control)).
    Control,
    /// Setting vCPU registers ([`WriteVcpus`](crate::WriteVcpus)).
    WriteVcpus,
    /// Breakpoints, watchpoints and single steps ([`EventSource`](crate::EventSource)).
    Events,
    /// One kind of event or of answer.
    Event(EventAbility),
    /// Mapping a range of guest memory ([`Driver::map_range`](crate::Driver::map_range)).
    MapRange,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WriteMemory => "writing guest memory",
            Self::Vcpus => "vCPU registers",
            Self::Control => "pausing and resuming the guest",
            Self::WriteVcpus => "setting vCPU registers",
            Self::Events => "breakpoints and other events",
            Self::Event(ability) => return ability.fmt(f),
            Self::MapRange => "mapping its memory here",
        })
    }
}

impl Error {
    /// What went wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// Bytes at the start of the buffer that were read (or written) before the failure.
    pub fn done(&self) -> usize {
        self.0.done
    }

    /// The same error with `bytes` counted as done before it, for a read in several parts.
    #[must_use]
    pub fn after(mut self, bytes: usize) -> Self {
        self.0.done = self.0.done.saturating_add(bytes);
        self
    }

    /// Whether the memory asked for is not there (a hole, a page fault, a page that is paged out), rather than out of reach for another
    /// reason. Such a failure can be padded over; the others cannot.
    pub fn is_absent(&self) -> bool {
        matches!(self.kind(), ErrorKind::Hole { .. } | ErrorKind::Fault(_) | ErrorKind::PagedOut { .. })
    }

    /// A structure of the guest that contradicts itself.
    #[cold]
    pub fn corrupt(what: impl Into<String>, at: VirtAddr) -> Self {
        ErrorKind::Corrupt { what: what.into(), at }.into()
    }

    /// A hole in guest-physical memory.
    #[cold]
    pub fn hole(at: PhysAddr) -> Self {
        ErrorKind::Hole { at }.into()
    }

    /// Guest-physical memory that cannot be written.
    #[cold]
    pub fn read_only(at: PhysAddr) -> Self {
        ErrorKind::ReadOnly { at }.into()
    }

    /// A capability that the back end lacks.
    #[cold]
    pub fn unsupported(capability: Capability, back_end: impl Into<String>) -> Self {
        ErrorKind::Unsupported { capability, back_end: back_end.into() }.into()
    }
}

impl From<ErrorKind> for Error {
    #[cold]
    fn from(kind: ErrorKind) -> Self {
        Self(Box::new(Inner { kind, done: 0 }))
    }
}

impl From<Fault> for Error {
    #[cold]
    fn from(fault: Fault) -> Self {
        ErrorKind::Fault(fault).into()
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error").field("kind", &self.0.kind).field("done", &self.0.done).finish()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.kind, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.kind.source()
    }
}

/// For the `io` traits of [`Cursor`](crate::Cursor): the error stays inside as the source.
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            ErrorKind::Unsupported { .. } => Io::Unsupported,
            ErrorKind::OutOfRange { .. } => Io::InvalidInput,
            _ => Io::Other,
        };
        Self::new(kind, error)
    }
}
