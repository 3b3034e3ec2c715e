//! What a guardian process tells Xen when ours has died ([`Guardian`]): that a domain goes on, or that its event ring is off.
//!
//! Xen counts pauses of the toolstack and undoes none when a process ends. No library of Xen may be called between `fork` and the guardian's end: the control call is made by
//! the `ioctl` of /dev/xen/privcmd (Linux, include/uapi/xen/privcmd.h). Its form has an interface version, which changes with Xen; the one that runs is found before, by a call
//! that changes nothing (xen/common/domctl.c: another version is `EACCES`).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use nix::errno::Errno;
use vmi_guardian::Guardian;

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

    /// Forks a guardian that makes control calls, each a command and its parameter, and keeps `lock` open until that is done.
    fn guardian(&self, domain: u16, lock: Option<BorrowedFd<'_>>, calls: &[(u32, u64)]) -> io::Result<Guardian> {
        let (device, version) = (self.device.as_fd(), self.version);
        let undo = || {
            for (command, parameter) in calls {
                // SAFETY: the device is kept open.
                unsafe { control(device.as_raw_fd(), version, *command, domain, *parameter) };
            }
        };
        // SAFETY: the closure reads what was there before the fork and makes system calls on memory of its own stack frame.
        unsafe { Guardian::new(&[device, lock.unwrap_or(device)], undo) }
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

/// Forks a guardian that unpauses a domain.
///
/// # Errors
/// What `fork` and its like report.
pub(crate) fn of_pause(calls: &PrivilegedCalls, domain: u16) -> io::Result<Guardian> {
    calls.guardian(domain, None, &[(UNPAUSE, 0)])
}

/// Forks a guardian that ends the single steps of a domain's vCPUs and turns its event ring off, so that all monitors end; vCPUs that wait for an answer wait on. It keeps
/// `lock` open until that is done, so that nobody turns the ring on meanwhile.
///
/// # Errors
/// What `fork` and its like report.
pub(crate) fn of_ring(calls: &PrivilegedCalls, domain: u16, vcpus: u32, lock: BorrowedFd<'_>) -> io::Result<Guardian> {
    // A vCPU that steps gets no interrupts; where it does not, or the processor has no steps, the call changes nothing.
    let steps = (0..vcpus).map(|vcpu| (DEBUG, u64::from(vcpu) << 32));
    let all: Vec<_> = steps.chain([(VM_EVENT, RING_OFF)]).collect();
    calls.guardian(domain, Some(lock), &all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_their_lengths() {
        assert_eq!(size_of::<DomainControl>(), 144);
        assert_eq!(HYPERCALL, 0x0030_5000);
    }
}
