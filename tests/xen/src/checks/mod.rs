//! The checks. Each file has a table of its own; a new file is named here twice.

mod breakpoints;
mod control;
mod events;
mod killed;
mod lab;
mod linux;
mod memory;
mod registers;
mod round_trip;
mod smp;
mod toolstack;
mod views;
mod windows;

use std::time::Duration;

use crate::context::Context;

/// What a check comes to. [`crate::context::Skip`] as its error means that it could not be made here.
pub(crate) type CheckResult = anyhow::Result<()>;

/// A check. What it prints is shown with its result.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Context) -> CheckResult,
    /// After which it is killed, and has failed.
    pub(crate) limit: Duration,
    /// Why it is left out of a brief run, if it is.
    pub(crate) long: Option<&'static str>,
    /// Another check starts it, nobody else does.
    pub(crate) inner: bool,
}

impl Check {
    /// A check that may take two minutes.
    pub(crate) const fn new(name: &'static str, run: fn(&Context) -> CheckResult) -> Self {
        Self { name, run, limit: Duration::from_secs(120), long: None, inner: false }
    }

    /// The same check with another limit.
    #[allow(dead_code, reason = "what checks may need")]
    pub(crate) const fn limit(self, seconds: u64) -> Self {
        Self { limit: Duration::from_secs(seconds), ..self }
    }

    /// The same check, left out of a brief run for this reason.
    pub(crate) const fn long(self, why: &'static str) -> Self {
        Self { long: Some(why), ..self }
    }

    /// The same check, which another one starts.
    pub(crate) const fn inner(self) -> Self {
        Self { inner: true, ..self }
    }
}

/// All of them, in the order in which they run.
pub(crate) fn all() -> impl Iterator<Item = &'static Check> {
    let tables = [
        lab::CHECKS,
        toolstack::CHECKS,
        memory::CHECKS,
        registers::CHECKS,
        linux::CHECKS,
        windows::CHECKS,
        control::CHECKS,
        events::CHECKS,
        breakpoints::CHECKS,
        views::CHECKS,
        killed::CHECKS,
        smp::CHECKS,
        round_trip::CHECKS,
    ];
    tables.into_iter().flatten()
}
