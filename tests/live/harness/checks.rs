//! Takes one guest through a list of checks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::{LiveGuest, Shape};

/// A name and what is checked; it fails by a panic, and leaves the guest running.
pub(crate) type Check = (&'static str, fn(&LiveGuest));

/// Boots a guest and takes it through all checks, whatever the ones before came to. `VMI_LIVE_CHECK` names those wanted, with commas between them.
///
/// # Panics
/// If a check fails or leaves the guest paused. Where the guest cannot be had here, that is printed.
pub(crate) fn run(shape: &Shape, checks: &[Check]) {
    let guest = match LiveGuest::boot(shape) {
        Ok(guest) => guest,
        Err(skip) => return println!("{skip}"),
    };
    println!("{shape:?}: {}, booted in {:.1} s", guest.version(), guest.boot_seconds());
    let only = std::env::var("VMI_LIVE_CHECK").ok();
    let mut failed = Vec::new();
    for (name, check) in
        checks.iter().filter(|(name, _)| only.as_ref().is_none_or(|only| only.split(',').any(|only| only == *name)))
    {
        let began = Instant::now();
        let mut outcome = "ok";
        if catch_unwind(AssertUnwindSafe(|| check(&guest))).is_err() {
            outcome = "FAILED";
        }
        if !guest.qmp2().is_running() {
            outcome = "FAILED: the guest does not run any more";
            guest.qmp2().execute("cont", serde_json::json!({})).unwrap();
        }
        println!("  {name}: {outcome} ({:.2} s)", began.elapsed().as_secs_f64());
        if outcome != "ok" {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "{shape:?}: {failed:?}");
}
