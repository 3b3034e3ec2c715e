//! The members of `struct module` (kernel: include/linux/module.h), judged by all loaded modules.

use vmi_arch_x86::X86Driver;
use vmi_core::{Memory, PAGE_SIZE, VirtAddr};

use super::findings::Findings;
use super::module_list::{ModuleList, name_len};
use super::sample::{Doubt, Object, only};
use super::types::Kind;
use super::view::View;

/// Kinds of memory of a module since 6.4 (kernel: `MOD_MEM_NUM_TYPES`).
const PARTS: usize = 7;
/// A module's memory is at most this large: all modules share 1 GiB.
const MAX_PART: u32 = 1 << 30;
/// References that a module may have.
const MAX_REFERENCES: u32 = 1 << 20;
/// Symbols that a module may have.
const MAX_SYMBOLS: u32 = 1 << 20;
/// Letters of symbols that are judged.
const MAX_LETTERS: u32 = 1024;
/// Bytes of a symbol's name (kernel: `KSYM_NAME_LEN`).
const MAX_SYMBOL_NAME: usize = 512;

/// Infers what a list of modules, their memory and their symbols need.
pub(super) fn infer<D: X86Driver>(space: &View<'_, D>, list: &ModuleList, findings: &mut Findings) {
    let width = space.width();
    let modules = Modules::new(space, list);
    findings.add("module", "state", 0, Kind::Number(4));
    findings.add("module", "list", width, Kind::Structure("list_head"));
    findings.add("module", "name", width.saturating_mul(3), Kind::Bytes(name_len(width) as u64));
    modules.kallsyms(findings);
    modules.references(findings);
    modules.exports(findings);
    match modules.parts() {
        Some(parts) => modules.record_parts(parts, findings),
        None => modules.layouts(findings),
    }
}

struct Modules<'a, 'v, D: X86Driver> {
    space: &'a View<'v, D>,
    modules: &'a [Object],
    width: usize,
    /// Bytes of every module that can be judged.
    size: usize,
}

/// Where the memory of a module is described since 6.4: an array of `struct module_memory`.
#[derive(Clone, Copy, Debug)]
struct Parts {
    array: usize,
    stride: usize,
    /// Offset of `size` in an element, whose first member is `base`.
    size: usize,
}

/// How an export is written: as pointers, or (since 4.19) as distances of 4 bytes from where they are.
#[derive(Clone, Copy, Debug)]
struct Export {
    relative: bool,
    /// Bytes of the value, and so the offset of the name.
    member: usize,
    /// Bytes of all: value, name and (since 5.4) namespace.
    size: usize,
}

impl Export {
    fn shapes(width: usize) -> impl Iterator<Item = Self> {
        [(true, 4), (false, width)].into_iter().flat_map(|(relative, member)| {
            [2usize, 3].into_iter().map(move |count| Self { relative, member, size: member.saturating_mul(count) })
        })
    }
}

impl<'a, 'v, D: X86Driver> Modules<'a, 'v, D> {
    fn new(space: &'a View<'v, D>, list: &'a ModuleList) -> Self {
        let size = list.modules.iter().map(|module| module.bytes.len()).min().unwrap_or(0);
        Self { space, modules: &list.modules, width: space.width(), size }
    }

    fn all(&self, mut test: impl FnMut(&Object) -> Option<bool>) -> bool {
        self.modules.iter().all(|module| test(module) == Some(true))
    }

    fn word(&self, module: &Object, offset: usize) -> Option<u64> {
        module.word(offset, self.width)
    }

    fn pointer(&self, at: u64) -> Option<u64> {
        self.space.pointer(at)
    }

    /// Offset of the first member behind the name.
    fn start(&self) -> usize {
        self.width.saturating_mul(3).saturating_add(name_len(self.width))
    }

    fn only(&self, test: impl FnMut(usize) -> bool) -> Result<usize, Doubt> {
        only(self.start()..self.size, self.width, test)
    }

    /// `kallsyms` names `core_kallsyms`, right behind it, once a module is loaded (kernel: `load_module`, `do_init_module`).
    fn kallsyms(&self, findings: &mut Findings) {
        let width = self.width;
        let place = |index: usize| width.saturating_mul(index);
        let table = self.only(|offset| {
            self.all(|module| {
                let table = offset.checked_add(width)?;
                let here = self.word(module, offset)? == module.at.checked_add(table as u64)?;
                let symbols = self.word(module, table)?;
                let count = module.u32(table.checked_add(width)?)?;
                let names = self.word(module, table.checked_add(place(2))?)?;
                // The first symbol has no name.
                let nameless = self.space.read::<u32>(VirtAddr::new(symbols)).ok()? == 0;
                let empty = self.space.read::<u8>(VirtAddr::new(names)).ok()? == 0;
                Some(here && count > 0 && count < MAX_SYMBOLS && nameless && empty)
            })
        });
        let Some(table) = findings.record("module", "kallsyms", table, Kind::Pointer) else { return };
        findings.add("mod_kallsyms", "symtab", 0, Kind::Pointer);
        findings.add("mod_kallsyms", "num_symtab", place(1), Kind::Number(4));
        findings.add("mod_kallsyms", "strtab", place(2), Kind::Pointer);
        let tables = table.saturating_add(width);
        if self.all(|module| self.are_letters(module, tables.checked_add(place(1))?, tables.checked_add(place(3))?)) {
            findings.add("mod_kallsyms", "typetab", place(3), Kind::Pointer);
        }
    }

    /// Whether the table that is named at offset `table` holds what nm(1) says of symbols: a letter for each but the first, which is none. (Before 5.2 the
    /// letters were in the symbols.)
    fn are_letters(&self, module: &Object, count: usize, table: usize) -> Option<bool> {
        let (count, table) = (module.u32(count)?, self.word(module, table)?);
        let letters = self.space.bytes(table.checked_add(1)?, count.saturating_sub(1).min(MAX_LETTERS) as usize)?;
        Some(letters.iter().all(|letter| letter.is_ascii_alphabetic() || *letter == b'?'))
    }

    /// `source_list` (who uses this module), `target_list`, `exit`, `refcnt`: two lists, a function or nothing, and a count that is one
    /// more than the users at the least (kernel: `MODULE_REF_BASE`).
    fn references(&self, findings: &mut Findings) {
        let width = self.width;
        let refcnt = self.only(|offset| {
            self.all(|module| {
                let source = offset.checked_sub(width.checked_mul(5)?)?;
                let users = self.list_len(module, source)?;
                self.list_len(module, source.checked_add(width.checked_mul(2)?)?)?;
                let exit = self.word(module, offset.checked_sub(width)?)?;
                let count = module.u32(offset)?;
                let code = exit == 0 || self.space.translate(exit).is_ok_and(|to| to.access.execute);
                Some(code && count > users && count < MAX_REFERENCES)
            })
        });
        findings.add("atomic_t", "counter", 0, Kind::Number(4));
        findings.record("module", "refcnt", refcnt, Kind::Structure("atomic_t"));
    }

    /// `syms`, `crcs`, (later `flagstab`,) `num_syms`: a table of values and names, and how many there are (kernel: `struct kernel_symbol`
    /// in include/linux/export.h). Some module must export something.
    fn exports(&self, findings: &mut Findings) {
        let width = self.width;
        let mut found = None;
        let table = self.only(|table| {
            for words in [2usize, 3] {
                let count = table.saturating_add(words.saturating_mul(width));
                if !self.modules.iter().any(|module| module.u32(count).is_some_and(|count| count > 0)) {
                    continue;
                }
                let mut shapes =
                    Export::shapes(width).filter(|export| self.all(|module| self.are_exports(module, table, count, *export)));
                if let (Some(export), None) = (shapes.next(), shapes.next()) {
                    found = Some((count, export));
                    return true;
                }
            }
            false
        });
        let Some(_) = findings.record("module", "syms", table, Kind::Pointer) else { return };
        let Some((count, export)) = found else { return };
        findings.add("module", "num_syms", count, Kind::Number(4));
        let [value, name] = if export.relative { ["value_offset", "name_offset"] } else { ["value", "name"] };
        let kind = if export.relative { Kind::Number(4) } else { Kind::Pointer };
        findings.add("kernel_symbol", value, 0, kind);
        findings.add("kernel_symbol", name, export.member, kind);
        findings.types.resize("kernel_symbol", export.size as u64);
    }

    /// Whether every entry has a value that is mapped and a name that could be one.
    fn are_exports(&self, module: &Object, table: usize, count: usize, export: Export) -> Option<bool> {
        let (table, count) = (self.word(module, table)?, module.u32(count)?);
        if count == 0 || count > MAX_SYMBOLS {
            return Some(count == 0);
        }
        for index in 0..u64::from(count) {
            let at = table.checked_add(index.checked_mul(export.size as u64)?)?;
            let value = self.reference(at, export)?;
            let name = self.reference(at.checked_add(export.member as u64)?, export)?;
            let name = self.space.read_c_string(VirtAddr::new(name), MAX_SYMBOL_NAME).ok()?;
            let word = !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'));
            if !word || self.space.translate(value).is_err() {
                return Some(false);
            }
        }
        Some(true)
    }

    /// What the member at `at` refers to.
    fn reference(&self, at: u64, export: Export) -> Option<u64> {
        if !export.relative {
            return self.pointer(at);
        }
        let distance: i32 = self.space.read(VirtAddr::new(at)).ok()?;
        let address = at.wrapping_add_signed(distance.into());
        Some(if self.width == 4 { address & u64::from(u32::MAX) } else { address })
    }

    /// How many nodes are in the list whose head is at `offset`, if it is a list.
    fn list_len(&self, module: &Object, offset: usize) -> Option<u32> {
        let head = module.at.checked_add(offset as u64)?;
        let mut len = 0u32;
        let mut node = head;
        loop {
            let next = self.pointer(node)?;
            if self.pointer(next.checked_add(self.width as u64)?)? != node || len > MAX_REFERENCES {
                return None;
            }
            if next == head {
                return Some(len);
            }
            node = next;
            len = len.checked_add(1)?;
        }
    }

    /// Since 6.4, seven structures in a row, each of which names the module (`mtn.mod`): the first for code, the second holds the module.
    fn parts(&self) -> Option<Parts> {
        let width = self.width;
        let named = |offset: usize| self.all(|module| Some(self.word(module, offset)? == module.at));
        let names: Vec<usize> = (self.start()..self.size).step_by(width).filter(|&offset| named(offset)).collect();
        let mut found = None;
        for &name in &names {
            for stride in (width.saturating_mul(9)..=width.saturating_mul(16)).step_by(width) {
                let run = (1..PARTS).all(|index| names.contains(&name.saturating_add(stride.saturating_mul(index))));
                if !run {
                    continue;
                }
                for base in (2..=5usize).filter_map(|words| name.checked_sub(words.saturating_mul(width))) {
                    for size in (base.saturating_add(width)..name).step_by(4) {
                        if self.all(|module| self.is_parts(module, base, size, stride)) {
                            if found.is_some() {
                                return None;
                            }
                            found = Some(Parts { array: base, stride, size: size.checked_sub(base)? });
                        }
                    }
                }
            }
        }
        found
    }

    fn is_parts(&self, module: &Object, base: usize, size: usize, stride: usize) -> Option<bool> {
        let mut sound = true;
        for index in 0..PARTS {
            let skip = stride.checked_mul(index)?;
            let (base, size) = (self.word(module, base.checked_add(skip)?)?, module.u32(size.checked_add(skip)?)?);
            let holds = module.at.checked_sub(base).is_some_and(|offset| offset < u64::from(size));
            // Empty ones keep no promise; code is never empty, and data holds the module itself.
            sound &= base.is_multiple_of(PAGE_SIZE) && size < MAX_PART && (base != 0 || size == 0);
            sound &= (index != 0 || size > 0 && base != 0) && holds == (index == 1);
        }
        Some(sound)
    }

    fn record_parts(&self, parts: Parts, findings: &mut Findings) {
        findings.add("module_memory", "base", 0, Kind::Pointer);
        findings.add("module_memory", "size", parts.size, Kind::Number(4));
        findings.types.resize("module_memory", parts.stride as u64);
        findings.add("module", "mem", parts.array, Kind::Structures("module_memory", PARTS as u64));
    }

    /// Before 6.4, `core_layout` and behind it `init_layout`: base, size, sizes of three parts in it that end at pages (two before 4.8), and (since 4.2, with
    /// tracing) the module.
    fn layouts(&self, findings: &mut Findings) {
        let width = self.width;
        let mut name = 0;
        let core = self.only(|offset| {
            let parts = [3usize, 2].into_iter().find(|parts| self.all(|module| self.is_layout(module, offset, *parts)));
            name = parts.map_or(name, |parts| self.layout_name(parts));
            parts.is_some()
        });
        let Some(core) = findings.record("module", "core_layout", core, Kind::Structure("module_layout")) else { return };
        findings.add("module_layout", "base", 0, Kind::Pointer);
        findings.add("module_layout", "size", width, Kind::Number(4));
        // Two tree nodes of three words each follow the module (kernel: `struct mod_tree_node`).
        let stride = name.saturating_add(width.saturating_mul(7));
        findings.types.resize("module_layout", stride as u64);
        let init = core.saturating_add(stride);
        let sound = self.all(|module| {
            let (base, size) = (self.word(module, init)?, module.u32(init.checked_add(width)?)?);
            Some(base.is_multiple_of(PAGE_SIZE) && (base == 0) == (size == 0) && size < MAX_PART)
        });
        findings.record("module", "init_layout", sound.then_some(init).ok_or(Doubt::None), Kind::Structure("module_layout"));
    }

    /// Where a `module_layout` with so many parts names the module.
    fn layout_name(&self, parts: usize) -> usize {
        self.width.saturating_add(parts.saturating_add(1).saturating_mul(4)).next_multiple_of(self.width)
    }

    fn is_layout(&self, module: &Object, offset: usize, parts: usize) -> Option<bool> {
        let base = self.word(module, offset)?;
        let sizes = offset.checked_add(self.width)?;
        let size = module.u32(sizes)?;
        let holds = module.at.checked_sub(base)? < u64::from(size);
        let parts_end =
            (1..=parts).map(|index| module.u32(sizes.checked_add(index.checked_mul(4)?)?)).collect::<Option<Vec<_>>>()?;
        let ascending =
            parts_end.is_sorted() && parts_end.iter().all(|end| *end <= size && u64::from(*end).is_multiple_of(PAGE_SIZE));
        let named = self.word(module, offset.checked_add(self.layout_name(parts))?)? == module.at;
        Some(base.is_multiple_of(PAGE_SIZE) && holds && size < MAX_PART && ascending && named)
    }
}
