//! Writes into the memory of a running guest.

mod common;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::{ArgGroup, Parser};
use common::table::{Column, Row};
use common::text::{Bytes, Hex, hexdump};
use common::{Common, EXIT_CODES};
use serde::Serialize;
use vmi::{AnyDriver, Guest, Memory, PAGE_SIZE, PhysAddr, VirtAddr, Vmi};

/// Write into the memory of a running guest
///
/// Shows what is there and what would be, and asks; without a terminal it needs --yes. The guest stands still from the first byte to the last. Code that TCG
/// has translated already is not translated anew.
#[derive(Parser)]
#[command(group = ArgGroup::new("data").required(true), after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  write-memory 0x1000 --physical --hex '90 90' qemu:/run/guest.qmp       two bytes of guest-physical memory
  write-memory 0x7ffd1000 --pid 4711 --text hello qemu:/run/guest.qmp    five of a process
  write-memory panic_timeout --hex 05000000 --yes qemu:/run/guest.qmp    a variable of the kernel

{EXIT_CODES}"))]
struct Args {
    /// First address, or a symbol
    place: String,
    /// Bytes to write, two hexadecimal digits each; spaces do not matter
    #[arg(long, group = "data")]
    hex: Option<String>,
    /// Text to write, without an end
    #[arg(long, group = "data")]
    text: Option<String>,
    /// The address is one of this process, not of the kernel
    #[arg(long)]
    pid: Option<u32>,
    /// The address is guest-physical
    #[arg(long, conflicts_with = "pid")]
    physical: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let data = match (&args.hex, &args.text) {
            (Some(hex), _) => bytes(hex)?,
            (_, Some(text)) => text.clone().into_bytes(),
            _ => bail!("nothing to write"),
        };
        ensure!(!data.is_empty(), "nothing to write");
        let vmi = args.common.open()?;
        let guest = if args.physical { None } else { Some(args.common.attach(&vmi)?) };
        let _paused = vmi.pause()?;
        let parts = parts(&args, guest.as_deref(), data)?;
        for part in &parts {
            part.show(&vmi)?;
        }
        if !args.yes {
            ensure!(std::io::stdin().is_terminal(), "nothing was written: --yes says that it is to be");
            eprint!("write this? [y/N] ");
            std::io::stderr().flush()?;
            let mut answer = String::new();
            std::io::stdin().read_line(&mut answer)?;
            ensure!(matches!(answer.trim(), "y" | "Y" | "yes"), "nothing was written");
        }
        let mut table = args.common.table(WrittenRow::COLUMNS);
        for part in parts {
            let mut before = vec![0; part.data.len()];
            vmi.read_into(part.physical, &mut before)?;
            vmi.write(part.physical, &part.data)?;
            table.row(Ok(WrittenRow {
                address: Hex(part.at),
                physical: Hex(part.physical.get()),
                before: Bytes(before),
                after: Bytes(part.data),
            }))?;
        }
        table.finish()
    })
}

fn bytes(text: &str) -> anyhow::Result<Vec<u8>> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    ensure!(digits.len().is_multiple_of(2), "--hex {text}: two digits for each byte");
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16);
    digits
        .chunks(2)
        .map(byte)
        .collect::<Result<_, _>>()
        .with_context(|| format!("--hex {text}: two hexadecimal digits for each byte"))
}

/// What goes into one page.
struct Part {
    at: u64,
    physical: PhysAddr,
    data: Vec<u8>,
}

/// Where all of the data goes; nothing is written if a part of it has no place.
fn parts(args: &Args, guest: Option<&dyn Guest>, data: Vec<u8>) -> anyhow::Result<Vec<Part>> {
    let start = match guest {
        Some(guest) => common::events::place(guest, &args.place)?,
        None => args.place.parse().with_context(|| format!("{}: no address", args.place))?,
    };
    let mut parts = Vec::new();
    let mut rest = data.as_slice();
    let mut at: VirtAddr = start;
    while !rest.is_empty() {
        let (part, behind) = rest.split_at(rest.len().min((PAGE_SIZE - at.page_offset()) as usize));
        let physical = match guest {
            Some(guest) => guest.translate(args.pid, at)?.at,
            None => PhysAddr::new(at.get()),
        };
        parts.push(Part { at: at.get(), physical, data: part.to_vec() });
        at = at.checked_add(part.len() as u64).context("the range leaves the address space")?;
        rest = behind;
    }
    Ok(parts)
}

impl Part {
    fn show(&self, vmi: &Vmi<AnyDriver>) -> anyhow::Result<()> {
        let before = vmi.read_vec(self.physical, self.data.len())?;
        eprint!("is:\n{}will be:\n{}", hexdump(self.at, &before), hexdump(self.at, &self.data));
        Ok(())
    }
}

#[derive(Serialize)]
struct WrittenRow {
    address: Hex,
    physical: Hex,
    before: Bytes,
    after: Bytes,
}

impl WrittenRow {
    const COLUMNS: &[Column] = &[("address", 18), ("physical", 18), ("bytes", -6)];
}

impl Row for WrittenRow {
    fn cells(&self) -> Vec<String> {
        vec![self.address.to_string(), self.physical.to_string(), self.after.0.len().to_string()]
    }
}
