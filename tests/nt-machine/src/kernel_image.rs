//! The kernel's image in memory, written by hand: headers, sections, exports, debug directory.
//!
//! Format: Microsoft's "PE Format", <https://learn.microsoft.com/windows/win32/debug/pe-format>.

use std::collections::BTreeMap;

use crate::compiled::CompiledKernel;
use crate::variables::{FULL_SIZE, SECTIONS, Section, VARIABLES};

/// What the kernel's image is made of.
#[derive(Clone, Debug)]
pub enum KernelImage {
    /// Headers, sections, exports and debug directory written by this crate.
    Written,
    /// A real PE file with a real program database, made from C by clang and lld-link.
    Compiled(Box<CompiledKernel>),
}

/// The identity of a program database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pdb {
    /// File name.
    pub name: String,
    /// The GUID in 32 upper-case digits, as symbol stores write it.
    pub guid: String,
    /// Age.
    pub age: u32,
}

/// An image: bytes at their places, symbols, identity.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub(crate) size: u64,
    pub(crate) parts: Vec<(u64, Vec<u8>)>,
    /// Symbols by name, relative to the base.
    pub(crate) symbols: BTreeMap<String, u64>,
    pub(crate) exports: Vec<String>,
    pub(crate) pdb: Option<Pdb>,
    /// Where the export directory and the CodeView record are.
    pub(crate) export_directory: u64,
    pub(crate) codeview: u64,
    /// Free space in the writable data, for variables that come later.
    pub(crate) spare: std::ops::Range<u64>,
}

/// GUID digits to the bytes in a CodeView record: the first three fields are little-endian.
pub(crate) fn guid_bytes(guid: &str) -> [u8; 16] {
    let value = u128::from_str_radix(guid, 16).expect("32 hexadecimal digits");
    let mut bytes = value.to_be_bytes();
    bytes[0..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

/// What the writer is told.
pub(crate) struct Plan<'a> {
    pub(crate) is_64_bit: bool,
    pub(crate) base: u64,
    pub(crate) full_size: bool,
    /// Bytes behind the header that hold nothing, because they are not mapped.
    pub(crate) gap: u64,
    pub(crate) pdb: Pdb,
    /// Places of symbols that are given: those of a real kernel.
    pub(crate) given: Option<&'a BTreeMap<String, u64>>,
    /// Whether `PsLoadedModuleList` is exported: 64-bit Windows 10 does.
    pub(crate) exports_module_list: bool,
    pub(crate) timestamp: u32,
}

fn scaled(section: &Section, full_size: bool) -> (u64, u64) {
    let scale = |at: u64| if full_size { at } else { (at / 2) & !0xFFF };
    (scale(section.start).max(0x1000), scale(section.end))
}

/// Writes the image.
pub(crate) fn write(plan: &Plan<'_>) -> Image {
    let full_size = plan.full_size || plan.given.is_some();
    let size = if full_size { FULL_SIZE } else { FULL_SIZE / 2 };
    let word = if plan.is_64_bit { 8 } else { 4 };
    let mut image = Image { size, pdb: Some(plan.pdb.clone()), ..Image::default() };

    // Symbols: at the places that are given, else one after the other in their sections.
    let mut next: BTreeMap<&str, u64> =
        SECTIONS.iter().map(|s| (s.name, scaled(s, full_size).0 + 0x100 + plan.gap * u64::from(s.start == 0x1000))).collect();
    if let Some(given) = plan.given {
        image.symbols.clone_from(given);
        *next.get_mut(".data").expect("a section") = scaled(&SECTIONS[11], true).1 - 0x2_0000;
    }
    for variable in VARIABLES {
        if plan.given.is_some_and(|given| given.contains_key(variable.name)) {
            continue;
        }
        let at = next.get_mut(variable.section).expect("a section");
        image.symbols.insert(variable.name.to_owned(), *at);
        *at += (variable.words * word).next_multiple_of(16);
    }
    let data = next[".data"].next_multiple_of(0x1000);
    image.spare = data..data + 0x8000;

    // The CodeView record and the directory that names it.
    let rdata = 0x1000 + plan.gap + 0x8000;
    let mut record = b"RSDS".to_vec();
    record.extend(guid_bytes(&plan.pdb.guid));
    record.extend(plan.pdb.age.to_le_bytes());
    record.extend(plan.pdb.name.as_bytes());
    record.push(0);
    image.codeview = rdata + 0x80;
    let mut directory = Vec::new();
    for field in [0, plan.timestamp, 0, 2, record.len() as u32, image.codeview as u32, image.codeview as u32] {
        directory.extend(field.to_le_bytes());
    }
    image.parts.push((rdata, directory));
    image.parts.push((image.codeview, record));

    // Exports: sorted by name, one forwarder, one without a name.
    let mut names: Vec<&str> = VARIABLES
        .iter()
        .filter(|v| v.exported && (v.name != "PsLoadedModuleList" || plan.exports_module_list))
        .map(|v| v.name)
        .collect();
    names.push(FORWARDER);
    names.sort_unstable();
    let edata = SECTIONS.iter().find(|s| s.name == ".edata").map(|s| scaled(s, full_size)).expect("a section");
    let (bytes, export_len) = exports(&names, &image.symbols, edata.0);
    image.exports = names.iter().map(|name| (*name).to_owned()).collect();
    image.export_directory = edata.0;
    image.parts.push((edata.0, bytes));

    let header = header(plan, size, full_size, edata.0, export_len, rdata, &image.symbols);
    image.parts.push((0, header));
    image
}

/// What is exported by another module.
pub(crate) const FORWARDER: &str = "HalpForwardedToHal";

fn exports(names: &[&str], symbols: &BTreeMap<String, u64>, at: u64) -> (Vec<u8>, u64) {
    let functions = at + 40;
    // One more than names: ordinal 1 has none.
    let count = names.len() as u64 + 1;
    let name_table = functions + count * 4;
    let ordinals = name_table + names.len() as u64 * 4;
    let mut text_at = ordinals + names.len() as u64 * 2;
    let mut texts = Vec::new();
    let mut text = |value: &str| {
        let place = text_at;
        texts.extend(value.as_bytes());
        texts.push(0);
        text_at += value.len() as u64 + 1;
        place as u32
    };
    let own = text("ntoskrnl.exe");
    let forward = text("HAL.HalForwarded");
    let mut function_table = vec![symbols["KeBugCheckEx"] as u32];
    let mut names_at = Vec::new();
    for name in names {
        names_at.push(text(name));
        function_table.push(if *name == FORWARDER { forward } else { symbols[*name] as u32 });
    }
    let mut bytes = Vec::new();
    for field in [0, 0, 0, own, 1, count as u32, names.len() as u32, functions as u32, name_table as u32, ordinals as u32] {
        bytes.extend(field.to_le_bytes());
    }
    function_table.iter().chain(&names_at).for_each(|value| bytes.extend(value.to_le_bytes()));
    (1..count as u16).for_each(|ordinal| bytes.extend(ordinal.to_le_bytes()));
    bytes.extend(texts);
    let len = bytes.len() as u64;
    (bytes, len)
}

fn header(
    plan: &Plan<'_>,
    size: u64,
    full_size: bool,
    edata: u64,
    export_len: u64,
    debug: u64,
    symbols: &BTreeMap<String, u64>,
) -> Vec<u8> {
    let mut h = vec![0; 0x108];
    h[0..2].copy_from_slice(b"MZ");
    h[0x3C..0x40].copy_from_slice(&0x108u32.to_le_bytes());
    h[0x4E..0x4E + 39].copy_from_slice(b"This program cannot be run in DOS mode.");
    h.extend(b"PE\0\0");
    let u16s = |h: &mut Vec<u8>, value: u16| h.extend(value.to_le_bytes());
    let u32s = |h: &mut Vec<u8>, value: u32| h.extend(value.to_le_bytes());
    let words = |h: &mut Vec<u8>, value: u64| {
        if plan.is_64_bit { h.extend(value.to_le_bytes()) } else { h.extend((value as u32).to_le_bytes()) }
    };
    u16s(&mut h, if plan.is_64_bit { 0x8664 } else { 0x14C });
    u16s(&mut h, SECTIONS.len() as u16);
    u32s(&mut h, plan.timestamp);
    u32s(&mut h, 0);
    u32s(&mut h, 0);
    u16s(&mut h, if plan.is_64_bit { 0xF0 } else { 0xE0 });
    u16s(&mut h, if plan.is_64_bit { 0x22 } else { 0x102 });
    u16s(&mut h, if plan.is_64_bit { 0x20B } else { 0x10B });
    h.extend([14, 20]);
    for value in [0x80_0000, 0x40_0000, 0, symbols["KiSystemStartup"] as u32, 0x1000] {
        u32s(&mut h, value);
    }
    if !plan.is_64_bit {
        u32s(&mut h, 0xC0_0000);
    }
    words(&mut h, plan.base);
    u32s(&mut h, 0x1000);
    u32s(&mut h, 0x200);
    for value in [10, 0, 10, 0, 10, 0] {
        u16s(&mut h, value);
    }
    for value in [0, size as u32, 0x600, 0] {
        u32s(&mut h, value);
    }
    u16s(&mut h, 1);
    u16s(&mut h, 0x4160);
    for value in [0x8_0000, 0x2000, 0x10_0000, 0x1000] {
        words(&mut h, value);
    }
    u32s(&mut h, 0);
    u32s(&mut h, 16);
    for directory in 0..16 {
        let (at, len) = match directory {
            0 => (edata as u32, export_len as u32),
            6 => (debug as u32, 28),
            _ => (0, 0),
        };
        u32s(&mut h, at);
        u32s(&mut h, len);
    }
    for section in SECTIONS {
        let (mut start, end) = scaled(section, full_size);
        if start == 0x1000 {
            start += plan.gap;
        }
        let mut name = [0; 8];
        name[..section.name.len()].copy_from_slice(section.name.as_bytes());
        h.extend(name);
        for value in [(end - start) as u32, start as u32, (end - start) as u32, start as u32, 0, 0, 0] {
            u32s(&mut h, value);
        }
        u32s(&mut h, section.flags);
    }
    // POOLCODE on an 8-byte boundary, as real headers have it: sections begin at 0x210 (64-bit) or 0x200.
    assert!(h.len() < 0x1000);
    h
}
