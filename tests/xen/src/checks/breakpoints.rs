//! Breakpoints, single steps and traps on memory: all of them need VMX.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use vmi::linux::Linux;
use vmi::x86::{Incident, Watch};
use vmi::{AccessOrigin, Accesses, PhysAddr, Reply, Trap, VirtAddr, Vmi, What};
use vmi_driver_xen::XenDriver;

use super::events::{PATIENCE, collect, kill, open, open_held, serve};
use super::{Check, CheckResult};
use crate::context::Context;
use crate::domain::Domain;
use crate::truth::{self, Held};

pub(super) const CHECKS: &[Check] = &[
    Check::new("breakpoints::a_function_is_told_once_for_each_call", calls).limit(300),
    Check::new("breakpoints::the_guest_reads_its_own_bytes", hidden).limit(300),
    Check::new("breakpoints::steps_are_told_one_by_one", steps).limit(300),
    Check::new("breakpoints::each_access_of_memory_is_told", accesses).limit(300),
    Check::new("breakpoints::a_killed_tool_leaves_the_guest_s_code", killed).limit(300),
    Check::new("breakpoints::held_until_killed", hold).limit(300).inner(),
];

/// What `domu call` calls, and nobody else.
const FUNCTION: &str = "__x64_sys_sched_rr_get_interval";
/// The leaf around the instructions of `domu steps`.
const MARK: u32 = 0x4fff_ff00;

pub(super) fn function(domain: &Domain) -> Result<VirtAddr> {
    // Asked once for all checks: the domain takes seconds for that under emulation.
    let known = std::path::PathBuf::from(format!("/tmp/xen-checks-function-of-{}", domain.id()?));
    let at = match std::fs::read_to_string(&known).ok().as_deref().and_then(truth::hex) {
        Some(at) => at,
        None => {
            let symbols = truth::symbols(domain, &[FUNCTION])?;
            let at = *symbols.get(FUNCTION).and_then(|addresses| addresses.first()).context("no such function")?;
            std::fs::write(known, format!("{at:x}"))?;
            at
        }
    };
    Ok(VirtAddr::new(at))
}

/// The same function by its name, as a tool finds it.
fn by_name(vmi: &Vmi<XenDriver>) -> Result<VirtAddr> {
    let began = Instant::now();
    let linux = Linux::attach(vmi)?;
    let symbol =
        linux.symbols().iter().find(|symbol| symbol.name == FUNCTION).context("the library does not know the function")?;
    println!("{FUNCTION} is at {}, found in {:.1?}", symbol.address, began.elapsed());
    Ok(symbol.address)
}

fn calls(context: &Context) -> CheckResult {
    context.vmx()?;
    calls_in(&context.hardware_domain()?)
}

pub(super) fn calls_in(domain: &Domain) -> CheckResult {
    let vmi = open(domain)?;
    let at = by_name(&vmi)?;
    ensure!(at == function(domain)?, "the domain says it is at {}", function(domain)?);
    let mut events = vmi.events()?;
    let id = events.set(Trap::breakpoint(at))?;
    let running = domain.start("domu call 50")?;
    let mut count = 0;
    collect(&mut events, PATIENCE, |event| {
        ensure!(event.trap() == Some(id) && event.registers().rip == at.get(), "{event:?}");
        count += 1;
        drop(event);
        Ok(count == 50)
    })?;
    ensure!(running.finish(PATIENCE)?.contains("done 50"));
    ensure!(events.next(Duration::from_secs(1))?.is_none(), "more than 50");
    drop(events);
    ensure!(count == 50, "{count} of 50");
    domain.run("domu call 5").map(drop)
}

fn held_physical(held: &Held, page: usize) -> PhysAddr {
    PhysAddr::new(held.frames[page] * 4096)
}

fn hidden(context: &Context) -> CheckResult {
    context.vmx()?;
    hidden_in(&context.hardware_domain()?)
}

pub(super) fn hidden_in(domain: &Domain) -> CheckResult {
    let at = function(domain)?;
    let vmi = open(domain)?;
    let before = domain.run(&kernel_bytes(at))?;
    let mut events = vmi.events()?;
    events.set(Trap::breakpoint(at))?;
    let running = domain.start(&kernel_bytes(at))?;
    let mut hits = 0;
    serve(&mut events, &running, |event| {
        hits += usize::from(matches!(event.what(), What::Trapped { .. }));
        Ok(())
    })?;
    let after = running.finish(PATIENCE)?;
    ensure!(before == after, "without a breakpoint {before}, with one {after}");
    ensure!(before.trim().len() >= 16 && hits == 0, "{before} {hits}");
    println!("the guest reads {} at {at}, with and without a breakpoint there", before.trim());
    Ok(())
}

/// The command that prints the kernel's bytes at an address as the guest itself reads them.
pub(super) fn kernel_bytes(at: VirtAddr) -> String {
    format!("domu kernel {:#x}", at.get())
}

fn steps(context: &Context) -> CheckResult {
    context.vmx()?;
    const N: u64 = 100;
    let domain = context.hardware_domain()?;
    let vmi = open(&domain)?;
    let mut events = vmi.events()?;
    events.set(Trap::processor(Watch::Cpuid))?;
    let running = domain.start(&format!("domu steps {N}"))?;
    let (mut marks, mut user, mut total, mut before) = (0, 0u64, 0u64, None);
    collect(&mut events, Duration::from_secs(120), |event| {
        let level = event.registers().privilege_level();
        match event.what() {
            What::Processor(Incident::Cpuid { leaf: MARK, .. }) => {
                marks += 1;
                if marks == 2 {
                    return Ok(true);
                }
                before = Some(3);
                event.reply(Reply::step())?;
            }
            What::Stepped => {
                total += 1;
                // An interrupt leads into the kernel without an instruction of the program, and IRET back is none of the program's either.
                user += u64::from(before == Some(3) && level == Some(3));
                before = level;
                event.reply(Reply::step())?;
            }
            _ if marks == 1 => event.reply(Reply::step())?,
            _ => {}
        }
        Ok(false)
    })?;
    drop(events);
    running.finish(PATIENCE)?;
    println!("{user} steps in the program, {total} in all");
    ensure!(marks == 2, "{marks} marks");
    // MOV, N times DEC and JNZ, MOV, XOR; CPUID has its own event.
    let expected = 1 + 2 * N + 2;
    ensure!(user == expected, "{user} of {expected}");
    Ok(())
}

fn accesses(context: &Context) -> CheckResult {
    context.vmx()?;
    accesses_in(&context.hardware_domain()?)
}

pub(super) fn accesses_in(domain: &Domain) -> CheckResult {
    let held = truth::held(domain)?;
    for (page, how, on) in [(3, 'r', Accesses::READ), (4, 'w', Accesses::WRITE), (5, 'x', Accesses::EXECUTE)] {
        let vmi = open(domain)?;
        let told = touched(&vmi, domain, &held, page, how, on).with_context(|| format!("touch {how}"))?;
        println!("{how}: {told} of 20");
    }
    Ok(())
}

fn touched(vmi: &Vmi<XenDriver>, domain: &Domain, held: &Held, page: usize, how: char, on: Accesses) -> Result<usize> {
    let mut events = vmi.events()?;
    let id = events.set(Trap::memory(held_physical(held, page), 4096, on))?;
    let running = domain.start(&format!("domu touch {how} {page} 20"))?;
    let linear = held.address + 4096 * page as u64 + if how == 'x' { 4095 } else { 0 };
    let (mut count, mut rips) = (0, Vec::new());
    collect(&mut events, Duration::from_secs(60), |event| {
        let What::Memory(access) = event.what() else { bail!("{:?}", event.what()) };
        ensure!(event.trap() == Some(id));
        ensure!(access.linear == Some(VirtAddr::new(linear)), "{access:?} for {linear:#x}");
        ensure!(
            access.at.get() == held.frames[page] * 4096 + linear % 4096 && access.origin == Some(AccessOrigin::Linear),
            "{access:?}"
        );
        ensure!(!access.kinds.and(on).is_none(), "{access:?}");
        rips.push(event.registers().rip);
        count += 1;
        drop(event);
        Ok(count == 20)
    })?;
    let said = running.finish(PATIENCE)?;
    ensure!(events.next(Duration::from_secs(1))?.is_none(), "more than 20");
    let rip = said.split_whitespace().nth(1).and_then(truth::hex).context("no rip")?;
    ensure!(rips.iter().all(|at| *at == rip), "{rips:x?}, the program says {rip:#x}");
    ensure!(count == 20, "{count} of 20");
    Ok(count)
}

fn killed(context: &Context) -> CheckResult {
    context.vmx()?;
    let domain = context.hardware_domain()?;
    kill("breakpoints::held_until_killed", true)?;
    // The next session puts the code back and lets the vCPU go on.
    drop(open(&domain)?.events()?);
    ensure!(domain.run("domu call 5")?.contains("done 5"));
    Ok(())
}

fn hold(context: &Context) -> CheckResult {
    let domain = context.hardware_domain()?;
    let vmi = open_held(&domain)?;
    let at = function(&domain)?;
    let mut events = vmi.events()?;
    events.set(Trap::breakpoint(at))?;
    let _running = domain.start("domu call 3")?;
    let _event = events.next(PATIENCE)?.context("no event")?;
    println!("held");
    std::thread::sleep(Duration::from_secs(600));
    Ok(())
}
