//! Prints which model-specific registers the vCPUs of a running guest write, and with what.

mod common;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use common::events::{Limits, Who, each, within};
use common::table::{Column, Row};
use common::text::{Hex, cell};
use common::{Common, EXIT_CODES};
use serde::Serialize;
use vmi::x86::{Incident, Watch};
use vmi::{Trap, What};

/// Print which model-specific registers the vCPUs of a running guest write, and with what
///
/// Only hypervisors tell of that: Xen does. The vCPU stands still for each write, and the guest runs on however this program ends.
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  msr-trace fs_base,kernel_gs_base xen:web1      by name
  msr-trace 0xc0000080 --on-change xen:web1      by number, only where the value changes
  msr-trace lstar -n 1 xen:web1                  the first write

Names: {}

{EXIT_CODES}", NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")))]
struct Args {
    /// Names or numbers, with commas between them
    registers: String,
    /// Only where the value changes
    #[arg(long)]
    on_change: bool,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    common: Common,
}

/// Intel SDM, volume 4, chapter 2.
const NAMES: &[(&str, u32)] = &[
    ("apic_base", 0x1b),
    ("spec_ctrl", 0x48),
    ("sysenter_cs", 0x174),
    ("sysenter_esp", 0x175),
    ("sysenter_eip", 0x176),
    ("misc_enable", 0x1a0),
    ("debugctl", 0x1d9),
    ("pat", 0x277),
    ("tsc_deadline", 0x6e0),
    ("efer", 0xc000_0080),
    ("star", 0xc000_0081),
    ("lstar", 0xc000_0082),
    ("cstar", 0xc000_0083),
    ("sfmask", 0xc000_0084),
    ("fs_base", 0xc000_0100),
    ("gs_base", 0xc000_0101),
    ("kernel_gs_base", 0xc000_0102),
    ("tsc_aux", 0xc000_0103),
];

fn number(text: &str) -> anyhow::Result<u32> {
    if let Some((_, number)) = NAMES.iter().find(|(name, _)| *name == text.to_ascii_lowercase()) {
        return Ok(*number);
    }
    let digits = text.strip_prefix("0x").with_context(|| format!("{text}: a number with 0x, or a name; see --help"))?;
    u32::from_str_radix(digits, 16).with_context(|| format!("{text}: no number of 32 bits"))
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let vmi = args.common.open()?;
        let guest = args.common.attach(&vmi)?;
        let mut events = vmi.events()?;
        for text in args.registers.split(',') {
            let trap = Trap::processor(Watch::Msr { index: number(text)?, on_change: args.on_change });
            events.set(within(&*guest, trap, args.limits.pid)?)?;
        }
        let mut table = args.common.table(MsrRow::COLUMNS);
        let began = Instant::now();
        each(&mut events, &args.limits, |event| {
            let What::Processor(Incident::Msr { index, new, old }) = event.what() else { return Ok(false) };
            let who = Who::of(&*guest, &event);
            let name = NAMES.iter().find(|(_, number)| u64::from(*number) == index).map(|(name, _)| (*name).to_owned());
            let row = MsrRow {
                microseconds: began.elapsed().as_micros() as u64,
                vcpu: event.vcpu().0,
                msr: Hex(index),
                name,
                old: Hex(old),
                new: Hex(new),
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
struct MsrRow {
    microseconds: u64,
    vcpu: u32,
    msr: Hex,
    name: Option<String>,
    old: Hex,
    new: Hex,
    instruction: Hex,
    symbol: Option<String>,
    pid: Option<u32>,
    process: Option<String>,
}

impl MsrRow {
    const COLUMNS: &[Column] =
        &[("seconds", -9), ("vcpu", -4), ("msr", 14), ("old", 18), ("new", 18), ("instruction", 32), ("pid", -6), ("process", 0)];
}

impl Row for MsrRow {
    fn cells(&self) -> Vec<String> {
        vec![
            format!("{:.6}", self.microseconds as f64 / 1e6),
            self.vcpu.to_string(),
            self.name.clone().unwrap_or_else(|| format!("{:#x}", self.msr.0)),
            self.old.to_string(),
            self.new.to_string(),
            self.symbol.clone().unwrap_or_else(|| self.instruction.to_string()),
            cell(self.pid),
            cell(self.process.clone()),
        ]
    }
}
