//! The event ring of one domain: turned on, listened to, answered, given back.
//!
//! What becomes of a domain whose tool was killed: the kernel of dom0 closes the event channel, and Xen keeps the ring, the monitors and whatever waits. A vCPU that
//! causes an event then waits for an answer for ever, and turning the ring on again fails with EBUSY. Turning it off ends the monitors, but a vCPU that waits
//! for an answer goes on waiting (xen/common/vm_event.c, `vm_event_disable`; seen with 4.17): only a response lets it go on. Xen takes responses to no request, and passes over
//! those for vCPUs that do not wait (`vm_event_resume`). So whoever holds a ring holds the lock of a file as well, which the kernel takes back when
//! the holder dies: where the file says that the last holder did not give the ring back, it is turned off if it is on, and every vCPU is answered over a ring that is used for
//! nothing else. A busy ring without that belongs to somebody else.

use std::ops::Deref;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmi_core::Result;
use vmi_guardian::Guardian;

use crate::failure::Failures;
use crate::guardian::{self, PrivilegedCalls};
use crate::libraries::CallError;
use crate::libraries::event_channel::EventChannel;
use crate::libraries::monitor_calls::{Monitor, MonitorCalls};
use crate::ring::{PAGE_WORDS, Ring, Word};
use crate::ring_lock::{Left, RingLock, RingLockError};
use crate::vm_event::{InterfaceVersion, MOST_WORDS, Request, Response};

/// The page of the ring, mapped by libxenctrl.
#[derive(Debug)]
struct Page(*mut Word);

// SAFETY: the page is memory of this process, whichever thread looks at it, and its words are atomic.
unsafe impl Send for Page {}

impl Deref for Page {
    type Target = [Word];

    fn deref(&self) -> &[Word] {
        // SAFETY: `xc_monitor_enable` maps a page of 4096 bytes, which stays mapped until this is dropped; all accesses of it are atomic.
        unsafe { std::slice::from_raw_parts(self.0, PAGE_WORDS) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `xc_monitor_enable`, which leaves it to its caller to unmap, and nobody borrows it any more.
        unsafe {
            if let Some(page) = std::ptr::NonNull::new(self.0.cast()) {
                _ = nix::sys::mman::munmap(page, PAGE_WORDS.saturating_mul(4));
            }
        }
    }
}

/// Why the events of a domain cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MonitorError {
    /// The hypervisor speaks another version of the interface.
    #[error("this Xen has version {0} of the vm_event interface; this program knows 5 to 7 (Xen 4.17 to 4.20 have 7)")]
    Version(u32),
    /// Somebody else has the ring.
    #[error("another program gets the events of this domain; one at a time can: end that one first")]
    Busy,
    /// The domain is none whose events can be had.
    #[error("events are for HVM and PVH domains with hardware-assisted paging ({0})")]
    NotHardware(CallError),
}

/// Lets all vCPUs go on that wait for an answer of somebody who is gone, over a ring that is turned off then.
fn release(domain: u32, vcpus: u32, version: InterfaceVersion, page: Page, port: u32, failures: &Failures) -> Result<()> {
    let action = "letting vCPUs go on that wait for a program which was killed";
    let mut ring = Ring::new(page, version.words()).map_err(|error| failures.other(action, error))?;
    let channel = EventChannel::bind(domain, port).map_err(|error| failures.interface(action, error))?;
    for vcpu in 0..vcpus {
        let (words, len) = Response::to_lost(version, vcpu).encode();
        ring.put_unasked(words.get(..len).unwrap_or(&words)).map_err(|error| failures.other(action, error))?;
        // Xen takes it off the ring before this returns.
        channel.notify().map_err(|error| failures.other(action, error))?;
    }
    Ok(())
}

/// The domain stands still until this is dropped.
struct Still<'c>(&'c MonitorCalls);

impl<'c> Still<'c> {
    fn new(calls: &'c MonitorCalls) -> Result<Self, CallError> {
        calls.pause().map(|()| Self(calls))
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.unpause() {
            tracing::error!(%error, "the domain could not be let go on");
        }
    }
}

/// The event ring of a domain. Dropping it turns it off and ends all monitors; requests must have been answered before, or their vCPUs wait on.
#[derive(Debug)]
pub(crate) struct MonitorRing {
    pub(crate) calls: MonitorCalls,
    /// Before the channel and the page, which it uses no more when they are dropped.
    ring: Ring<Page>,
    channel: EventChannel,
    version: InterfaceVersion,
    failures: Failures,
    /// The monitors that are on.
    on: Vec<Monitor>,
    lock: RingLock,
    /// Turns the ring off if this process dies.
    guardian: Option<Guardian>,
    closed: bool,
}

impl MonitorRing {
    /// Turns the ring on. `left_behind` takes away what a program that was killed left in the domain, but for the ring: bytes that are breakpoints, views, steps.
    pub(crate) fn open(
        domain: u32,
        vcpus: u32,
        guarded: bool,
        failures: &Failures,
        left_behind: impl FnOnce(&MonitorCalls, &Left) -> Result<()>,
    ) -> Result<Self> {
        let action = "turning the event ring on";
        let calls = MonitorCalls::open(domain).map_err(|error| failures.interface(action, error))?;
        let failed = |error: CallError| failures.other(action, error);
        let number = calls.interface_version().map_err(failed)?;
        let version =
            InterfaceVersion::from_number(number).ok_or_else(|| failures.other(action, MonitorError::Version(number)))?;
        let mut lock = RingLock::take(domain).map_err(|error| match error {
            RingLockError::Held => failures.other(action, MonitorError::Busy),
            RingLockError::Io(error) => failures.other("taking the lock of the event ring", error),
        })?;
        // Noted before, so that a program that is killed in between leaves nothing that is not noted.
        lock.note_ring().map_err(|error| failures.other("noting that the event ring is on", error))?;
        let mut enabled = calls.enable();
        if lock.was_left_behind() {
            // Without the ring, a breakpoint that a vCPU comes to would be an exception that the guest does not know.
            let _still = Still::new(&calls).map_err(failed)?;
            if enabled.as_ref().is_err_and(|error| error.errno() == Some(Errno::EBUSY as i32)) {
                calls.disable().map_err(failed)?;
                enabled = calls.enable();
            }
            if let Ok((page, port)) = enabled {
                left_behind(&calls, lock.left().unwrap_or(&Left::default()))?;
                let released = release(domain, vcpus, version, Page(page.cast()), port, failures);
                calls.disable().map_err(failed)?;
                released?;
                tracing::warn!(machine = %failures.machine(), "a program that was killed had left its events on: they are off, and vCPUs that waited for it go on");
                lock.forget_left().map_err(|error| failures.other("noting that nothing is left", error))?;
                enabled = calls.enable();
            }
        }
        let (page, port) = enabled.map_err(|error| {
            if !lock.was_left_behind() {
                lock.forget_ring();
            }
            match error.errno().map(Errno::from_raw) {
                Some(Errno::EBUSY) => failures.other(action, MonitorError::Busy),
                Some(Errno::ENODEV | Errno::EOPNOTSUPP) => failures.other(action, MonitorError::NotHardware(error)),
                _ => failed(error),
            }
        })?;
        let undo = |error| {
            // Nothing was asked for yet, so no vCPU waits.
            _ = calls.disable();
            error
        };
        let page = Page(page.cast());
        let ring = Ring::new(page, version.words()).map_err(|error| undo(failures.other(action, error)))?;
        let channel = EventChannel::bind(domain, port).map_err(|error| undo(failures.interface(action, error)))?;
        // Before there is any event, so that none can wait for a process that is gone.
        let guardian = guarded.then(|| {
            let domain = u16::try_from(domain).map_err(std::io::Error::other)?;
            let guardian =
                PrivilegedCalls::open(domain).and_then(|calls| guardian::of_ring(&calls, domain, vcpus, lock.descriptor()))?;
            guardian.held(true);
            Ok::<_, std::io::Error>(guardian)
        });
        let guardian = guardian.transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "no guardian: if this process is killed, vCPUs wait at their events until the next session");
            None
        });
        Ok(Self { calls, ring, channel, version, failures: failures.clone(), on: Vec::new(), lock, guardian, closed: false })
    }

    /// Turns a monitor on, if it is not.
    pub(crate) fn turn_on(&mut self, monitor: Monitor) -> Result<(), CallError> {
        if !self.on.contains(&monitor) {
            self.calls.set(monitor, true)?;
            self.on.push(monitor);
        }
        Ok(())
    }

    /// Turns a monitor off, if it is on.
    pub(crate) fn turn_off(&mut self, monitor: Monitor) -> Result<(), CallError> {
        if self.on.contains(&monitor) {
            self.calls.set(monitor, false)?;
            self.on.retain(|on| *on != monitor);
        }
        Ok(())
    }

    /// Notes which bytes are breakpoints and which pages are watched, for whoever comes after this program if it is killed; `views`: whether it has made some.
    pub(crate) fn note(&mut self, left: &Left, views: bool) -> Result<()> {
        // Without the ring, breakpoints would be exceptions that the guest does not know, and views would stay.
        self.guard(left.breakpoints.is_empty() && !views);
        self.lock.note(left).map_err(|error| self.failures.other("noting what is changed in the domain", error))
    }

    /// Whether the ring is turned off if this process dies.
    pub(crate) fn guard(&self, guarded: bool) {
        if let Some(guardian) = &self.guardian {
            guardian.held(guarded);
        }
    }

    /// Takes the next request off the ring, if there is one.
    pub(crate) fn take(&mut self) -> Result<Option<Request>> {
        let mut words = [0; MOST_WORDS];
        if !self.ring.take(&mut words).map_err(|error| self.failures.other("taking an event off the ring", error))? {
            return Ok(None);
        }
        let request = Request::decode(&words, self.version);
        request.map(Some).map_err(|error| self.failures.other("taking an event off the ring", error))
    }

    /// Answers the oldest request that was not answered.
    pub(crate) fn answer(&mut self, response: Response) -> Result<()> {
        let (words, len) = response.encode();
        let words = words.get(..len).unwrap_or(&words);
        self.ring.put(words).map_err(|error| self.failures.other("answering an event", error))?;
        self.channel.notify().map_err(|error| self.failures.other("answering an event", error))
    }

    /// Waits until there may be something on the ring, at most `limit`. Whether there may.
    pub(crate) fn wait(&self, limit: Duration) -> Result<bool> {
        let failed = |error: CallError| self.failures.other("waiting for an event", error);
        let Some(fd) = self.channel.fd() else { return Err(failed(CallError::last("xenevtchn_fd"))) };
        // Rounded up: a wait that is cut short by less than a millisecond would be repeated without pause.
        let milliseconds = u16::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(milliseconds)) {
            Ok(0) | Err(Errno::EINTR) => Ok(false),
            Ok(_) => self.channel.acknowledge().map(|()| true).map_err(failed),
            Err(error) => Err(self.failures.other("waiting for an event", std::io::Error::from(error))),
        }
    }

    /// The monitors that are on.
    pub(crate) fn monitors(&self) -> &[Monitor] {
        &self.on
    }

    /// Turns all monitors off: nothing is an event any more.
    pub(crate) fn turn_all_off(&mut self) {
        for monitor in std::mem::take(&mut self.on) {
            if let Err(error) = self.calls.set(monitor, false) {
                tracing::error!(%error, machine = %self.failures.machine(), ?monitor, "a monitor could not be turned off");
            }
        }
    }

    /// Turns all monitors off, and the ring. Requests that were taken must have been answered. Done once.
    pub(crate) fn close(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        self.turn_all_off();
        match self.calls.disable() {
            Ok(()) => self.lock.forget_ring(),
            Err(error) => tracing::error!(%error, machine = %self.failures.machine(), "the event ring could not be turned off"),
        }
    }
}

impl Drop for MonitorRing {
    fn drop(&mut self) {
        self.close();
    }
}
