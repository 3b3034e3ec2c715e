//! Events through an event session against a loop over the ring by hand: the guest executes CPUID as fast as it can, and each one is answered.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vmi::x86::{Incident, Watch};
use vmi::{Trap, Vmi, What};
use vmi_driver_xen::{Options, XenDriver};

use super::bare;
use crate::domain::Domain;

/// A CPUID leaf that nobody else asks for.
const LEAF: u32 = 0x4fff_ff20;
const COUNT: u32 = 2000;
const TURNS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn run(domain: &Domain) -> Result<()> {
    let order = format!("domu cpuid {LEAF:#x} 0 {COUNT}");
    let vmi = Vmi::new(XenDriver::open(domain.name(), &Options::new())?);
    let (mut by_hand, mut by_session) = (Duration::MAX, Duration::MAX);
    let opening = || {
        let began = Instant::now();
        XenDriver::open(domain.name(), &Options::new()).map(|_| began.elapsed())
    };
    let opened = opening()?;
    let with_ring = {
        let _events = vmi.events()?;
        opening()?
    };
    println!("  opening the domain {opened:.1?}, while its event ring is on {with_ring:.1?}");
    for _ in 0..TURNS {
        let mut running = None;
        let took = bare::cpuid_events(vmi.driver().domain().info.id, LEAF, COUNT, || {
            running = Some(domain.start(&order)?);
            Ok(())
        })?;
        by_hand = by_hand.min(took);
        running.map(|running| running.finish(PATIENCE)).transpose()?;

        let mut events = vmi.events()?;
        events.set(Trap::processor(Watch::Cpuid))?;
        let running = domain.start(&order)?;
        let (mut seen, mut began, begun) = (0, Instant::now(), Instant::now());
        while seen < COUNT {
            ensure!(begun.elapsed() < PATIENCE, "{seen} of {COUNT} events");
            let Some(event) = events.next(Duration::from_secs(1))? else { continue };
            if matches!(event.what(), What::Processor(Incident::Cpuid { leaf: LEAF, .. })) {
                if seen == 0 {
                    began = Instant::now();
                }
                seen += 1;
            }
        }
        by_session = by_session.min(began.elapsed());
        drop(events);
        running.finish(PATIENCE)?;
    }
    let rate = |took: Duration| f64::from(COUNT - 1) / took.as_secs_f64();
    println!(
        "  CPUID events a second: by hand {:.0} ({:.1?} each), by a session {:.0} ({:.1?} each, {:.2}x the time)",
        rate(by_hand),
        by_hand / (COUNT - 1),
        rate(by_session),
        by_session / (COUNT - 1),
        by_session.as_secs_f64() / by_hand.as_secs_f64()
    );
    Ok(())
}
