//! Checks of the Xen driver, in dom0 of a real Xen: `xen-checks [--list] [--exact] [--brief] [NAME...]`, or `xen-checks --bench`.
//!
//! `tests/lab/xen/run-in-dom0.sh` boots the machine and runs this program; `cargo xtask xen` does both. All checks share one boot. Each one runs in a
//! process of its own, so that one that crashes or hangs is one that failed, and the others go on; after it, the domains must still answer. Arguments
//! choose the checks whose names contain one of them (or equal one, with `--exact`). A brief run (`--brief`) leaves out what takes long, and does some things
//! less often; it says which.
//!
//! The output is libtest's, so that the same program counts it: `test NAME ... ok`, `FAILED`, or `skipped: why`, and a closing `test result:`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod bench;
mod checks;
#[allow(dead_code, reason = "what checks may need")]
mod context;
#[allow(dead_code, reason = "what checks may need")]
mod domain;
mod log;
mod runner;
#[allow(dead_code, reason = "what checks may need")]
mod truth;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (options, names): (Vec<&str>, Vec<&str>) = arguments.iter().map(String::as_str).partition(|word| word.starts_with("--"));
    let chosen = |name: &str| names.is_empty() || names.iter().any(|part| name.contains(part));
    match options.as_slice() {
        ["--one"] => runner::one(&names),
        ["--list"] => {
            checks::all().for_each(|check| println!("{}", check.name));
            ExitCode::SUCCESS
        }
        ["--bench"] => bench::run(),
        [] => runner::run(chosen, false),
        ["--exact"] => runner::run(|name| names.contains(&name), false),
        ["--brief"] => runner::run(chosen, true),
        _ => {
            eprintln!("usage: xen-checks [--list] [--exact] [--brief] [NAME...] | --bench");
            ExitCode::from(2)
        }
    }
}
