//! A process that lets the guest run on when ours has died.
//!
//! While we hold a guest (it is paused, or stopped by its gdb stub), nothing in QEMU would let it run again if this process ended: QEMU does not take a closed
//! connection for "go on". So a guardian is forked as soon as a guest is held for the first time. It has the same connection open, and waits at a
//! pipe whose other end only we have: when that closes, by whatever end of ours, `SIGKILL` included, it says the words that let the guest go on, and ends.
//!
//! Between `fork` and its end the guardian calls nothing but functions that are safe there (signal-safety(7)): it allocates nothing and takes no lock.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2};

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

/// A guardian of one connection. Dropping it ends the process without a word.
#[derive(Debug)]
pub(crate) struct Guardian {
    /// The only writing end of the guardian's pipe.
    life: OwnedFd,
    pid: Pid,
}

impl Guardian {
    /// Forks a guardian that speaks over `connection`.
    ///
    /// # Errors
    /// What `pipe` and `fork` report.
    pub(crate) fn new(connection: BorrowedFd<'_>, words: &LastWords) -> io::Result<Self> {
        let (watch, life) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // SAFETY: the child calls `guard` alone, which makes system calls and touches its own stack, then `_exit`: all of it async-signal-safe,
        // so it does not matter what locks other threads held at the fork.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self { life, pid: child }),
            ForkResult::Child => guard(watch.as_raw_fd(), connection, words),
        }
    }

    /// Says whether the guest is held now.
    pub(crate) fn held(&self, held: bool) {
        let state = [if held { HELD } else { FREE }];
        // A guardian that is gone cannot be told; the guest is merely not guarded then.
        if let Err(error) = nix::unistd::write(self.life.as_fd(), &state) {
            tracing::warn!(%error, "the guardian process is gone: if this process is killed, the guest may stay stopped");
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.held(false);
        // The child's read ends with our end of the pipe, so this does not wait long.
        let _ = nix::unistd::write(self.life.as_fd(), &[END]);
        while waitpid(self.pid, None) == Err(Errno::EINTR) {}
    }
}

const HELD: u8 = b'h';
const FREE: u8 = b'f';
const END: u8 = b'e';

/// The life of a guardian.
fn guard(watch: RawFd, connection: BorrowedFd<'_>, words: &LastWords) -> ! {
    // SAFETY: each call is a system call on descriptors and on memory of this stack frame.
    unsafe {
        // What ends the parent from the terminal must not end its guardian; and nothing that the parent has open may be kept open here: a reader of its
        // output waits for the end.
        nix::libc::setsid();
        for signal in [nix::libc::SIGINT, nix::libc::SIGTERM, nix::libc::SIGHUP, nix::libc::SIGQUIT, nix::libc::SIGPIPE] {
            nix::libc::signal(signal, nix::libc::SIG_IGN);
        }
        nix::libc::prctl(nix::libc::PR_SET_NAME, c"vmi-guardian".as_ptr());
        close_all_but(watch, connection.as_raw_fd());
        let mut held = false;
        loop {
            let mut state = 0u8;
            match nix::libc::read(watch, (&raw mut state).cast(), 1) {
                1 if state == END => nix::libc::_exit(0),
                1 => held = state == HELD,
                0 => break,
                _ if *nix::libc::__errno_location() == nix::libc::EINTR => {}
                _ => nix::libc::_exit(1),
            }
        }
        if held {
            match words {
                LastWords::Gdb(words) => drop(words.speak(connection, PATIENCE)),
                LastWords::Line(line) => say(connection.as_raw_fd(), line),
            }
        }
        nix::libc::_exit(0)
    }
}

/// Closes every other descriptor.
///
/// # Safety
/// In a forked child that uses none of them any more.
unsafe fn close_all_but(a: RawFd, b: RawFd) {
    let (low, high) = (a.min(b), a.max(b));
    for (first, last) in
        [(0, low.wrapping_sub(1)), (low.wrapping_add(1), high.wrapping_sub(1)), (high.wrapping_add(1), RawFd::MAX)]
    {
        if first > last {
            continue;
        }
        // SAFETY: closing descriptors, as the caller allows.
        unsafe {
            // Linux since 5.9; before, one by one.
            if nix::libc::syscall(nix::libc::SYS_close_range, first, last, 0) != 0 {
                for fd in first..=last.min(65_535) {
                    nix::libc::close(fd);
                }
            }
        }
    }
}

/// Says a line and waits for the answer: a server that saw the connection close first might never read it.
///
/// # Safety
/// `connection` is an open descriptor.
unsafe fn say(connection: RawFd, line: &Line) {
    // The last bytes of the answer so far, so that a mark that comes in two parts is found.
    let mut window = [0u8; MAX_ANSWER];
    // SAFETY: system calls on an open descriptor and on memory of this stack frame; lengths are those of the slices.
    unsafe {
        if nix::libc::send(connection, line.say.as_ptr().cast(), line.say.len(), nix::libc::MSG_NOSIGNAL) < 0 {
            return;
        }
        let mut turns = PATIENCE.as_millis() / 100;
        while turns > 0 && !window.ends_with(line.until) {
            let mut poll = nix::libc::pollfd { fd: connection, events: nix::libc::POLLIN, revents: 0 };
            if nix::libc::poll(&raw mut poll, 1, 100) <= 0 {
                turns = turns.wrapping_sub(1);
                continue;
            }
            let mut byte = 0u8;
            if nix::libc::recv(connection, (&raw mut byte).cast(), 1, nix::libc::MSG_DONTWAIT) != 1 {
                return;
            }
            window.rotate_left(1);
            if let Some(last) = window.last_mut() {
                *last = byte;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    const WORDS: &LastWords = &LastWords::Line(Line { say: b"cont", until: b"done" });

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (ours, theirs)
    }

    /// Ends the guardian's pipe as the death of its parent would.
    fn die(guardian: Guardian) -> Pid {
        let pid = guardian.pid;
        let mut guardian = std::mem::ManuallyDrop::new(guardian);
        // SAFETY: the value is not used or dropped after this.
        unsafe { std::ptr::drop_in_place(&raw mut guardian.life) };
        pid
    }

    #[test]
    fn it_speaks_for_the_dead_until_it_is_understood() {
        let (ours, mut theirs) = pair();
        let guardian = Guardian::new(ours.as_fd(), WORDS).unwrap();
        guardian.held(true);
        let pid = die(guardian);
        let mut said = [0; 4];
        theirs.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"cont");
        theirs.write_all(b"... don").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        theirs.write_all(b"done").unwrap();
        waitpid(pid, None).unwrap();
        drop(ours);
        assert_eq!(theirs.read(&mut said).unwrap(), 0);
    }

    #[test]
    fn it_is_silent_where_nothing_is_held() {
        for alive in [true, false] {
            let (ours, mut theirs) = pair();
            let guardian = Guardian::new(ours.as_fd(), WORDS).unwrap();
            guardian.held(true);
            guardian.held(false);
            if alive {
                drop(guardian);
            } else {
                waitpid(die(guardian), None).unwrap();
            }
            drop(ours);
            assert_eq!(theirs.read(&mut [0; 4]).unwrap(), 0);
        }
    }

    #[test]
    fn it_keeps_nothing_else_open() {
        let (ours, _theirs) = pair();
        let (other, mut reader) = pair();
        let guardian = Guardian::new(ours.as_fd(), WORDS).unwrap();
        drop(other);
        assert_eq!(reader.read(&mut [0; 4]).unwrap(), 0);
        drop(guardian);
    }
}
