//! Runs a vCPU of a running guest instruction by instruction, and prints where it goes.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::events::{Limits, place, set_breakpoint, stepping, within};
use common::{Common, EXIT_CODES};
use vmi::{EventAbility, Trap, VcpuId};

/// Run a vCPU of a running guest instruction by instruction, and print where it goes
///
/// Without `--from` it begins wherever the vCPU is, which takes a hypervisor that can do so (Xen on processors of Intel). With it, the first vCPU that comes there is the one that
/// is stepped. The guest runs on however this program ends.
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  step -n 20 xen:web1                            the next 20 instructions of vCPU 0
  step --from do_exit -n 100 qemu:/run/guest.qmp    100 instructions from a function on

{EXIT_CODES}"))]
struct Args {
    /// Begin at this symbol or address; NAME+OFFSET too
    #[arg(long, value_name = "PLACE")]
    from: Option<String>,
    /// Which vCPU, without --from
    #[arg(long, default_value_t = 0, conflicts_with = "from")]
    vcpu: u32,
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
        let trap = match &args.from {
            Some(text) => Trap::breakpoint(place(&*guest, text)?),
            None => {
                anyhow::ensure!(
                    events.abilities().has(EventAbility::Instructions),
                    "this back end cannot step a vCPU from where it is: name a place with --from"
                );
                Trap::instructions(VcpuId(args.vcpu))
            }
        };
        let id = set_breakpoint(&mut events, within(&*guest, trap, args.limits.pid)?)?;
        stepping(&*guest, &mut events, args.from.is_some().then_some(id), &args.limits, &args.common)
    })
}
