//! Symbol files: the form of the cache, damaged databases, and the real ones ("real Windows bytes", if `VMI_SHARED_DATA` names the directory with `windows/`).

mod compact;
mod hostile;
mod real;

use std::path::PathBuf;

/// The directory with the real files, or `None` after saying that the test was skipped.
fn real_files(what: &str) -> Option<PathBuf> {
    let found = std::env::var_os("VMI_SHARED_DATA").map(|data| PathBuf::from(data).join("windows"));
    let found = found.filter(|directory| directory.join(what).exists());
    if found.is_none() {
        eprintln!("skipped: VMI_SHARED_DATA names no directory with windows/{what}");
    }
    found
}
