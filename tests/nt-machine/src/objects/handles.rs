//! Handle tables of one, two and three levels, and `PspCidTable`.
//!
//! `_HANDLE_TABLE.TableCode` holds the level in its low two bits. A page of the lowest level holds 256 (x64) or 512 (x86) entries, and a handle is the
//! number of its entry times four (Russinovich et al., "Windows Internals", part 2, "Object handles and the process handle table"). Entry formats:
//! `_HANDLE_TABLE_ENTRY` in the public symbols; before Windows 8 a pointer whose low bits are attributes, the lowest one set when the entry is not locked.

use std::collections::BTreeMap;

use super::ground::{Ground, Writing};
use super::spec::Handle;

const PAGE: u64 = 0x1000;
/// The largest right that a handle's entry can hold since Windows 8 (25 bits).
const ACCESS: u64 = 0x01FF_FFFF;

/// How an entry is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// A pointer with attributes in its low bits, then the rights.
    Pointer,
    /// 44 bits of the pointer at bit 20.
    Packed64,
    /// 29 bits of the pointer at bit 3.
    Packed32,
}

fn format(ground: &impl Ground) -> Format {
    match (ground.build_number() >= 9200, ground.is_64_bit()) {
        (false, _) => Format::Pointer,
        (true, true) => Format::Packed64,
        (true, false) => Format::Packed32,
    }
}

/// The bytes of an entry.
fn entry(ground: &impl Ground, target: u64, access: u32, attributes: u8) -> Vec<u8> {
    let (access, attributes) = (u64::from(access), u64::from(attributes));
    let (low, high) = match format(ground) {
        // Attributes: inherit is bit 1, audit bit 2. Bit 0 says that the entry is not locked; protection from being closed lies above the rights.
        Format::Pointer => (target | attributes & 6 | 1, access | (attributes & 1) << 25),
        Format::Packed64 => ((target >> 4) << 20 | (attributes & 7) << 17 | 0x7FFF << 1 | 1, access & ACCESS),
        Format::Packed32 => (target & !7 | attributes & 6 | 1, access & ACCESS | (attributes & 1) << 25),
    };
    let mut bytes = Vec::new();
    for word in [low, high] {
        bytes.extend_from_slice(&word.to_le_bytes()[..ground.pointer() as usize]);
    }
    bytes
}

/// Writes a table with these entries, of at least this level, and returns its `_HANDLE_TABLE`. As in NT, all pages before the last one are there, used or
/// not.
fn write_table(ground: &mut impl Ground, entries: &BTreeMap<u32, Vec<u8>>, level: u8, owner: u64, pid: u32) -> u64 {
    let pointer = ground.pointer();
    let (each, per_page, per_table) = (2 * pointer, PAGE / (2 * pointer), PAGE / pointer);
    let highest = u64::from(entries.keys().last().copied().unwrap_or(0)) / 4;
    let needed = if highest < per_page {
        0
    } else if highest < per_page * per_table {
        1
    } else {
        2
    };
    let level = level.max(needed);
    let mut leaves: BTreeMap<u64, u64> = BTreeMap::new();
    for (handle, bytes) in entries {
        let number = u64::from(*handle) / 4;
        let leaf = *leaves.entry(number / per_page).or_insert_with(|| ground.allocate(b"Obtb", PAGE));
        ground.write(leaf + number % per_page * each, bytes);
    }
    for nth in 0..=highest / per_page {
        leaves.entry(nth).or_insert_with(|| ground.allocate(b"Obtb", PAGE));
    }
    let top = match level {
        0 => leaves[&0],
        1 => {
            let table = ground.allocate(b"Obtb", PAGE);
            for (nth, leaf) in &leaves {
                ground.put_pointer(table + nth * pointer, *leaf);
            }
            table
        }
        _ => {
            let table = ground.allocate(b"Obtb", PAGE);
            for (nth, leaf) in &leaves {
                let slot = table + nth / per_table * pointer;
                let mut middle = ground.get_pointer(slot);
                if middle == 0 {
                    middle = ground.allocate(b"Obtb", PAGE);
                    ground.put_pointer(slot, middle);
                }
                ground.put_pointer(middle + nth % per_table * pointer, *leaf);
            }
            table
        }
    };
    let size = ground.size_of("_HANDLE_TABLE");
    let table = ground.allocate(b"Obtb", size);
    ground.fill_pointer("_HANDLE_TABLE", "TableCode", table, top | u64::from(level));
    ground.fill_pointer("_HANDLE_TABLE", "QuotaProcess", table, owner);
    let width = if ground.build_number() < 9200 { pointer } else { 4 };
    ground.fill("_HANDLE_TABLE", "UniqueProcessId", table, u64::from(pid), width);
    ground.fill("_HANDLE_TABLE", "HandleCount", table, entries.len() as u64, 4);
    let next = (leaves.keys().last().copied().unwrap_or(0) + 1) * per_page * 4;
    ground.fill("_HANDLE_TABLE", "NextHandleNeedingPool", table, next, 4);
    table
}

/// Writes the handle table of a process.
pub fn write_handles(ground: &mut impl Ground, handles: &[Handle], level: u8, owner: u64, pid: u32) -> u64 {
    let body = ground.at("_OBJECT_HEADER", "Body");
    let entries = handles
        .iter()
        .map(|handle| (handle.value, entry(ground, handle.object - body, handle.access, handle.attributes)))
        .collect();
    let table = write_table(ground, &entries, level, owner, pid);
    if let (Some(head), Some(link)) =
        (ground.variable("HandleTableListHead", 2 * ground.pointer()), ground.find("_HANDLE_TABLE", "HandleTableList"))
    {
        ground.list_append(head, table + link);
    }
    table
}

/// Writes `PspCidTable`: process and thread objects by their identifiers. Its entries hold the objects themselves, not their headers.
pub fn write_cid_table(ground: &mut impl Ground, objects: &BTreeMap<u32, u64>) -> u64 {
    let entries = objects.iter().map(|(id, object)| (*id, entry(ground, *object, 0, 0))).collect();
    let table = write_table(ground, &entries, 0, 0, 0);
    let variable = ground.variable("PspCidTable", ground.pointer());
    if let Some(variable) = variable {
        ground.put_pointer(variable, table);
    }
    table
}
