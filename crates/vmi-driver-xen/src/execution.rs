//! Pausing and resuming: the one place that does it.
//!
//! `pause` and `unpause` go through the crate `xenctrl`, whose calls for these are sound: two integers in, one out. It opens `libxenctrl.so`, a name that only development packages bring;
//! where that is missing, the versioned library serves.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmi_core::{Error, Result};
use vmi_guardian::Guardian;
use xenctrl::XenControl;

use crate::failure::Failures;
use crate::guardian::{self, PrivilegedCalls};
use crate::libraries::control::Control;

/// The crate's handle, which is not said to be `Send`.
#[derive(Debug)]
struct Toolstack(XenControl);

// SAFETY: an `xc_interface` is not tied to the thread that opened it (xenctrl.h); it lives behind a lock, and the crate keeps nothing else.
unsafe impl Send for Toolstack {}

#[derive(Debug, Default)]
struct State {
    pauses: u32,
    guardian: Option<Guardian>,
}

/// Who lets the domain stand and go.
#[derive(Debug)]
pub(crate) struct Execution {
    toolstack: Option<Mutex<Toolstack>>,
    control: Arc<Control>,
    domain: u16,
    guarded: bool,
    failures: Failures,
    state: Mutex<State>,
    /// Twice the number of pauses that have ended, plus one while the domain stands still by us.
    epoch: AtomicU64,
}

impl Execution {
    pub(crate) fn new(control: Arc<Control>, domain: u16, guarded: bool, failures: Failures) -> Self {
        // Without the development package's name for the library, its absence is all there is to say.
        let toolstack = XenControl::new_default()
            .inspect_err(|error| tracing::debug!(%error, library = control.library(), "the crate xenctrl finds no library"))
            .ok()
            .map(|control| Mutex::new(Toolstack(control)));
        let state = Mutex::new(State::default());
        Self { toolstack, control, domain, guarded, failures, state, epoch: AtomicU64::new(0) }
    }

    /// Whether guardians are wanted.
    pub(crate) fn is_guarded(&self) -> bool {
        self.guarded
    }

    /// See [`vmi_core::Driver::epoch`].
    pub(crate) fn epoch(&self) -> Option<u64> {
        let epoch = self.epoch.load(Ordering::Acquire);
        (epoch & 1 != 0).then_some(epoch)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the domain; `stopped` is called once it stands.
    pub(crate) fn pause(&self, stopped: impl FnOnce()) -> Result<()> {
        let mut state = self.lock();
        if state.pauses == 0 {
            if self.guarded && state.guardian.is_none() {
                let guardian = PrivilegedCalls::open(self.domain).and_then(|calls| guardian::of_pause(&calls, self.domain));
                state.guardian = guardian
                    .inspect_err(
                        |error| tracing::warn!(%error, "no guardian: if this process is killed, the domain may stay paused"),
                    )
                    .ok();
            }
            self.call(true)?;
            // Told after the call: if we die in between, the domain stays paused; told before, a pause of somebody else would be undone.
            if let Some(guardian) = &state.guardian {
                guardian.held(true);
            }
            stopped();
            self.epoch.fetch_or(1, Ordering::AcqRel);
        }
        state.pauses = state.pauses.saturating_add(1);
        Ok(())
    }

    /// Undoes one [`Execution::pause`]; `starts` is called before the domain goes on.
    pub(crate) fn resume(&self, starts: impl FnOnce()) -> Result<()> {
        let mut state = self.lock();
        match state.pauses {
            0 => return Ok(()),
            1 => {
                starts();
                // From an odd number to the next even one.
                self.epoch.fetch_add(1, Ordering::AcqRel);
                if let Some(guardian) = &state.guardian {
                    guardian.held(false);
                }
                let called = self.call(false);
                state.pauses = 0;
                return called;
            }
            pauses => state.pauses = pauses.saturating_sub(1),
        }
        Ok(())
    }

    fn call(&self, pause: bool) -> Result<()> {
        let action = if pause { "pausing it" } else { "resuming it" };
        let domain = u32::from(self.domain);
        if let Some(toolstack) = &self.toolstack {
            let toolstack = toolstack.lock().unwrap_or_else(PoisonError::into_inner);
            let result = if pause { toolstack.0.domain_pause(domain) } else { toolstack.0.domain_unpause(domain) };
            if let Ok(()) = result {
                return Ok(());
            }
            // Its error has lost the cause; the same call again tells it, and cannot have worked before.
        }
        let result = if pause { self.control.pause(domain) } else { self.control.unpause(domain) };
        result.map_err(|error| -> Error { self.failures.call(action, error) })
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        let paused = std::mem::take(&mut self.lock().pauses) > 0;
        if paused && let Err(error) = self.call(false) {
            tracing::error!(%error, "the domain could not be resumed");
        }
    }
}
