//! How a domain is to be opened.

use std::time::Duration;

use crate::foreign_memory::Limits;

/// How memory is mapped and the domain is held. The defaults serve.
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) limits: Limits,
    pub(crate) map_whole: bool,
    pub(crate) guardian: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { limits: Limits::DEFAULT, map_whole: false, guardian: true }
    }
}

impl Options {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes of the domain's memory may be mapped at a time, for reading; for writing a sixteenth of it. Default: 1 GiB. At least one chunk of 256 KiB is
    /// mapped. Where there is no room, the chunk that was mapped first goes.
    #[must_use]
    pub fn mapped(mut self, bytes: u64) -> Self {
        self.limits.mapped = bytes;
        self
    }

    /// How long a mapping serves while the domain runs. A domain may give pages back and get others in their place (ballooning); a mapping goes on to show those that it
    /// was made of. What is older is unmapped, also if nobody reads. Default: a second.
    #[must_use]
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.limits.lifetime = lifetime;
        self
    }

    /// Maps all memory when the domain is opened and leaves it mapped, whatever [`Options::mapped`] and [`Options::lifetime`] say: then no read ever waits for Xen. For a domain whose
    /// memory keeps its size: what it gives back while it is open stays mapped, and what it gets in its place is not seen. Default: no.
    #[must_use]
    pub fn map_whole(mut self, whole: bool) -> Self {
        self.map_whole = whole;
        self
    }

    /// Whether a guardian process is forked once the domain is paused, which unpauses it if this process dies. Default: yes. Say no in a process that may not
    /// fork; then a `SIGKILL`, an abort or any other end without unwinding leaves a paused domain paused (`xl unpause` lets it go on).
    #[must_use]
    pub fn guardian(mut self, guardian: bool) -> Self {
        self.guardian = guardian;
        self
    }
}
