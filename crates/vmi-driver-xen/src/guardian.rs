//! A process that unpauses a domain, or turns its event ring off, when ours has died.
//!
//! Xen counts pauses of the toolstack and undoes none when a process ends. So a guardian is forked as soon as a domain is paused for the first time. It waits at a pipe
//! whose other end only we have; when that closes, by whatever end of ours, `SIGKILL` included, it makes the one control call that unpauses the domain, and ends.
//!
//! Between `fork` and its end the guardian calls nothing but functions that are safe there (signal-safety(7)), so no library of Xen either: the control call is made by
//! the `ioctl` of /dev/xen/privcmd (Linux, include/uapi/xen/privcmd.h). Its form has an interface version, which changes with Xen; the one that runs is found before, by a call
//! that changes nothing (xen/common/domctl.c: another version is `EACCES`).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2};

/// `struct xen_domctl`: command, interface version, domain, padding, 128 bytes of parameters (xen/include/public/domctl.h).
#[repr(C, align(8))]
#[derive(Debug)]
struct DomainControl {
    command: u32,
    version: u32,
    domain: u16,
    padding: [u16; 3],
    parameters: [u64; 16],
}

/// `XEN_DOMCTL_unpausedomain`, `XEN_DOMCTL_getdomaininfo`.
const UNPAUSE: u32 = 4;
const INFO: u32 = 5;

/// `XEN_DOMCTL_debug_op`, whose parameters are `op` and `vcpu`, of 32 bits each; 0 is `XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_OFF`.
const DEBUG: u32 = 54;

/// `XEN_DOMCTL_vm_event_op`, whose parameters begin with `op` and `mode`, of 32 bits each.
const VM_EVENT: u32 = 56;
/// `XEN_VM_EVENT_DISABLE` of `XEN_DOMCTL_VM_EVENT_OP_MONITOR`.
const RING_OFF: u64 = 1 | 2 << 32;

/// Interface versions: 0x15 in Xen 4.17, 0x16 in 4.18, 0x17 in 4.19 and 4.20; a few more are tried.
const VERSIONS: core::ops::RangeInclusive<u32> = 0x12..=0x20;

/// `struct privcmd_hypercall`.
#[repr(C)]
struct Hypercall {
    number: u64,
    arguments: [u64; 5],
}

/// `__HYPERVISOR_domctl`.
const DOMAIN_CONTROL: u64 = 36;

/// `IOCTL_PRIVCMD_HYPERCALL`: `_IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))`.
const HYPERCALL: nix::libc::c_ulong = (size_of::<Hypercall>() as nix::libc::c_ulong) << 16 | (b'P' as nix::libc::c_ulong) << 8;

/// The way to Xen's control calls without its libraries.
#[derive(Clone, Debug)]
pub(crate) struct PrivilegedCalls {
    device: Arc<File>,
    version: u32,
}

impl PrivilegedCalls {
    /// Opens the device and finds the interface version that Xen understands.
    pub(crate) fn open(domain: u16) -> io::Result<Self> {
        let device = File::options().read(true).write(true).open("/dev/xen/privcmd")?;
        for version in VERSIONS {
            // SAFETY: the device is open; the call fills the parameters.
            match unsafe { control(device.as_raw_fd(), version, INFO, domain, 0) } {
                0 => return Ok(Self { device: Arc::new(device), version }),
                _ if Errno::last() == Errno::EACCES => {}
                _ => return Err(io::Error::last_os_error()),
            }
        }
        Err(io::Error::other("Xen understands no version of its control interface that this program knows"))
    }
}

/// Makes a control call whose parameters are at most one word.
///
/// # Safety
/// `device` is open. Between `fork` and `_exit` this is allowed: a system call on memory of this stack frame.
unsafe fn control(device: RawFd, version: u32, command: u32, domain: u16, parameter: u64) -> i32 {
    let mut call = DomainControl { command, version, domain, padding: [0; 3], parameters: [0; 16] };
    call.parameters[0] = parameter;
    let mut hypercall = Hypercall { number: DOMAIN_CONTROL, arguments: [(&raw mut call) as u64, 0, 0, 0, 0] };
    // SAFETY: both structures live on this stack frame, which has just been written to and is therefore present in memory.
    unsafe { nix::libc::ioctl(device, HYPERCALL, &raw mut hypercall) }
}

/// A guardian of one domain. Dropping it ends the process without a call.
#[derive(Debug)]
pub(crate) struct Guardian {
    /// The only writing end of the guardian's pipe.
    life: OwnedFd,
    pid: Pid,
}

impl Guardian {
    /// Forks a guardian of a domain.
    ///
    /// # Errors
    /// What `pipe` and `fork` report.
    pub(crate) fn new(calls: &PrivilegedCalls, domain: u16) -> io::Result<Self> {
        let (device, version) = (calls.device.as_raw_fd(), calls.version);
        Self::with(device, device, move || {
            // SAFETY: the device was inherited and is open.
            unsafe { control(device, version, UNPAUSE, domain, 0) };
        })
    }

    /// Forks a guardian that ends the single steps of a domain's vCPUs and turns its event ring off, so that all monitors end; vCPUs that wait for an answer wait on. It keeps
    /// `lock` open until that is done, so that nobody turns the ring on meanwhile.
    ///
    /// # Errors
    /// What `pipe` and `fork` report.
    pub(crate) fn of_ring(calls: &PrivilegedCalls, domain: u16, vcpus: u32, lock: RawFd) -> io::Result<Self> {
        let (device, version) = (calls.device.as_raw_fd(), calls.version);
        Self::with(device, lock, move || {
            for vcpu in 0..vcpus {
                // SAFETY: as below. A vCPU that steps gets no interrupts; where it does not, or the processor has no steps, the call changes nothing.
                unsafe { control(device, version, DEBUG, domain, u64::from(vcpu) << 32) };
            }
            // SAFETY: the device was inherited and is open.
            unsafe { control(device, version, VM_EVENT, domain, RING_OFF) };
        })
    }

    /// `last_words` may use `device`, and must be safe between `fork` and `_exit`. `kept` stays open as well.
    fn with(device: RawFd, kept: RawFd, last_words: impl Fn()) -> io::Result<Self> {
        let (watch, life) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // SAFETY: the child calls `guard` alone, which makes system calls and touches its own stack, then `_exit`: all of it async-signal-safe,
        // so it does not matter what locks other threads held at the fork.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self { life, pid: child }),
            ForkResult::Child => guard([watch.as_raw_fd(), device, kept], last_words),
        }
    }

    /// Says whether the domain is held now.
    pub(crate) fn held(&self, held: bool) {
        let state = [if held { HELD } else { FREE }];
        // A guardian that is gone cannot be told; the domain is merely not guarded then.
        if let Err(error) = nix::unistd::write(self.life.as_fd(), &state) {
            tracing::warn!(%error, "the guardian process is gone: if this process is killed, the domain may stay paused");
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // The child's read ends with our end of the pipe, so this does not wait long.
        let _ = nix::unistd::write(self.life.as_fd(), &[END]);
        while waitpid(self.pid, None) == Err(Errno::EINTR) {}
    }
}

const HELD: u8 = b'h';
const FREE: u8 = b'f';
const END: u8 = b'e';

/// The life of a guardian.
fn guard(open: [RawFd; 3], last_words: impl Fn()) -> ! {
    let [watch, ..] = open;
    // SAFETY: each call is a system call on descriptors and on memory of this stack frame.
    unsafe {
        // What ends the parent from the terminal must not end its guardian; and nothing that the parent has open may be kept open here: a reader of its
        // output waits for the end.
        nix::libc::setsid();
        for signal in [nix::libc::SIGINT, nix::libc::SIGTERM, nix::libc::SIGHUP, nix::libc::SIGQUIT, nix::libc::SIGPIPE] {
            nix::libc::signal(signal, nix::libc::SIG_IGN);
        }
        nix::libc::prctl(nix::libc::PR_SET_NAME, c"vmi-guardian".as_ptr());
        close_all_but(open);
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
            last_words();
        }
        nix::libc::_exit(0)
    }
}

/// Closes every other descriptor.
///
/// # Safety
/// In a forked child that uses none of them any more.
unsafe fn close_all_but(mut open: [RawFd; 3]) {
    open.sort_unstable();
    let [low, middle, high] = open;
    for (first, last) in [
        (0, low.wrapping_sub(1)),
        (low.wrapping_add(1), middle.wrapping_sub(1)),
        (middle.wrapping_add(1), high.wrapping_sub(1)),
        (high.wrapping_add(1), RawFd::MAX),
    ] {
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    fn guardian() -> (Guardian, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let fd = ours.as_raw_fd();
        // SAFETY: writing a byte to an inherited descriptor.
        let guardian = Guardian::with(fd, fd, move || unsafe { _ = nix::libc::write(fd, c"x".as_ptr().cast(), 1) }).unwrap();
        (guardian, theirs)
    }

    /// Ends the guardian's pipe as the death of its parent would.
    fn die(guardian: Guardian) {
        let pid = guardian.pid;
        let mut guardian = std::mem::ManuallyDrop::new(guardian);
        // SAFETY: the value is not used or dropped after this.
        unsafe { std::ptr::drop_in_place(&raw mut guardian.life) };
        waitpid(pid, None).unwrap();
    }

    fn said(mut theirs: UnixStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn it_speaks_for_the_dead_where_something_is_held() {
        for (states, expected) in [(&[true][..], &b"x"[..]), (&[true, false], b""), (&[], b""), (&[true, false, true], b"x")] {
            let (guardian, theirs) = guardian();
            states.iter().for_each(|held| guardian.held(*held));
            die(guardian);
            assert_eq!(said(theirs), expected, "{states:?}");
        }
    }

    #[test]
    fn it_is_silent_when_it_is_dropped() {
        let (guardian, theirs) = guardian();
        guardian.held(true);
        drop(guardian);
        assert!(said(theirs).is_empty());
    }

    #[test]
    fn structures_have_their_lengths() {
        assert_eq!(size_of::<DomainControl>(), 144);
        assert_eq!(HYPERCALL, 0x0030_5000);
    }
}
