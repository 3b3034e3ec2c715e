//! Prints who touches pages of a running guest's memory, and how.

mod common;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use common::events::{Detail, Limits, place, trace, within};
use common::table::Column;
use common::text::{Hex, cell};
use common::{Common, EXIT_CODES};
use serde::Serialize;
use vmi::{AccessOrigin, Accesses, Guest, PhysAddr, Trap, What};

/// Print who touches memory of a running guest, and how
///
/// The hypervisor watches whole guest-physical pages, whichever address leads there; only accesses of the bytes that are asked for are printed. Xen does that
/// on processors of Intel. The vCPU stands still for each access, and the guest runs on however this program ends.
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  memory-access-trace init_task --length 4096 -n 20 xen:web1    by symbol
  memory-access-trace 0x401000 --pid 4711 --on x xen:web1       what a process executes
  memory-access-trace --physical 0x1000 --on w xen:web1         by guest-physical address

{EXIT_CODES}"))]
struct Args {
    /// Symbol or virtual address; NAME+OFFSET too
    place: String,
    /// The address is guest-physical
    #[arg(long)]
    physical: bool,
    /// How many bytes
    #[arg(long, short, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    length: u64,
    /// Which accesses: some of the letters r, w, x
    #[arg(long, default_value = "rw")]
    on: String,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    common: Common,
}

fn accesses(letters: &str) -> anyhow::Result<Accesses> {
    letters.chars().try_fold(Accesses::NONE, |all, letter| {
        Ok(all.or(match letter {
            'r' => Accesses::READ,
            'w' => Accesses::WRITE,
            'x' => Accesses::EXECUTE,
            other => anyhow::bail!("no access `{other}`: r, w, x"),
        }))
    })
}

/// The guest-physical pieces of the range.
fn pieces(args: &Args, guest: &dyn Guest) -> anyhow::Result<Vec<(PhysAddr, u64)>> {
    if args.physical {
        let at: PhysAddr = args.place.parse().with_context(|| format!("{}: no guest-physical address", args.place))?;
        return Ok(vec![(at, args.length)]);
    }
    let at = place(guest, &args.place)?;
    let mut pieces = Vec::new();
    let mut done = 0;
    while done < args.length {
        let at = at.checked_add(done).context("the range leaves the address space")?;
        let physical = guest.translate(args.limits.pid, at)?.at;
        let len = (4096 - physical.get() % 4096).min(args.length - done);
        pieces.push((physical, len));
        done += len;
    }
    Ok(pieces)
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let vmi = args.common.open()?;
        let guest = args.common.attach(&vmi)?;
        let mut events = vmi.events()?;
        for (at, len) in pieces(&args, &*guest)? {
            events.set(within(&*guest, Trap::memory(at, len, accesses(&args.on)?), args.limits.pid)?)?;
        }
        trace(&*guest, &mut events, &args.limits, &args.common, |event| {
            let What::Memory(access) = event.what() else { return None };
            Some(Access {
                access: access.kinds.to_string(),
                physical: Hex(access.at.get()),
                address: access.linear.map(|at| Hex(at.get())),
                by: access.origin.map(|origin| match origin {
                    AccessOrigin::Walk => "page walk",
                    AccessOrigin::Linear => "address",
                }),
            })
        })
    })
}

#[derive(Serialize)]
struct Access {
    access: String,
    physical: Hex,
    address: Option<Hex>,
    by: Option<&'static str>,
}

impl Detail for Access {
    const COLUMNS: &[Column] = &[("access", 6), ("physical", 18), ("address", 18), ("by", 9)];

    fn cells(&self) -> Vec<String> {
        let address = self.address.map(|at| at.to_string());
        vec![self.access.clone(), self.physical.to_string(), cell(address), cell(self.by)]
    }
}
