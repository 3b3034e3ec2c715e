//! Who holds the guest, and how it is stopped and let go on.
//!
//! Two things stop a guest: QEMU's monitor and its gdb stub. The stub does not notice when the monitor lets the guest go on, so while a gdb connection is open
//! every stop and start of ours goes through it; the monitor is used while there is none. All of it happens under one lock.
//!
//! Somebody else may stop the guest too, by another monitor. Such a stop is theirs to end: the gdb connection is then taken for one to a running guest, whose
//! next stop is waited for, and the monitor is asked before the stub is told to stop what may stand already.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmi_core::{Error, Result};
use vmi_guardian::Guardian;

use crate::failure::Failures;
use crate::gdb::{GdbClient, GdbError, Stop, StopReason};
use crate::gdb_stub::GdbStub;
use crate::guardian::{self, LastWords, Line};
use crate::qmp::{Monitor, RunState};

/// `cont`, after the byte that makes QEMU drop half a request (QEMU: docs/interop/qmp-spec.rst, "Abnormal conditions").
const CONT: Line = Line { say: b"\xff\n{\"execute\":\"cont\",\"id\":\"vmi-guardian\"}\n", until: b"\"vmi-guardian\"" };

/// How long the stub may take to say what it has said already.
const ALREADY_SAID: Duration = Duration::from_millis(50);

/// Stops and starts of one guest.
#[derive(Debug)]
pub(crate) struct Execution {
    monitor: Option<Arc<dyn Monitor>>,
    stub: GdbStub,
    guarded: bool,
    failures: Failures,
    state: Mutex<State>,
    /// Whether the guest stands still because we hold it.
    still: AtomicBool,
    /// How often it went on.
    starts: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Pauses that were not resumed.
    pauses: u32,
    /// Whether the last of them lets the guest go on: it ran before the first.
    resume: bool,
    /// The gdb connection, while somebody uses it.
    link: Option<Link>,
    users: u32,
    /// Stops that wait to be told as events; the guest stands still for them.
    pub(crate) pending: Vec<Stop>,
    /// Whether an event is being looked at.
    pub(crate) in_event: bool,
    /// Whether somebody else has stopped the guest since it was last set in motion by the stub. Since QEMU 8.1 the stub tells of one stop for each time
    /// that it sets the guest in motion: of none after the other has let it go on.
    pub(crate) elsewhere: bool,
    monitor_guardian: Option<Guardian>,
}

#[derive(Debug)]
struct Link {
    client: GdbClient,
    /// Whether the guest is known to stand still by somebody else's wish.
    stopped_elsewhere: bool,
    _guardian: Option<Guardian>,
}

impl Execution {
    pub(crate) fn new(monitor: Option<Arc<dyn Monitor>>, stub: GdbStub, guarded: bool, failures: Failures) -> Self {
        Self {
            monitor,
            stub,
            guarded,
            failures,
            state: Mutex::default(),
            still: AtomicBool::new(false),
            starts: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn failures(&self) -> &Failures {
        &self.failures
    }

    /// While the guest stands still: how often it went on before.
    pub(crate) fn epoch(&self) -> Option<u64> {
        // Two reads of the count that agree around the flag: it was not let go on in between.
        let before = self.starts.load(Ordering::Acquire);
        let still = self.still.load(Ordering::Acquire);
        (still && before == self.starts.load(Ordering::Acquire)).then_some(before)
    }

    /// Notes what the guest does now.
    fn note(&self, state: &State) {
        let still = state.pauses > 0 || state.in_event || !state.pending.is_empty();
        if still {
            self.still.store(true, Ordering::Release);
        } else if self.still.swap(false, Ordering::AcqRel) {
            self.starts.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Before the guest is let go on: from here on nothing that is read may be remembered.
    fn about_to_start(&self) {
        self.still.store(false, Ordering::Release);
        self.starts.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn pause(&self) -> Result<()> {
        let mut state = self.lock();
        if state.pauses == 0 {
            state.resume = self.stop(&mut state)?;
        }
        state.pauses = state.pauses.saturating_add(1);
        self.note(&state);
        Ok(())
    }

    /// Stops the guest; whether it ran.
    fn stop(&self, state: &mut State) -> Result<bool> {
        if let Some(link) = &mut state.link {
            if !link.client.is_running() {
                return Ok(state.in_event || !state.pending.is_empty());
            }
            link.stopped_elsewhere = self.is_stopped_elsewhere(&mut link.client, &mut state.pending)?;
            if link.stopped_elsewhere {
                state.elsewhere = true;
                return Ok(false);
            }
            if state.pending.is_empty() {
                let stop = link.client.interrupt().map_err(|error| self.failures.gdb("pausing the guest", error))?;
                if stop.reason != StopReason::Paused {
                    state.pending.push(stop);
                }
            }
            return Ok(true);
        }
        let Some(monitor) = &self.monitor else {
            return Err(Error::unsupported(vmi_core::Capability::Control, self.failures.machine()));
        };
        let failed = |error| self.failures.monitor("pausing the guest", error);
        if !monitor.status().map_err(failed)?.running {
            return Ok(false);
        }
        self.guard_monitor(state);
        monitor.stop().map_err(failed)?;
        Ok(true)
    }

    /// Whether somebody else has stopped a guest that this connection takes for running. A stop of ours that was not told yet goes to `pending`.
    fn is_stopped_elsewhere(&self, client: &mut GdbClient, pending: &mut Vec<Stop>) -> Result<bool> {
        if self.runs_by_monitor()? != Some(false) {
            return Ok(false);
        }
        // The stub tells of every stop, but for those before it was connected to: what it has to say is there already.
        match client.wait(ALREADY_SAID).map_err(|error| self.failures.gdb("asking why the guest stands still", error))? {
            Some(stop) if stop.reason != StopReason::Paused => {
                pending.push(stop);
                Ok(false)
            }
            _ => {
                client.stopped_elsewhere();
                Ok(true)
            }
        }
    }

    /// At the end of what needed the guest stopped: a stop that is not ours is over whenever its owner says so.
    fn settle(&self, state: &mut State) {
        let ours = state.pauses > 0 || state.in_event || !state.pending.is_empty();
        if let Some(link) = state.link.as_mut().filter(|_| !ours) {
            link.client.resumed_elsewhere();
            link.stopped_elsewhere = false;
        }
        self.note(state);
    }

    /// Has somebody say `cont` if this process ends from here on.
    fn guard_monitor(&self, state: &mut State) {
        if state.monitor_guardian.is_none() {
            let connection = self.monitor.as_ref().and_then(|monitor| monitor.connection());
            state.monitor_guardian = connection.and_then(|connection| self.guardian(connection, &LastWords::Line(CONT)));
        }
        if let Some(guardian) = &state.monitor_guardian {
            guardian.held(true);
        }
    }

    fn guardian(&self, connection: BorrowedFd<'_>, words: &LastWords) -> Option<Guardian> {
        if !self.guarded {
            return None;
        }
        let guardian = guardian::guard(connection, words);
        guardian
            .inspect_err(|error| tracing::warn!(%error, "no guardian: if this process is killed, the guest may stay stopped"))
            .ok()
    }

    pub(crate) fn resume(&self) -> Result<()> {
        let mut state = self.lock();
        state.pauses = state.pauses.saturating_sub(1);
        let result = if state.pauses == 0 && std::mem::take(&mut state.resume) { self.start(&mut state) } else { Ok(()) };
        self.settle(&mut state);
        result
    }

    /// Lets the guest go on, unless an event holds it.
    fn start(&self, state: &mut State) -> Result<()> {
        if state.in_event || !state.pending.is_empty() {
            return Ok(());
        }
        self.about_to_start();
        match (&mut state.link, &self.monitor) {
            (Some(link), _) if link.client.is_running() => {}
            (Some(link), _) => {
                link.client.resume().map_err(|error| self.failures.gdb("resuming the guest", error))?;
                state.elsewhere = false;
            }
            (None, Some(monitor)) => monitor.cont().map_err(|error| self.failures.monitor("resuming the guest", error))?,
            (None, None) => {}
        }
        if let Some(guardian) = &state.monitor_guardian {
            guardian.held(false);
        }
        Ok(())
    }

    /// Opens the gdb connection if nobody has, and keeps it open. The guest runs on if it did.
    pub(crate) fn acquire(&self) -> Result<()> {
        let mut state = self.lock();
        self.connect(&mut state)?;
        state.users = state.users.saturating_add(1);
        self.settle(&mut state);
        Ok(())
    }

    fn connect(&self, state: &mut State) -> Result<()> {
        if state.link.is_some() {
            return Ok(());
        }
        let failed = |error: GdbError| self.failures.gdb("connecting to the gdb stub", error);
        // Without a monitor there is no asking; a guest that is reached through its stub alone is taken to run.
        let ran = match &self.monitor {
            Some(monitor) => monitor.status().map_err(|error| self.failures.monitor("asking for the run state", error))?.running,
            None => true,
        };
        let client = self.stub.connect(self.monitor.as_deref(), &self.failures)?;
        let guardian = self.guardian(client.as_fd(), &LastWords::Gdb(Box::new(client.last_words())));
        if let Some(guardian) = &guardian {
            guardian.held(true);
        }
        let mut link = Link { client, stopped_elsewhere: !ran && state.pauses == 0, _guardian: guardian };
        if ran {
            link.client.resume().map_err(failed)?;
        } else if state.pauses == 0 {
            link.client.resumed_elsewhere();
            state.elsewhere = true;
        }
        state.link = Some(link);
        Ok(())
    }

    /// Gives up one use of the gdb connection; with the last it is closed, all traps are gone and the guest does what it did before.
    pub(crate) fn release(&self) {
        let mut state = self.lock();
        state.users = state.users.saturating_sub(1);
        if state.users == 0 {
            self.disconnect(&mut state);
        }
        self.note(&state);
    }

    fn disconnect(&self, state: &mut State) {
        let Some(Link { mut client, stopped_elsewhere, _guardian: guardian }) = state.link.take() else { return };
        state.pending.clear();
        state.in_event = false;
        let elsewhere = if client.is_running() {
            self.is_stopped_elsewhere(&mut client, &mut Vec::new()).unwrap_or(false)
        } else {
            stopped_elsewhere
        };
        let left = if elsewhere || state.pauses > 0 {
            client.leave_stopped()
        } else {
            self.about_to_start();
            client.detach()
        };
        if let Err(error) = left {
            tracing::error!(%error, "the gdb stub could not be left properly");
        } else {
            drop(guardian);
        }
        self.stub.close(self.monitor.as_deref());
        // A pause that the stub held is the monitor's from here on.
        if state.pauses > 0 && state.resume {
            self.guard_monitor(state);
        }
    }

    /// Runs `work` on the gdb connection while the guest stands still; then the guest does what it did before.
    ///
    /// # Errors
    /// What stopping, `work` and resuming report.
    pub(crate) fn while_stopped<T>(&self, action: &str, work: impl FnOnce(&mut GdbClient) -> Result<T, GdbError>) -> Result<T> {
        let mut state = self.lock();
        self.connect(&mut state)?;
        let ran = self.stop_for_event_or_work(&mut state)?;
        let result = match &mut state.link {
            Some(link) => work(&mut link.client).map_err(|error| self.failures.gdb(action, error)),
            None => Err(Error::unsupported(vmi_core::Capability::Events, self.failures.machine())),
        };
        let resumed = if ran && state.pauses == 0 { self.start(&mut state) } else { Ok(()) };
        if state.users == 0 {
            self.disconnect(&mut state);
        }
        self.settle(&mut state);
        result.and_then(|value| resumed.map(|()| value))
    }

    fn stop_for_event_or_work(&self, state: &mut State) -> Result<bool> {
        match &state.link {
            Some(link) if link.client.is_running() => self.stop(state),
            _ => Ok(false),
        }
    }

    /// Runs `work` on the connection as it is, and on the events that wait: for the event session, which has acquired it.
    pub(crate) fn with_link<T>(&self, work: impl FnOnce(&mut GdbClient, &mut State) -> Result<T>) -> Result<T> {
        let mut state = self.lock();
        let Some(mut link) = state.link.take() else {
            return Err(Error::unsupported(vmi_core::Capability::Events, self.failures.machine()));
        };
        let result = work(&mut link.client, &mut state);
        state.link = Some(link);
        self.note(&state);
        result
    }

    /// Runs `work` on the connection if there is one already and the guest stands still.
    pub(crate) fn if_stopped<T>(&self, work: impl FnOnce(&mut GdbClient) -> Result<T, GdbError>) -> Option<T> {
        let mut state = self.lock();
        let link = state.link.as_mut().filter(|link| !link.client.is_running())?;
        work(&mut link.client).inspect_err(|error| tracing::debug!(%error, "the gdb stub tells no more")).ok()
    }

    /// Whether a pause keeps the guest from running.
    pub(crate) fn is_paused(state: &State) -> bool {
        state.pauses > 0
    }

    /// The connection, to wait at without the lock.
    pub(crate) fn connection(&self) -> Result<Option<OwnedFd>> {
        let state = self.lock();
        let copy = state.link.as_ref().map(|link| link.client.as_fd().try_clone_to_owned()).transpose();
        copy.map_err(|error| self.failures.other("waiting for the guest", error))
    }

    /// For an event's reply, before the guest is let go on.
    pub(crate) fn starts_now(&self) {
        self.about_to_start();
    }

    /// QEMU's word for what the guest does; `None` without a monitor.
    pub(crate) fn run_state(&self) -> Result<Option<RunState>> {
        let Some(monitor) = &self.monitor else { return Ok(None) };
        monitor.status().map(Some).map_err(|error| self.failures.monitor("asking for the run state", error))
    }

    /// Whether the monitor says that the guest runs; `None` without a monitor.
    fn runs_by_monitor(&self) -> Result<Option<bool>> {
        Ok(self.run_state()?.map(|state| state.running))
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        let mut state = self.lock();
        state.users = 0;
        self.disconnect(&mut state);
        if state.pauses > 0 && std::mem::take(&mut state.resume) {
            state.pauses = 0;
            if let Err(error) = self.start(&mut state) {
                tracing::error!(%error, "the guest could not be resumed");
            }
        }
    }
}
