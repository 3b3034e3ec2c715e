//! Symbols of what was loaded after boot: modules, what of modules ftrace remembers, and BPF programs. Together with the kernel's own they are
//! what /proc/kallsyms holds (kernel/kallsyms.c, kernel/module/kallsyms.c).

use rustc_hash::FxHashSet;
use vmi_arch_x86::X86Driver;
use vmi_core::{Error, ErrorKind, Memory, Paging, Result, Symbols, SymbolsBuilder, VirtAddr, list};

use crate::{Linux, Module};

/// More symbols than any module has; the largest (graphics drivers) have some 50,000.
const MAX_SYMBOLS: u32 = 1 << 20;
/// More exported symbols than any module has.
const MAX_EXPORTS: u32 = 1 << 16;
/// More functions than the start-up code of all modules has.
const MAX_TRACED: usize = 1 << 16;
/// More BPF programs than a machine has: each is listed while it is loaded.
const MAX_PROGRAMS: usize = 1 << 20;
/// KSYM_NAME_LEN is 512 since 6.1 (commit b8a94bfb3395), 128 before. Names in a module's string table are not cut to it.
const MAX_NAME: usize = 4096;

/// A symbol of a module.
#[derive(Debug)]
struct ModuleSymbol {
    name: String,
    address: VirtAddr,
    /// As /proc/kallsyms prints it.
    kind: u8,
}

impl<D: X86Driver> Linux<'_, D> {
    /// All symbols, and one sentence for each module whose symbols could not be read.
    pub(crate) fn read_all_symbols(&self) -> (Symbols, Vec<String>) {
        let mut builder = SymbolsBuilder::default();
        let mut remarks = Vec::new();
        let module = &self.layout.module;
        if module.kallsyms.exists() && !module.exports_len.exists() {
            remarks.push("which symbols modules export is not known: all are shown as local".to_owned());
        }
        let own = &self.kernel().symbols;
        builder.reserve(own.len());
        for symbol in own.iter() {
            builder.push(symbol.name, symbol.address, symbol.kind);
        }
        for module in self.modules() {
            let symbols = module.and_then(|module| module.whole(module.name().and_then(|name| Ok((name, module.symbols()?)))));
            match symbols {
                // Unloaded meanwhile.
                Err(error) if matches!(error.kind(), ErrorKind::Gone { .. }) => {}
                Ok((name, symbols)) => {
                    builder.module(&name);
                    for symbol in symbols {
                        builder.push(&symbol.name, symbol.address, symbol.kind);
                    }
                }
                Err(error) => remarks.push(format!("symbols of modules are incomplete: {error}")),
            }
        }
        if let Err(error) = self.traced_symbols(&mut builder) {
            remarks.push(format!("symbols of modules that ftrace remembers are incomplete: {error}"));
        }
        builder.module("bpf");
        for program in self.bpf_symbols() {
            match program {
                Ok((name, address)) => _ = builder.push(&name, address, b't'),
                Err(error) => remarks.push(format!("symbols of BPF programs are incomplete: {error}")),
            }
        }
        (builder.build(), remarks)
    }

    /// The functions of modules' start-up code, which is gone: ftrace remembers them if something was traced while they went
    /// (kernel: `ftrace_mod_get_kallsym` in kernel/trace/ftrace.c).
    fn traced_symbols(&self, builder: &mut SymbolsBuilder) -> Result<()> {
        let (module, function) = (&self.layout.traced_module, &self.layout.traced_function);
        let Some(head) = self.symbol("ftrace_mod_maps").ok().filter(|_| module.list.exists() && function.list.exists()) else {
            return Ok(());
        };
        let mut left = MAX_TRACED;
        for node in list::nodes(&self.space, head, "the list of modules that ftrace remembers", MAX_TRACED, |_| Ok(0)) {
            let map = module.list.owner(node?.at)?;
            builder.module(&Module { linux: self, at: self.pointer(map, module.module)? }.name()?);
            let functions = module.functions.of(map)?;
            for node in list::nodes(&self.space, functions, "the functions that ftrace remembers", left, |_| Ok(0)) {
                let at = function.list.owner(node?.at)?;
                left = left.saturating_sub(1);
                let name = self.space.read_c_string(self.pointer(at, function.name)?, MAX_NAME)?;
                builder.push(&String::from_utf8_lossy(&name), self.pointer(at, function.start)?, b'T');
            }
        }
        Ok(())
    }

    /// Name and start of each loaded BPF program; none where the kernel does not list them.
    fn bpf_symbols(&self) -> impl Iterator<Item = Result<(String, VirtAddr)>> {
        let layout = &self.layout.bpf_symbol;
        let head = self.symbol("bpf_kallsyms").ok().filter(|_| layout.list.exists());
        let nodes = |head| list::nodes(&self.space, head, "the list of BPF programs", MAX_PROGRAMS, |_| Ok(0));
        head.into_iter()
            .flat_map(nodes)
            .map(|node| {
                let node = node?.at;
                let at = layout.list.owner(node)?;
                let read = || {
                    let name = self.space.read_c_string(layout.name.of(at)?, MAX_NAME)?;
                    Ok((String::from_utf8_lossy(&name).into_owned(), self.pointer(at, layout.start)?))
                };
                let program = read();
                // One that a running guest has unloaded meanwhile is no symbol any more.
                if list::holds(&self.space, node) { program.map(Some) } else { Ok(None) }
            })
            .filter_map(Result::transpose)
    }
}

impl<D: X86Driver> Module<'_, '_, D> {
    fn symbols(&self) -> Result<Vec<ModuleSymbol>> {
        let (linux, layout) = (self.linux, &self.linux.layout.kallsyms);
        let Some(table) = linux.pointer_or_null(self.at, linux.layout.module.kallsyms)? else { return Ok(Vec::new()) };
        let count: u32 = linux.read(table, layout.symbols_len)?;
        if count > MAX_SYMBOLS {
            return Err(ErrorKind::Limit { what: "the symbol table of a module".to_owned(), limit: MAX_SYMBOLS as usize }.into());
        }
        let names = linux.pointer(table, layout.names)?;
        let entry_size = ElfSymbol::size(linux.space.mode().pointer_size());
        let entries = linux.space.read_vec(linux.pointer(table, layout.symbols)?, entry_size.saturating_mul(count as usize))?;
        let kinds = match layout.kinds.exists() {
            true => linux.space.read_vec(linux.pointer(table, layout.kinds)?, count as usize)?,
            false => Vec::new(),
        };
        let exports = self.exports()?;
        let mut symbols = Vec::with_capacity(count as usize);
        for (index, entry) in entries.chunks_exact(entry_size).enumerate() {
            let entry = ElfSymbol::parse(entry).ok_or_else(|| Error::corrupt("a symbol cut short", table))?;
            let name = linux.space.read_c_string(names.wrapping_add(u64::from(entry.name)), MAX_NAME)?;
            // The first entry of an ELF symbol table is empty, and /proc/kallsyms leaves nameless ones out.
            if name.is_empty() {
                continue;
            }
            let kind = kinds.get(index).copied().unwrap_or_else(|| entry.old_kind());
            let name = String::from_utf8_lossy(&name).into_owned();
            let exported = exports.contains(&(entry.value, name.clone()));
            let kind = if exported { kind.to_ascii_uppercase() } else { kind.to_ascii_lowercase() };
            symbols.push(ModuleSymbol { name, address: VirtAddr::new(entry.value), kind });
        }
        Ok(symbols)
    }

    /// Values and names of what it exports to all: /proc/kallsyms shows these as global. It looks (is_exported()) into the table `syms`
    /// only, which holds those for GPL modules too since 7.1. None if the types do not describe it.
    fn exports(&self) -> Result<FxHashSet<(u64, String)>> {
        let (linux, module, layout) = (self.linux, &self.linux.layout.module, &self.linux.layout.export);
        if !module.exports_len.exists() {
            return Ok(FxHashSet::default());
        }
        let count: u32 = linux.read(self.at, module.exports_len)?;
        if count > MAX_EXPORTS {
            return Err(ErrorKind::Limit { what: "the exports of a module".to_owned(), limit: MAX_EXPORTS as usize }.into());
        }
        let table = linux.pointer(self.at, module.exports)?;
        (0..u64::from(count))
            .map(|index| {
                let at = table.wrapping_add(index.wrapping_mul(layout.whole.size()?));
                let (value, name) = if layout.value_offset.exists() {
                    (linux.relative(layout.value_offset.of(at)?)?, linux.relative(layout.name_offset.of(at)?)?)
                } else {
                    (linux.pointer(at, layout.value)?, linux.pointer(at, layout.name)?)
                };
                let name = linux.space.read_c_string(name, MAX_NAME)?;
                Ok((value.get(), String::from_utf8_lossy(&name).into_owned()))
            })
            .collect()
    }
}

impl<D: X86Driver> Linux<'_, D> {
    /// A 32-bit offset that counts from its own place (PREL32).
    fn relative(&self, at: VirtAddr) -> Result<VirtAddr> {
        let offset: i32 = self.space.read(at)?;
        Ok(VirtAddr::new(at.get().wrapping_add_signed(i64::from(offset))))
    }
}

/// An entry of an ELF symbol table (System V ABI, chapter 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ElfSymbol {
    /// Offset into the string table.
    name: u32,
    info: u8,
    value: u64,
    size: u64,
}

impl ElfSymbol {
    /// Size of an entry in bytes: Elf32_Sym or Elf64_Sym.
    fn size(pointer_size: usize) -> usize {
        if pointer_size == 4 { 16 } else { 24 }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let long = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        Some(if bytes.len() == Self::size(4) {
            Self { name: word(0)?, info: *bytes.get(12)?, value: word(4)?.into(), size: word(8)?.into() }
        } else {
            Self { name: word(0)?, info: *bytes.get(4)?, value: long(8)?, size: long(16)? }
        })
    }

    /// The letter of nm(1) before `typetab` existed: the kernel kept it in `st_size` in 5.0 and 5.1 (commit 5439c985c5a8) and in
    /// `st_info` before, where ELF's own values never look like letters.
    fn old_kind(self) -> u8 {
        if self.info.is_ascii_alphabetic() { self.info } else { self.size as u8 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_guest::TestGuest;

    /// A module whose start-up code ftrace remembers: maps with list 0, mod 0x10, funcs 0x18; functions with list 0, name 0x10, ip 0x18.
    fn traced() -> TestGuest {
        let mut guest = TestGuest::new();
        for (structure, member, offset, size) in [
            ("module", "list", 8, 16),
            ("module", "name", 0x18, 56),
            ("ftrace_mod_map", "list", 0, 16),
            ("ftrace_mod_map", "mod", 0x10, 8),
            ("ftrace_mod_map", "funcs", 0x18, 16),
            ("ftrace_mod_func", "list", 0, 16),
            ("ftrace_mod_func", "name", 0x10, 8),
            ("ftrace_mod_func", "ip", 0x18, 8),
        ] {
            guest.types.member(structure, member, offset, size);
        }
        guest.symbol("modules", 0xc000);
        guest.put(0xc000, &[0xd008, 0xd008]);
        guest.put(0xd008, &[0xc000, 0xc000]);
        guest.text(0xd018, "llc");
        guest.symbol("ftrace_mod_maps", 0xe000);
        guest.put(0xe000, &[0xe100, 0xe100]);
        guest.put(0xe100, &[0xe000, 0xe000, 0xd000, 0xe200, 0xe200]);
        guest.put(0xe200, &[0xe118, 0xe118, 0xe300, 0xf_1000]);
        guest.text(0xe300, "llc_init");
        guest
    }

    /// Those that a module has, as /proc/kallsyms prints them, and the remarks.
    fn of_modules(guest: TestGuest) -> (Vec<String>, Vec<String>) {
        let (vmi, kernel) = guest.build();
        let (symbols, remarks) = Linux::with_kernel(&vmi, kernel).unwrap().read_all_symbols();
        let line = |symbol: vmi_core::Symbol<'_>| {
            Some(format!("{:x} {} {} [{}]", symbol.address.get(), char::from(symbol.kind), symbol.name, symbol.module?))
        };
        (symbols.iter().filter_map(line).collect(), remarks)
    }

    #[test]
    fn what_ftrace_remembers_of_a_module() {
        let (symbols, remarks) = of_modules(traced());
        assert_eq!(symbols, ["f1000 T llc_init [llc]"]);
        assert!(!remarks.iter().any(|remark| remark.contains("ftrace")), "{remarks:?}");
    }

    #[test]
    fn what_ftrace_remembers_in_a_circle_is_told() {
        let mut guest = traced();
        guest.put(0xe200, &[0xe200]);
        let (_, remarks) = of_modules(guest);
        assert!(remarks.iter().any(|remark| remark.contains("ftrace")), "{remarks:?}");
    }

    #[test]
    fn both_widths_of_elf_symbols() {
        let narrow: Vec<u8> = [5u32, 0xc880_b000, 0x74, 0x0001_0012].iter().flat_map(|word| word.to_le_bytes()).collect();
        let symbol = ElfSymbol::parse(&narrow).unwrap();
        assert_eq!(symbol, ElfSymbol { name: 5, info: 0x12, value: 0xc880_b000, size: 0x74 });
        assert_eq!(symbol.old_kind(), b't', "5.0 and 5.1: in the size");
        let mut wide = vec![7, 0, 0, 0, b'D', 0, 1, 0];
        wide.extend(0xffff_ffff_c053_f000u64.to_le_bytes());
        wide.extend(0x40u64.to_le_bytes());
        let symbol = ElfSymbol::parse(&wide).unwrap();
        assert_eq!(symbol, ElfSymbol { name: 7, info: b'D', value: 0xffff_ffff_c053_f000, size: 0x40 });
        assert_eq!(symbol.old_kind(), b'D', "before 5.0: in the info");
        assert_eq!(ElfSymbol::parse(&wide[..20]), None);
    }
}
