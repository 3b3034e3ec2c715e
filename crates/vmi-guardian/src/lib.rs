//! A process that lets a guest go on when ours has died.
//!
//! ```
//! use std::os::fd::AsFd;
//! use std::os::unix::net::UnixDatagram;
//! use vmi_guardian::Guardian;
//!
//! # fn main() -> std::io::Result<()> {
//! let (guest, tool) = UnixDatagram::pair()?;
//! // SAFETY: what is called when this process dies makes one system call, with memory that is there.
//! let guardian = unsafe { Guardian::new(&[tool.as_fd()], || _ = tool.send(b"go on"))? };
//! guardian.held(true); // the guest stands still from here on ...
//! guardian.held(false); // ... to here
//! # drop(guest);
//! # Ok(())
//! # }
//! ```
//!
//! What a tool does to a guest from outside (it pauses it, or has its vCPUs wait at events) nobody takes back if the tool is killed: neither QEMU nor Xen takes a closed
//! connection for "go on". So a back end forks a [`Guardian`] as soon as it holds a guest for the first time. The guardian waits at a socket whose other end only the
//! tool has; when that closes, by whatever end of the tool, `SIGKILL` included, it does the one thing that lets the guest go on, and ends.
//!
//! What it does is the back end's: words to QEMU, a control call to Xen. How it comes to do that is here, in one place, as is all that has to be right for it:
//!
//! - Between `fork` and its end the guardian calls nothing but functions that are safe there (signal-safety(7)): a thread of the tool may have held any lock at the
//!   fork, that of the allocator too.
//! - It keeps no descriptor of the tool open but those that it needs: a reader of the tool's output waits for the end, and so would a second guardian.
//! - What ends the tool from its terminal does not end its guardian: it has a session of its own and ignores the signals that a user or a shell sends.
//! - It never returns into the tool's code, not even by a panic.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

/// A guardian of one thing that is held. Dropping it ends the process, which undoes nothing then.
#[derive(Debug)]
pub struct Guardian {
    /// The only other end of the guardian's socket.
    life: OwnedFd,
    pid: Pid,
}

impl Guardian {
    /// Forks a guardian. It holds nothing yet ([`Guardian::held`]). If this process ends while something is held, the guardian calls `undo`.
    ///
    /// The descriptors in `keep` stay open in the guardian, and no others.
    ///
    /// # Safety
    /// `undo` runs in a forked child of a process that may have had other threads. It may make system calls and use memory that was there before the fork; it may
    /// call nothing that is not async-signal-safe (signal-safety(7)): it allocates and frees nothing and takes no lock.
    ///
    /// # Errors
    /// What `socketpair` and `fork` report.
    #[allow(unsafe_code)]
    pub unsafe fn new(keep: &[BorrowedFd<'_>], undo: impl FnOnce()) -> io::Result<Self> {
        // A socket, as writing into a pipe whose reader is gone is a signal.
        let (watch, life) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        // What allocates is done before the fork.
        let mut open: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).chain([watch.as_raw_fd()]).collect();
        open.sort_unstable();
        // SAFETY: the child calls `guard` alone, which makes system calls and uses memory that is there, and never returns; `undo` does the same, as the caller
        // promises. All of it is async-signal-safe, so it does not matter what locks other threads held at the fork.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self { life, pid: child }),
            ForkResult::Child => guard(watch.as_raw_fd(), &open, undo),
        }
    }

    /// Says whether there is something to undo now.
    pub fn held(&self, held: bool) {
        // A guardian that is gone cannot be told; the guest is merely not guarded then.
        if let Err(error) = self.tell(if held { HELD } else { FREE }) {
            tracing::warn!(%error, "the guardian process is gone: if this process is killed, the guest may stay stopped");
        }
    }

    fn tell(&self, state: u8) -> nix::Result<usize> {
        loop {
            match send(self.life.as_raw_fd(), &[state], MsgFlags::MSG_NOSIGNAL) {
                Err(Errno::EINTR) => {}
                sent => return sent,
            }
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // It ends when it is told so, or when it is killed; either way this does not wait long.
        let _ = self.tell(END);
        while waitpid(self.pid, None) == Err(Errno::EINTR) {}
    }
}

const HELD: u8 = b'h';
const FREE: u8 = b'f';
const END: u8 = b'e';

/// Ends the process when it is dropped, for a panic must not unwind into the code of the parent.
struct Exit;

impl Drop for Exit {
    fn drop(&mut self) {
        exit(1);
    }
}

#[allow(unsafe_code)]
fn exit(status: i32) -> ! {
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(status) }
}

/// The life of a guardian. `open` ascends and has `watch`.
fn guard(watch: RawFd, open: &[RawFd], undo: impl FnOnce()) -> ! {
    let _exit = Exit;
    begin(open);
    if waits_for_the_end(watch) {
        undo();
    }
    exit(0)
}

/// What ends the parent from the terminal must not end its guardian; and nothing that the parent has open may be kept open here.
#[allow(unsafe_code)]
fn begin(open: &[RawFd]) {
    // SAFETY: each call is a system call, on a string that is there for ever.
    unsafe {
        libc::setsid();
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE] {
            libc::signal(signal, libc::SIG_IGN);
        }
        libc::prctl(libc::PR_SET_NAME, c"vmi-guardian".as_ptr());
    }
    let mut first = 0;
    for &kept in open {
        close(first, kept.wrapping_sub(1));
        first = kept.wrapping_add(1);
    }
    close(first, RawFd::MAX);
}

/// Closes the descriptors from `first` to `last`, which this process uses no more.
#[allow(unsafe_code)]
fn close(first: RawFd, last: RawFd) {
    if first > last {
        return;
    }
    // SAFETY: in the guardian nothing owns a descriptor: values of the parent are never dropped here.
    unsafe {
        // Linux since 5.9; before, one by one.
        if libc::syscall(libc::SYS_close_range, first, last, 0) != 0 {
            for fd in first..=last.min(65_535) {
                libc::close(fd);
            }
        }
    }
}

/// Waits until the parent has ended, and says whether something was held then. Does not return if it is told to end.
#[allow(unsafe_code)]
fn waits_for_the_end(watch: RawFd) -> bool {
    let mut held = false;
    loop {
        let mut state = 0u8;
        // SAFETY: reads one byte into a place on this stack frame.
        match unsafe { libc::read(watch, (&raw mut state).cast(), 1) } {
            1 if state == END => exit(0),
            1 => held = state == HELD,
            0 => return held,
            _ if Errno::last() == Errno::EINTR => {}
            _ => exit(1),
        }
    }
}

#[cfg(test)]
mod tests;
