//! Events of the processor: what the guest did, by what it says of itself.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use vmi::x86::{ControlRegister, Incident, Watch};
use vmi::{EventAbility, EventSource, Events, Reply, Trap, VcpuId, Vmi, What};
use vmi_driver_xen::{Options, XenDriver};

use super::{Check, CheckResult};
use crate::context::{Context, Skip};
use crate::domain::{Domain, Running};
use crate::truth;

pub(super) const CHECKS: &[Check] = &[
    Check::new("events::abilities_are_those_of_the_processor", abilities),
    Check::new("events::each_write_of_cr3_is_told", cr3),
    Check::new("events::cpuid_is_told_with_its_values", cpuid),
    Check::new("events::the_guest_gets_the_answer_of_cpuid_that_it_is_given", cpuid_answer),
    Check::new("events::writes_of_msrs_are_told_with_their_values", msr),
    Check::new("events::a_session_leaves_nothing_behind", sessions),
    Check::new("events::one_session_at_a_time", one_at_a_time),
    Check::new("events::a_killed_tool_is_cleaned_up_behind", killed),
    Check::new("events::a_killed_tool_without_a_guardian_is_cleaned_up_behind", killed_unguarded),
    Check::new("events::held_until_killed", hold).inner(),
];

/// How long to wait for something that comes.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How long for something that should not.
pub(super) const QUIET: Duration = Duration::from_millis(500);
/// Set for the process that is killed.
const HOLD: &str = "XEN_CHECKS_HOLD";
/// A CPUID leaf that nobody else asks for.
const LEAF: u32 = 0x4fff_ff10;

pub(super) fn open(domain: &Domain) -> Result<Vmi<XenDriver>> {
    Ok(Vmi::new(XenDriver::open(domain.name(), &Options::new())?))
}

/// Calls `each` for events until it says that it is enough, or the time is over.
pub(super) fn collect(
    events: &mut Events<'_, XenDriver>,
    limit: Duration,
    mut each: impl FnMut(vmi::Event<'_, '_, XenDriver>) -> Result<bool>,
) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < limit {
        if let Some(event) = events.next(limit.saturating_sub(began.elapsed()).min(QUIET))?
            && each(event)?
        {
            break;
        }
    }
    Ok(())
}

/// Calls `each` for events until a command inside has ended, which is not to take longer than usual.
pub(super) fn serve(
    events: &mut Events<'_, XenDriver>,
    running: &Running,
    mut each: impl FnMut(vmi::Event<'_, '_, XenDriver>) -> Result<()>,
) -> Result<()> {
    let began = Instant::now();
    while !running.has_ended()? {
        ensure!(began.elapsed() < PATIENCE, "it does not end: {}", running.output()?);
        // Without looking for the end at each.
        for _ in 0..100 {
            let Some(event) = events.next(Duration::from_millis(20))? else { break };
            each(event)?;
        }
    }
    Ok(())
}

fn abilities(context: &Context) -> CheckResult {
    let domain = context.hardware_domain()?;
    let vmi = open(&domain)?;
    let there = vmi.driver().abilities()?;
    println!("{there:?}");
    for ability in [EventAbility::ControlRegister, EventAbility::ModelRegister, EventAbility::Identification] {
        ensure!(there.has(ability), "{ability}");
    }
    // measured: see the lab's page
    ensure!(
        there.has(EventAbility::Step) == context.vmx().is_ok() && there.has(EventAbility::MemoryAccess) == context.vmx().is_ok()
    );
    ensure!(!there.has(EventAbility::PrivilegedCall));
    if context.vmx().is_err() {
        let mut events = vmi.events()?;
        let error = events.set(Trap::instructions(VcpuId(0))).unwrap_err().to_string();
        ensure!(error.contains(domain.name()) && error.contains("does not support events of every instruction"), "{error}");
    }
    Ok(())
}

fn cr3(context: &Context) -> CheckResult {
    let domain = context.hardware_domain()?;
    let vmi = open(&domain)?;
    let switches = truth::context_switches(&domain)?;
    let mut events = vmi.events()?;
    events.set(Trap::processor(Watch::ControlRegister { register: ControlRegister::Cr3, on_change: true }))?;
    // Each of them is a process of its own, so there are two changes of address space at least.
    let busy = domain.start("for i in 1 2 3 4 5 6 7 8 9 10; do /bin/busybox true; usleep 10000; done")?;
    let (mut count, mut last) = (0u64, None);
    serve(&mut events, &busy, |event| {
        let What::Processor(Incident::ControlRegister { register: ControlRegister::Cr3, new, old }) = event.what() else {
            bail!("{:?}", event.what());
        };
        ensure!(last.is_none_or(|last| last == old), "after {last:x?} came {old:#x} -> {new:#x}: one was lost");
        ensure!(event.registers().cr3.is_some_and(|cr3| cr3 ^ old == 0), "{:x?} before, by the registers", event.registers().cr3);
        ensure!(new != old);
        (count, last) = (count + 1, Some(new));
        Ok(())
    })?;
    let now = {
        let _paused = vmi.pause()?;
        let mut rest = 0;
        while let Some(event) = events.next(Duration::ZERO)? {
            if let What::Processor(Incident::ControlRegister { new, old, .. }) = event.what() {
                ensure!(last == Some(old));
                (rest, last) = (rest + 1, Some(new));
            }
        }
        count += rest;
        vmi.registers(VcpuId(0))?.cr3
    };
    ensure!(now == last, "CR3 is {now:x?}, the last event said {last:x?}");
    drop(events);
    busy.finish(PATIENCE)?;
    let switches = truth::context_switches(&domain)? - switches;
    println!("{count} changes of CR3, each from where the one before led to; {switches} context switches by the guest");
    ensure!(count >= 20, "{count}");
    Ok(())
}

fn cpuid(context: &Context) -> CheckResult {
    let domain = context.hardware_domain()?;
    let vmi = open(&domain)?;
    let mut events = vmi.events()?;
    events.set(Trap::processor(Watch::Cpuid))?;
    let running = domain.start(&format!("domu cpuid {LEAF:#x} 7 25"))?;
    let (mut count, mut values, mut others) = (0, Vec::new(), Vec::new());
    serve(&mut events, &running, |event| {
        let What::Processor(Incident::Cpuid { leaf, subleaf, length }) = event.what() else { bail!("{:?}", event.what()) };
        if leaf != LEAF && others.len() < 20 {
            others.push((leaf, subleaf));
        }
        if leaf == LEAF {
            let registers = event.registers();
            ensure!((subleaf, length) == (7, 2), "subleaf {subleaf} length {length}");
            values = vec![registers.rax as u32, registers.rbx as u32, registers.rcx as u32, registers.rdx as u32];
            count += 1;
        }
        Ok(())
    })?;
    drop(events);
    let said = running.finish(PATIENCE)?;
    let values: Vec<String> = values.iter().map(|value| if *value == 0 { "0".into() } else { format!("{value:#x}") }).collect();
    ensure!(count == 25, "{count} of 25; others: {others:x?}");
    ensure!(said.contains(&format!("cpuid {}\n", values.join(" "))), "{said} but the events had {values:?}");
    Ok(())
}

fn cpuid_answer(context: &Context) -> CheckResult {
    let domain = context.hardware_domain()?;
    let vmi = open(&domain)?;
    let mut events = vmi.events()?;
    events.set(Trap::processor(Watch::Cpuid))?;
    let running = domain.start(&format!("domu cpuid {LEAF:#x} 0 1"))?;
    collect(&mut events, PATIENCE, |event| {
        let mut registers = *event.registers();
        if matches!(event.what(), What::Processor(Incident::Cpuid { leaf: LEAF, .. })) {
            (registers.rax, registers.rdx) = (0x1234_5678, 0xabc);
            event.reply(Reply::resume().with_registers(registers))?;
            return Ok(true);
        }
        Ok(false)
    })?;
    drop(events);
    let said = running.finish(PATIENCE)?;
    let words: Vec<&str> = said.split_whitespace().collect();
    ensure!(words.get(1) == Some(&"0x12345678") && words.get(4) == Some(&"0xabc"), "{said}");
    Ok(())
}

fn msr(context: &Context) -> CheckResult {
    const BASE: u64 = 0x7000_0000_0000;
    let domain = context.hardware_domain()?;
    let vmi = open(&domain)?;
    let mut events = vmi.events()?;
    for index in [0xc000_0101, 0xc000_0102] {
        events.set(Trap::processor(Watch::Msr { index, on_change: false }))?;
    }
    let running = domain.start(&format!("domu gsbase {BASE:#x} 20"))?;
    let mut written = Vec::new();
    collect(&mut events, Duration::from_secs(20), |event| {
        let What::Processor(Incident::Msr { new, .. }) = event.what() else { bail!("{:?}", event.what()) };
        if (BASE..BASE + 20 * 4096).contains(&new) && written.last() != Some(&new) {
            written.push(new);
        }
        Ok(written.len() == 20)
    })?;
    drop(events);
    running.finish(PATIENCE)?;
    let expected: Vec<u64> = (0..20).map(|i| BASE + i * 4096).collect();
    ensure!(written == expected, "{written:x?}");
    Ok(())
}

fn sessions(context: &Context) -> CheckResult {
    let domain = context.hardware_domain()?;
    let vmi = open(&domain)?;
    domain.run("load on")?;
    for turn in 0..20 {
        let mut events = vmi.events().with_context(|| format!("session {turn}"))?;
        events.set(Trap::processor(Watch::ControlRegister { register: ControlRegister::Cr3, on_change: true }))?;
        // Every other one ends while an event waits for its answer.
        if turn % 2 == 0 {
            let event = events.next(PATIENCE)?.context("no event")?;
            std::mem::forget(event);
        }
    }
    domain.run("load off").map(drop)
}

fn one_at_a_time(context: &Context) -> CheckResult {
    let domain = context.hardware_domain()?;
    let (first, second) = (open(&domain)?, open(&domain)?);
    let events = first.events()?;
    let error = second.events().unwrap_err();
    ensure!(error.to_string().contains("another program gets the events"), "{error}");
    drop(events);
    second.events()?;
    Ok(())
}

/// Runs a check of this program that holds an event, and kills it.
pub(super) fn kill(name: &str, guardian: bool) -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--one", name])
        .env(HOLD, if guardian { "guarded" } else { "alone" })
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().context("no output")?), &mut line)?;
    ensure!(line == "held\n", "{line}");
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// The domain, if this process is the one that is killed.
pub(super) fn open_held(domain: &Domain) -> Result<Vmi<XenDriver>> {
    let Ok(how) = std::env::var(HOLD) else { return Err(Skip("it is for the check that kills it".into()).into()) };
    Ok(Vmi::new(XenDriver::open(domain.name(), &Options::new().guardian(how == "guarded"))?))
}

fn killed(context: &Context) -> CheckResult {
    let domain = context.hardware_domain()?;
    kill("events::held_until_killed", true)?;
    // The guardian has turned the ring off; the vCPU that was killed at waits all the same.
    next_session(&domain)
}

fn killed_unguarded(context: &Context) -> CheckResult {
    let domain = context.hardware_domain()?;
    kill("events::held_until_killed", false)?;
    // The vCPU waits for an answer that nobody gives, until the next session takes the ring away.
    ensure!(domain.answers(Duration::from_secs(3)).is_err(), "the domain runs: nothing was left to clean up");
    next_session(&domain)
}

fn next_session(domain: &Domain) -> CheckResult {
    let vmi = open(domain)?;
    let mut events = vmi.events()?;
    events.set(Trap::processor(Watch::ControlRegister { register: ControlRegister::Cr3, on_change: true }))?;
    drop(events.next(PATIENCE)?.context("no event after the first session was killed")?);
    drop(events);
    domain.run("load off").map(drop)
}

fn hold(context: &Context) -> CheckResult {
    let domain = context.hardware_domain()?;
    let vmi = open_held(&domain)?;
    domain.run("load on")?;
    let mut events = vmi.events()?;
    events.set(Trap::processor(Watch::ControlRegister { register: ControlRegister::Cr3, on_change: true }))?;
    let _event = events.next(PATIENCE)?.context("no event")?;
    println!("held");
    std::thread::sleep(Duration::from_secs(600));
    Ok(())
}
