//! Events of domains with two vCPUs: each is told with its own vCPU, and none is lost.
//!
//! A domain is started by the first of these checks that needs it, and stays.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use vmi::x86::{ControlRegister, Incident, Watch};
use vmi::{Trap, VcpuId, What};

use super::events::{PATIENCE, open, serve};
use super::{Check, CheckResult, breakpoints};
use crate::context::Context;
use crate::domain::Domain;

pub(super) const CHECKS: &[Check] = &[
    Check::new("smp::cpuid_of_each_vcpu_is_told", cpuid).limit(500),
    Check::new("smp::writes_of_cr3_of_each_vcpu_are_told", cr3).limit(300),
    Check::new("smp::what_another_vcpu_could_pass_is_emulated", emulated).limit(500),
];

/// A CPUID leaf that nobody else asks for.
const LEAF: u32 = 0x4fff_ff20;
const TIMES: usize = 60;

fn started(name: &str) -> Result<Domain> {
    let domain = Domain::new(name);
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
    let domain = started("smp")?;
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
    let domain = started("smp")?;
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

/// Where another vCPU could pass a breakpoint or a watched page while it is open, Xen emulates the instruction. It does so by how many vCPUs the domain has; that
/// this guest uses one of them only is for Bochs, in which two that wait for each other by turns do not get through their start.
fn emulated(context: &Context) -> CheckResult {
    context.vmx()?;
    let domain = started("lone")?;
    ensure!(open(&domain)?.driver().domain().info.vcpus == 2);
    breakpoints::calls_in(&domain)?;
    breakpoints::hidden_in(&domain)?;
    breakpoints::accesses_in(&domain)?;
    domain.answers(PATIENCE)
}
