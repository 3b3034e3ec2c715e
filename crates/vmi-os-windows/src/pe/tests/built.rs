//! Images that are put together here, byte by byte, as the format's document lays them out.

use vmi_core::{ErrorKind, SymbolsBuilder, VirtAddr};

use super::TestMemory;
use crate::pe::{ExportTarget, FileVersion, PeImage};

/// An image of one section from 0x1000 on.
pub(super) struct Image {
    pub(super) bytes: Vec<u8>,
    is_64_bit: bool,
}

pub(super) const PE: usize = 0x80;
pub(super) const DIRECTORY: usize = 0x1000;
const TABLES: usize = 0x2000;
const NAMES: usize = 0x3000;
const DEBUG: usize = 0x6000;
const RESOURCES: usize = 0x7000;
pub(super) const SIZE: usize = 0x8000;

impl Image {
    pub(super) fn new(is_64_bit: bool) -> Self {
        let mut image = Self { bytes: vec![0; SIZE], is_64_bit };
        image.put(0, b"MZ");
        image.put32(0x3c, PE as u32);
        image.put(PE, b"PE\0\0");
        let (machine, optional): (u16, u16) = if is_64_bit { (0x8664, 240) } else { (0x14c, 224) };
        image.put(PE + 4, &machine.to_le_bytes());
        image.put(PE + 6, &1u16.to_le_bytes());
        image.put32(PE + 8, 0x0d83_33e6);
        image.put(PE + 20, &optional.to_le_bytes());
        let magic: u16 = if is_64_bit { 0x20b } else { 0x10b };
        image.put(PE + 24, &magic.to_le_bytes());
        image.put32(PE + 24 + 56, SIZE as u32);
        image.put32(PE + 24 + 60, 0x400);
        image.put32(PE + 24 + if is_64_bit { 108 } else { 92 }, 16);
        let section = PE + 24 + usize::from(optional);
        image.put(section, b"POOLCODE");
        image.put32(section + 8, 0x7000);
        image.put32(section + 12, 0x1000);
        image
    }

    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn put32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    pub(super) fn directory(&mut self, number: usize, offset: usize, size: usize) {
        let at = PE + 24 + if self.is_64_bit { 112 } else { 96 } + number * 8;
        self.put32(at, offset as u32);
        self.put32(at + 4, size as u32);
    }

    /// Exports with ordinals from 5 on; names as they come.
    pub(super) fn exports(&mut self, targets: &[u32], names: &[(&str, u16)]) {
        self.directory(0, DIRECTORY, 0x100);
        let tables = [TABLES, TABLES + 0x400, TABLES + 0x800];
        self.put32(DIRECTORY + 12, NAMES as u32);
        self.put32(DIRECTORY + 16, 5);
        self.put32(DIRECTORY + 20, targets.len() as u32);
        self.put32(DIRECTORY + 24, names.len() as u32);
        for (index, table) in tables.iter().enumerate() {
            self.put32(DIRECTORY + 28 + index * 4, *table as u32);
        }
        self.put(NAMES, b"ntoskrnl.exe\0");
        for (index, target) in targets.iter().enumerate() {
            self.put32(tables[0] + index * 4, *target);
        }
        let mut at = NAMES + 0x20;
        for (index, (name, ordinal)) in names.iter().enumerate() {
            self.put32(tables[1] + index * 4, at as u32);
            self.put(tables[2] + index * 2, &ordinal.to_le_bytes());
            self.put(at, name.as_bytes());
            at += name.len() + 1;
        }
    }

    pub(super) fn memory(self) -> TestMemory {
        TestMemory::new(if self.is_64_bit { 0xffff_f804_7ba0_0000 } else { 0x804d_7000 }, self.bytes)
    }
}

/// Names sorted as the format asks: two functions with names, one with two names, one by ordinal only, an unused ordinal, a forwarder.
fn kernel(is_64_bit: bool) -> TestMemory {
    let mut image = Image::new(is_64_bit);
    image.put(DIRECTORY + 0x40, b"HAL.KeGetCurrentIrql\0");
    let targets = [0x4000, 0x4010, 0, 0x4020, (DIRECTORY + 0x40) as u32];
    image.exports(&targets, &[("Alias", 1), ("KeIrql", 4), ("NtBuildNumber", 0), ("PsLookup", 1)]);
    image.memory()
}

#[test]
fn headers_of_both_widths() {
    for is_64_bit in [true, false] {
        let memory = kernel(is_64_bit);
        let image = PeImage::new(&memory, memory.at()).unwrap();
        let headers = image.headers();
        assert_eq!((headers.is_64_bit, headers.machine), (is_64_bit, if is_64_bit { 0x8664 } else { 0x14c }));
        assert_eq!(headers.store_key(), "0D8333E68000");
        assert_eq!(headers.directories.len(), 16);
        let section = headers.section("POOLCODE").unwrap();
        assert_eq!((section.offset, section.size), (0x1000, 0x7000));
        assert!(headers.section("POOL").is_none(), "a part of a name is not the name");
    }
}

#[test]
fn exports_by_name_by_ordinal_and_all() {
    for is_64_bit in [true, false] {
        let memory = kernel(is_64_bit);
        let image = PeImage::new(&memory, memory.at()).unwrap();
        let exports = image.exports().unwrap().unwrap();
        assert_eq!(exports.dll_name().unwrap(), "ntoskrnl.exe");
        let found = exports.find("NtBuildNumber").unwrap();
        assert_eq!((found.ordinal, found.target), (5, ExportTarget::Offset(0x4000)));
        assert_eq!(exports.find("KeIrql").unwrap().target, ExportTarget::Forwarder("HAL.KeGetCurrentIrql".to_owned()));
        let by_ordinal = exports.by_ordinal(8).unwrap();
        assert_eq!((by_ordinal.name, by_ordinal.target), (None, ExportTarget::Offset(0x4020)));
        assert!(matches!(exports.by_ordinal(7).unwrap_err().kind(), ErrorKind::NoObject { .. }), "unused");
        assert!(matches!(exports.by_ordinal(4).unwrap_err().kind(), ErrorKind::NoObject { .. }), "below the first");
        let all: Vec<_> =
            exports.iter().map(Result::unwrap).map(|export| (export.name.unwrap_or_default(), export.ordinal)).collect();
        let expected = [("Alias", 6), ("KeIrql", 9), ("NtBuildNumber", 5), ("PsLookup", 6), ("", 8)];
        assert_eq!(all, expected.map(|(name, ordinal)| (name.to_owned(), ordinal)));
        let mut symbols = SymbolsBuilder::default();
        assert!(exports.add_to(&mut symbols).is_empty());
        let symbols = symbols.build();
        assert_eq!(symbols.len(), 3, "no forwarder, nothing without a name");
        assert_eq!(symbols.address("PsLookup").unwrap(), memory.at().wrapping_add(0x4010));
    }
}

#[test]
fn an_image_without_exports_has_none() {
    let memory = Image::new(true).memory();
    assert!(PeImage::new(&memory, memory.at()).unwrap().exports().unwrap().is_none());
}

/// LibVMI compares with `strncmp(guest, symbol, strlen(guest))`: a name that is the beginning of the wanted one matches, and the empty one always.
#[test]
fn libvmi_prefix_match_does_not_happen() {
    let mut image = Image::new(true);
    // Unsorted, so that the comparison of all names is what decides, as in LibVMI.
    image.exports(&[0x4000, 0x4010, 0x4020], &[("", 0), ("Ps", 1), ("PsLookupProcess", 2)]);
    let memory = image.memory();
    let image = PeImage::new(&memory, memory.at()).unwrap();
    let exports = image.exports().unwrap().unwrap();
    assert_eq!(exports.find("PsLookupProcess").unwrap().target, ExportTarget::Offset(0x4020));
    assert_eq!(exports.find("Ps").unwrap().target, ExportTarget::Offset(0x4010));
    for absent in ["PsLookup", "PsLookupProcessByProcessId", "P", "Zw"] {
        assert!(matches!(exports.find(absent).unwrap_err().kind(), ErrorKind::NoSymbol { .. }), "{absent}");
    }
}

/// LibVMI looks at 16,384 names at most; images of more exist.
#[test]
fn libvmi_cap_of_exports_does_not_hide_names() {
    let count = 40_000usize;
    let names: Vec<_> = (0..count).map(|index| format!("N{index:05}")).collect();
    let mut bytes = Image::new(true).bytes;
    let mut image = Image { bytes: std::mem::take(&mut bytes), is_64_bit: true };
    let tables = SIZE;
    image.bytes.resize(tables + count * (4 + 4 + 2 + 8), 0);
    let size = image.bytes.len() as u32;
    image.put32(PE + 24 + 56, size);
    image.directory(0, DIRECTORY, 0x100);
    image.put32(DIRECTORY + 20, count as u32);
    image.put32(DIRECTORY + 24, count as u32);
    let (names_at, ordinals, texts) = (tables + count * 4, tables + count * 8, tables + count * 10);
    for (index, at) in [tables, names_at, ordinals].into_iter().enumerate() {
        image.put32(DIRECTORY + 28 + index * 4, at as u32);
    }
    for (index, name) in names.iter().enumerate() {
        image.put32(tables + index * 4, 0x4000 + index as u32 % 0x1000);
        image.put32(names_at + index * 4, (texts + index * 8) as u32);
        image.put(ordinals + index * 2, &(index as u16).to_le_bytes());
        image.put(texts + index * 8, name.as_bytes());
    }
    let memory = image.memory();
    let image = PeImage::new(&memory, memory.at()).unwrap();
    let exports = image.exports().unwrap().unwrap();
    assert_eq!(exports.find("N39999").unwrap().ordinal, 39_999);
    assert_eq!(exports.iter().filter(|export| export.is_ok()).count(), count);
}

#[test]
fn what_is_paged_out_is_said_export_by_export() {
    // The page with the text of the third name on.
    let mut image = Image::new(true);
    image.exports(&[0x4000, 0x4010, 0x4020], &[("Aaa", 0), ("Bbb", 1), ("Ccc", 2)]);
    image.put32(TABLES + 0x400 + 8, 0x5000);
    let mut memory = image.memory();
    memory.holes.push(memory.base + 0x5000..memory.base + 0x6000);
    let pe = PeImage::new(&memory, memory.at()).unwrap();
    let exports = pe.exports().unwrap().unwrap();
    let all: Vec<_> = exports.iter().collect();
    assert_eq!(all[1].as_ref().unwrap().name.as_deref(), Some("Bbb"));
    let lost = all[2].as_ref().unwrap_err();
    assert_eq!((lost.ordinal, lost.what), (Some(7), "its name"));
    assert!(lost.error.is_absent());
    assert_eq!(exports.find("Bbb").unwrap().ordinal, 6);
    assert!(exports.find("Ccc").unwrap_err().is_absent(), "it may be the one that is not there: never `no such symbol`");

    // The second half of the table of addresses, in a table that crosses a page.
    let targets: Vec<u32> = (0..8).map(|index| 0x4000 + index * 16).collect();
    let mut image = Image::new(false);
    image.exports(&targets, &[("Aaa", 0), ("Zzz", 7)]);
    let near_end = 0x4ff0;
    let table: Vec<u8> = targets.iter().flat_map(|target| target.to_le_bytes()).collect();
    image.put(near_end, &table);
    image.put32(DIRECTORY + 28, near_end as u32);
    let mut memory = image.memory();
    memory.holes.push(memory.base + 0x5000..memory.base + 0x6000);
    let pe = PeImage::new(&memory, memory.at()).unwrap();
    let exports = pe.exports().unwrap().unwrap();
    assert_eq!(exports.find("Aaa").unwrap().target, ExportTarget::Offset(0x4000));
    assert!(exports.find("Zzz").unwrap_err().is_absent());
    let (good, lost): (Vec<_>, Vec<_>) = exports.iter().partition(Result::is_ok);
    assert_eq!((good.len(), lost.len()), (4, 4));
    assert!(exports.by_ordinal(12).unwrap_err().is_absent());
}

#[test]
fn a_function_is_not_said_to_have_no_name_while_names_are_paged_out() {
    let mut image = Image::new(true);
    image.exports(&[0x4000, 0x4010], &[("Aaa", 0), ("Bbb", 1)]);
    image.put32(DIRECTORY + 36, 0x5000);
    let mut memory = image.memory();
    memory.holes.push(memory.base + 0x5000..memory.base + 0x6000);
    let pe = PeImage::new(&memory, memory.at()).unwrap();
    let all: Vec<_> = pe.exports().unwrap().unwrap().iter().map(Result::unwrap_err).collect();
    let said: Vec<_> = all.iter().map(|lost| (lost.name.as_deref(), lost.ordinal, lost.what)).collect();
    let unknown = "whether it has a name";
    assert_eq!(
        said,
        [
            (Some("Aaa"), None, "its ordinal"),
            (Some("Bbb"), None, "its ordinal"),
            (None, Some(5), unknown),
            (None, Some(6), unknown)
        ]
    );
}

#[test]
fn the_program_database_and_the_version_are_read() {
    let mut image = Image::new(true);
    image.directory(6, DEBUG, 56);
    // The first entry is of another kind (POGO).
    image.put32(DEBUG + 12, 13);
    image.put32(DEBUG + 28 + 12, 2);
    image.put32(DEBUG + 28 + 16, 24 + 13);
    image.put32(DEBUG + 28 + 20, (DEBUG + 0x100) as u32);
    image.put(DEBUG + 0x100, b"RSDS");
    image.put(DEBUG + 0x104, &[0xF8, 0xAF, 0x78, 0x52, 0x34, 0x6C, 0x77, 0x16, 0xD7, 0xD7, 0x83, 0x5C, 0x85, 0xB7, 0xB8, 0x44]);
    image.put32(DEBUG + 0x114, 1);
    image.put(DEBUG + 0x118, b"ntkrnlmp.pdb\0");
    image.directory(2, RESOURCES, 0x400);
    for (at, number, next) in [(0, 16, 0x8000_0020u32), (0x20, 1, 0x8000_0040), (0x40, 0x409, 0x60)] {
        image.put(RESOURCES + at + 14, &1u16.to_le_bytes());
        image.put32(RESOURCES + at + 16, number);
        image.put32(RESOURCES + at + 20, next);
    }
    image.put32(RESOURCES + 0x60, (RESOURCES + 0x100) as u32);
    image.put32(RESOURCES + 0x64, 0x80);
    for (index, word) in [0xfeef_04bdu32, 0x1_0000, 10 << 16, 19041 << 16 | 804].into_iter().enumerate() {
        image.put32(RESOURCES + 0x128 + index * 4, word);
    }
    let memory = image.memory();
    let pe = PeImage::new(&memory, memory.at()).unwrap();
    assert_eq!(pe.pdb().unwrap().unwrap().to_string(), "ntkrnlmp.pdb 5278AFF86C341677D7D7835C85B7B8441");
    let version = pe.file_version().unwrap().unwrap();
    assert_eq!(version, FileVersion { major: 10, minor: 0, build: 19041, revision: 804 });
    assert_eq!(version.to_string(), "10.0.19041.804");
}

#[test]
fn no_image_is_an_error_that_says_so() {
    let memory = TestMemory::new(0x1000, vec![0; 0x1000]);
    let error = PeImage::new(&memory, memory.at()).unwrap_err();
    assert!(error.to_string().contains("MZ"), "{error}");
    assert!(PeImage::new(&memory, VirtAddr::new(0)).unwrap_err().is_absent());
}
