//! Tools that are killed in the midst of what they do, wherever that is: the next session says that it cleans up, and the domain is as it was.
//!
//! What is killed is the process of the same check, which knows by a variable of its environment that it is the one.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use vmi::{Accesses, Gfn, PhysAddr, Trap, VcpuId};

use super::breakpoints::{function, kernel_bytes};
use super::events::{PATIENCE, open};
use super::{Check, CheckResult};
use crate::context::Context;
use crate::domain::Domain;
use crate::{log, truth};

pub(super) const CHECKS: &[Check] = &[
    Check::new("killed::at_breakpoints", |context| killed(context, "killed::at_breakpoints", Doing::Breakpoints)).limit(300),
    Check::new("killed::at_single_steps", |context| killed(context, "killed::at_single_steps", Doing::Steps)).limit(300),
    Check::new("killed::at_accesses_of_memory", |context| killed(context, "killed::at_accesses_of_memory", Doing::Accesses))
        .limit(300),
    Check::new("killed::in_a_view", |context| killed(context, "killed::in_a_view", Doing::View)).limit(300),
];

/// Set for the process that is killed.
const VICTIM: &str = "XEN_CHECKS_VICTIM_OF_EVENTS";
/// The page that is watched, and the one that a view forbids.
const PAGES: [usize; 2] = [3, 9];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Breakpoints,
    Steps,
    Accesses,
    View,
}

/// Gets events until somebody kills it.
fn victim(domain: &Domain, doing: Doing) -> CheckResult {
    let at = function(domain)?;
    let held = truth::held(domain)?;
    let vmi = open(domain)?;
    let mut events = vmi.events()?;
    let order = match doing {
        Doing::Breakpoints => {
            events.set(Trap::breakpoint(at))?;
            "domu call 30000".to_owned()
        }
        Doing::Steps => {
            events.set(Trap::instructions(VcpuId(0)))?;
            "domu steps 30000".to_owned()
        }
        Doing::Accesses => {
            events.set(Trap::memory(PhysAddr::new(held.frames[PAGES[0]] * 4096), 4096, Accesses::READ))?;
            format!("domu touch r {} 30000", PAGES[0])
        }
        Doing::View => {
            let views = events.views()?;
            let view = views.create(Accesses::ALL)?;
            views.allow(view, Gfn::new(held.frames[PAGES[1]]), Accesses::EXECUTE)?;
            views.switch(view)?;
            format!("domu touch r {} 30000", PAGES[1])
        }
    };
    let _running = domain.start(&order)?;
    for count in 1.. {
        drop(events.next(PATIENCE)?.with_context(|| format!("no event after {count}"))?);
        if count == 5 {
            println!("working");
        }
    }
    Ok(())
}

fn killed(context: &Context, name: &str, doing: Doing) -> CheckResult {
    context.vmx()?;
    let domain = context.hardware_domain()?;
    if std::env::var_os(VICTIM).is_some() {
        return victim(&domain, doing);
    }
    let code = kernel_bytes(function(&domain)?);
    let before = domain.run(&code)?;
    for pause in [0, 5] {
        kill(name, Duration::from_millis(pause))?;
        let alone = domain.answers(Duration::from_secs(1)).is_ok();
        let began = Instant::now();
        clean(&domain, before.trim(), &code).with_context(|| format!("killed after {pause} ms more"))?;
        let runs = if alone { "the domain runs on by itself" } else { "a vCPU waits" };
        println!("killed after {pause} ms more: {runs}; as before in {:.1?}", began.elapsed());
    }
    Ok(())
}

fn kill(name: &str, pause: Duration) -> Result<()> {
    let program = std::env::current_exe()?;
    let mut victim = Command::new(program).args(["--one", name]).env(VICTIM, "1").stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(victim.stdout.take().context("no output")?).read_line(&mut line)?;
    ensure!(line == "working\n", "{line}");
    std::thread::sleep(pause);
    victim.kill()?;
    victim.wait()?;
    Ok(())
}

/// The next session gets its events, and leaves the domain as it was.
fn clean(domain: &Domain, before: &str, code: &str) -> CheckResult {
    let began = Instant::now();
    let vmi = open(domain)?;
    let mut events = vmi.events()?;
    ensure!(log::said("a program that was killed had left its events on"), "the session does not say what it found");
    let opened = began.elapsed();
    domain.answers(PATIENCE).context("in the next session")?;
    println!("the session is open after {opened:.1?}, and the domain answers after {:.1?}", began.elapsed());
    for page in PAGES {
        // Nobody asks for these accesses any more.
        domain.start(&format!("domu touch r {page} 5"))?;
    }
    ensure!(events.next(Duration::from_secs(1))?.is_none(), "an event that nobody asked for");
    drop(events);
    let after = domain.run(code)?;
    ensure!(after.trim() == before, "{before} is now {after}");
    for (order, says) in [("domu call 5", "done 5"), ("domu steps 100", "done 100"), ("domu touch r 3 5", "done 5")] {
        ensure!(domain.run(order)?.contains(says), "{order}");
    }
    Ok(())
}
