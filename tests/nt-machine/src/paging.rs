//! Page tables as NT lays them out: a self-map, and one kernel half that all processes share.
//!
//! Entry formats: Intel SDM volume 3, chapter 4. The self-map's places: <https://en.wikipedia.org/wiki/Recursive_page_table>, and measured by others as
//! slot 0x1ED of the PML4 before Windows 10 1607 and a random one of 0x100..0x1FF since then; 0xC0000000 in 32-bit kernels.

use crate::memory::{PAGE, PhysicalMemory};

/// The format of the page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// 64-bit: four levels; the PML4 lists itself in this slot.
    FourLevel {
        /// 0x100..0x200.
        self_map: u16,
    },
    /// 32-bit with entries of 8 bytes.
    Pae,
    /// 32-bit with entries of 4 bytes.
    Legacy,
}

/// The entry is present.
pub const PRESENT: u64 = 1;
/// The page can be written.
pub const WRITE: u64 = 2;
/// User mode has access.
pub const USER: u64 = 4;
/// The processor has used the entry.
pub const ACCESSED: u64 = 0x20;
/// The page was written.
pub const DIRTY: u64 = 0x40;
/// The entry maps a large page.
pub const LARGE: u64 = 0x80;
/// The translation outlives a change of address space.
pub const GLOBAL: u64 = 0x100;
/// No code here. 32-bit tables without PAE have no such bit: it is left out there.
pub const NO_EXECUTE: u64 = 1 << 63;

/// How NT maps data of the kernel.
pub const KERNEL_DATA: u64 = PRESENT | WRITE | ACCESSED | DIRTY | GLOBAL | NO_EXECUTE;
/// How the kernel's image is mapped with large pages.
pub const KERNEL_CODE: u64 = PRESENT | WRITE | ACCESSED | DIRTY | GLOBAL;
/// How a private page of a process is mapped.
pub const USER_DATA: u64 = PRESENT | WRITE | USER | ACCESSED | DIRTY | NO_EXECUTE;
/// How a page of a mapped executable is mapped.
pub const USER_CODE: u64 = PRESENT | USER | ACCESSED;

const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
const TABLE: u64 = PRESENT | WRITE | ACCESSED | DIRTY;

/// The address spaces of the machine. The first one is that of System.
#[derive(Clone, Debug)]
pub struct PageTables {
    paging: Paging,
    roots: Vec<u64>,
    /// Root and its shadow: with KVA shadow, what is loaded while the process runs in user mode.
    shadows: Vec<(u64, u64)>,
    /// The page with 32-byte page-directory-pointer tables of processes, and how many are in it.
    pointer_tables: Option<(u64, u64)>,
}

impl PageTables {
    /// No address space yet.
    pub fn new(paging: Paging) -> Self {
        Self { paging, roots: Vec::new(), shadows: Vec::new(), pointer_tables: None }
    }

    /// The format.
    pub fn paging(&self) -> Paging {
        self.paging
    }

    /// Bytes that a large page of this format maps.
    pub fn large_page(&self) -> u64 {
        if self.paging == Paging::Legacy { 4 << 20 } else { 2 << 20 }
    }

    /// Roots of all address spaces, System first, without shadows.
    pub fn roots(&self) -> &[u64] {
        &self.roots
    }

    fn width(&self) -> usize {
        if self.paging == Paging::Legacy { 4 } else { 8 }
    }

    /// Shift and number of entries of each level, the root first.
    fn levels(&self) -> &'static [(u32, u64)] {
        match self.paging {
            Paging::FourLevel { .. } => &[(39, 512), (30, 512), (21, 512), (12, 512)],
            Paging::Pae => &[(30, 4), (21, 512), (12, 512)],
            Paging::Legacy => &[(22, 1024), (12, 1024)],
        }
    }

    /// The level whose entries are copied into all address spaces.
    fn shared_level(&self) -> usize {
        usize::from(self.paging == Paging::Pae)
    }

    fn is_kernel(&self, va: u64) -> bool {
        if matches!(self.paging, Paging::FourLevel { .. }) { va >= 1 << 63 } else { va >= 0x8000_0000 }
    }

    /// The first address space, with its root at `at` if that is given. PAE takes five pages side by side: the loader's pointer table, and behind it the
    /// four directories.
    pub fn new_system_root(&mut self, memory: &mut PhysicalMemory, at: Option<u64>) -> u64 {
        assert!(self.roots.is_empty());
        let pages = if self.paging == Paging::Pae { 5 } else { 1 };
        let root = match at {
            Some(at) => {
                memory.reserve(at..at + pages * PAGE);
                at
            }
            None => memory.alloc_contiguous(pages * PAGE, PAGE, 0),
        };
        let directories: Vec<u64> = (1..5).map(|nth| root + nth * PAGE).collect();
        self.begin(memory, root, &directories);
        root
    }

    /// An address space of a process: the kernel's half of System's, and an empty user half.
    pub fn new_root(&mut self, memory: &mut PhysicalMemory) -> u64 {
        let (root, directories) = if self.paging == Paging::Pae {
            let (page, used) =
                self.pointer_tables.filter(|(_, used)| *used < PAGE / 32).unwrap_or_else(|| (memory.alloc_page(), 1));
            self.pointer_tables = Some((page, used + 1));
            (page + used * 32, (0..4).map(|_| memory.alloc_page()).collect::<Vec<_>>())
        } else {
            (memory.alloc_page(), Vec::new())
        };
        self.begin(memory, root, &directories);
        let system = self.roots[0];
        match self.paging {
            Paging::FourLevel { self_map } => {
                for slot in (256..512).filter(|slot| *slot != u64::from(self_map)) {
                    let entry = memory.read_number(system + slot * 8, 8);
                    memory.write_number(root + slot * 8, entry, 8);
                }
            }
            Paging::Pae => {
                for slot in (1024..2048).filter(|slot| !(0x600..0x604).contains(slot)) {
                    let from = (memory.read_number(system + slot / 512 * 8, 8) & ADDRESS) + slot % 512 * 8;
                    let entry = memory.read_number(from, 8);
                    memory.write_number(directories[slot as usize / 512] + slot % 512 * 8, entry, 8);
                }
            }
            Paging::Legacy => {
                for slot in (512..1024).filter(|slot| *slot != 0x300) {
                    let entry = memory.read_number(system + slot * 4, 4);
                    memory.write_number(root + slot * 4, entry, 4);
                }
            }
        }
        root
    }

    fn begin(&mut self, memory: &mut PhysicalMemory, root: u64, directories: &[u64]) {
        match self.paging {
            Paging::FourLevel { self_map } => memory.write_number(root + u64::from(self_map) * 8, root | TABLE, 8),
            Paging::Pae => {
                for (nth, directory) in (0..).zip(directories) {
                    memory.write_number(root + nth * 8, directory | PRESENT, 8);
                    memory.write_number(directories[3] + nth * 8, directory | TABLE, 8);
                }
            }
            Paging::Legacy => memory.write_number(root + 0x300 * 4, root | TABLE, 4),
        }
        self.roots.push(root);
    }

    /// The shadow of an address space, as KVA shadow makes it: the user half, and a kernel half without anything but what [`PageTables::map_shadow`] puts there.
    pub fn new_shadow(&mut self, memory: &mut PhysicalMemory, root: u64) -> u64 {
        let Paging::FourLevel { self_map } = self.paging else { panic!("KVA shadow is built for 64-bit machines") };
        let shadow = memory.alloc_page();
        for slot in 0..256 {
            let entry = memory.read_number(root + slot * 8, 8);
            memory.write_number(shadow + slot * 8, entry, 8);
        }
        memory.write_number(shadow + u64::from(self_map) * 8, shadow | TABLE, 8);
        self.shadows.push((root, shadow));
        shadow
    }

    /// Maps a page of the kernel in a shadow.
    pub fn map_shadow(&mut self, memory: &mut PhysicalMemory, shadow: u64, va: u64, pa: u64, flags: u64) {
        let (entry, _) = self.entry(memory, shadow, va, self.levels().len() - 1);
        memory.write_number(entry, pa | flags, 8);
    }

    fn slot(&self, level: usize, va: u64) -> u64 {
        let (shift, entries) = self.levels()[level];
        (va >> shift) & (entries - 1)
    }

    /// Where the entry of `va` at a level is; tables on the way are made. The second is the entry of the shared level on the way.
    fn entry(&mut self, memory: &mut PhysicalMemory, root: u64, va: u64, level: usize) -> (u64, u64) {
        let width = self.width();
        let mut table = root;
        let mut shared = 0;
        for above in 0..=level {
            let at = table + self.slot(above, va) * width as u64;
            if above == self.shared_level() {
                shared = at;
            }
            if above == level {
                return (at, shared);
            }
            let mut entry = memory.read_number(at, width);
            if entry & PRESENT == 0 {
                let user = if self.is_kernel(va) { 0 } else { USER };
                entry = memory.alloc_page() | TABLE | user;
                memory.write_number(at, entry, width);
                if above == 0 && !self.is_kernel(va) {
                    for (_, shadow) in self.shadows.iter().filter(|(of, _)| *of == root) {
                        memory.write_number(shadow + self.slot(0, va) * 8, entry, 8);
                    }
                }
            }
            assert!(entry & LARGE == 0 || self.paging == Paging::Pae && above == 0, "a large page is in the way of {va:#x}");
            table = entry & ADDRESS;
        }
        unreachable!("the loop ends at the level");
    }

    /// Writes an entry of the last level as it is, for pages that are not present but not lost. Kernel addresses: `root` is ignored, all spaces share them.
    pub fn set_entry(&mut self, memory: &mut PhysicalMemory, root: u64, va: u64, entry: u64) {
        self.put(memory, root, va, entry, self.levels().len() - 1);
    }

    /// The entry of the last level as it is; `None` if there is no table for it.
    pub fn raw_entry(&self, memory: &PhysicalMemory, root: u64, va: u64) -> Option<u64> {
        let mut table = root;
        for level in 0..self.levels().len() {
            let at = table + self.slot(level, va) * self.width() as u64;
            let entry = memory.read_number(at, self.width());
            if level + 1 == self.levels().len() {
                return Some(entry);
            }
            if entry & PRESENT == 0 || (entry & LARGE != 0 && level > 0) {
                return None;
            }
            table = entry & ADDRESS;
        }
        None
    }

    /// Maps a page of 4 KiB.
    pub fn map(&mut self, memory: &mut PhysicalMemory, root: u64, va: u64, pa: u64, flags: u64) {
        assert!(va.is_multiple_of(PAGE) && pa.is_multiple_of(PAGE));
        self.put(memory, root, va, pa | self.allowed(flags), self.levels().len() - 1);
    }

    /// Maps a large page.
    pub fn map_large(&mut self, memory: &mut PhysicalMemory, root: u64, va: u64, pa: u64, flags: u64) {
        assert!(va.is_multiple_of(self.large_page()) && pa.is_multiple_of(self.large_page()));
        self.put(memory, root, va, pa | self.allowed(flags) | LARGE, self.levels().len() - 2);
    }

    fn allowed(&self, flags: u64) -> u64 {
        if self.paging == Paging::Legacy { flags & !NO_EXECUTE } else { flags }
    }

    fn put(&mut self, memory: &mut PhysicalMemory, root: u64, va: u64, entry: u64, level: usize) {
        let width = self.width();
        let kernel = self.is_kernel(va);
        let root = if kernel { self.roots[0] } else { root };
        let (at, shared) = self.entry(memory, root, va, level);
        memory.write_number(at, entry, width);
        if kernel {
            // All other spaces have the same entry at the shared level.
            let entry = memory.read_number(shared, width);
            for other in self.roots.clone().into_iter().skip(1) {
                let (_, at) = self.entry(memory, other, va, self.shared_level());
                memory.write_number(at, entry, width);
            }
        }
    }

    /// The physical address of a virtual one that is mapped.
    pub fn translate(&self, memory: &PhysicalMemory, root: u64, va: u64) -> Option<u64> {
        let mut table = root;
        let levels = self.levels();
        for (level, (shift, _)) in levels.iter().enumerate() {
            let entry = memory.read_number(table + self.slot(level, va) * self.width() as u64, self.width());
            let pointer_table = self.paging == Paging::Pae && level == 0;
            if entry & PRESENT == 0 {
                return None;
            }
            if level + 1 == levels.len()
                || (entry & LARGE != 0 && !pointer_table && level > 0 || entry & LARGE != 0 && self.paging == Paging::Legacy)
            {
                let mask = (1 << shift) - 1;
                return Some(entry & ADDRESS & !mask | va & mask);
            }
            table = entry & ADDRESS;
        }
        None
    }
}
