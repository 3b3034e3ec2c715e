//! Prints which CPUID leaves the vCPUs of a running guest ask for, and what they get.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::events::{Detail, Limits, trace, within};
use common::table::Column;
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
        trace(&*guest, &mut events, &args.limits, &args.common, |event| {
            let What::Processor(Incident::Cpuid { leaf, subleaf, .. }) = event.what() else { return None };
            let got = event.registers();
            let [eax, ebx, ecx, edx] = [got.rax, got.rbx, got.rcx, got.rdx].map(|register| register as u32);
            Some(Cpuid { leaf, subleaf, eax, ebx, ecx, edx })
        })
    })
}

#[derive(Serialize)]
struct Cpuid {
    leaf: u32,
    subleaf: u32,
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
}

impl Detail for Cpuid {
    const COLUMNS: &[Column] = &[("leaf", -10), ("subleaf", -10), ("eax", -8), ("ebx", -8), ("ecx", -8), ("edx", -8)];

    fn cells(&self) -> Vec<String> {
        let asked = [self.leaf, self.subleaf].map(|value| format!("{value:#x}"));
        let got = [self.eax, self.ebx, self.ecx, self.edx].map(|value| format!("{value:08x}"));
        asked.into_iter().chain(got).collect()
    }
}
