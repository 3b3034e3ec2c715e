//! How long an event takes from the guest to the tool and back. Under emulation the clocks are the emulator's: figures are for comparing with each other.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use vmi::{Accesses, Events, PhysAddr, Trap};
use vmi_driver_xen::XenDriver;

use super::breakpoints::function;
use super::events::{PATIENCE, open, serve};
use super::{Check, CheckResult};
use crate::context::Context;
use crate::domain::Domain;
use crate::truth;

pub(super) const CHECKS: &[Check] =
    &[Check::new("round_trip::benchmark", benchmark).limit(300).long("a benchmark: cargo xtask xen --bochs round_trip")];

const TIMES: u32 = 1000;

/// The nanoseconds of each turn, as the guest's clock says.
fn told(output: &str) -> Result<f64> {
    let line = output.lines().find_map(|line| line.strip_prefix("nanoseconds ")).context("no time")?;
    Ok(line.trim().parse::<f64>()? / f64::from(TIMES))
}

fn benchmark(context: &Context) -> CheckResult {
    context.vmx()?;
    let domain = context.hardware_domain()?;
    let at = function(&domain)?;
    let held = truth::held(&domain)?;
    let call = format!("domu call {TIMES}");
    measure(&domain, "breakpoint", &call, |events| events.set(Trap::breakpoint(at)).map(drop))?;
    let page = PhysAddr::new(held.frames[3] * 4096);
    let touch = format!("domu touch r 3 {TIMES}");
    measure(&domain, "access of memory", &touch, |events| events.set(Trap::memory(page, 4096, Accesses::READ)).map(drop))
}

fn measure(domain: &Domain, what: &str, order: &str, set: impl Fn(&mut Events<'_, XenDriver>) -> vmi::Result<()>) -> CheckResult {
    let bare = told(&domain.run(order)?)?;
    let vmi = open(domain)?;
    let mut events = vmi.events()?;
    set(&mut events)?;
    let running = domain.start(order)?;
    let (mut times, mut replying) = (Vec::new(), 0.0);
    serve(&mut events, &running, |event| {
        let now = Instant::now();
        times.push(now);
        drop(event);
        replying += now.elapsed().as_secs_f64();
        Ok(())
    })?;
    drop(events);
    let watched = told(&running.finish(PATIENCE)?)?;
    ensure!(times.len() == TIMES as usize, "{} events", times.len());
    let span = times[times.len() - 1].duration_since(times[0]).as_secs_f64();
    println!(
        "{what}: {:.1} us from one to the next as the tool sees it, {:.1} us of them until the answer has taken effect; {:.1} us each as the guest sees it, {:.2} us unwatched",
        span * 1e6 / f64::from(TIMES - 1),
        replying * 1e6 / f64::from(TIMES),
        watched / 1e3,
        bare / 1e3
    );
    Ok(())
}
