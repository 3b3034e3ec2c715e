//! Prints who writes or reads memory of a running guest, each time.

mod common;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use common::events::{Limits, place, watch, within};
use common::{Common, EXIT_CODES};
use vmi::Trap;

/// Print who writes or reads memory of a running guest, each time
///
/// Addresses are virtual. The guest stands still for about a millisecond each time, and runs on however this program ends.
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  watch jiffies -n 5 qemu:/run/guest.qmp                       who counts the kernel's clock
  watch 0x7ffd1000 --pid 4711 --on access qemu:/run/guest.qmp  who touches 8 bytes of a process

{EXIT_CODES}"))]
struct Args {
    /// Symbol or address; NAME+OFFSET too
    place: String,
    /// How many bytes; KVM takes 1, 2, 4 or 8, aligned
    #[arg(long, short, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=4096))]
    length: u64,
    /// What to be told of
    #[arg(long, value_enum, default_value_t = On::Write)]
    on: On,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, ValueEnum)]
enum On {
    Write,
    Read,
    /// Either
    Access,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let vmi = args.common.open()?;
        let guest = args.common.attach(&vmi)?;
        let mut events = vmi.events()?;
        let at = place(&*guest, &args.place)?;
        let trap = match args.on {
            On::Write => Trap::write(at, args.length),
            On::Read => Trap::read(at, args.length),
            On::Access => Trap::access(at, args.length),
        };
        events.set(within(&*guest, trap, args.limits.pid)?)?;
        watch(&*guest, &mut events, &args.limits, &args.common)
    })
}
