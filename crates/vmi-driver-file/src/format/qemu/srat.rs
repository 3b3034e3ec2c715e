//! Which NUMA node has which memory: the ACPI table SRAT (ACPI 6.5, section 5.2.16), in the block of tables that QEMU makes for the guest
//! and the guest cannot write to.

use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

use super::ram::Block;
use crate::image::Input;

/// The memory of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node {
    number: u32,
    /// How much it has.
    pub(super) len: u64,
    /// Behind the last address that it has below 4 GiB, and at all.
    low_end: u64,
    end: u64,
}

const TABLES: &str = "/rom@etc/acpi/tables";
/// More than the tables of any machine.
const LONGEST: u64 = 4 << 20;
/// Signature, length, and more that does not matter here.
const HEADER: usize = 36;
/// What the table has behind its header before the entries.
const RESERVED: usize = 12;
/// Where the memory map of the PC has no RAM below 1 MiB, which QEMU's table leaves out though the node's backend has it.
const LEFT_OUT: u64 = 0x6_0000;
const FOUR_GIB: u64 = 4 << 30;

/// The nodes with memory, by number; none if there is no such table.
pub(super) fn nodes(input: Input<'_>, blocks: &[Block]) -> Vec<Node> {
    let Some(block) = blocks.iter().find(|block| block.name == TABLES && block.len <= LONGEST) else { return Vec::new() };
    let tables = block.content(input.source);
    let mut rest = tables.as_slice();
    while let Some((signature, behind)) = rest.split_first_chunk::<4>()
        && let Ok((len, _)) = U32::read_from_prefix(behind)
        && let Some((table, next)) = rest.split_at_checked(len.get() as usize)
        && !table.is_empty()
    {
        if signature == b"SRAT" {
            return of_table(table);
        }
        rest = next;
    }
    Vec::new()
}

fn of_table(table: &[u8]) -> Vec<Node> {
    const MEMORY: u8 = 1;
    const ENABLED: u32 = 1;
    const PLUGGABLE: u32 = 2;
    let mut nodes: Vec<Node> = Vec::new();
    let mut rest = table.get(HEADER.saturating_add(RESERVED)..).unwrap_or_default();
    while let Some((&[kind, len], _)) = rest.split_first_chunk::<2>()
        && let Some((entry, next)) = rest.split_at_checked(usize::from(len))
        && !entry.is_empty()
    {
        rest = next;
        let word = |at: usize| Some(U32::read_from_prefix(entry.get(at..)?).ok()?.0.get());
        let long = |at: usize| Some(U64::read_from_prefix(entry.get(at..)?).ok()?.0.get());
        let (Some(number), Some(start), Some(len), Some(flags)) = (word(2), long(8), long(16), word(28)) else { continue };
        if kind != MEMORY || flags & (ENABLED | PLUGGABLE) != ENABLED || len == 0 {
            continue;
        }
        let end = start.saturating_add(len);
        let low_end = if start < FOUR_GIB { end } else { 0 };
        // The memory that is left out is in front of this.
        let len = if start == 0x10_0000 { len.saturating_add(LEFT_OUT) } else { len };
        match nodes.iter_mut().find(|node| node.number == number) {
            Some(node) => {
                node.len = node.len.saturating_add(len);
                node.low_end = node.low_end.max(low_end);
                node.end = node.end.max(end);
            }
            None => nodes.push(Node { number, len, low_end, end }),
        }
    }
    nodes.sort_by_key(|node| node.number);
    nodes
}

/// How much memory they have below 4 GiB and from there on; `None` if there are no nodes.
pub(super) fn end(nodes: &[Node]) -> Option<(u64, u64)> {
    let low = nodes.iter().map(|node| node.low_end).max()?;
    let end = nodes.iter().map(|node| node.end).max()?;
    Some((low, end.saturating_sub(FOUR_GIB)))
}
