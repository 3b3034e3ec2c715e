//! A unix socket that keeps a time limit.

use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, send, socket, sockopt};
use nix::unistd::Pid;

use super::{PmemError, Stream};

/// How long a socket that is not there yet is waited for.
const STARTUP: Duration = Duration::from_secs(1);
const STARTUP_STEP: Duration = Duration::from_millis(10);

/// A connected unix socket whose every wait ends at a deadline.
#[derive(Debug)]
pub struct Socket {
    stream: UnixStream,
    deadline: Instant,
}

impl Socket {
    /// Connects to the socket at `path`; waits up to a second, `limit` at most, for a server that is still opening it.
    ///
    /// # Errors
    /// [`PmemError::Connect`] and [`PmemError::Busy`].
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, PmemError> {
        let failed = |errno: Errno| PmemError::Connect { path: path.to_owned(), source: errno.into() };
        let begin = Instant::now();
        let address = UnixAddr::new(path).map_err(failed)?;
        let fd = loop {
            // Without SOCK_NONBLOCK the call waits for ever where the queue of the listening socket is full.
            let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
                .map_err(failed)?;
            match connect(fd.as_raw_fd(), &address) {
                Ok(()) => break fd,
                Err(Errno::EAGAIN) => return Err(PmemError::Busy { path: path.to_owned() }),
                Err(Errno::ENOENT | Errno::ECONNREFUSED) if begin.elapsed() < STARTUP.min(limit) => thread::sleep(STARTUP_STEP),
                Err(errno) => return Err(failed(errno)),
            }
        };
        Ok(Self::from_fd(fd))
    }

    fn from_fd(fd: OwnedFd) -> Self {
        Self { stream: UnixStream::from(fd), deadline: Instant::now() }
    }

    /// The process that listens, if the kernel tells.
    pub fn server(&self) -> Option<Pid> {
        getsockopt(&self.stream, sockopt::PeerCredentials).ok().map(|who| Pid::from_raw(who.pid())).filter(|pid| pid.as_raw() > 0)
    }

    /// Waits for `events`, at most until `until`. Tells whether they came.
    fn wait(&self, events: PollFlags, until: Instant) -> io::Result<bool> {
        loop {
            // A started millisecond counts as a whole one, so that the last of them is not spun away.
            let left = until.saturating_duration_since(Instant::now());
            let millis = left.as_micros().div_ceil(1000);
            let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.stream.as_fd(), events)], timeout) {
                Ok(0) if millis == 0 => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn wait_or_fail(&self, events: PollFlags) -> io::Result<()> {
        match self.wait(events, self.deadline)? {
            true => Ok(()),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Stream for Socket {
    fn begin(&mut self, limit: Duration) {
        let now = Instant::now();
        self.deadline = now.checked_add(limit).unwrap_or(now);
    }

    fn readable(&mut self, wait: Duration) -> io::Result<bool> {
        let until = Instant::now().checked_add(wait).unwrap_or(self.deadline).min(self.deadline);
        self.wait(PollFlags::POLLIN, until)
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(buf)])
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.wait_or_fail(PollFlags::POLLIN)?;
        self.stream.read_vectored(bufs)
    }
}

impl Write for Socket {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        loop {
            match send(self.stream.as_raw_fd(), data, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
                Ok(count) => return Ok(count),
                Err(Errno::EAGAIN) => self.wait_or_fail(PollFlags::POLLOUT)?,
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
