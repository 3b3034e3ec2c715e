//! Bytes to and from a stub, each wait with a deadline.

use std::fs::File;
use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};
use nix::sys::stat::Mode;

use super::address::GdbAddress;
use super::error::GdbCause;
use super::packet::{Decoder, Item, encode};
use crate::deadline::Deadline;

/// A connection to a stub.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    decoder: Decoder,
    outgoing: Vec<u8>,
    /// A packet came that we have not acknowledged. The acknowledgement goes out before our next packet, or before we wait for more.
    /// QEMU takes it as an order to stop if it comes while the guest runs, so that it must never follow an order to run.
    ack_owed: bool,
    /// Packets are acknowledged.
    pub(super) acks: bool,
    received: Vec<u8>,
}

impl Connection {
    pub(super) fn open(address: &GdbAddress, deadline: Deadline) -> Result<Self, GdbCause> {
        let failed = |error: io::Error| match error.kind() {
            // QEMU queues one connection beside the one that it serves; the next are not even taken.
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => GdbCause::Busy { after: deadline.limit },
            _ => GdbCause::Connect(Arc::new(error)),
        };
        let socket = match address {
            GdbAddress::Unix(path) => unix(path, deadline),
            GdbAddress::Tcp(address) => tcp(address, deadline),
        };
        Ok(Self::new(socket.map_err(failed)?))
    }

    pub(super) fn new(socket: OwnedFd) -> Self {
        let (decoder, outgoing) = (Decoder::default(), Vec::new());
        Self { socket, decoder, outgoing, ack_owed: false, acks: true, received: vec![0; 1 << 16] }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Queues a packet.
    pub(super) fn packet(&mut self, payload: &[u8]) {
        self.acknowledge();
        encode(payload, &mut self.outgoing);
    }

    /// Queues bytes as they are.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.acknowledge();
        self.outgoing.extend_from_slice(bytes);
    }

    /// Forgets what was not sent and what was received.
    pub(super) fn forget(&mut self) {
        self.outgoing.clear();
        self.decoder.clear();
        self.ack_owed = false;
    }

    fn acknowledge(&mut self) {
        if std::mem::take(&mut self.ack_owed) {
            self.outgoing.push(b'+');
        }
    }

    /// The next item from the stub; `None` if none came in time.
    pub(super) fn next(&mut self, deadline: Deadline) -> Result<Option<Item>, GdbCause> {
        loop {
            if !self.outgoing.is_empty() {
                self.send()?;
            }
            if let Some(item) = self.decoder.next_item()? {
                self.ack_owed |= self.acks && matches!(item, Item::Packet(_));
                return Ok(Some(item));
            }
            if self.receive()? {
                continue;
            }
            self.acknowledge();
            if !self.wait(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Sends all that is queued, while it takes in what comes. `false` if the time did not suffice.
    pub(super) fn flush(&mut self, deadline: Deadline) -> Result<bool, GdbCause> {
        loop {
            self.send()?;
            if self.outgoing.is_empty() {
                return Ok(true);
            }
            // The stub may wait for us to read before it reads on.
            if !self.receive()? && !self.wait(deadline)? {
                return Ok(false);
            }
        }
    }

    fn wait(&self, deadline: Deadline) -> Result<bool, GdbCause> {
        let wanted = if self.outgoing.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT };
        loop {
            match poll(&mut [PollFd::new(self.socket.as_fd(), wanted)], deadline.timeout()) {
                Ok(0) if deadline.is_over() => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(failure(error)),
            }
            if deadline.is_over() {
                return Ok(false);
            }
        }
    }

    fn send(&mut self) -> Result<(), GdbCause> {
        while !self.outgoing.is_empty() {
            match send(self.socket.as_raw_fd(), &self.outgoing, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Ok(sent) => drop(self.outgoing.drain(..sent.min(self.outgoing.len()))),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                // What the stub said before it left is still to be read.
                Err(Errno::EPIPE | Errno::ECONNRESET) => {
                    self.outgoing.clear();
                    return if self.receive()? { Ok(()) } else { Err(GdbCause::Closed) };
                }
                Err(error) => return Err(failure(error)),
            }
        }
        Ok(())
    }

    /// Takes in what has arrived; `false` if nothing has.
    fn receive(&mut self) -> Result<bool, GdbCause> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.received, MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(Errno::ECONNRESET) => return Err(GdbCause::Closed),
                Ok(len) => {
                    self.decoder.push(self.received.get(..len).unwrap_or_default());
                    return Ok(true);
                }
                Err(Errno::EAGAIN) => return Ok(false),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(failure(error)),
            }
        }
    }
}

fn failure(error: Errno) -> GdbCause {
    GdbCause::Io(Arc::new(error.into()))
}

/// Connects without blocking: a unix socket whose queue is full would keep a blocking caller for good.
fn unix(path: &Path, deadline: Deadline) -> io::Result<OwnedFd> {
    let mut target = UnixAddr::new(path);
    // The path of a socket has at most 107 bytes; by way of its directory's descriptor any path will do.
    let directory: File;
    if let Err(Errno::ENAMETOOLONG) = target
        && let (Some(parent), Some(name)) = (path.parent(), path.file_name())
    {
        directory = File::from(open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?);
        target = UnixAddr::new(&Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name));
    }
    let target = target?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    loop {
        match connect(socket.as_raw_fd(), &target) {
            Ok(()) => return Ok(socket),
            Err(Errno::EAGAIN | Errno::EINTR) if !deadline.is_over() => {
                thread::sleep(Duration::from_millis(10).min(deadline.left()))
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn tcp(address: &str, deadline: Deadline) -> io::Result<OwnedFd> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for target in address.to_socket_addrs()? {
        let left = deadline.left().max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&target, left) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream.into());
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
