//! Reading what a running guest changes meanwhile: the one place that says how often that is tried.
//!
//! Memory that holds still ([`Vmi::epoch`]: an image, a snapshot, a paused guest) is read once, and what contradicts itself there is an
//! error at once. In a running guest a contradiction may only mean that the reader met a change halfway. Then it is read again, at first
//! immediately, later after growing pauses: a vCPU that its host has put aside in the middle of a change takes milliseconds to go on.

use core::time::Duration;
use std::thread;

use crate::{Driver, Error, ErrorKind, Result, Vmi};

/// How often something is read before it is an error.
pub const ATTEMPTS: u32 = 32;
/// Attempts without a pause behind them: the change that was met takes a vCPU that runs a few instructions.
const QUICK: u32 = 8;
/// The longest pause. All pauses of one read together take at most 180 ms.
const LONGEST_PAUSE: Duration = Duration::from_millis(8);

/// Failed attempts at reading one thing.
#[derive(Debug)]
pub struct Attempts {
    what: &'static str,
    failed: u32,
}

impl Attempts {
    /// No attempt so far at reading `what`, which names it in the error.
    pub fn new(what: &'static str) -> Self {
        Self { what, failed: 0 }
    }

    /// Counts an attempt that failed so, and waits where that may help.
    ///
    /// # Errors
    /// [`ErrorKind::Changing`] if that was the last one. `why` itself if another attempt cannot help.
    pub fn failed(&mut self, why: Error) -> Result<()> {
        if may_pass(&why) { self.changed(&why) } else { Err(why) }
    }

    /// Counts an attempt that met this change, and waits where that may help.
    ///
    /// # Errors
    /// [`ErrorKind::Changing`] if that was the last one.
    pub fn changed(&mut self, change: impl ToString) -> Result<()> {
        self.failed = self.failed.saturating_add(1);
        if self.failed >= ATTEMPTS {
            let what = self.what.to_owned();
            return Err(ErrorKind::Changing { what, attempts: self.failed, last: change.to_string() }.into());
        }
        if let Some(slow) = self.failed.checked_sub(QUICK) {
            thread::sleep(Duration::from_millis(1u64.wrapping_shl(slow / 4)).min(LONGEST_PAUSE));
        }
        Ok(())
    }

    /// Something new could be read: attempts count from here.
    pub fn progress(&mut self) {
        self.failed = 0;
    }
}

/// Whether a read that failed so can succeed a moment later: what the guest's memory said was wrong.
fn may_pass(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Hole { .. }
            | ErrorKind::Fault(_)
            | ErrorKind::PagedOut { .. }
            | ErrorKind::OutOfRange { .. }
            | ErrorKind::Unterminated { .. }
            | ErrorKind::Corrupt { .. }
            | ErrorKind::Limit { .. }
    )
}

/// Whether memory may change at any time.
#[inline]
pub fn runs<D: Driver>(vmi: &Vmi<D>) -> bool {
    vmi.epoch().is_none()
}

/// What `read` finds behind the pointers that `key` reads. In a running guest `key` is read again afterwards: only if it is the same
/// did the object behind it stay while it was read.
///
/// # Errors
/// Of `key` and `read`; [`ErrorKind::Changing`] if the key never stayed.
pub fn behind<D: Driver, K: PartialEq, T>(
    vmi: &Vmi<D>,
    what: &'static str,
    key: impl Fn() -> Result<K>,
    read: impl Fn(&K) -> Result<T>,
) -> Result<T> {
    let mut before = key()?;
    let mut attempts = Attempts::new(what);
    loop {
        let value = read(&before);
        if !runs(vmi) {
            return value;
        }
        let after = key()?;
        if before == after {
            return value;
        }
        attempts.changed("the pointer to it changed")?;
        before = after;
    }
}

/// What `read` gives. In a running guest it may meet several words between which there was a change, and is called again then.
///
/// # Errors
/// Of `read`; [`ErrorKind::Changing`] if it never succeeded.
pub fn settled<D: Driver, T>(vmi: &Vmi<D>, what: &'static str, read: impl Fn() -> Result<T>) -> Result<T> {
    let mut attempts = Attempts::new(what);
    loop {
        match read() {
            Err(error) if runs(vmi) => attempts.failed(error)?,
            other => return other,
        }
    }
}

/// Rows that come out of several objects: in a running guest, what two readings one after the other agree on.
///
/// Errors count among what they agree on only after some pauses: a change that takes long shows the same contradiction twice.
pub fn agreed<D: Driver, T: PartialEq>(
    vmi: &Vmi<D>,
    what: &'static str,
    read: impl Fn() -> Vec<Result<T>>,
) -> Result<Vec<Result<T>>> {
    let mut before = read();
    let mut attempts = Attempts::new(what);
    while runs(vmi) {
        let after = read();
        let settled = attempts.failed >= ATTEMPTS / 2 || !after.iter().flat_map(|row| row.as_ref().err()).any(may_pass);
        if settled && alike(&before, &after) {
            break;
        }
        attempts.changed("two readings differ")?;
        before = after;
    }
    Ok(before)
}

fn alike<T: PartialEq>(one: &[Result<T>], other: &[Result<T>]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|pair| match pair {
            (Ok(one), Ok(other)) => one == other,
            (Err(one), Err(other)) => one.to_string() == other.to_string(),
            _ => false,
        })
}

/// Rows that are read one by one while memory holds still. A guest that is resumed before the end ends them in an error: what was
/// read by then is a part of the list as it was, and the rest is lost.
pub struct Still<'v, D: Driver, I> {
    vmi: &'v Vmi<D>,
    what: &'static str,
    rows: Option<I>,
}

impl<'v, D: Driver, I> Still<'v, D, I> {
    /// Guards these rows; `what` names them in the error.
    pub fn new(vmi: &'v Vmi<D>, what: &'static str, rows: I) -> Self {
        Self { vmi, what, rows: Some(rows) }
    }
}

impl<D: Driver, I> core::fmt::Debug for Still<'_, D, I> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Still").field("what", &self.what).finish_non_exhaustive()
    }
}

impl<D: Driver, T, I: Iterator<Item = Result<T>>> Iterator for Still<'_, D, I> {
    type Item = Result<T>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.rows.as_mut()?;
        if runs(self.vmi) {
            self.rows = None;
            let last = "the guest was resumed before the end".to_owned();
            return Some(Err(ErrorKind::Changing { what: self.what.to_owned(), attempts: 1, last }.into()));
        }
        rows.next()
    }
}
