//! The machine: memory, kernel, and the primitives that everything is placed with.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::build::Build;
use crate::kernel_image::{self, Image, KernelImage, Pdb, Plan};
use crate::memory::{PAGE, PhysicalMemory};
use crate::options::Options;
use crate::paging::{KERNEL_CODE, KERNEL_DATA, PageTables, Paging};
use crate::pool::{Pool, PoolKind};
use crate::process::ProcessId;
use crate::truth::{ModuleTruth, ProcessTruth, Truth};

/// A synthetic machine.
#[derive(Clone, Debug)]
pub struct NtMachine {
    pub(crate) build: Build,
    pub(crate) options: Options,
    pub(crate) memory: PhysicalMemory,
    pub(crate) tables: PageTables,
    pub(crate) image: Image,
    pub(crate) base: u64,
    pub(crate) pools: [Pool; 2],
    /// Where drivers and other parts of the kernel are mapped next.
    pub(crate) system_space: u64,
    pub(crate) kpcr: u64,
    pub(crate) processes: Vec<ProcessTruth>,
    pub(crate) modules: Vec<ModuleTruth>,
}

impl NtMachine {
    /// A machine with a kernel and the processes System and its first thread. Further processes come by [`NtMachine::add_process`].
    pub fn new(build: Build, options: Options) -> Self {
        let paging = options.paging.unwrap_or(build.paging);
        let mut memory = PhysicalMemory::new(options.ram.clone());
        let mut tables = PageTables::new(paging);
        let root = options.system_root.or_else(|| usual_root(&build, paging, &options));
        let root = tables.new_system_root(&mut memory, root);
        let linked = if let KernelImage::Compiled(compiled) = &options.kernel { Some(compiled.base) } else { None };
        let base = linked.or(options.kernel_base).unwrap_or_else(|| build.kernel_base());
        let image = kernel(&build, &options, base);
        map_image(&mut memory, &mut tables, &build, &options, base, image.size);
        let places = Places::of(&build);
        let mut machine = Self {
            build,
            options,
            memory,
            tables,
            image,
            base,
            pools: places.pools.map(|at| Pool { next: at, end: at, previous: 0 }),
            system_space: places.system_space,
            kpcr: 0,
            processes: Vec::new(),
            modules: Vec::new(),
        };
        for (at, bytes) in machine.image.parts.clone() {
            machine.write_kernel(base + at, &bytes);
        }
        machine.write_kernel_state(root);
        machine
    }

    /// The build.
    pub fn build(&self) -> &Build {
        &self.build
    }

    /// The options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Runs of physical memory with all their bytes. As large as the machine: for a big one use [`NtMachine::physical`] or [`NtMachine::write_raw`].
    pub fn memory(&self) -> Vec<(u64, Vec<u8>)> {
        self.memory.runs()
    }

    /// Physical memory.
    pub fn physical(&self) -> &PhysicalMemory {
        &self.memory
    }

    /// Physical memory, to break it.
    pub fn physical_mut(&mut self) -> &mut PhysicalMemory {
        &mut self.memory
    }

    /// The page tables.
    pub fn tables(&self) -> &PageTables {
        &self.tables
    }

    /// Writes a raw image, sparse.
    ///
    /// # Errors
    /// Those of the file.
    pub fn write_raw(&self, path: &Path) -> io::Result<()> {
        self.memory.write_raw(path)
    }

    /// What the builder placed.
    pub fn truth(&self) -> Truth {
        let (linked, hidden): (Vec<_>, Vec<_>) = self.processes.iter().cloned().partition(|process| process.linked);
        Truth {
            build: self.build.name.clone(),
            build_number: self.build.number,
            is_64_bit: self.build.is_64_bit,
            system_root: self.system_root(),
            kernel_base: self.base,
            kernel_size: self.image.size,
            kernel_physical: self.translate(self.system_root(), self.base).unwrap_or(0),
            pdb: self.image.pdb.clone().expect("every kernel has one"),
            symbols: self.image.symbols.iter().map(|(name, at)| (name.clone(), self.base + at)).collect(),
            exports: self.image.exports.clone(),
            processes: linked.into_iter().chain(hidden).collect(),
            modules: self.modules.clone(),
        }
    }

    /// Root of System's page tables.
    pub fn system_root(&self) -> u64 {
        self.tables.roots()[0]
    }

    /// The kernel's first address.
    pub fn kernel_base(&self) -> u64 {
        self.base
    }

    /// What was made of a process so far.
    pub fn process(&self, id: ProcessId) -> &ProcessTruth {
        &self.processes[id.0]
    }

    /// All processes in the order in which they were made.
    pub fn processes(&self) -> impl Iterator<Item = (ProcessId, &ProcessTruth)> {
        self.processes.iter().enumerate().map(|(nth, process)| (ProcessId(nth), process))
    }

    /// Address of a symbol of the kernel.
    pub fn symbol_address(&self, name: &str) -> u64 {
        self.base + *self.image.symbols.get(name).unwrap_or_else(|| panic!("this kernel has no {name}"))
    }

    /// Names a place in the kernel's image.
    pub fn symbol(&mut self, name: &str, rva: u64) {
        self.image.symbols.insert(name.to_owned(), rva);
    }

    /// A new variable of the kernel in its writable data, or the one of that name that is there: its address.
    pub fn define(&mut self, name: &str, size: u64) -> u64 {
        if !self.image.symbols.contains_key(name) {
            let at = self.image.spare.start;
            self.image.spare.start += size.next_multiple_of(16);
            assert!(self.image.spare.start <= self.image.spare.end, "the kernel's spare data is used up");
            self.symbol(name, at);
        }
        self.symbol_address(name)
    }

    /// The offset of a member, if the build has it.
    pub fn offset(&self, of: &str, member: &str) -> Option<u64> {
        self.build.layout.offset(of, member)
    }

    /// The address of a member of the object at `object`. A missing one is a mistake of the caller.
    pub fn member(&self, of: &str, member: &str, object: u64) -> u64 {
        object + self.offset(of, member).unwrap_or_else(|| panic!("{} has no {of}.{member}", self.build.name))
    }

    /// Writes a number as wide as a pointer into a member of an object of the kernel.
    pub fn put(&mut self, of: &str, member: &str, object: u64, value: u64) {
        self.put_sized(of, member, object, value, self.build.pointer() as usize);
    }

    /// Writes a number of `width` bytes into a member. Nothing happens if the build has no such member.
    pub fn put_sized(&mut self, of: &str, member: &str, object: u64, value: u64, width: usize) {
        if let Some(offset) = self.offset(of, member) {
            self.write_kernel(object + offset, &value.to_le_bytes()[..width]);
        }
    }

    /// Writes a number of `width` bytes into a member of an object in a process.
    pub fn put_user(&mut self, process: ProcessId, of: &str, member: &str, object: u64, value: u64, width: usize) {
        if let Some(offset) = self.offset(of, member) {
            self.write_user(process, object + offset, &value.to_le_bytes()[..width]);
        }
    }

    /// Writes at an address of the kernel, which must be mapped.
    pub fn write_kernel(&mut self, va: u64, bytes: &[u8]) {
        self.write_virtual(self.system_root(), va, bytes);
    }

    /// Writes a number as wide as a pointer.
    pub fn write_pointer(&mut self, va: u64, value: u64) {
        self.write_kernel(va, &value.to_le_bytes()[..self.build.pointer() as usize]);
    }

    /// Writes at an address of a process, which must be mapped.
    pub fn write_user(&mut self, process: ProcessId, va: u64, bytes: &[u8]) {
        self.write_virtual(self.processes[process.0].dtb, va, bytes);
    }

    /// Reads at an address of the kernel.
    pub fn read_kernel(&self, va: u64, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = va + bytes.len() as u64;
            let part = (len - bytes.len()).min((PAGE - at % PAGE) as usize);
            let pa = self.translate(self.system_root(), at).unwrap_or_else(|| panic!("{at:#x} is not mapped"));
            bytes.extend(self.memory.read(pa, part));
        }
        bytes
    }

    /// Reads a pointer of the kernel.
    pub fn read_pointer(&self, va: u64) -> u64 {
        let mut bytes = self.read_kernel(va, self.build.pointer() as usize);
        bytes.resize(8, 0);
        u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
    }

    fn write_virtual(&mut self, root: u64, mut va: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let part = bytes.len().min((PAGE - va % PAGE) as usize);
            let pa = self.translate(root, va).unwrap_or_else(|| panic!("{va:#x} is not mapped"));
            self.memory.write(pa, &bytes[..part]);
            bytes = &bytes[part..];
            va += part as u64;
        }
    }

    /// The physical address of a virtual one in an address space.
    pub fn translate(&self, root: u64, va: u64) -> Option<u64> {
        self.tables.translate(&self.memory, root, va)
    }

    /// Maps fresh pages in a process, zeroed; gives their physical addresses. Permissions: [`crate::paging::USER_DATA`], [`crate::paging::USER_CODE`].
    pub fn alloc_user(&mut self, process: ProcessId, va: u64, pages: u64, permissions: u64) -> Vec<u64> {
        let root = self.processes[process.0].dtb;
        (0..pages)
            .map(|nth| {
                let pa = self.memory.alloc_page();
                self.tables.map(&mut self.memory, root, va + nth * PAGE, pa, permissions);
                pa
            })
            .collect()
    }

    /// Maps a page of physical memory in a process, for memory that is shared.
    pub fn map_user(&mut self, process: ProcessId, va: u64, pa: u64, permissions: u64) {
        let root = self.processes[process.0].dtb;
        self.tables.map(&mut self.memory, root, va, pa, permissions);
    }

    /// Writes a page-table entry of a process as it is: demand zero, transition, prototype, pagefile.
    pub fn set_user_entry(&mut self, process: ProcessId, va: u64, entry: u64) {
        let root = self.processes[process.0].dtb;
        self.tables.set_entry(&mut self.memory, root, va, entry);
    }

    /// Writes a page-table entry of the kernel as it is.
    pub fn set_kernel_entry(&mut self, va: u64, entry: u64) {
        let root = self.system_root();
        self.tables.set_entry(&mut self.memory, root, va, entry);
    }

    /// Maps a fresh page at an address of the kernel.
    pub fn map_kernel_page(&mut self, va: u64, flags: u64) -> u64 {
        let pa = self.memory.alloc_page();
        let root = self.system_root();
        self.tables.map(&mut self.memory, root, va, pa, flags);
        pa
    }

    /// Fresh pages of the kernel's system space, one after the other: for drivers, stacks, processor blocks.
    pub fn alloc_system(&mut self, bytes: u64, align: u64) -> u64 {
        let at = self.system_space.next_multiple_of(align.max(PAGE));
        for page in 0..bytes.div_ceil(PAGE) {
            self.map_kernel_page(at + page * PAGE, KERNEL_DATA);
        }
        // One page that is not mapped in between.
        self.system_space = at + (bytes.div_ceil(PAGE) + 1) * PAGE;
        at
    }

    /// An address of the kernel's half where nothing is.
    pub fn unmapped_kernel_address(&self) -> u64 {
        self.system_space + (64 << 20)
    }

    /// A block of the pool for an object: space for its header, and the address of its body. The header is zeros but for one pointer's count.
    pub fn alloc_object(&mut self, kind: PoolKind, tag: &[u8; 4], size: u64) -> u64 {
        let header = self.offset("_OBJECT_HEADER", "Body").unwrap_or(0);
        let at = self.alloc_pool_of(kind, tag, header + size);
        self.put("_OBJECT_HEADER", "PointerCount", at, 1);
        at + header
    }

    /// Makes a `LIST_ENTRY` an empty list.
    pub fn list_init(&mut self, head: u64) {
        self.write_pointer(head, head);
        self.write_pointer(head + self.build.pointer(), head);
    }

    /// Puts a `LIST_ENTRY` at the end of a list.
    pub fn list_append(&mut self, head: u64, entry: u64) {
        let pointer = self.build.pointer();
        let last = self.read_pointer(head + pointer);
        self.write_pointer(entry, head);
        self.write_pointer(entry + pointer, last);
        self.write_pointer(last, entry);
        self.write_pointer(head + pointer, entry);
    }

    /// Takes a `LIST_ENTRY` out of its list, as a rootkit does: its own pointers stay as they are.
    pub fn list_unlink(&mut self, entry: u64) {
        let pointer = self.build.pointer();
        let (next, previous) = (self.read_pointer(entry), self.read_pointer(entry + pointer));
        self.write_pointer(previous, next);
        self.write_pointer(next + pointer, previous);
    }
}

/// Where System's page tables are on machines that start with a BIOS: 0x187000 from Vista to 8.1, 0x1AD000 on Windows 10, 0x39000 on XP, on XP with PAE the
/// loader's pointer table.
fn usual_root(build: &Build, paging: Paging, options: &Options) -> Option<u64> {
    let at = match paging {
        Paging::FourLevel { .. } if build.number < 10000 => 0x18_7000,
        Paging::FourLevel { .. } => 0x1A_D000,
        Paging::Pae if build.number < 6000 => 0x2F_0000,
        Paging::Pae => 0x18_5000,
        Paging::Legacy => 0x3_9000,
    };
    options.ram.iter().any(|run| run.contains(&at)).then_some(at)
}

struct Places {
    pools: [u64; 2],
    system_space: u64,
}

impl Places {
    fn of(build: &Build) -> Self {
        let (pools, system_space) = match (build.is_64_bit, build.number) {
            (true, ..9200) => ([0xFFFF_FA80_0182_0000, 0xFFFF_F8A0_0000_0000], 0xFFFF_F880_00C0_0000),
            (true, ..14393) => ([0xFFFF_E000_2A20_0000, 0xFFFF_C000_1000_0000], 0xFFFF_F801_2000_0000),
            (true, _) => ([0xFFFF_C08B_DCE0_0000, 0xFFFF_AE0F_1420_0000], 0xFFFF_F804_9000_0000),
            (false, ..6000) => ([0x8170_0000, 0xE100_0000], 0xF800_0000),
            (false, _) => ([0x8560_0000, 0x9000_0000], 0x8B00_0000),
        };
        Self { pools, system_space }
    }
}

fn kernel(build: &Build, options: &Options, base: u64) -> Image {
    let KernelImage::Compiled(compiled) = &options.kernel else {
        let given: Option<BTreeMap<String, u64>> = build.isf.as_ref().map(|isf| {
            let symbols = isf["symbols"].as_object().into_iter().flatten();
            symbols.filter_map(|(name, symbol)| Some((name.clone(), symbol["address"].as_u64()?))).collect()
        });
        let pdb = match &build.isf {
            Some(isf) => {
                let pdb = &isf["metadata"]["windows"]["pdb"];
                let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
                Pdb { name: text(&pdb["database"]), guid: text(&pdb["GUID"]), age: pdb["age"].as_u64().unwrap_or(1) as u32 }
            }
            None => Pdb { name: build.pdb_name.to_owned(), guid: made_up_guid(&build.name, options.seed), age: 1 },
        };
        return kernel_image::write(&Plan {
            is_64_bit: build.is_64_bit,
            base,
            full_size: options.kernel_full_size,
            gap: if options.lonely_header { 0x8000 } else { 0 },
            pdb,
            given: given.as_ref(),
            exports_module_list: build.is_64_bit && build.number >= 10240,
            timestamp: 0x5F00_0000 + build.number,
        });
    };
    compiled.image()
}

/// Digits that depend on the build's name and the seed: no real kernel has them.
fn made_up_guid(name: &str, seed: u64) -> String {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64 ^ seed;
    let mut guid = String::new();
    for round in 0..2 {
        for byte in name.bytes().chain([round]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
        }
        guid += &format!("{hash:016X}");
    }
    guid
}

fn map_image(memory: &mut PhysicalMemory, tables: &mut PageTables, build: &Build, options: &Options, base: u64, size: u64) {
    let large = tables.large_page();
    let root = tables.roots()[0];
    let pages = size.div_ceil(PAGE);
    if options.kernel_large_pages && !options.lonely_header {
        // Before Windows Vista (32-bit) and Windows 8 (64-bit) the loader's addresses are physical ones plus a constant.
        let fixed = match (build.is_64_bit, build.number) {
            (true, ..9200) => Some(base & 0xFFFF_FFFF),
            (false, ..6000) => Some(base - 0x8000_0000),
            _ => None,
        };
        let end = (base + size).next_multiple_of(large);
        let start = base & !(large - 1);
        let fixed = fixed.map(|at| at & !(large - 1)).filter(|at| memory.is_ram(*at..*at + end - start));
        let first = options.kernel_physical.map(|at| at & !(large - 1)).or(fixed);
        let first = match first {
            Some(at) => {
                memory.reserve(at..at + end - start);
                at
            }
            None => memory.alloc_contiguous(end - start, large, 0),
        };
        for offset in (0..end - start).step_by(large as usize) {
            tables.map_large(memory, root, start + offset, first + offset, KERNEL_CODE);
        }
        return;
    }
    for page in 0..pages {
        let gap = options.lonely_header && (1..=8).contains(&page);
        if !gap {
            let at = memory.alloc_page();
            let flags = if page == 0 { KERNEL_DATA } else { KERNEL_CODE };
            tables.map(memory, root, base + page * PAGE, at, flags);
        }
    }
}
