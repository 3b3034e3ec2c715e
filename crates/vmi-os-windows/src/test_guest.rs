//! A synthetic guest for tests: a few structures in identity-mapped memory, described by a table of members.

use std::collections::BTreeMap;
use std::sync::Arc;

use vmi_arch_x86::{PagingMode, X86};
use vmi_core::synthetic::SyntheticDriver;
use vmi_core::{ErrorKind, Member, PhysAddr, Result, Structure, SymbolsBuilder, Type, TypeId, TypeSource, VirtAddr, Vmi};

use crate::Kernel;

/// Everything lies below this address; the lowest pages hold the page tables.
const SIZE: usize = 0x40_0000;
const ROOT: usize = 0x1000;
/// The memory is mapped at address zero, and again here: in the kernel's half.
pub(crate) const KERNEL: u64 = 0xffff_8000_0000_0000;

/// The process System.
pub(crate) const SYSTEM: u64 = KERNEL + 0x9000;

/// Structures with members at made-up places. A path `a.b` makes a nested structure `a` at offset zero.
#[derive(Debug)]
pub(crate) struct Table {
    types: Vec<Type>,
    tags: BTreeMap<String, u32>,
}

impl Table {
    fn structure(&mut self, tag: &str) -> u32 {
        if let Some(&id) = self.tags.get(tag) {
            return id;
        }
        let id = self.types.len() as u32;
        let empty = Structure { name: tag.to_owned(), size: 0x100, union: false, members: Vec::new() };
        self.types.push(Type::Structure(empty));
        self.tags.insert(tag.to_owned(), id);
        id
    }

    fn push(&mut self, structure: u32, member: Member) {
        let Type::Structure(structure) = &mut self.types[structure as usize] else { panic!() };
        if !structure.members.iter().any(|other| other.name == member.name) {
            structure.members.push(member);
        }
    }

    /// Adds the member at `path`, of `size` bytes at `offset`.
    pub(crate) fn member(&mut self, structure: &str, path: &str, offset: u64, size: u64) {
        let mut id = self.structure(structure);
        let mut names: Vec<_> = path.split('.').collect();
        let name = names.pop().unwrap();
        let mut tag = structure.to_owned();
        for outer in names {
            tag = format!("{tag}.{outer}");
            let inner = self.structure(&tag);
            self.push(id, Member { name: outer.to_owned(), bit_offset: 0, bit_width: None, ty: TypeId(inner) });
            id = inner;
        }
        let ty = TypeId(self.types.len() as u32);
        self.types.push(Type::Number { name: String::new(), size, signed: false });
        self.push(id, Member { name: name.to_owned(), bit_offset: offset * 8, bit_width: None, ty });
    }

    pub(crate) fn size(&mut self, structure: &str, bytes: u64) {
        let id = self.structure(structure);
        let Type::Structure(structure) = &mut self.types[id as usize] else { panic!() };
        structure.size = bytes;
    }
}

impl TypeSource for Table {
    fn find(&self, name: &str) -> Option<TypeId> {
        self.tags.get(name).map(|&id| TypeId(id))
    }

    fn get(&self, id: TypeId) -> Result<Type> {
        self.types
            .get(id.0 as usize)
            .cloned()
            .ok_or_else(|| ErrorKind::NoType { name: format!("type {}", id.0), why: "the table ends before".to_owned() }.into())
    }

    fn pointer_size(&self) -> u64 {
        8
    }

    fn origin(&self) -> String {
        "a table".to_owned()
    }

    fn structures(&self) -> Box<dyn Iterator<Item = String> + '_> {
        Box::new(self.tags.keys().cloned())
    }
}

/// Memory, symbols and types under construction. An address of the kernel is [`KERNEL`] more than the physical one.
pub(crate) struct TestGuest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) types: Table,
    pub(crate) build: Option<u32>,
    symbols: SymbolsBuilder,
}

impl TestGuest {
    /// A guest of four-level paging whose process System, at [`SYSTEM`], is alone in the list of processes. Where members of a process lie: links 0x20, pid 0x30,
    /// name 0x40, table of handles 0x60. Headers of objects have 0x30 bytes, type index 0x18, mask 0x1a; their names lie 0x20 bytes before.
    pub(crate) fn new() -> Self {
        let types = Table { types: vec![Type::Void], tags: BTreeMap::new() };
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

    /// Writes 32-bit words.
    pub(crate) fn put32(&mut self, at: u64, words: &[u32]) {
        for (index, word) in words.iter().enumerate() {
            self.write(at + 4 * index as u64, &word.to_le_bytes());
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
