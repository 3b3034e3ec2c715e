//! QMP over a Unix socket.
//!
//! The protocol is a JSON object a line. It is spoken here by hand rather than through a generated binding of the whole schema: answers must be
//! bounded in size and time, and a QEMU one release newer must not fail for a word that a generated enumeration does not know.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg, sockopt};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Monitor, MonitorError, beginning};
use crate::deadline::Deadline;

/// The longest line that is taken from QEMU. The longest answers are texts of the human monitor, some hundred KiB.
const MAX_LINE: usize = 16 << 20;

/// How long QEMU may take.
#[derive(Clone, Copy, Debug)]
pub struct QmpOptions {
    /// For the greeting.
    pub greeting: Duration,
    /// For the answer to a command.
    pub answer: Duration,
}

impl Default for QmpOptions {
    /// 3 seconds for the greeting, 30 for an answer.
    fn default() -> Self {
        Self { greeting: Duration::from_secs(3), answer: Duration::from_secs(30) }
    }
}

/// A connection to a QMP socket. QEMU serves one at a time.
#[derive(Debug)]
pub struct QmpSocket {
    path: PathBuf,
    limit: Duration,
    peer: Option<i32>,
    /// The same socket as in `connection`, for whoever must reach it without waiting.
    stream: UnixStream,
    connection: Mutex<Connection>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// Bytes that were read and not yet taken.
    pending: Vec<u8>,
    /// How many of them are known to hold no line end.
    searched: usize,
    next_id: u64,
    /// Set when the end was seen.
    closed: bool,
}

/// A line of QEMU.
#[derive(Deserialize)]
struct Message {
    #[serde(rename = "return", default, deserialize_with = "present")]
    value: Option<Value>,
    error: Option<Failure>,
    id: Option<u64>,
}

#[derive(Deserialize)]
struct Failure {
    #[serde(default)]
    class: String,
    #[serde(default)]
    desc: String,
}

/// `null` is an answer too.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Why there is no line.
enum NoLine {
    Ended,
    TimedOut,
    Failed(io::Error),
}

impl QmpSocket {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// [`MonitorError`] says what kept it.
    pub fn connect(path: &Path, options: QmpOptions) -> Result<Self, MonitorError> {
        let monitor = || describe(path);
        let stream = connect(path).map_err(|source| MonitorError::Connect { monitor: monitor(), source })?;
        let failed = |source| MonitorError::Io { monitor: monitor(), command: "greeting".to_owned(), source };
        let peer = getsockopt(&stream, sockopt::PeerCredentials).ok().map(|peer| peer.pid());
        let handle = stream.try_clone().map_err(failed)?;
        let mut connection = Connection { stream, pending: Vec::new(), searched: 0, next_id: 0, closed: false };
        let greeting = connection.line(Deadline::after(options.greeting)).map_err(|error| match error {
            NoLine::TimedOut => MonitorError::Taken { monitor: monitor(), limit: options.greeting },
            NoLine::Ended => MonitorError::Closed { monitor: monitor(), command: "greeting".to_owned() },
            NoLine::Failed(source) => failed(source),
        })?;
        let greets = serde_json::from_slice::<Value>(&greeting).is_ok_and(|greeting| greeting.get("QMP").is_some());
        if !greets {
            return Err(MonitorError::NotQmp { monitor: monitor(), said: beginning(&String::from_utf8_lossy(&greeting)) });
        }
        let socket =
            Self { path: path.to_owned(), limit: options.answer, peer, stream: handle, connection: Mutex::new(connection) };
        socket.execute("qmp_capabilities", json!({}))?;
        Ok(socket)
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process that made the socket: QEMU, unless a management layer made it and handed it over.
    pub fn peer_pid(&self) -> Option<i32> {
        self.peer
    }
}

impl QmpSocket {
    fn run(&self, command: &str, arguments: Value, file: Option<BorrowedFd<'_>>) -> Result<Value, MonitorError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = || MonitorError::Closed { monitor: self.describe(), command: command.to_owned() };
        let failed = |error: NoLine| match error {
            NoLine::Ended => ended(),
            NoLine::TimedOut => {
                MonitorError::TimedOut { monitor: self.describe(), command: command.to_owned(), limit: self.limit }
            }
            NoLine::Failed(source) => MonitorError::Io { monitor: self.describe(), command: command.to_owned(), source },
        };
        let deadline = Deadline::after(self.limit);
        let id = connection.next_id;
        connection.next_id = id.wrapping_add(1);
        let request = json!({ "execute": command, "arguments": arguments, "id": id });
        connection.send(&request, file, deadline).map_err(failed)?;
        loop {
            let line = connection.line(deadline).map_err(failed)?;
            // Events, and answers to commands that were given up on, are passed over.
            let Ok(message) = serde_json::from_slice::<Message>(&line) else {
                let said = Value::String(String::from_utf8_lossy(&line).into_owned());
                return Err(MonitorError::unexpected(self.describe(), command, &said));
            };
            match message {
                Message { value: Some(value), id: Some(answered), .. } if answered == id => return Ok(value),
                // An error without a number is about a line that QEMU could not read: ours is the only one.
                Message { error: Some(Failure { class, desc }), id: answered, .. }
                    if answered.is_none_or(|answered| answered == id) =>
                {
                    return Err(MonitorError::Refused {
                        monitor: self.describe(),
                        command: command.to_owned(),
                        class,
                        description: desc,
                    });
                }
                _ => {}
            }
        }
    }
}

impl Monitor for QmpSocket {
    fn execute(&self, command: &str, arguments: Value) -> Result<Value, MonitorError> {
        self.run(command, arguments, None)
    }

    fn execute_with_file(&self, command: &str, arguments: Value, file: BorrowedFd<'_>) -> Result<Value, MonitorError> {
        self.run(command, arguments, Some(file))
    }

    fn connection(&self) -> Option<BorrowedFd<'_>> {
        Some(self.stream.as_fd())
    }

    fn describe(&self) -> String {
        describe(&self.path)
    }
}

impl Connection {
    /// Sends a request, and a file with its first byte (QEMU: `getfd` in qapi/misc.json).
    fn send(&mut self, request: &Value, file: Option<BorrowedFd<'_>>, deadline: Deadline) -> Result<(), NoLine> {
        if self.closed {
            return Err(NoLine::Ended);
        }
        let mut line = request.to_string().into_bytes();
        line.push(b'\n');
        let left = left(deadline)?;
        let written = self.stream.set_write_timeout(Some(left)).and_then(|()| {
            let sent = file.map_or(Ok(0), |file| send_file(&self.stream, &line, file))?;
            self.stream.write_all(line.get(sent..).unwrap_or_default())
        });
        written.map_err(|error| self.failure(error))
    }

    /// The next line, without its end.
    fn line(&mut self, deadline: Deadline) -> Result<Vec<u8>, NoLine> {
        loop {
            let fresh = self.pending.get(self.searched..).unwrap_or_default();
            if let Some(end) = fresh.iter().position(|&byte| byte == b'\n') {
                let end = self.searched.saturating_add(end);
                let rest = self.pending.split_off(end.saturating_add(1));
                self.searched = 0;
                return Ok(std::mem::replace(&mut self.pending, rest));
            }
            self.searched = self.pending.len();
            if self.pending.len() > MAX_LINE {
                self.closed = true;
                return Err(NoLine::Failed(io::Error::other(format!("a line of more than {MAX_LINE} bytes"))));
            }
            if self.closed {
                return Err(NoLine::Ended);
            }
            let mut block = [0; 1 << 16];
            let left = left(deadline)?;
            let read = self.stream.set_read_timeout(Some(left)).and_then(|()| self.stream.read(&mut block));
            match read {
                Ok(0) => {
                    self.closed = true;
                    // What has no line end may still say what this is.
                    if !self.pending.is_empty() {
                        return Ok(std::mem::take(&mut self.pending));
                    }
                    return Err(NoLine::Ended);
                }
                Ok(len) => self.pending.extend_from_slice(block.get(..len).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failure(error)),
            }
        }
    }

    fn failure(&mut self, error: io::Error) -> NoLine {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => NoLine::TimedOut,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
                self.closed = true;
                NoLine::Ended
            }
            _ => NoLine::Failed(error),
        }
    }
}

/// Sends the beginning of `line` together with `file`; how much of it.
fn send_file(stream: &UnixStream, line: &[u8], file: BorrowedFd<'_>) -> io::Result<usize> {
    let files = [file.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&files)];
    Ok(sendmsg::<()>(stream.as_raw_fd(), &[io::IoSlice::new(line)], &message, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// What is left until `deadline`; never zero, which a socket would take for "no limit".
fn left(deadline: Deadline) -> Result<Duration, NoLine> {
    let left = deadline.left();
    if left.is_zero() { Err(NoLine::TimedOut) } else { Ok(left.max(Duration::from_millis(1))) }
}

fn describe(path: &Path) -> String {
    format!("QMP socket {}", path.display())
}

/// Connects to a Unix socket of any path: one of more than 107 bytes is reached by way of its directory.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    const LONGEST: usize = 107;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return UnixStream::connect(path);
    };
    if path.as_os_str().len() <= LONGEST {
        return UnixStream::connect(path);
    }
    let directory = std::fs::File::open(directory)?;
    UnixStream::connect(Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name))
}

#[cfg(test)]
mod tests;
