//! What can go wrong between a stub and us.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

/// A gdb stub could not be used as asked: which stub, what was being done, why it failed, what to do next.
#[derive(Clone, Debug, Error)]
#[error("gdb stub {}: {}: {}; {}", .0.address, .0.doing, .0.cause, .0.cause.advice())]
pub struct GdbError(Box<Failure>);

#[derive(Clone, Debug)]
struct Failure {
    address: Arc<str>,
    doing: Cow<'static, str>,
    cause: GdbCause,
    done: usize,
}

impl GdbError {
    pub(super) fn new(address: &Arc<str>, doing: impl Into<Cow<'static, str>>, cause: GdbCause) -> Self {
        Self(Box::new(Failure { address: Arc::clone(address), doing: doing.into(), cause, done: 0 }))
    }

    pub(super) fn with_done(mut self, done: usize) -> Self {
        self.0.done = done;
        self
    }

    /// Why it failed.
    pub fn cause(&self) -> &GdbCause {
        &self.0.cause
    }

    /// For a read or a write of memory: how many bytes from its start are good. Zero for everything else.
    pub fn done(&self) -> usize {
        self.0.done
    }

    /// The address of the stub.
    pub fn address(&self) -> &str {
        &self.0.address
    }
}

/// Why a stub could not be used as asked.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum GdbCause {
    /// Nothing to connect to.
    #[error("cannot connect: {0}")]
    Connect(#[source] Arc<io::Error>),
    /// The connection stands, but nobody serves it.
    #[error("nobody answered within {after:?}")]
    Busy {
        /// How long we waited.
        after: Duration,
    },
    /// An answer did not come.
    #[error("no answer within {after:?}")]
    Timeout {
        /// How long we waited.
        after: Duration,
    },
    /// The stub is gone.
    #[error("the stub closed the connection")]
    Closed,
    /// The system refused to send or receive.
    #[error("{0}")]
    Io(#[source] Arc<io::Error>),
    /// The stub answered with an error.
    #[error("refused with {code}")]
    Refused {
        /// The error packet: `E14` or the like. QEMU uses numbers of errno.
        code: String,
    },
    /// The stub does not know the request.
    #[error("the stub does not know this request")]
    Unsupported,
    /// The answer makes no sense.
    #[error("answer not understood: {got:?}")]
    Answer {
        /// The beginning of the answer.
        got: String,
    },
    /// Packets arrive damaged, again and again.
    #[error("packets are damaged, after {attempts} attempts")]
    Damaged {
        /// How often a packet was sent or asked for.
        attempts: u32,
    },
    /// A packet is longer than any stub may send.
    #[error("a packet of more than {limit} bytes")]
    TooLong {
        /// The most that is accepted.
        limit: usize,
    },
    /// The target description cannot be used.
    #[error("target description: {0}")]
    Description(String),
    /// The guest runs; the stub takes any byte as an order to stop.
    #[error("the guest is running")]
    Running,
    /// The guest or QEMU has ended.
    #[error("the guest has ended")]
    Exited,
    /// There is no such vCPU.
    #[error("there is no vCPU {vcpu}, there are {count}")]
    NoVcpu {
        /// The vCPU that was asked for.
        vcpu: u32,
        /// How many there are.
        count: usize,
    },
    /// Registers did not take the values written to them.
    #[error("the stub did not take new values of {}", .0.join(", "))]
    NotTaken(Vec<&'static str>),
}

impl GdbCause {
    /// What the user can do.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Connect(error) => match error.kind() {
                io::ErrorKind::PermissionDenied => "run as the user who owns the socket",
                io::ErrorKind::InvalidInput => "check how the address is written",
                _ => {
                    "start QEMU with `-gdb unix:PATH,server=on,wait=off` or `-gdb tcp::1234`, or give its monitor the command `gdbserver`"
                }
            },
            Self::Busy { .. } => "a stub serves one debugger at a time: end the other one, or see whether QEMU hangs",
            Self::Timeout { .. } => "see whether QEMU hangs, or whether someone else has resumed the guest meanwhile",
            Self::Closed | Self::Exited => "see whether QEMU has ended, then connect again",
            Self::Io(_) => "connect again",
            Self::Refused { .. } => {
                "the address, the length or the kind is not one that this stub and its accelerator take: KVM has four debug registers, and sets a software breakpoint only where the address space that runs maps it"
            }
            Self::Unsupported => "this needs the stub of QEMU's system emulation, version 7.2 or later",
            Self::Answer { .. } | Self::Damaged { .. } | Self::TooLong { .. } => {
                "see whether the address is that of a gdb stub, and whether somebody else reads the same connection"
            }
            Self::Description(_) => "report it with the version of QEMU",
            Self::Running => "interrupt the guest first",
            Self::NoVcpu { .. } => "connect again if vCPUs have been added",
            Self::NotTaken(_) => "these cannot be written in the vCPU's present mode",
        }
    }
}
