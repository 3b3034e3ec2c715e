//! Prints which CPUID leaves the vCPUs of a running guest ask for, and what they get.

mod common;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use common::events::{Limits, Who, each, within};
use common::table::{Column, Row};
use common::text::{Hex, cell};
use common::{Common, EXIT_CODES};
use serde::Serialize;
use vmi::x86::{Incident, Watch};
use vmi::{Trap, What};

/// Print which CPUID leaves the vCPUs of a running guest ask for, and what they get
///
/// Only hypervisors tell of that: Xen does. The vCPU stands still for each instruction, and the guest runs on however this program ends.
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  cpuid-trace --seconds 10 xen:web1       who asks for what
  cpuid-trace --pid 4711 xen:web1         in one process

{EXIT_CODES}"))]
struct Args {
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let vmi = args.common.open()?;
        let guest = args.common.attach(&vmi)?;
        let mut events = vmi.events()?;
        events.set(within(&*guest, Trap::processor(Watch::Cpuid), args.limits.pid)?)?;
        let mut table = args.common.table(CpuidRow::COLUMNS);
        let began = Instant::now();
        each(&mut events, &args.limits, |event| {
            let What::Processor(Incident::Cpuid { leaf, subleaf, .. }) = event.what() else { return Ok(false) };
            let who = Who::of(&*guest, &event);
            let registers = event.registers();
            let row = CpuidRow {
                microseconds: began.elapsed().as_micros() as u64,
                vcpu: event.vcpu().0,
                leaf,
                subleaf,
                eax: registers.rax as u32,
                ebx: registers.rbx as u32,
                ecx: registers.rcx as u32,
                edx: registers.rdx as u32,
                instruction: who.instruction,
                symbol: who.symbol,
                pid: who.pid,
                process: who.process,
            };
            drop(event); // the guest runs on before the row is printed
            table.row(Ok(row))?;
            table.show()?;
            Ok(true)
        })?;
        table.finish()
    })
}

#[derive(Serialize)]
struct CpuidRow {
    microseconds: u64,
    vcpu: u32,
    leaf: u32,
    subleaf: u32,
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
    instruction: Hex,
    symbol: Option<String>,
    pid: Option<u32>,
    process: Option<String>,
}

impl CpuidRow {
    const COLUMNS: &[Column] = &[
        ("seconds", -9),
        ("vcpu", -4),
        ("leaf", -10),
        ("subleaf", -10),
        ("eax", -8),
        ("ebx", -8),
        ("ecx", -8),
        ("edx", -8),
        ("instruction", 32),
        ("pid", -6),
        ("process", 0),
    ];
}

impl Row for CpuidRow {
    fn cells(&self) -> Vec<String> {
        let result = |value: u32| format!("{value:08x}");
        vec![
            format!("{:.6}", self.microseconds as f64 / 1e6),
            self.vcpu.to_string(),
            format!("{:#x}", self.leaf),
            format!("{:#x}", self.subleaf),
            result(self.eax),
            result(self.ebx),
            result(self.ecx),
            result(self.edx),
            self.symbol.clone().unwrap_or_else(|| self.instruction.to_string()),
            cell(self.pid),
            cell(self.process.clone()),
        ]
    }
}
