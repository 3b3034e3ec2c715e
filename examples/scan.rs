//! Finds a byte pattern in the physical memory of a machine, on all processors: one `Vmi` serves every thread.

mod common;

use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Parser;
use common::table::{Column, Row};
use common::text::{Bytes, Hex, ascii, hex};
use common::{Common, EXIT_CODES};
use rayon::prelude::*;
use serde::Serialize;
use vmi::{Memory, PhysAddr, Region};

/// Find a byte pattern in the physical memory of a machine
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  scan 'Linux version ' guest.lime         where this text is
  scan --hex '7f 45 4c 46 02' guest.lime   where 64-bit ELF files start
  scan --json --hex 7f454c46 guest.lime | jq length

{EXIT_CODES}"))]
struct Args {
    /// Text to find
    pattern: String,
    /// The pattern is bytes in hexadecimal
    #[arg(long)]
    hex: bool,
    #[command(flatten)]
    common: Common,
}

/// What one thread searches at a time.
const CHUNK: u64 = 1 << 20;

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let pattern = if args.hex { parse_hex(&args.pattern)? } else { args.pattern.clone().into_bytes() };
        ensure!(!pattern.is_empty(), "the pattern is empty");
        let vmi = args.common.open()?;
        let chunks: Vec<Region> = vmi.machine().memory.regions().iter().flat_map(|&r| chunks(r, pattern.len())).collect();

        let mut table = args.common.table(HitRow::COLUMNS);
        // Some chunks at a time: that keeps the order of addresses, and bounds what is found but not yet printed.
        for batch in chunks.chunks(rayon::current_num_threads() * 4) {
            let hits: Vec<Hits> = batch.par_iter().map(|&chunk| search(&vmi, chunk, &pattern)).collect();
            for hits in hits {
                for at in hits.found {
                    table.row(HitRow::new(&vmi, at))?;
                }
                if let Err(error) = hits.read {
                    table.row::<HitRow>(Err(error))?;
                }
            }
        }
        table.finish()
    })
}

/// Parts of `region` that overlap by one byte less than a pattern of `length` has, so that each match is in exactly one.
fn chunks(region: Region, length: usize) -> impl Iterator<Item = Region> {
    let with_overlap = CHUNK + length as u64 - 1;
    (0..region.len())
        .step_by(CHUNK as usize)
        .filter_map(move |offset| Region::new(region.start().checked_add(offset)?, with_overlap.min(region.len() - offset)))
}

/// What a search found, and whether it saw all of its chunk.
struct Hits {
    found: Vec<PhysAddr>,
    read: vmi::Result<()>,
}

fn search(memory: &impl Memory<Addr = PhysAddr>, chunk: Region, pattern: &[u8]) -> Hits {
    let mut bytes = vec![0; chunk.len() as usize];
    let read = memory.read_into(chunk.start(), &mut bytes);
    if let Err(error) = &read {
        bytes.truncate(error.done());
    }
    let finder = memchr::memmem::Finder::new(pattern);
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(offset) = finder.find(&bytes[from..]) {
        found.push(chunk.start().wrapping_add((from + offset) as u64));
        from += offset + 1; // matches may overlap
    }
    Hits { found, read }
}

/// Bytes of pairs of hexadecimal digits, apart or not.
fn parse_hex(text: &str) -> anyhow::Result<Vec<u8>> {
    let digits: Vec<u32> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).with_context(|| format!("`{c}` is not a hexadecimal digit")))
        .collect::<Result<_, _>>()?;
    ensure!(digits.len().is_multiple_of(2), "a byte takes two hexadecimal digits; `{text}` has {}", digits.len());
    Ok(digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect())
}

/// A match, with what is at and behind it.
#[derive(Serialize)]
struct HitRow {
    physical: Hex,
    bytes: Bytes,
}

impl HitRow {
    const COLUMNS: &[Column] = &[("physical", 18), ("bytes", 48), ("text", 0)];

    fn new(memory: &impl Memory<Addr = PhysAddr>, at: PhysAddr) -> vmi::Result<Self> {
        let mut bytes = vec![0; 16];
        match memory.read_into(at, &mut bytes) {
            // Memory ends here, behind the match.
            Err(error) if error.is_absent() => bytes.truncate(error.done()),
            read => read?,
        }
        Ok(Self { physical: Hex(at.get()), bytes: Bytes(bytes) })
    }
}

impl Row for HitRow {
    fn cells(&self) -> Vec<String> {
        vec![self.physical.to_string(), hex(&self.bytes.0, " "), format!("|{}|", ascii(&self.bytes.0))]
    }
}
