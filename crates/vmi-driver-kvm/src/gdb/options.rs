//! How long a client waits, and how much it asks at once.

use std::time::Duration;

/// How long to wait, and how much at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GdbOptions {
    /// For a connection, and for the first answer: where another debugger is connected, none comes. 5 s.
    pub connect: Duration,
    /// For every other answer. 10 s.
    pub reply: Duration,
    /// For leaving the guest when a client is dropped. 2 s.
    pub farewell: Duration,
    /// How many requests for memory are under way at once; 1 is one by one. 32.
    pub depth: usize,
}

impl Default for GdbOptions {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connect: seconds(5), reply: seconds(10), farewell: seconds(2), depth: 32 }
    }
}

impl GdbOptions {
    /// Sets [`connect`](Self::connect).
    #[must_use]
    pub fn connect(mut self, limit: Duration) -> Self {
        self.connect = limit;
        self
    }

    /// Sets [`reply`](Self::reply).
    #[must_use]
    pub fn reply(mut self, limit: Duration) -> Self {
        self.reply = limit;
        self
    }

    /// Sets [`farewell`](Self::farewell).
    #[must_use]
    pub fn farewell(mut self, limit: Duration) -> Self {
        self.farewell = limit;
        self
    }

    /// Sets [`depth`](Self::depth); 0 is taken as 1.
    #[must_use]
    pub fn depth(mut self, depth: usize) -> Self {
        self.depth = depth;
        self
    }
}
