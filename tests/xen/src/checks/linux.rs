//! What the library finds in a domain's Linux, against what the domain says of itself.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use vmi::linux::Linux;
use vmi::{AnyDriver, Vmi};

use super::{Check, CheckResult};
use crate::context::Context;
use crate::domain::Domain;
use crate::truth;

pub(super) const CHECKS: &[Check] = &[
    Check::new("linux::processes", processes).limit(300),
    Check::new("linux::modules", modules).limit(300),
    Check::new("linux::symbols", symbols).limit(300),
    Check::new("linux::process_memory", process_memory).limit(300),
];

/// Runs a check on each domain through the library's front door.
fn each(context: &Context, check: impl Fn(&Domain, &Linux<'_, AnyDriver>) -> Result<()>) -> CheckResult {
    for domain in context.domains() {
        let looked = || -> Result<()> {
            let began = std::time::Instant::now();
            let vmi: Vmi<AnyDriver> = vmi::open(format!("xen:{}", domain.name()))?;
            let opened = began.elapsed();
            let linux = Linux::attach(&vmi)?;
            println!("{}: opened in {opened:.1?}, attached in {:.1?}", domain.name(), began.elapsed() - opened);
            check(&domain, &linux)
        };
        looked().with_context(|| domain.name().to_owned())?;
    }
    Ok(())
}

fn processes(context: &Context) -> CheckResult {
    each(context, |domain, linux| {
        let expected: BTreeSet<_> = truth::processes(domain)?
            .into_iter()
            .filter(|process| !process.is_worker())
            .map(|process| (process.pid, process.parent, process.uid, process.task_name()))
            .collect();
        let mut found = BTreeSet::new();
        for task in linux.processes() {
            let task = task?;
            let row = (task.pid()?, task.parent_pid()?, task.uid()?, task.name()?);
            if row.0 != 0 && !(row.1 == 2 && row.3.starts_with("kworker/")) {
                found.insert(row);
            }
        }
        ensure!(found == expected, "only found: {:?}\nonly there: {:?}", &found - &expected, &expected - &found);
        println!("{}: {} processes", domain.name(), found.len());
        Ok(())
    })
}

fn modules(context: &Context) -> CheckResult {
    each(context, |domain, linux| {
        let expected: BTreeSet<_> = truth::modules(domain)?.into_iter().map(|module| (module.name, module.address)).collect();
        let mut found = BTreeSet::new();
        for module in linux.modules() {
            let module = module?;
            found.insert((module.name()?, module.place()?.0.get()));
        }
        ensure!(found == expected, "found {found:x?}\nthere {expected:x?}");
        println!("{}: {} modules", domain.name(), found.len());
        Ok(())
    })
}

fn symbols(context: &Context) -> CheckResult {
    each(context, |domain, linux| {
        let mut compared = 0;
        for (name, addresses) in truth::sample_of_symbols(domain, 200)? {
            let found: BTreeSet<u64> =
                linux.symbols().iter().filter(|symbol| symbol.name == name).map(|symbol| symbol.address.get()).collect();
            // The sample has not all of a name's addresses.
            if !found.is_empty() {
                compared += 1;
                ensure!(addresses.is_subset(&found), "{name}: {addresses:x?} are there, {found:x?} were found");
            }
        }
        ensure!(compared > 200, "only {compared} symbols of the sample were found");
        println!("{}: {compared} symbols of {}", domain.name(), linux.symbols().len());
        Ok(())
    })
}

fn process_memory(context: &Context) -> CheckResult {
    use vmi::{Memory as _, VirtAddr};
    each(context, |domain, linux| {
        let held = truth::held(domain)?;
        let space = linux.process(held.pid)?.address_space()?.context("a process without memory")?;
        for page in 0..14 {
            let at = VirtAddr::new(held.address + 4096 * page as u64);
            let place = space.translate(at)?;
            ensure!(
                place.at.get() >> 12 == held.frames[page],
                "page {page} is at {}, should be in {:#x}",
                place.at,
                held.frames[page]
            );
            let bytes = space.read_vec(at, 4096)?;
            // A program of another check may have written to the first word.
            ensure!(bytes[64..] == held.content(page)[64..], "page {page} has another content");
        }
        Ok(())
    })
}
