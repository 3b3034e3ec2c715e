//! A synthetic guest for tests: a few structures in identity-mapped memory, described by a table of members.

use std::sync::Arc;

use vmi_arch_x86::{PagingMode, X86};
use vmi_core::synthetic::{SyntheticDriver, SyntheticTypes};
use vmi_core::{PhysAddr, SymbolsBuilder, VirtAddr, Vmi};

use crate::Kernel;

/// Everything lies below this address; the lowest pages hold the page tables.
const SIZE: usize = 0x40_0000;
const ROOT: usize = 0x1000;
/// The memory is mapped at address zero, and again here: in the kernel's half.
pub(crate) const KERNEL: u64 = 0xffff_8000_0000_0000;

/// The process System.
pub(crate) const SYSTEM: u64 = KERNEL + 0x9000;

/// Memory, symbols and types under construction. An address of the kernel is [`KERNEL`] more than the physical one.
pub(crate) struct TestGuest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) types: SyntheticTypes,
    pub(crate) build: Option<u32>,
    symbols: SymbolsBuilder,
}

impl TestGuest {
    /// A guest of four-level paging whose process System, at [`SYSTEM`], is alone in the list of processes. Where members of a process lie: links 0x20, pid 0x30,
    /// name 0x40, table of handles 0x60. Headers of objects have 0x30 bytes, type index 0x18, mask 0x1a; their names lie 0x20 bytes before.
    pub(crate) fn new() -> Self {
        let types = SyntheticTypes::default();
        let mut guest = Self { bytes: vec![0; SIZE], types, build: None, symbols: SymbolsBuilder::default() };
        // Two large pages, present, writable and for user mode; the same table serves the lower and the higher half.
        guest.put(ROOT as u64, &[0x2007]);
        guest.put(ROOT as u64 + 256 * 8, &[0x2007]);
        guest.put(0x2000, &[0x3007]);
        guest.put(0x3000, &[0x87, 0x20_0087]);
        for (structure, path, offset, size) in [
            ("_EPROCESS", "ActiveProcessLinks", 0x20, 16),
            ("_EPROCESS", "UniqueProcessId", 0x30, 8),
            ("_EPROCESS", "ImageFileName", 0x40, 15),
            ("_EPROCESS", "ObjectTable", 0x60, 8),
            ("_HANDLE_TABLE", "TableCode", 8, 8),
            ("_HANDLE_TABLE_ENTRY", "LowValue", 0, 8),
            ("_OBJECT_HEADER", "Body", 0x30, 8),
            ("_OBJECT_HEADER", "TypeIndex", 0x18, 1),
            ("_OBJECT_HEADER", "InfoMask", 0x1a, 1),
            ("_OBJECT_HEADER_NAME_INFO", "Directory", 0, 8),
            ("_OBJECT_HEADER_NAME_INFO", "Name", 8, 16),
            ("_OBJECT_DIRECTORY", "HashBuckets", 0, 296),
            ("_OBJECT_TYPE", "Name", 0x10, 16),
            ("_OBJECT_TYPE", "Index", 0x28, 1),
        ] {
            guest.types.member(structure, path, offset, size);
        }
        guest.types.size("_OBJECT_HEADER_NAME_INFO", 0x20);
        guest.symbol("PsInitialSystemProcess", KERNEL + 0x8000);
        guest.symbol("PsActiveProcessHead", KERNEL + 0x8010);
        guest.put(0x8000, &[SYSTEM, 0, SYSTEM + 0x20, SYSTEM + 0x20]);
        guest.put(SYSTEM + 0x20, &[KERNEL + 0x8010, KERNEL + 0x8010, 4]);
        guest.write(SYSTEM + 0x40, b"System");
        guest
    }

    /// Writes 64-bit words. Addresses may be those of the kernel, here and in the following.
    pub(crate) fn put(&mut self, at: u64, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            self.write(at + 8 * index as u64, &word.to_le_bytes());
        }
    }

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        let at = (at & 0xffff_ffff) as usize;
        self.bytes[at..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Writes a `_UNICODE_STRING` with its text behind it.
    pub(crate) fn unicode(&mut self, at: u64, buffer: u64, text: &str) {
        let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let len = units.len() as u16;
        self.write(at, &[len.to_le_bytes(), (len + 2).to_le_bytes()].concat());
        self.put(at + 8, &[buffer]);
        self.write(buffer, &units);
    }

    pub(crate) fn symbol(&mut self, name: &str, at: u64) {
        self.symbols.push(name, VirtAddr::new(at), b'D');
    }

    /// The frozen machine, and its kernel.
    pub(crate) fn build(self) -> (Vmi<SyntheticDriver<X86>>, Kernel) {
        let kernel = Kernel {
            mode: PagingMode::Level4,
            root: PhysAddr::new(ROOT as u64),
            base: VirtAddr::new(KERNEL + 0x10_0000),
            size: 0x10_0000,
            pdb: None,
            build: self.build,
            symbols: Arc::new(self.symbols.build()),
            types: Arc::new(self.types),
            remarks: Vec::new(),
        };
        (Vmi::new(SyntheticDriver::with_arch([(PhysAddr::ZERO, self.bytes)])), kernel)
    }
}
