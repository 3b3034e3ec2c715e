//! Prints who runs an instruction of a running guest, each time that it is run.

mod common;

use std::process::ExitCode;

use clap::Parser;
use common::events::{Limits, place, set_breakpoint, watch, within};
use common::{Common, EXIT_CODES};
use vmi::Trap;

/// Print who runs an instruction of a running guest, each time that it is run
///
/// The guest stands still for about a millisecond each time. It runs on, with its code as it was, however this program ends.
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  break-on do_exit qemu:/run/guest.qmp                     which process ends
  break-on __x64_sys_execve,__x64_sys_kill qemu:4711       two system calls, by the process id of QEMU
  break-on do_exit --registers -n 1 qemu:/run/guest.qmp    all registers, once
  break-on --hardware do_exit gdb:localhost:1234           by a debug register or not at all

{EXIT_CODES}"))]
struct Args {
    /// Symbols or addresses, with commas between them; NAME+OFFSET too
    places: String,
    /// Fail where debug registers do not suffice (KVM has four); else INT3 is written into the guest's code for what is left
    #[arg(long)]
    hardware: bool,
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
        for text in args.places.split(',') {
            let trap = within(&*guest, Trap::breakpoint(place(&*guest, text)?), args.limits.pid)?;
            if args.hardware { events.set(trap.hardware()) } else { set_breakpoint(&mut events, trap) }?;
        }
        watch(&*guest, &mut events, &args.limits, &args.common)
    })
}
