//! Events of a domain with two vCPUs: each is told with its own vCPU, and none is lost.
//!
//! The domain is started by the first of these checks, and stays.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use vmi::x86::{ControlRegister, Incident, Watch};
use vmi::{Trap, VcpuId, What};

use super::breakpoints::function;
use super::events::{PATIENCE, open, serve};
use super::{Check, CheckResult};
use crate::context::Context;
use crate::domain::Domain;

pub(super) const CHECKS: &[Check] = &[
    Check::new("smp::cpuid_of_each_vcpu_is_told", cpuid).limit(500),
    Check::new("smp::writes_of_cr3_of_each_vcpu_are_told", cr3).limit(300),
    Check::new("smp::breakpoints_of_each_vcpu_are_told", breakpoints).limit(300),
];

/// A CPUID leaf that nobody else asks for.
const LEAF: u32 = 0x4fff_ff20;
const TIMES: usize = 60;

fn domain() -> Result<Domain> {
    let domain = Domain::new("smp");
    if domain.id().is_err() {
        domain.recreate()?;
    }
    Ok(domain)
}

/// The command that runs `domu` with these orders at once, each on the processor of its number.
fn side_by_side(orders: [String; 2]) -> String {
    let [first, second] = orders;
    format!("taskset 1 domu {first} & other=$!; taskset 2 domu {second}; wait $other")
}

fn cpuid(_: &Context) -> CheckResult {
    let domain = domain()?;
    let vmi = open(&domain)?;
    let mut events = vmi.events()?;
    events.set(Trap::processor(Watch::Cpuid))?;
    // The subleaf is the number of the vCPU that is to run it.
    let running = domain.start(&side_by_side([0, 1].map(|vcpu| format!("cpuid {LEAF:#x} {vcpu} {TIMES}"))))?;
    let mut told = [0; 2];
    serve(&mut events, &running, |event| {
        let What::Processor(Incident::Cpuid { leaf, subleaf, .. }) = event.what() else { bail!("{:?}", event.what()) };
        if leaf == LEAF {
            ensure!(event.vcpu() == VcpuId(subleaf), "{subleaf} by {:?}", event.vcpu());
            told[subleaf as usize] += 1;
        }
        Ok(())
    })?;
    drop(events);
    let said = running.finish(PATIENCE)?;
    println!("{told:?} of {TIMES} each");
    ensure!(told == [TIMES; 2] && said.matches(&format!("done {TIMES}")).count() == 2, "{said}");
    domain.answers(PATIENCE)
}

fn cr3(_: &Context) -> CheckResult {
    let domain = domain()?;
    let vmi = open(&domain)?;
    let mut events = vmi.events()?;
    events.set(Trap::processor(Watch::ControlRegister { register: ControlRegister::Cr3, on_change: true }))?;
    let one = "i=0; while [ $i -lt 10 ]; do /bin/busybox true; usleep 10000; i=$((i + 1)); done";
    let running = domain.start(&format!("taskset 1 sh -c '{one}' & other=$!; taskset 2 sh -c '{one}'; wait $other"))?;
    let (mut last, mut told): (BTreeMap<u32, u64>, [usize; 2]) = Default::default();
    serve(&mut events, &running, |event| {
        let What::Processor(Incident::ControlRegister { register: ControlRegister::Cr3, new, old }) = event.what() else {
            bail!("{:?}", event.what());
        };
        let vcpu = event.vcpu().0;
        let before = last.insert(vcpu, new);
        ensure!(
            before.is_none_or(|before| before == old),
            "vCPU {vcpu}: after {before:x?} came {old:#x} -> {new:#x}: one was lost"
        );
        told[vcpu as usize] += 1;
        Ok(())
    })?;
    drop(events);
    running.finish(PATIENCE)?;
    println!("{told:?} changes of CR3, each from where the one before on that vCPU led to");
    ensure!(told.iter().all(|count| *count >= 20), "{told:?}");
    domain.answers(PATIENCE)
}

/// Xen emulates what is below a breakpoint here, as the other vCPU could pass while it is away.
fn breakpoints(context: &Context) -> CheckResult {
    context.vmx()?;
    let domain = domain()?;
    let at = function(&domain)?;
    let vmi = open(&domain)?;
    let mut events = vmi.events()?;
    let id = events.set(Trap::breakpoint(at))?;
    let running = domain.start(&side_by_side([format!("call {TIMES}"), format!("call {TIMES}")]))?;
    let mut told = [0; 2];
    serve(&mut events, &running, |event| {
        ensure!(event.trap() == Some(id) && event.registers().rip == at.get(), "{event:?}");
        told.get_mut(event.vcpu().0 as usize).map(|count| *count += 1).context("no such vCPU")
    })?;
    drop(events);
    running.finish(PATIENCE)?;
    println!("{told:?} of {TIMES} calls each");
    ensure!(told == [TIMES; 2], "{told:?}");
    domain.run("domu call 5").map(drop)
}
