//! Registers of vCPUs, against those that xenctx prints.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use vmi::{ErrorKind, VcpuId, Vcpus as _};

use super::memory::{each, open};
use super::{Check, CheckResult};
use crate::context::Context;
use crate::domain::{Domain, output};
use crate::truth;

pub(super) const CHECKS: &[Check] =
    &[Check::new("registers::xenctx", xenctx), Check::new("registers::set", set), Check::new("registers::vcpus", vcpus)];

/// What xenctx prints of a vCPU: names and values in hexadecimal.
fn printed(domain: &Domain, vcpu: u32) -> Result<BTreeMap<String, u64>> {
    let text = output("xenctx", &["-a", &domain.id()?.to_string(), &vcpu.to_string()])?;
    let mut values = BTreeMap::new();
    let words: Vec<&str> = text.split_whitespace().collect();
    for pair in words.windows(2) {
        if let (Some(name), Some(value)) = (pair[0].strip_suffix(':'), truth::hex(pair[1])) {
            values.entry(name.to_owned()).or_insert(value);
        }
    }
    ensure!(values.len() > 16, "{text}");
    Ok(values)
}

fn xenctx(context: &Context) -> CheckResult {
    each(context, |domain| {
        let vmi = open(domain)?;
        let _paused = vmi.pause()?;
        for vcpu in 0..vmi.driver().vcpu_count() {
            let values = printed(domain, vcpu)?;
            let registers = vmi.registers(VcpuId(vcpu))?;
            let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = registers.general();
            let is_paravirtual = domain.name() == "pv";
            let mut compared = 0;
            for (name, value) in [
                ("rip", Some(registers.rip)),
                ("flags", Some(registers.rflags)),
                ("rax", Some(rax)),
                ("rcx", Some(rcx)),
                ("rdx", Some(rdx)),
                ("rbx", Some(rbx)),
                ("rsp", Some(rsp)),
                ("rbp", Some(rbp)),
                ("rsi", Some(rsi)),
                ("rdi", Some(rdi)),
                ("r8", Some(r8)),
                ("r9", Some(r9)),
                ("r10", Some(r10)),
                ("r11", Some(r11)),
                ("r12", Some(r12)),
                ("r13", Some(r13)),
                ("r14", Some(r14)),
                ("r15", Some(r15)),
                ("cr0", registers.cr0),
                ("cr2", registers.cr2),
                // Of a PV domain xenctx prints the machine address.
                ("cr3", registers.cr3.filter(|_| !is_paravirtual)),
                ("cr4", registers.cr4),
                ("cs", registers.segments.cs.map(|segment| segment.selector.into())),
                ("ss", registers.segments.ss.map(|segment| segment.selector.into())),
                ("ds", registers.segments.ds.map(|segment| segment.selector.into())),
                ("es", registers.segments.es.map(|segment| segment.selector.into())),
            ] {
                let (Some(value), Some(expected)) = (value, values.get(name)) else { continue };
                ensure!(value == *expected, "vCPU {vcpu}: {name} is {value:#x}, xenctx says {expected:#x}\n{registers}");
                compared += 1;
            }
            let mode = registers.paging_mode().context("no paging mode")?;
            println!(
                "{}: vCPU {vcpu}: {compared} registers of {} are the same; {mode:?}, {:?}",
                domain.name(),
                values.len(),
                registers.code_mode()
            );
            ensure!(compared >= 20, "{values:x?}");
            if !is_paravirtual {
                let cs = registers.segments.cs.and_then(|cs| cs.attributes).context("no attributes of CS")?;
                ensure!(cs.contains(vmi::x86::SegmentAttributes::PRESENT | vmi::x86::SegmentAttributes::LONG), "{cs:?}");
            }
        }
        Ok(())
    })
}

/// Registers are set and set back, and nothing else changes.
fn set(context: &Context) -> CheckResult {
    each(context, |domain| {
        let vmi = open(domain)?;
        let paused = vmi.pause()?;
        let before = vmi.registers(VcpuId(0))?;
        let mut wanted = before;
        wanted.rax ^= 0x5555_5555;
        wanted.r15 ^= 0x1234_5678_9abc;
        vmi.set_registers(VcpuId(0), &wanted)?;
        let now = vmi.registers(VcpuId(0))?;
        ensure!(now == wanted, "wanted\n{wanted}\ngot\n{now}");
        ensure!(printed(domain, 0)?["r15"] == wanted.r15);
        vmi.set_registers(VcpuId(0), &before)?;
        ensure!(vmi.registers(VcpuId(0))? == before);
        drop(paused);
        domain.answers(std::time::Duration::from_secs(30))
    })
}

fn vcpus(context: &Context) -> CheckResult {
    each(context, |domain| {
        let vmi = open(domain)?;
        let count = vmi.driver().vcpu_count();
        ensure!(count == if domain.name() == "smp" { 2 } else { 1 }, "{count}");
        let error = vmi.registers(VcpuId(count)).unwrap_err();
        ensure!(matches!(error.kind(), ErrorKind::NoObject { .. }), "{error}");
        let error = vmi.registers(VcpuId(u32::MAX)).unwrap_err();
        ensure!(matches!(error.kind(), ErrorKind::NoObject { .. }), "{error}");
        Ok(())
    })
}
