//! Modules that a process has loaded: the loader's three lists of `_LDR_DATA_TABLE_ENTRY` in its own memory, and the programs and libraries that the kernel knows
//! to be mapped. What is in one and not in the other was unlinked, or mapped past the loader.

use std::collections::BTreeMap;
use std::time::SystemTime;

use vmi_arch_x86::X86Driver;
use vmi_core::{Error, ErrorKind, Memory, Result, VirtAddr, live};

use crate::file_time::moment;
use crate::guest::{known, present};
use crate::peb::Peb;
use crate::unicode_string;
use crate::{Process, VadKind};

/// More modules than a process has: each takes at least 64 KiB of 4 GiB.
const MAX_MODULES: usize = 1 << 16;

/// One of the loader's lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModuleOrder {
    /// In the order in which they were loaded, the program first.
    Load,
    /// In the order of their place in memory, as the loader calls it; in fact mostly as [`ModuleOrder::Load`].
    Memory,
    /// In the order in which they were initialised. The program is not in it.
    Initialization,
}

/// A module in one of the loader's lists.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadedModule {
    /// Where its entry is, in the process's memory.
    pub address: VirtAddr,
    /// First address.
    pub base: VirtAddr,
    /// Bytes of memory that it takes.
    pub size: u64,
    /// Where it starts.
    pub entry_point: VirtAddr,
    /// Path; `None` if it is paged out.
    pub path: Option<String>,
    /// File name; `None` if it is paged out.
    pub name: Option<String>,
    /// How often it was loaded; -1 or 65535 for what is never unloaded. `None` if the types do not tell.
    pub load_count: Option<i32>,
    /// When it was loaded (since Windows 7); `None` if the types do not tell.
    pub load_time: Option<SystemTime>,
    /// The time stamp of its file's header.
    pub time_stamp: u32,
    /// Whether it is a 32-bit module of a 64-bit system.
    pub wow64: bool,
}

/// Where a module of a process was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModuleViews {
    /// First address.
    pub base: VirtAddr,
    /// File name, from whichever view has one.
    pub name: Option<String>,
    /// In the list in load order.
    pub in_load_order: bool,
    /// In the list in memory order.
    pub in_memory_order: bool,
    /// In the list in initialisation order.
    pub in_initialization_order: bool,
    /// Among the programs and libraries that the kernel knows to be mapped.
    pub mapped: bool,
    /// It is the program itself.
    pub program: bool,
}

impl ModuleViews {
    /// Whether all views agree. A program is never in the list in initialisation order.
    pub fn agree(&self) -> bool {
        self.in_load_order && self.in_memory_order && self.mapped && (self.in_initialization_order || self.program)
    }
}

impl<D: X86Driver> Process<'_, '_, D> {
    /// The modules in one of the lists of its 64-bit loader, in a 32-bit system of its only one; none for a process without user memory.
    ///
    /// The process may write into these lists. The first error is the last row.
    pub fn loaded_modules(&self, order: ModuleOrder) -> Vec<Result<LoadedModule>> {
        self.modules_of(self.peb(), order, false)
    }

    /// As [`Process::loaded_modules`], of its 32-bit loader; none unless it is a 32-bit process of a 64-bit system.
    pub fn wow64_modules(&self, order: ModuleOrder) -> Vec<Result<LoadedModule>> {
        self.modules_of(self.wow64_peb(), order, true)
    }

    fn modules_of(&self, peb: Result<Option<Peb<'_, '_, D>>>, order: ModuleOrder, wow64: bool) -> Vec<Result<LoadedModule>> {
        let peb = match peb {
            Ok(Some(peb)) => peb,
            Ok(None) => return Vec::new(),
            Err(error) => return vec![Err(error)],
        };
        let rows = live::agreed(self.windows.vmi(), "the modules of a process", || self.read_modules(&peb, order, wow64));
        self.whole(rows).unwrap_or_else(|error| vec![Err(error)])
    }

    fn read_modules(&self, peb: &Peb<'_, '_, D>, order: ModuleOrder, wow64: bool) -> Vec<Result<LoadedModule>> {
        let mut rows = Vec::new();
        if let Err(error) = self.walk_modules(peb, order, wow64, &mut rows) {
            rows.push(Err(error));
        }
        rows
    }

    fn walk_modules(
        &self,
        peb: &Peb<'_, '_, D>,
        order: ModuleOrder,
        wow64: bool,
        rows: &mut Vec<Result<LoadedModule>>,
    ) -> Result<()> {
        let layout = &peb.layout;
        let [load, memory, initialization] = layout.lists;
        let [by_load, by_memory, by_initialization] = layout.links;
        let (list, links) = match order {
            ModuleOrder::Load => (load, by_load),
            ModuleOrder::Memory => (memory, by_memory),
            ModuleOrder::Initialization => (initialization, by_initialization),
        };
        let Some(loader) = peb.loader()? else { return Ok(()) };
        let head = loader.wrapping_add(list);
        // A node that comes up twice is found by the landmark of Brent's algorithm, as in `vmi_core::list`.
        let (mut node, mut landmark, mut count) = (layout.width.pointer(&peb.memory, head)?, head, 0usize);
        while node != head {
            if node == landmark {
                return Err(Error::corrupt("a list of modules runs in a circle that leaves out its head", node));
            }
            if count == MAX_MODULES {
                return Err(ErrorKind::Limit { what: "a list of modules".to_owned(), limit: MAX_MODULES }.into());
            }
            count = count.wrapping_add(1);
            if count.is_power_of_two() {
                landmark = node;
            }
            rows.push(Ok(self.read_module(peb, node.wrapping_sub(links), wow64)?));
            node = layout.width.pointer(&peb.memory, node)?;
        }
        Ok(())
    }

    fn read_module(&self, peb: &Peb<'_, '_, D>, at: VirtAddr, wow64: bool) -> Result<LoadedModule> {
        let (layout, memory) = (&peb.layout, &peb.memory);
        let pointer = |offset: u64| layout.width.pointer(memory, at.wrapping_add(offset));
        let string = |offset: u64| present(unicode_string::read(memory, at.wrapping_add(offset), layout.width));
        let module = &self.windows.layout.module;
        let native = !wow64;
        let load_time = if native && module.load_time.exists() {
            moment(memory.read(at.wrapping_add(module.load_time.offset()?))?)
        } else {
            None
        };
        Ok(LoadedModule {
            address: at,
            base: pointer(layout.base)?,
            size: u64::from(memory.read::<u32>(at.wrapping_add(layout.size))?),
            entry_point: pointer(layout.entry_point)?,
            path: string(layout.full_name)?,
            name: string(layout.name)?,
            load_count: if native { self.load_count(peb, at)? } else { None },
            load_time,
            time_stamp: memory.read(at.wrapping_add(layout.time_stamp))?,
            wow64,
        })
    }

    /// Since Windows 8 modules that depend on each other are counted together, in a node of their own.
    fn load_count(&self, peb: &Peb<'_, '_, D>, at: VirtAddr) -> Result<Option<i32>> {
        let (module, node) = (&self.windows.layout.module, &self.windows.layout.module_node);
        if module.node.exists() && node.load_count.exists() {
            let at = peb.layout.width.pointer(&peb.memory, at.wrapping_add(module.node.offset()?))?;
            if at.is_null() {
                return Ok(None);
            }
            return present(peb.memory.read::<i32>(at.wrapping_add(node.load_count.offset()?)));
        }
        if !module.load_count.exists() {
            return Ok(None);
        }
        Ok(Some(i32::from(peb.memory.read::<u16>(at.wrapping_add(peb.layout.load_count))?)))
    }

    /// The modules of all views side by side, by address: the loader's lists, 32-bit ones included, and the mapped programs and libraries.
    ///
    /// # Errors
    /// The first one of any view.
    pub fn module_views(&self) -> Result<Vec<ModuleViews>> {
        let mut views = BTreeMap::new();
        let program = self.peb()?.map(|peb| present(peb.image_base())).transpose()?.flatten().flatten();
        let orders = [ModuleOrder::Load, ModuleOrder::Memory, ModuleOrder::Initialization];
        for order in orders {
            for module in self.loaded_modules(order).into_iter().chain(self.wow64_modules(order)) {
                let module = module?;
                let view = view(&mut views, module.base);
                view.name = view.name.take().or(module.name);
                match order {
                    ModuleOrder::Load => view.in_load_order = true,
                    ModuleOrder::Memory => view.in_memory_order = true,
                    ModuleOrder::Initialization => view.in_initialization_order = true,
                }
            }
        }
        for vad in self.vads() {
            let vad = vad?;
            if known(vad.kind())? != Some(VadKind::Image) {
                continue;
            }
            let view = view(&mut views, vad.start());
            view.mapped = true;
            if view.name.is_none() {
                let path = present(vad.file())?.flatten();
                view.name = path.and_then(|path| path.rsplit('\\').next().map(str::to_owned));
            }
        }
        let mut views: Vec<ModuleViews> = views.into_values().collect();
        for view in &mut views {
            view.program = Some(view.base) == program;
        }
        Ok(views)
    }
}

fn view(views: &mut BTreeMap<VirtAddr, ModuleViews>, base: VirtAddr) -> &mut ModuleViews {
    views.entry(base).or_insert_with(|| ModuleViews { base, ..ModuleViews::default() })
}
