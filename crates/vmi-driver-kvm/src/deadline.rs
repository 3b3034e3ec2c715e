//! Points in time at which waiting ends.

use std::time::{Duration, Instant};

use nix::poll::PollTimeout;

/// A point in time that a wait does not pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Option<Instant>,
    pub(crate) limit: Duration,
}

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Self {
        Self { at: Instant::now().checked_add(limit), limit }
    }

    /// What is left, for `poll`: at least a millisecond unless the time is over.
    pub(crate) fn timeout(self) -> PollTimeout {
        let left = self.left();
        let ms = if left.is_zero() { 0 } else { left.as_millis().saturating_add(1) };
        PollTimeout::from(u16::try_from(ms).unwrap_or(u16::MAX))
    }

    pub(crate) fn left(self) -> Duration {
        // Without a representable end there is no end within our lifetime.
        self.at.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    pub(crate) fn is_over(self) -> bool {
        self.left().is_zero()
    }
}
