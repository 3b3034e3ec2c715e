//! Guest memory through the `pmemaccess` socket of a QEMU that carries LibVMI's old patch.
//!
//! For hosts that still run that patch; a stock QEMU has better roads. The QMP (or HMP) command `pmemaccess` with the argument `path` makes
//! such a QEMU listen on a unix socket at `path`; [`PmemAccess::connect`] is the client.
//!
//! # The protocol
//! There is no document but the source: LibVMI's `tools/qemu-kvm-patch` (the patches for QEMU 0.14.0, 1.5.1, 1.6.0, 2.4.0.1, 2.8 and 4.1.0
//! were read) and the client in `libvmi/driver/kvm/kvm_legacy.c`. All numbers are little-endian, since the patch serves x86 hosts.
//!
//! | | client sends | server answers |
//! |---|---|---|
//! | quit | type 0, address, length | nothing; closes, and removes the socket |
//! | read | type 1, address, length | `length` bytes and a status byte: 1 good, 0 bad |
//! | write | type 2, address, length, then `length` bytes | a status byte |
//!
//! - **The request is 24 bytes in every version.** In 1.5.1 to 2.4.0.1 the type is a `uint8_t` that the compiler pads to eight bytes, in the others
//!   a `uint64_t`. A 64-bit type below 256 reads the same either way.
//! - **A refused read is answered by one byte of any value**, not by `length + 1` bytes: the patch's comment promises the long form, its code
//!   sends the first byte of the buffer. (Both forms are understood here.) One byte may also be the start of a slow answer, and guest
//!   memory can hold any bytes, so silence or content cannot tell the two apart. When one byte comes and no more, the client sends a
//!   *fence*: 64 requests with one byte of answer each, in a random pattern. The server works in order, so what stands between the read and
//!   the pattern is the whole answer. The zeros of the pattern are unknown requests; QEMU logs each of those, eight for a refusal.
//! - **One client, once.** The server accepts one connection and ends with it. So there is no reconnecting: after an error that leaves the
//!   stream out of step, or after a time limit, the connection is dead ([`PmemError::is_dead`]); give the monitor the command again.
//! - **Quit matters**: without it the servers before 4.1 spin on the closed socket. It is sent on drop.
//! - **Writes take one system call** for request and data, since the server fetches the data with a single `read`.
//!
//! # What the patch does wrong
//! Its defects cannot be mended from here; who calls must know them.
//! - In the patches for 1.5.1 and 2.4.0.1 a write overwrites QEMU's stack (`read` into the address of the pointer). [`PmemAccess::write`] must not be called on a QEMU before 2.8.
//! - An address that is not RAM is read from the device there, with all that this does to the device; a write to it is
//!   acknowledged and lost. Keep to the RAM of the memory map.
//! - QEMU removes whatever file lies at `path`, and a `path` of 108 bytes or more overruns a buffer in it ([`PATH_LIMIT`]).
//! - Several requests under way would be faster, but a refused read among them could not be told from its successor. They go one by one.

mod error;
mod session;
mod socket;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::unistd::Pid;
use vmi_core::{PhysAddr, ReadOp};

pub use error::{Operation, PmemError};
pub use session::{READ_LIMIT, Session, Stream, WRITE_LIMIT};
pub use socket::Socket;

/// Length in bytes that the socket's path must stay below (Linux: unix(7), `sun_path`).
pub const PATH_LIMIT: usize = 108;

/// Name of the QMP command that makes a patched QEMU listen; its one argument is `path`.
pub const COMMAND: &str = "pmemaccess";

/// A connection to the `pmemaccess` socket. One handle serves many threads, one request after another.
#[derive(Debug)]
pub struct PmemAccess {
    session: Mutex<Session<Socket>>,
    path: PathBuf,
    server: Option<Pid>,
}

impl PmemAccess {
    /// Connects to the socket at `path`. Each request (at most [`READ_LIMIT`] or [`WRITE_LIMIT`] bytes) must be answered within `time_limit`.
    ///
    /// A socket that is not there yet is waited for, a second at most: the patches up to 1.6 open it after they have answered the command.
    ///
    /// # Errors
    /// [`PmemError::Connect`] and [`PmemError::Busy`].
    pub fn connect(path: impl AsRef<Path>, time_limit: Duration) -> Result<Self, PmemError> {
        let path = path.as_ref();
        let socket = Socket::connect(path, time_limit)?;
        let server = socket.server();
        Ok(Self { session: Mutex::new(Session::new(socket, time_limit)), path: path.to_owned(), server })
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process that listens, as the kernel tells it (`SO_PEERCRED`): QEMU, unless something stands between.
    pub fn server(&self) -> Option<Pid> {
        self.server
    }

    /// Fills `buf` with the guest-physical memory at `at`.
    ///
    /// # Errors
    /// [`PmemError::Refused`] at the first page that the server refuses; all others say what became of the connection.
    /// [`PmemError::done`] bytes of `buf` are good then, the others unspecified.
    pub fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<(), PmemError> {
        self.session().read(at, buf)
    }

    /// Writes `data` to guest-physical memory at `at`. Not to be called on a QEMU before 2.8 (see the module).
    ///
    /// # Errors
    /// As [`PmemAccess::read`]; [`PmemError::done`] bytes have been written then, and if [`PmemError::is_dead`] is true perhaps more.
    pub fn write(&self, at: PhysAddr, data: &[u8]) -> Result<(), PmemError> {
        self.session().write(at, data)
    }

    /// Does many reads. `back_end` names the guest in the results' errors.
    pub fn read_batch(&self, back_end: &str, ops: &mut [ReadOp<'_, PhysAddr>]) {
        let mut session = self.session();
        for op in ops {
            op.result = session.read(op.at, op.buf).map_err(|error| error.into_core(back_end));
        }
    }

    /// Whether the connection can still be used; the reason why not else.
    ///
    /// # Errors
    /// [`PmemError::Dead`].
    pub fn check(&self) -> Result<(), PmemError> {
        self.session().check()
    }

    /// A thread that panicked amid a request has left a session that knows itself dead, so the poison says nothing new.
    fn session(&self) -> std::sync::MutexGuard<'_, Session<Socket>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
