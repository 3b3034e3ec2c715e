//! Prints which model-specific registers the vCPUs of a running guest write, and with what.

mod common;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use common::events::{Detail, Limits, trace, within};
use common::table::Column;
use common::text::Hex;
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
        trace(&*guest, &mut events, &args.limits, &args.common, |event| {
            let What::Processor(Incident::Msr { index, new, old }) = event.what() else { return None };
            let name = NAMES.iter().find(|(_, number)| u64::from(*number) == index).map(|(name, _)| *name);
            Some(Write { msr: Hex(index), name, old: Hex(old), new: Hex(new) })
        })
    })
}

#[derive(Serialize)]
struct Write {
    msr: Hex,
    name: Option<&'static str>,
    old: Hex,
    new: Hex,
}

impl Detail for Write {
    const COLUMNS: &[Column] = &[("msr", 14), ("old", 18), ("new", 18)];

    fn cells(&self) -> Vec<String> {
        let msr = self.name.map_or_else(|| format!("{:#x}", self.msr.0), str::to_owned);
        vec![msr, self.old.to_string(), self.new.to_string()]
    }
}
