//! A process's memory areas: `struct vm_area_struct` (include/linux/mm_types.h).

use core::fmt;

use vmi_arch_x86::X86Driver;
use vmi_core::{
    Error, ErrorKind, Memory, MemoryArea, PAGE_SIZE, Result, VirtAddr,
    list::rows,
    live::{self, Still},
};

use crate::maple_tree::MapleTree;
use crate::{Linux, Task, path};

/// More areas than a process has: the default of vm.max_map_count is 65,530.
const MAX_AREAS: usize = 1 << 22;
/// Bytes of a name given by the kernel or by prctl(PR_SET_VMA_ANON_NAME), which allows 80.
const MAX_NAME: usize = 256;

/// What names the areas that the kernel itself maps.
const SPECIAL_NAME: &str = "special_mapping_name";

const READ: u64 = 1;
const WRITE: u64 = 2;
const EXECUTE: u64 = 4;
/// VM_MAYSHARE: what /proc/PID/maps calls shared, also where writing is not allowed.
const MAY_SHARE: u64 = 0x80;

impl<'l, 'v, D: X86Driver> Task<'l, 'v, D> {
    /// The memory areas in ascending order, as /proc/PID/maps lists them, the page `[vsyscall]` included where symbols name it; none if the task has no memory of its own.
    ///
    /// Areas that do not ascend end the walk in an error: the tree or list is damaged or was changed while it was read.
    ///
    /// Of a running guest the areas are read at once, as often as it takes for two readings to agree.
    pub fn memory_areas(&self) -> impl Iterator<Item = Result<MemoryArea>> + use<'l, 'v, D> {
        let task = *self;
        let read = move || rows(Areas::new(task)).map(|area| area?.row());
        let vmi = self.linux.vmi();
        let agreed = live::runs(vmi).then(|| self.whole(live::agreed(vmi, "a list of memory areas", || read().collect())));
        let still = agreed.is_none().then(|| Still::new(vmi, "a list of memory areas", read()));
        still.into_iter().flatten().chain(agreed.into_iter().flat_map(|areas| rows(areas.map(Vec::into_iter))))
    }
}

/// Where areas come from, which depends on the kernel.
enum Source<'l, 'v, D: X86Driver> {
    None,
    /// Since 6.1.
    Tree(MapleTree<'l, 'v, D>),
    /// The next area of the list.
    List(VirtAddr),
}

struct Areas<'l, 'v, D: X86Driver> {
    linux: &'l Linux<'v, D>,
    mm: VirtAddr,
    source: Source<'l, 'v, D>,
    /// What the kernel shows behind all areas is still to come.
    gate: bool,
    /// Where the area before ended.
    end: VirtAddr,
    count: usize,
}

impl<'l, 'v, D: X86Driver> Areas<'l, 'v, D> {
    fn new(task: Task<'l, 'v, D>) -> Result<Self> {
        let linux = task.linux;
        let layout = &linux.layout.mm;
        let mm = task.mm()?;
        let source = match mm {
            None => Source::None,
            Some(mm) if layout.mmap.exists() => Source::List(linux.pointer(mm, layout.mmap)?),
            Some(mm) => Source::Tree(MapleTree::new(&linux.space, linux.pointer(mm, layout.maple_root)?)),
        };
        Ok(Self { linux, mm: mm.unwrap_or_default(), source, gate: mm.is_some(), end: VirtAddr::ZERO, count: 0 })
    }

    fn step(&mut self) -> Result<Option<Area<'l, 'v, D>>> {
        let layout = &self.linux.layout.area;
        let at = match &mut self.source {
            Source::None => None,
            Source::Tree(tree) => tree.next().transpose()?,
            Source::List(next) => Some(*next).filter(|next| !next.is_null()),
        };
        let at = if at.is_some() { at } else { self.gate()? };
        let Some(at) = at else { return Ok(None) };
        let start = self.linux.pointer(at, layout.start)?;
        let end = self.linux.pointer(at, layout.end)?;
        // This guards against lists in a circle, too: no area can come up twice.
        if start < self.end || end <= start {
            return Err(Error::corrupt(format!("a memory area from {start} to {end} behind one that ends at {}", self.end), at));
        }
        if self.count == MAX_AREAS {
            return Err(ErrorKind::Limit { what: "the list of memory areas".to_owned(), limit: MAX_AREAS }.into());
        }
        self.count = self.count.wrapping_add(1);
        self.end = end;
        if let Source::List(next) = &mut self.source {
            *next = self.linux.pointer(at, layout.next)?;
        }
        Ok(Some(Area { linux: self.linux, mm: self.mm, at, start, end }))
    }

    /// The gate area, once, if the process has it: a 64-bit program does, and has memory (its stack) that no 32-bit program could have.
    fn gate(&mut self) -> Result<Option<VirtAddr>> {
        self.source = Source::None;
        let wide = self.end > VirtAddr::new(u32::MAX.into());
        if core::mem::take(&mut self.gate) && wide { gate_area(self.linux) } else { Ok(None) }
    }
}

/// The area of the page of system calls that every 64-bit program sees (arch/x86/entry/vsyscall/vsyscall_64.c), if the kernel was not told to do without: then the page is mapped
/// or, since 5.3, the area no more than executable. (The numbers of `vsyscall_mode` have meant different things.)
fn gate_area<D: X86Driver>(linux: &Linux<'_, D>) -> Result<Option<VirtAddr>> {
    let Some(area) = linux.kernel().symbols.find("gate_vma").map(|symbol| symbol.address) else { return Ok(None) };
    if linux.pointer(area, linux.layout.area.flags)?.get() & READ == 0 {
        return Ok(Some(area));
    }
    match linux.kernel_space().translate(linux.pointer(area, linux.layout.area.start)?) {
        Ok(_) => Ok(Some(area)),
        Err(error) if matches!(error.kind(), ErrorKind::Fault(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl<'l, 'v, D: X86Driver> Iterator for Areas<'l, 'v, D> {
    type Item = Result<Area<'l, 'v, D>>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            (self.source, self.gate) = (Source::None, false);
        }
        step.transpose()
    }
}

/// One `struct vm_area_struct`.
struct Area<'l, 'v, D: X86Driver> {
    linux: &'l Linux<'v, D>,
    mm: VirtAddr,
    at: VirtAddr,
    start: VirtAddr,
    end: VirtAddr,
}

impl<D: X86Driver> Area<'_, '_, D> {
    fn row(&self) -> Result<MemoryArea> {
        let layout = &self.linux.layout.area;
        let flags = self.linux.pointer(self.at, layout.flags)?.get();
        let file = self.linux.pointer_or_null(self.at, layout.file)?;
        let mut row = MemoryArea::new(self.start, self.end);
        row.read = flags & READ != 0;
        row.write = flags & WRITE != 0;
        row.execute = flags & EXECUTE != 0;
        row.shared = flags & MAY_SHARE != 0;
        if file.is_some() {
            row.offset = self.linux.pointer(self.at, layout.offset)?.get().wrapping_mul(PAGE_SIZE);
        }
        row.name = self.name(file)?;
        Ok(row)
    }

    /// As show_map_vma() in fs/proc/task_mmu.c finds it.
    fn name(&self, file: Option<VirtAddr>) -> Result<Option<String>> {
        if self.linux.kernel().symbols.find("gate_vma").is_some_and(|gate| gate.address == self.at) {
            return Ok(Some("[vsyscall]".to_owned()));
        }
        let given = self.given_name(file.is_some())?;
        if let Some(file) = file {
            return match given {
                Some(name) => Ok(Some(format!("[anon_shmem:{name}]"))),
                None => path::of_file(self.linux, file).map(Some),
            };
        }
        if let Some(name) = self.special_name()? {
            return Ok(Some(name));
        }
        let mm = |member| self.linux.pointer(self.mm, member);
        let layout = &self.linux.layout.mm;
        // vma_is_initial_heap() and vma_is_initial_stack(), include/linux/mm.h.
        if self.start < mm(layout.brk)? && self.end > mm(layout.start_brk)? {
            return Ok(Some("[heap]".to_owned()));
        }
        let stack = mm(layout.start_stack)?;
        if self.start <= stack && self.end >= stack {
            return Ok(Some("[stack]".to_owned()));
        }
        Ok(given.map(|name| format!("[anon:{name}]")))
    }

    /// The name that the program gave to it.
    fn given_name(&self, of_file: bool) -> Result<Option<String>> {
        let layout = &self.linux.layout;
        let (name, shared) = (layout.area.anon_name, layout.area.shared);
        if !name.exists() || of_file && shared.exists() && shared.offset()? == name.offset()? {
            return Ok(None);
        }
        let Some(given) = self.linux.pointer_or_null(self.at, name)? else { return Ok(None) };
        self.string(layout.anon_name.name.of(given)?).map(Some)
    }

    /// The name of what the kernel itself maps into every process: `[vdso]`, `[vvar]` (`struct vm_special_mapping`). Of areas without a file, only these have
    /// operations, and their `name` is special_mapping_name() (mm/mmap.c, later mm/vma.c). Where no symbol says so, the brackets have to do.
    fn special_name(&self) -> Result<Option<String>> {
        let layout = &self.linux.layout;
        let Some(ops) = self.linux.pointer_or_null(self.at, layout.area.ops)? else { return Ok(None) };
        let name = || {
            self.string(self.linux.pointer(self.linux.pointer(self.at, layout.area.private_data)?, layout.special_mapping.name)?)
        };
        let symbols = &self.linux.kernel().symbols;
        if symbols.find(SPECIAL_NAME).is_none() {
            return Ok(name().ok().filter(|name| name.starts_with('[')));
        }
        let function = self.linux.pointer(ops, layout.area_ops.name)?;
        if symbols.at(function).any(|symbol| symbol.name == SPECIAL_NAME) { name().map(Some) } else { Ok(None) }
    }

    fn string(&self, at: VirtAddr) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.linux.space.read_c_string(at, MAX_NAME)?).into_owned())
    }
}

impl<D: X86Driver> fmt::Debug for Area<'_, '_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Area").field("at", &self.at).field("start", &self.start).field("end", &self.end).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_guest::{INIT_TASK, TestGuest};

    const MM: u64 = 0xc000;

    /// A process with three areas on the list of a kernel before 6.1; start 0, end 8, next 0x10, flags 0x18.
    fn guest() -> TestGuest {
        let mut guest = TestGuest::new();
        guest.task(0x9000, INIT_TASK, 1, "init");
        guest.put(0x9058, &[MM]);
        for (index, name) in ["mmap", "brk", "start_brk", "start_stack"].into_iter().enumerate() {
            guest.types.member("mm_struct", name, 8 * index as u64, 8);
        }
        let members = ["vm_start", "vm_end", "vm_next", "vm_flags", "vm_file", "vm_ops"];
        for (index, name) in members.into_iter().enumerate() {
            guest.types.member("vm_area_struct", name, 8 * index as u64, 8);
        }
        guest.put(MM, &[0xd000, 0x7800, 0x7000, 0xaff8]);
        guest.put(0xd000, &[0x1000, 0x2000, 0xd100, READ | EXECUTE]);
        guest.put(0xd100, &[0x7000, 0x8000, 0xd200, READ | WRITE]);
        guest.put(0xd200, &[0xa000, 0xb000, 0, READ | WRITE | MAY_SHARE]);
        guest
    }

    fn areas(guest: TestGuest) -> (Vec<MemoryArea>, Option<Error>) {
        let (vmi, kernel) = guest.build();
        let linux = Linux::with_kernel(&vmi, kernel).unwrap();
        let mut areas = Vec::new();
        for area in linux.process(1).unwrap().memory_areas() {
            match area {
                Ok(area) => areas.push(area),
                Err(error) => return (areas, Some(error)),
            }
        }
        (areas, None)
    }

    #[test]
    fn the_list_of_older_kernels() {
        let (areas, error) = areas(guest());
        assert!(error.is_none(), "{error:?}");
        let names: Vec<_> = areas.iter().map(|area| area.name.as_deref()).collect();
        assert_eq!(names, [None, Some("[heap]"), Some("[stack]")]);
        assert!(areas[0].execute && !areas[0].write && areas[2].shared);
    }

    /// The guest with a page of system calls at `at`: a program of 64 bits, whose last area ends above 4 GiB, sees it.
    fn with_gate(at: u64, flags: u64, end: u64) -> TestGuest {
        let mut guest = guest();
        guest.put(0xd208, &[end]);
        guest.put(0xe000, &[at, at.wrapping_add(0x1000), 0, flags]);
        guest.symbol("gate_vma", 0xe000);
        guest
    }

    #[test]
    fn the_page_of_system_calls_is_the_last_area() {
        const AT: u64 = 0xffff_ffff_ff60_0000;
        const END: u64 = 0x3000_0000;
        let (found, error) = areas(with_gate(AT, EXECUTE, 0x7fff_0000_0000));
        assert!(error.is_none(), "{error:?}");
        let gate = found.get(3).unwrap();
        assert_eq!((gate.start.get(), gate.name.as_deref()), (AT, Some("[vsyscall]")));
        assert!(gate.execute && !gate.read && found.len() == 4);
        assert_eq!(areas(with_gate(AT, READ | EXECUTE, 0x7fff_0000_0000)).0.len(), 3, "not mapped: switched off");
        assert_eq!(areas(with_gate(AT, EXECUTE, END)).0.len(), 3, "a program of 32 bits");
    }

    #[test]
    fn what_the_kernel_maps_is_named_without_symbols() {
        let mut guest = guest();
        guest.types.member("vm_area_struct", "vm_private_data", 0x30, 8);
        guest.types.member("vm_special_mapping", "name", 0, 8);
        // Operations at 0xe000; the mapping at 0xe100 names itself.
        guest.put(0xd028, &[0xe000, 0xe100]);
        guest.put(0xe100, &[0xe200]);
        guest.text(0xe200, "[vdso]");
        // What else has operations is no such mapping.
        guest.put(0xd228, &[0xe000, 0x7777_0000_0000]);
        let (found, error) = areas(guest);
        assert!(error.is_none(), "{error:?}");
        let names: Vec<_> = found.iter().map(|area| area.name.as_deref()).collect();
        assert_eq!(names, [Some("[vdso]"), Some("[heap]"), Some("[stack]")]);
    }

    #[test]
    fn areas_in_a_circle_end_in_an_error() {
        let mut guest = guest();
        guest.put(0xd210, &[0xd100]);
        let (areas, error) = areas(guest);
        assert_eq!(areas.len(), 3, "none comes up twice");
        assert!(matches!(error.unwrap().kind(), ErrorKind::Corrupt { .. }));
    }

    #[test]
    fn an_area_that_ends_before_it_starts_is_an_error() {
        let mut guest = guest();
        guest.put(0xd108, &[0x6fff]);
        let (areas, error) = areas(guest);
        assert_eq!(areas.len(), 1);
        assert!(matches!(error.unwrap().kind(), ErrorKind::Corrupt { .. }));
    }
}
