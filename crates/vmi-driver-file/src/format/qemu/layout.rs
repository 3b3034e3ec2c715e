//! Where QEMU's memory blocks are in the guest-physical address space. The stream does not say it, but it has what QEMU tells the guest:
//!
//! - how much RAM is below and above 4 GiB stands in the CMOS of the clock (QEMU, hw/i386/pc.c, `pc_cmos_init`), which a guest could
//!   overwrite, so that it counts only where the sum is that of the blocks;
//! - which NUMA node has which RAM stands in the ACPI table SRAT, which is a block of its own;
//! - else the machine type has a rule: `q35` ends low RAM at 2 GiB if there are 2.75 GiB or more, all others at 3 GiB if there are 3.5 GiB or more
//!   (hw/i386/pc_q35.c, pc_piix.c, microvm.c); the rest is from 4 GiB on.
//!
//! A map that the user gives wins; its offsets count in the RAM of all blocks, one behind the other in the order of their places.

use vmi_core::{PhysAddr, Region};

use super::devices::Devices;
use super::page_runs::PAGE;
use super::ram::Block;
use super::srat;
use super::stream::Stream;
use crate::FormatError;
use crate::image::Input;

/// A part of a block, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) region: Region,
    /// Index of the block.
    pub(super) block: usize,
    /// Of the part within the block.
    pub(super) offset: u64,
}

const FOUR_GIB: u64 = 4 << 30;
const MIB: u64 = 1 << 20;
/// Where the display adapter's window hides RAM from the processor. Without an adapter there is RAM (`info mtree -f` of QEMU 7.2 and 10.0).
const WINDOW: (u64, u64) = (0xa_0000, 0xc_0000);

/// RAM below 4 GiB and from there on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Split {
    low: u64,
    high: u64,
}

/// The places of all RAM, in the order of addresses.
pub(super) fn places(stream: &Stream, devices: &Devices, input: Input<'_>) -> Result<Vec<Place>, FormatError> {
    let blocks = &stream.ram.blocks;
    let mut ram: Vec<usize> = (0..blocks.len()).filter(|&index| blocks.get(index).is_some_and(is_ram)).collect();
    let machine = stream.machine.as_deref().unwrap_or_default();
    if ram.is_empty() {
        let names: Vec<&str> = blocks.iter().take(20).map(|block| block.name.as_str()).collect();
        let what = format!("none of the memory blocks of the machine `{machine}` is RAM of the x86 family: {}", names.join(", "));
        return Err(FormatError::Malformed { offset: 0, what });
    }
    ram.sort_by_key(|&index| blocks.get(index).map(order));
    let nodes = if ram.len() > 1 { srat::nodes(input, blocks) } else { Vec::new() };
    by_node(&mut ram, blocks, &nodes);
    let len = |index: &usize| blocks.get(*index).map_or(0, |block| block.len);
    let total = ram.iter().fold(0u64, |sum, index| sum.saturating_add(len(index)));
    if let Some(map) = &input.options.raw_map {
        return Ok(place(blocks, &ram, map.pieces().iter().map(|piece| (piece.region, piece.offset))));
    }
    let told = srat::end(&nodes).or_else(|| cmos(devices)).map(|(low, high)| Split { low, high });
    // Memory that was plugged in later is behind what the machine was started with, at a place that is not told.
    let split = told.filter(|split| {
        let mut sum = 0u64;
        let started = split.low.saturating_add(split.high);
        ram.iter().any(|index| {
            sum = sum.saturating_add(len(index));
            sum == started
        })
    });
    let split = split.unwrap_or_else(|| {
        if machine.is_empty() {
            tracing::warn!("the stream does not tell its machine type: memory is taken for that of a `pc`");
        }
        rule(machine, total)
    });
    if split.low.saturating_add(split.high) < total {
        tracing::warn!("memory that was plugged in while the machine ran is left out: the stream does not tell its address");
    }
    let has_window = blocks.iter().any(|block| block.name.contains("vga"));
    let (window, behind) = if has_window { WINDOW } else { (split.low, split.low) };
    let runs = [
        (0, window.min(split.low), 0),
        (behind, split.low.max(behind), behind),
        (FOUR_GIB, FOUR_GIB.saturating_add(split.high), split.low),
    ];
    let runs = runs
        .into_iter()
        .filter_map(|(start, end, offset)| Some((Region::new(PhysAddr::new(start), end.checked_sub(start)?)?, offset)));
    Ok(place(blocks, &ram, runs))
}

/// Whether the block is RAM of the machine. Blocks of devices have the device's path in front of their names, or one of a few names.
fn is_ram(block: &Block) -> bool {
    let name = block.name.strip_prefix("/objects/").unwrap_or(&block.name);
    let of_a_device = ["pc.bios", "pc.rom", "isa-bios", "tpm-ppi"].contains(&name)
        || ["system.flash", "vga."].iter().any(|start| name.starts_with(start))
        || name.contains('/')
        || name.ends_with(".rom");
    !of_a_device
}

/// RAM without a backend first; backends by their names, in which numbers count as such (`ram2` before `ram10`).
fn order(block: &Block) -> (bool, String, u64) {
    let stem = block.name.trim_end_matches(|character: char| character.is_ascii_digit());
    let number = block.name.get(stem.len()..).and_then(|digits| digits.parse().ok());
    (!block.name.ends_with(".ram"), stem.to_owned(), number.unwrap_or(0))
}

/// Brings the blocks into the order of the nodes with their sizes, if each has one.
fn by_node(ram: &mut Vec<usize>, blocks: &[Block], nodes: &[srat::Node]) {
    let mut rest = ram.clone();
    let mut sorted = Vec::new();
    for node in nodes {
        let Some(at) = rest.iter().position(|&index| blocks.get(index).is_some_and(|block| block.len == node.len)) else {
            return;
        };
        sorted.push(rest.remove(at));
    }
    sorted.append(&mut rest);
    *ram = sorted;
}

/// What the clock's CMOS says: units of 64 KiB above 16 MiB in bytes 0x34 and 0x35, and above 4 GiB in bytes 0x5b to 0x5d.
fn cmos(devices: &Devices) -> Option<(u64, u64)> {
    let clock = devices.all("mc146818rtc").next()?;
    let bytes = clock.bytes("cmos_data")?;
    let byte = |at: usize| bytes.get(at).copied().map(u64::from);
    let low = byte(0x34)? | byte(0x35)? << 8;
    let high = byte(0x5b)? | byte(0x5c)? << 8 | byte(0x5d)? << 16;
    (low != 0).then(|| ((low << 16).saturating_add(16 * MIB), high << 16))
}

/// Where the machine type ends low RAM.
fn rule(machine: &str, total: u64) -> Split {
    let (least, end) = if machine.contains("q35") { (0xb000_0000, 0x8000_0000) } else { (0xe000_0000, 0xc000_0000) };
    let low = if total >= least { end } else { total };
    Split { low, high: total.saturating_sub(low) }
}

/// Cuts runs, told by where they are and where they start in all RAM, at the ends of blocks.
fn place(blocks: &[Block], ram: &[usize], runs: impl Iterator<Item = (Region, u64)>) -> Vec<Place> {
    let mut places = Vec::new();
    for (run, from) in runs {
        let to = from.saturating_add(run.len());
        let mut start = 0u64;
        for &index in ram {
            let Some(block) = blocks.get(index) else { continue };
            let end = start.saturating_add(block.len);
            let (low, high) = (from.max(start), to.min(end));
            let at = run.start().checked_add(low.saturating_sub(from));
            let region = at.and_then(|at| Region::new(at, high.checked_sub(low)? & !(PAGE - 1)));
            places.extend(region.map(|region| Place { region, block: index, offset: low.saturating_sub(start) }));
            start = end;
        }
    }
    places.sort_by_key(|place| place.region.start());
    places
}
