//! What the library costs beside what is written by hand: `xen-checks --bench`, which `cargo xtask xen --bench` runs.
//!
//! Contenders take turns, and the best turn of each counts: the machine does other things too.

mod bare;
mod events;
mod memory;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::context::Context;
use crate::domain::Domain;

/// The benchmarks of these names (`memory`, `events`), or all, in all domains of this boot.
pub(crate) fn run(names: &[&str]) -> ExitCode {
    let mut failed = false;
    let mut part = |what: &str, domain: &Domain, run: &dyn Fn(&Domain) -> Result<()>| {
        if !names.is_empty() && !names.contains(&what) {
            return;
        }
        println!("{what} of {}", domain.name());
        if let Err(error) = run(domain) {
            println!("  {error:?}");
            failed = true;
        }
    };
    for domain in Context::new().domains() {
        part("memory", &domain, &memory::run);
        if domain.name() != "pv" {
            part("events", &domain, &events::run);
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Nanoseconds of one call, by the best of `turns` of each contender, which makes so many calls in a turn.
fn race<const N: usize>(turns: u32, calls: usize, mut contenders: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut best = [Duration::MAX; N];
    for _ in 0..turns {
        for (best, contender) in best.iter_mut().zip(&mut contenders) {
            let began = Instant::now();
            contender();
            *best = (*best).min(began.elapsed());
        }
    }
    best.map(|time| time.as_secs_f64() * 1e9 / calls as f64)
}
