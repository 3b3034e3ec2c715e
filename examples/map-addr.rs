//! Dumps memory at a virtual or physical address, and shows how the address is translated.

mod common;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use common::table::{Column, Row};
use common::text::{Bytes, Hex, cell, hexdump, size};
use common::{Common, EXIT_CODES};
use serde::Serialize;
use vmi::{AnyDriver, Guest, Memory, PAGE_SIZE, PhysAddr, Translation, VirtAddr, Vmi};

/// Dump memory at an address, and show how the address is translated
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  map-addr 0xffffffff82000000 guest.lime       256 bytes of the kernel's memory
  map-addr 0x400000 --pid 1 guest.lime         of process 1
  map-addr 0x1000 --physical -l 16 guest.lime  of guest-physical memory, of whatever system

{EXIT_CODES}"))]
struct Args {
    /// First address: decimal, or hexadecimal with 0x
    address: VirtAddr,
    /// How many bytes
    #[arg(long, short, value_name = "COUNT", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    length: u64,
    /// The address is one of this process, not of the kernel
    #[arg(long)]
    pid: Option<u32>,
    /// The address is guest-physical
    #[arg(long, conflicts_with = "pid")]
    physical: bool,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let vmi = args.common.open()?;
        let guest = if args.physical { None } else { Some(args.common.attach(&vmi)?) };
        let last = args.address.checked_add(args.length - 1).context("the range leaves the address space")?;
        let mut table = args.common.table(PageRow::COLUMNS);
        let mut at = args.address;
        loop {
            // One row a page: that is what translation goes by.
            let length = (PAGE_SIZE - at.page_offset()).min(last.get() - at.get() + 1);
            table.row(match &guest {
                Some(guest) => PageRow::of_virtual(&**guest, args.pid, at, length),
                None => PageRow::of_physical(&vmi, PhysAddr::new(at.get()), length),
            })?;
            match at.checked_add(length) {
                Some(next) if next <= last => at = next,
                _ => return table.finish(),
            }
        }
    })
}

#[derive(Serialize)]
struct PageRow {
    address: Hex,
    physical: Hex,
    page_size: Option<u64>,
    rights: Option<String>,
    bytes: Bytes,
}

impl PageRow {
    const COLUMNS: &[Column] = &[("address", 18), ("physical", 18), ("page", 9), ("rights", 6)];

    fn of_virtual(guest: &dyn Guest, pid: Option<u32>, at: VirtAddr, length: u64) -> vmi::Result<Self> {
        let translation = guest.translate(pid, at)?;
        let mut bytes = vec![0; length as usize];
        guest.read_virtual(pid, at, &mut bytes)?;
        Ok(Self::new(at.get(), translation.at, Some(translation), bytes))
    }

    fn of_physical(vmi: &Vmi<AnyDriver>, at: PhysAddr, length: u64) -> vmi::Result<Self> {
        Ok(Self::new(at.get(), at, None, vmi.read_vec(at, length as usize)?))
    }

    fn new(at: u64, physical: PhysAddr, translation: Option<Translation>, bytes: Vec<u8>) -> Self {
        Self {
            address: Hex(at),
            physical: Hex(physical.get()),
            page_size: translation.map(Translation::page_size),
            rights: translation.map(|translation| translation.access.to_string()),
            bytes: Bytes(bytes),
        }
    }
}

impl Row for PageRow {
    fn cells(&self) -> Vec<String> {
        vec![self.address.to_string(), self.physical.to_string(), cell(self.page_size.map(size)), cell(self.rights.as_ref())]
    }

    fn below(&self) -> String {
        hexdump(self.address.0, &self.bytes.0)
    }
}
