//! What a guardian process says to QEMU, so that the guest goes on when ours has died ([`Guardian`]).
//!
//! It has the connection open over which the guest is held, and says the words that let it go on.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use vmi_guardian::Guardian;

use crate::deadline::Deadline;
use crate::gdb;

/// What lets a guest go on, said over a connection on behalf of the dead.
#[derive(Clone, Debug)]
pub(crate) enum LastWords {
    /// To a gdb stub.
    Gdb(Box<gdb::LastWords>),
    /// To a server that understands a line.
    Line(Line),
}

/// A request and its answer, to be looked for byte by byte.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    /// What is sent.
    pub(crate) say: &'static [u8],
    /// What the answer holds; at most [`MAX_ANSWER`] bytes.
    pub(crate) until: &'static [u8],
}

/// The longest answer that a guardian looks for.
const MAX_ANSWER: usize = 32;

/// How long the answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Forks a guardian that says `words` over `connection`.
///
/// # Errors
/// What `fork` and its like report.
pub(crate) fn guard(connection: BorrowedFd<'_>, words: &LastWords) -> io::Result<Guardian> {
    let undo = || match words {
        LastWords::Gdb(words) => _ = words.speak(connection, PATIENCE),
        LastWords::Line(line) => say(connection, line),
    };
    // SAFETY: both ways of saying it send, receive, wait and ask for the time, on what was there before the fork and on their own stack frames; errors are numbers.
    unsafe { Guardian::new(&[connection], undo) }
}

/// Says a line and waits for the answer: a server that saw the connection close first might never read it. Allocates nothing.
fn say(connection: BorrowedFd<'_>, line: &Line) {
    if send(connection.as_raw_fd(), line.say, MsgFlags::MSG_NOSIGNAL).is_err() {
        return;
    }
    let deadline = Deadline::after(PATIENCE);
    // The last bytes of the answer so far, so that a mark that comes in two parts is found.
    let mut window = [0u8; MAX_ANSWER];
    while !window.ends_with(line.until) && !deadline.is_over() {
        if poll(&mut [PollFd::new(connection, PollFlags::POLLIN)], deadline.timeout()) == Ok(0) {
            return;
        }
        let mut byte = [0u8];
        match recv(connection.as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT) {
            Ok(1) => {
                window.rotate_left(1);
                let [.., last] = &mut window;
                [*last] = byte;
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    const WORDS: &LastWords = &LastWords::Line(Line { say: b"cont", until: b"done" });

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (ours, theirs)
    }

    /// What a guardian of a process that has died says, until it is understood.
    #[test]
    fn it_speaks_until_it_is_understood() {
        let (ours, mut theirs) = pair();
        let spoken = std::thread::spawn(move || say(ours.as_fd(), &Line { say: b"cont", until: b"done" }));
        let mut said = [0; 4];
        theirs.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"cont");
        theirs.write_all(b"... don").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(!spoken.is_finished());
        theirs.write_all(b"done").unwrap();
        spoken.join().unwrap();
        assert_eq!(theirs.read(&mut said).unwrap(), 0);
    }

    #[test]
    fn a_server_that_is_gone_is_not_waited_for() {
        let (ours, theirs) = pair();
        drop(theirs);
        say(ours.as_fd(), &Line { say: b"cont", until: b"done" });
    }

    #[test]
    fn it_is_silent_where_nothing_is_held() {
        let (ours, mut theirs) = pair();
        let guardian = guard(ours.as_fd(), WORDS).unwrap();
        guardian.held(true);
        guardian.held(false);
        drop(guardian);
        drop(ours);
        assert_eq!(theirs.read(&mut [0; 4]).unwrap(), 0);
    }

    /// A process that is killed, and its guardian.
    #[test]
    fn it_speaks_for_a_process_that_was_killed() {
        const ROLE: &str = "VMI_KVM_GUARDIAN_TEST";
        const TEST: &str = "guardian::tests::it_speaks_for_a_process_that_was_killed";
        if let Some(path) = std::env::var_os(ROLE) {
            let server = UnixStream::connect(path).unwrap();
            let guardian = guard(server.as_fd(), WORDS).unwrap();
            guardian.held(true);
            (&server).write_all(b"held").unwrap();
            std::thread::sleep(Duration::from_secs(60));
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server");
        let server = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let mut child = command.args(["--exact", TEST, "--nocapture"]).env(ROLE, &path).spawn().unwrap();
        let (mut connection, _) = server.accept().unwrap();
        let mut said = [0; 4];
        connection.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"held");
        child.kill().unwrap();
        child.wait().unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        connection.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"cont");
        connection.write_all(b"done").unwrap();
        assert_eq!(connection.read(&mut said).unwrap(), 0);
    }
}
