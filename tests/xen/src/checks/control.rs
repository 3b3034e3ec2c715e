//! Finding, pausing and leaving domains.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use vmi::{Driver as _, ErrorKind, Memory as _, PhysAddr};
use vmi_driver_xen::{OpenError, Options, XenDriver};

use super::memory::{each, open};
use super::{Check, CheckResult};
use crate::context::Context;
use crate::domain::Domain;

pub(super) const CHECKS: &[Check] = &[
    Check::new("control::found", found),
    Check::new("control::pause", pause),
    Check::new("control::thousand", thousand).limit(600),
    Check::new("control::killed", killed),
    Check::new("control::destroyed", destroyed).limit(700),
    Check::new("control::destroyed_while_it_is_read", destroyed_while_read).limit(700),
];

/// By name, number and UUID; and what is not there is said to be, with what is.
fn found(context: &Context) -> CheckResult {
    let all = vmi_driver_xen::domains()?;
    let targets = vmi::targets();
    for domain in context.domains() {
        let id = domain.id()?;
        let row = all.iter().find(|row| row.name.as_deref() == Some(domain.name())).context("not in the list")?;
        ensure!(row.info.id == id);
        for name in [domain.name(), &id.to_string(), &row.uuid()] {
            ensure!(XenDriver::open(name, &Options::new())?.domain().info.id == id, "{name}");
        }
        ensure!(
            targets
                .iter()
                .any(|guest| guest.target.as_ref().is_some_and(|target| target.to_string() == format!("xen:{}", domain.name())))
        );
        ensure!(crate::domain::xl(&["list", "-v"])?.contains(&row.uuid()));
    }
    let error = XenDriver::open("no-such-domain", &Options::new()).unwrap_err();
    ensure!(matches!(&error, OpenError::NoDomain { running, .. } if running.len() == all.len()), "{error}");
    println!("{error}");
    Ok(())
}

/// Pauses nest, Xen counts them, and the domain stands still in them.
fn pause(context: &Context) -> CheckResult {
    each(context, |domain| {
        domain.run("load on")?;
        let vmi = open(domain)?;
        let used = || -> Result<u64> { Ok(vmi.driver().info()?.cpu_time) };
        ensure!(vmi.driver().epoch().is_none() && !vmi.driver().info()?.paused);
        let outer = vmi.pause()?;
        let inner = vmi.pause()?;
        let epoch = vmi.driver().epoch();
        ensure!(epoch.is_some() && vmi.driver().info()?.paused);
        drop(inner);
        let before = used()?;
        std::thread::sleep(Duration::from_millis(500));
        ensure!(used()? == before && vmi.driver().info()?.paused && vmi.driver().epoch() == epoch, "it ran on in a pause");
        drop(outer);
        ensure!(!vmi.driver().info()?.paused && vmi.driver().epoch().is_none());
        let began = Instant::now();
        while used()? == before {
            ensure!(began.elapsed() < Duration::from_secs(20), "it does not run on");
            std::thread::sleep(Duration::from_millis(50));
        }
        let again = vmi.pause()?;
        ensure!(vmi.driver().epoch() > epoch, "an epoch came again");
        drop(again);
        domain.run("load off").map(drop)
    })
}

fn mappings() -> Result<usize> {
    Ok(std::fs::read_to_string("/proc/self/maps")?.lines().filter(|line| line.contains("privcmd")).count())
}

fn descriptors() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}

/// A thousand pauses and a thousand visits (less in a brief run) leave the domain running and nothing behind.
fn thousand(context: &Context) -> CheckResult {
    let times = context.times(1000, 30);
    each(context, |domain| {
        let visit = |pauses: usize| -> Result<usize> {
            let vmi = open(domain)?;
            for region in vmi.machine().memory.regions().iter().take(4) {
                let mut word = [0; 8];
                vmi.read_into(region.start(), &mut word)?;
            }
            let largest = vmi.machine().memory.regions().iter().max_by_key(|region| region.len());
            vmi.read_vec(largest.context("it has no memory")?.start(), 1 << 20)?;
            for _ in 0..pauses {
                let _paused = vmi.pause()?;
            }
            mappings()
        };
        visit(1)?;
        let (before, files) = (mappings()?, descriptors()?);
        let began = Instant::now();
        visit(times)?;
        let pauses = began.elapsed();
        // Where all frames have to be looked for, a visit takes long under emulation.
        let mut during = 0;
        for _ in 0..times {
            during = during.max(visit(0)?);
        }
        println!(
            "{}: {times} pauses in {pauses:.1?}, {times} visits in {:.1?}; mappings before {before}, during {during}, after {}",
            domain.name(),
            began.elapsed() - pauses,
            mappings()?
        );
        ensure!(mappings()? == before && during > before, "{} mappings of foreign memory stay", mappings()?);
        ensure!(descriptors()? <= files, "{} descriptors, {files} before", descriptors()?);
        ensure!(!open(domain)?.driver().info()?.paused);
        domain.answers(Duration::from_secs(30))
    })
}

/// A program that is killed in a pause leaves the domain running.
fn killed(context: &Context) -> CheckResult {
    const VICTIM: &str = "XEN_CHECKS_VICTIM";
    if let Ok(name) = std::env::var(VICTIM) {
        let vmi = open(&Domain::new(&name))?;
        let _paused = vmi.pause()?;
        println!("paused");
        std::thread::sleep(Duration::from_secs(100));
        return Ok(());
    }
    each(context, |domain| {
        let program = std::env::current_exe()?;
        let mut victim =
            Command::new(program).args(["--one", "control::killed"]).env(VICTIM, domain.name()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(victim.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(line == "paused\n", "{line}");
        let vmi = open(domain)?;
        ensure!(vmi.driver().info()?.paused);
        victim.kill()?;
        victim.wait()?;
        let began = Instant::now();
        while vmi.driver().info()?.paused {
            ensure!(began.elapsed() < Duration::from_secs(10), "it stays paused");
            std::thread::sleep(Duration::from_millis(1));
        }
        println!("{}: unpaused {:?} after the end", domain.name(), began.elapsed());
        domain.answers(Duration::from_secs(30))
    })
}

/// A domain that goes away while it is looked at is said to have ended, and is not confused with its successor.
fn destroyed(context: &Context) -> CheckResult {
    let domain = context.hardware_domain()?;
    let vmi = open(&domain)?;
    vmi.driver().check()?;
    vmi.read_vec(PhysAddr::new(0x100_0000), 4096)?;
    domain.recreate()?;
    let error = vmi.driver().check().unwrap_err();
    ensure!(matches!(error.kind(), ErrorKind::Ended { .. }), "{error}");
    vmi.driver().forget_mappings();
    let error = vmi.read::<u64>(PhysAddr::new(0x100_0000)).unwrap_err();
    println!("{error}");
    ensure!(matches!(error.kind(), ErrorKind::Ended { .. } | ErrorKind::Hole { .. } | ErrorKind::Driver { .. }), "{error}");
    Ok(())
}

/// A domain that is destroyed in the midst of reads of all its memory: they end with an error that says so, and this process goes on.
fn destroyed_while_read(context: &Context) -> CheckResult {
    each(context, |domain| {
        let vmi = open(domain)?;
        let region = vmi.machine().memory.regions()[0];
        let until_it_ends = |read: &dyn Fn() -> vmi::Result<()>| {
            let began = Instant::now();
            let mut rounds = 0u64;
            loop {
                match read() {
                    Ok(()) => rounds += 1,
                    Err(error) => return Ok((rounds, error)),
                }
                ensure!(began.elapsed() < Duration::from_secs(120), "it can still be read");
            }
        };
        let ends = std::thread::scope(|scope| {
            let long = scope.spawn(|| {
                let bytes = std::cell::RefCell::new(vec![0; region.len() as usize]);
                until_it_ends(&|| match vmi.read_into(region.start(), &mut bytes.borrow_mut()) {
                    // A page that a running domain keeps from others is no end.
                    Err(error) if matches!(error.kind(), ErrorKind::Hole { .. }) && vmi.driver().check().is_ok() => Ok(()),
                    other => other,
                })
            });
            let hot = scope.spawn(|| until_it_ends(&|| vmi.read::<u64>(PhysAddr::new(0x100_0000)).map(drop)));
            std::thread::sleep(Duration::from_millis(1500));
            crate::domain::xl(&["destroy", domain.name()]).map(drop)?;
            [long, hot].map(|thread| thread.join().expect("a reader has panicked")).into_iter().collect::<Result<Vec<_>>>()
        });
        domain.recreate()?;
        for (rounds, error) in ends? {
            println!("{}: {rounds} reads, then at {:#x}: {error}", domain.name(), error.done());
            // On a slow machine the first read of all memory does not come to its end.
            let began = rounds > 0 || error.done() > 0;
            ensure!(began && matches!(error.kind(), ErrorKind::Ended { .. }), "{error:?}");
        }
        ensure!(mappings()? == 0 || vmi.driver().check().is_err());
        Ok(())
    })
}
