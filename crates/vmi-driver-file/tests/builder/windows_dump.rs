//! Windows crash dumps, from DUMP_HEADER32 and DUMP_HEADER64 of Microsoft's documentation.

use std::collections::BTreeMap;

/// Pages by their number.
pub type Pages = BTreeMap<u64, Vec<u8>>;

/// The header, all of it filled as the kernel fills it before it sets fields.
pub fn header(long: bool, kind: u32, directory_table_base: u64) -> Vec<u8> {
    let mut bytes = b"PAGE".repeat(if long { 0x800 } else { 0x400 });
    if long {
        bytes[4..8].copy_from_slice(b"DU64");
        put(&mut bytes, 8, &[15u32.to_le_bytes(), 19041u32.to_le_bytes()].concat());
        put64(&mut bytes, 0x10, directory_table_base);
        put64(&mut bytes, 0x18, 0xffff_f804_1111_0000);
        put64(&mut bytes, 0x20, 0xffff_f804_2222_0000);
        put64(&mut bytes, 0x28, 0xffff_f804_3333_0000);
        put32(&mut bytes, 0x30, 0x8664);
        put32(&mut bytes, 0x34, 16);
        put32(&mut bytes, 0x38, 0x1000_007e);
        (0..4).for_each(|at| put64(&mut bytes, 0x40 + 8 * at, 0x100 + at as u64));
        put64(&mut bytes, 0x80, 0xffff_f804_4444_0000);
        put(&mut bytes, 0x348, &context_64());
        put32(&mut bytes, 0xf00, 0xc000_0005);
        put64(&mut bytes, 0xf10, 0xffff_f804_5555_0000);
        put32(&mut bytes, 0xf98, kind);
        put64(&mut bytes, 0xfa8, 0x01d7_0000_0000_0000);
        put64(&mut bytes, 0x1030, 0x1234_5678);
    } else {
        bytes[4..8].copy_from_slice(b"DUMP");
        put(&mut bytes, 8, &[15u32.to_le_bytes(), 2600u32.to_le_bytes()].concat());
        put32(&mut bytes, 0x10, directory_table_base as u32);
        put32(&mut bytes, 0x14, 0x8111_0000);
        put32(&mut bytes, 0x18, 0x8222_0000);
        put32(&mut bytes, 0x1c, 0x8333_0000);
        put32(&mut bytes, 0x20, 0x14c);
        put32(&mut bytes, 0x24, 1);
        put32(&mut bytes, 0x28, 0x7f);
        (0..4).for_each(|at| put32(&mut bytes, 0x2c + 4 * at, 0x100 + at as u32));
        bytes[0x5c] = 1;
        put32(&mut bytes, 0x60, 0x8444_0000);
        put(&mut bytes, 0x320, &context_32());
        put32(&mut bytes, 0x7d0, 0xc000_0005);
        put32(&mut bytes, 0x7dc, 0x8555_0000);
        put32(&mut bytes, 0xf88, kind);
        put64(&mut bytes, 0xfc0, 0x01c7_0000_0000_0000);
    }
    bytes
}

/// `CONTEXT` of x64: each general register holds the number of its place, from rax on.
fn context_64() -> Vec<u8> {
    let mut bytes = vec![0; 1232];
    put32(&mut bytes, 0x30, 0x10_001f);
    [0x10u16, 0x2b, 0x2b, 0x53, 0x2b, 0x18]
        .iter()
        .enumerate()
        .for_each(|(at, s)| put(&mut bytes, 0x38 + 2 * at, &s.to_le_bytes()));
    put32(&mut bytes, 0x44, 0x246);
    (0..6).for_each(|at| put64(&mut bytes, 0x48 + 8 * at, 0xd0 + at as u64));
    (0..16).for_each(|at| put64(&mut bytes, 0x78 + 8 * at, 0xffff_0000_0000_0000 + at as u64));
    put64(&mut bytes, 0xf8, 0xffff_f804_5555_0000);
    bytes
}

/// `CONTEXT` of x86: each field holds its offset.
fn context_32() -> Vec<u8> {
    let mut bytes = vec![0; 716];
    put32(&mut bytes, 0, 0x1_0007);
    (0x8c..0xcc).step_by(4).for_each(|at| put32(&mut bytes, at, at as u32));
    bytes
}

/// Type 1, with its runs in this order.
pub fn full(long: bool, runs: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = header(long, 1, 0x1a_d000);
    let total: u64 = runs.iter().map(|(_, data)| data.len() as u64 / 4096).sum();
    if long {
        put32(&mut bytes, 0x88, runs.len() as u32);
        put64(&mut bytes, 0x90, total);
    } else {
        put32(&mut bytes, 0x64, runs.len() as u32);
        put32(&mut bytes, 0x68, total as u32);
    }
    for (at, (first, data)) in runs.iter().enumerate() {
        let count = data.len() as u64 / 4096;
        if long {
            put64(&mut bytes, 0x98 + 16 * at, *first);
            put64(&mut bytes, 0xa0 + 16 * at, count);
        } else {
            put32(&mut bytes, 0x6c + 8 * at, *first as u32);
            put32(&mut bytes, 0x70 + 8 * at, count as u32);
        }
    }
    runs.iter().for_each(|(_, data)| bytes.extend(data));
    bytes
}

/// Types 2, 5, 6, 7: a bitmap of `bits` pages.
pub fn bitmap(long: bool, kind: u32, magic: &[u8; 4], bits: u64, pages: &Pages) -> Vec<u8> {
    let mut bytes = header(long, kind, 0x1a_d000);
    let start = bytes.len();
    bytes.extend(magic);
    bytes.extend(b"DUMP");
    bytes.resize(start + 0x20, 0);
    let first = (start as u64 + 0x38 + bits.div_ceil(8)).next_multiple_of(4096);
    [first, pages.len() as u64, bits].iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    let mut map = vec![0u8; bits.div_ceil(8) as usize];
    pages.keys().for_each(|page| map[*page as usize / 8] |= 1 << (page % 8));
    // What is behind the last bit means nothing.
    if !bits.is_multiple_of(8) {
        *map.last_mut().unwrap() |= 0xff << (bits % 8);
    }
    bytes.extend(map);
    bytes.resize(first as usize, 0xee);
    pages.values().for_each(|data| bytes.extend(data));
    bytes
}

/// Types 8, 9, 10: a table of runs.
pub fn live(kind: u32, runs: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = header(true, kind, 0x1a_d000);
    bytes.extend(0x40u32.to_le_bytes());
    bytes.extend(b"RDMPDUMP\0\0\0\0");
    let first = 0x2030 + 16 * (runs.len() as u64 + 1);
    let first = first.next_multiple_of(4096);
    let pages: u64 = runs.iter().map(|(_, data)| data.len() as u64 / 4096).sum();
    [first - 0x2020, first, runs.len() as u64, pages].iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    for (at, data) in runs {
        bytes.extend(at.to_le_bytes());
        bytes.extend((data.len() as u64 / 4096).to_le_bytes());
    }
    bytes.resize(first as usize, 0);
    runs.iter().for_each(|(_, data)| bytes.extend(data));
    bytes
}

/// Type 4: blocks at virtual addresses, and a stack with the bytes at `stack`.
pub fn triage(blocks: &[(u64, Vec<u8>)], stack: (u64, Vec<u8>)) -> Vec<u8> {
    let mut bytes = header(true, 4, 0x1a_d002);
    let at = bytes.len();
    bytes.resize(at + 0x80, 0);
    let part = |bytes: &mut Vec<u8>, data: &[u8]| {
        let offset = bytes.len() as u32;
        bytes.extend(data);
        offset
    };
    for (field, name) in [(7, b"prcb"), (8, b"proc"), (9, b"thrd")] {
        let offset = part(&mut bytes, &name.repeat(10));
        put32(&mut bytes, at + 4 * field, offset);
    }
    let offset = part(&mut bytes, &stack.1);
    put32(&mut bytes, at + 0x28, offset);
    put32(&mut bytes, at + 0x2c, stack.1.len() as u32);
    put64(&mut bytes, at + 0x48, stack.0);
    let offset = part(&mut bytes, &b"KDBG".repeat(20));
    put32(&mut bytes, at + 0x70, offset);
    put32(&mut bytes, at + 0x74, 80);
    let offset = part(&mut bytes, &b"drvr".repeat(72));
    put32(&mut bytes, at + 0x30, offset);
    put32(&mut bytes, at + 0x34, 2);
    let list = bytes.len();
    put32(&mut bytes, at + 0x78, list as u32);
    put32(&mut bytes, at + 0x7c, blocks.len() as u32);
    bytes.resize(list + 16 * blocks.len(), 0);
    for (index, (address, data)) in blocks.iter().enumerate() {
        let offset = part(&mut bytes, data);
        put64(&mut bytes, list + 16 * index, *address);
        put32(&mut bytes, list + 16 * index + 8, offset);
        put32(&mut bytes, list + 16 * index + 12, data.len() as u32);
    }
    let valid = part(&mut bytes, b"TRGD");
    put32(&mut bytes, at + 8, valid);
    let len = bytes.len() as u32;
    put32(&mut bytes, at + 4, len);
    bytes
}

pub fn put(bytes: &mut [u8], at: usize, data: &[u8]) {
    bytes[at..at + data.len()].copy_from_slice(data);
}

pub fn put32(bytes: &mut [u8], at: usize, value: u32) {
    put(bytes, at, &value.to_le_bytes());
}

pub fn put64(bytes: &mut [u8], at: usize, value: u64) {
    put(bytes, at, &value.to_le_bytes());
}
