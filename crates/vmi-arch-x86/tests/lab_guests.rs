//! Page tables, descriptor tables and registers of real guests against what QEMU and the guest's own kernel say of them:
//! the guests of the lab, if `VMI_LAB_IMAGES` names the directory that has them, one directory a guest.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use vmi_arch_x86::{
    CodeMode, Descriptor, GateKind, Mapping, PageRun, PagingMode, Registers, Segment, SegmentAttributes, SegmentKind, Table, X86,
};
use vmi_core::synthetic::SyntheticDriver;
use vmi_core::{GuestMapping, MappedFile, Paging, PhysAddr, Piece, Region, VirtAddr, Vmi};

/// A raw image whose file offsets are guest-physical addresses.
type Image = SyntheticDriver<X86>;

struct Guest {
    name: String,
    truth: PathBuf,
    vmi: Vmi<Image>,
    /// Of the first vCPU.
    registers: Registers,
    mode: PagingMode,
    root: PhysAddr,
}

/// Runs `check` for each guest; says so if there are none.
fn each_guest(check: impl Fn(&Guest)) {
    let Some(images) = std::env::var_os("VMI_LAB_IMAGES") else {
        eprintln!("skipped: VMI_LAB_IMAGES is not set");
        return;
    };
    let mut count = 0;
    for entry in fs::read_dir(images).unwrap() {
        let directory = entry.unwrap().path();
        let name = directory.file_name().unwrap().to_str().unwrap().to_owned();
        // A name with a dot is an image that is still being taken.
        let Ok(file) = File::open(directory.join("memory.raw")) else { continue };
        if name.starts_with('.') {
            continue;
        }
        let truth = directory.join("truth");
        let region = Region::new(PhysAddr::ZERO, file.metadata().unwrap().len()).unwrap();
        let mapping = GuestMapping::frozen(Arc::new(MappedFile::new(&file).unwrap()), &[Piece { region, offset: 0 }]).unwrap();
        let registers = registers(&fs::read_to_string(truth.join("registers")).unwrap());
        let (mode, root) = (registers.paging_mode().unwrap(), registers.page_table_root().unwrap());
        check(&Guest { name, truth, vmi: Vmi::new(Image::over(mapping)), registers, mode, root });
        count += 1;
    }
    assert!(count > 0, "VMI_LAB_IMAGES names a directory without images");
    println!("{count} guests");
}

impl Guest {
    fn unpack(&self, name: &str) -> Option<String> {
        let mut text = String::new();
        MultiGzDecoder::new(File::open(self.truth.join(name)).ok()?).read_to_string(&mut text).unwrap();
        Some(text)
    }

    /// All runs of pages, with repeated tables expanded.
    fn runs(&self) -> Vec<PageRun> {
        let mut runs = Vec::new();
        self.collect(VirtAddr::ZERO, VirtAddr::new(u64::MAX), &mut runs);
        runs
    }

    fn collect(&self, first: VirtAddr, last: VirtAddr, runs: &mut Vec<PageRun>) {
        for item in self.mode.mappings(&self.vmi, self.root, first..=last) {
            match item.unwrap_or_else(|error| panic!("{}: {error}", self.name)) {
                Mapping::Pages(run) => runs.push(run),
                Mapping::Repeated(table) => self.collect(table.at, table.at.wrapping_add(table.len - 1), runs),
            }
        }
    }
}

/// The first vCPU in the output of QEMU's `info registers`.
fn registers(text: &str) -> Registers {
    let text = text.split("CPU#").nth(1).unwrap();
    // `R8 =` and `R8=` alike.
    let value = |name: &str| {
        let place = text.split_whitespace().position(|word| word == name || word.starts_with(&format!("{name}=")))?;
        let mut words = text.split_whitespace().skip(place);
        let word = words.next()?;
        let digits = word.split_once('=').map(|(_, digits)| digits).filter(|digits| !digits.is_empty());
        let digits = digits.unwrap_or_else(|| words.next().unwrap().trim_start_matches('='));
        u64::from_str_radix(digits, 16).ok()
    };
    // Either `CS =0010 base limit flags` or `GDT=     base limit`.
    let row = |name: &str| -> Vec<u64> {
        let line = text.lines().find(|line| line.starts_with(name) && line[name.len()..].trim_start().starts_with('=')).unwrap();
        let words = line.split_once('=').unwrap().1.split_whitespace();
        words.map_while(|word| u64::from_str_radix(word, 16).ok()).collect()
    };
    let segment = |name| {
        let row = row(name);
        let attributes = SegmentAttributes::from_descriptor(row[3] as u32);
        Some(Segment { selector: row[0] as u16, base: row[1], limit: row[2] as u32, attributes: Some(attributes) })
    };
    let table = |name| {
        let row = row(name);
        Some(Table { base: VirtAddr::new(row[0]), limit: row[1] as u16 })
    };
    let mut registers = Registers::default();
    registers.rip = value("RIP").or(value("EIP")).unwrap();
    registers.rsp = value("RSP").or(value("ESP")).unwrap();
    registers.rflags = value("RFL").or(value("EFL")).unwrap();
    (registers.cr0, registers.cr2, registers.cr3, registers.cr4) = (value("CR0"), value("CR2"), value("CR3"), value("CR4"));
    registers.efer = value("EFER");
    registers.segments.cs = segment("CS");
    registers.segments.ss = segment("SS");
    registers.segments.tr = segment("TR");
    (registers.gdtr, registers.idtr) = (table("GDT"), table("IDT"));
    registers
}

/// `info tlb` prints a line for each page: address, frame, and the flags of the entry that maps it.
#[test]
fn every_page_of_info_tlb() {
    each_guest(|guest| {
        let text = guest.unpack("info-tlb.gz").unwrap();
        let mut pages = 0u64;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let [at, frame, flags] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
            let at = VirtAddr::new(u64::from_str_radix(at.trim_end_matches(':'), 16).unwrap());
            // In PAE, QEMU prints bit 63 of the entry as well.
            let frame = u64::from_str_radix(frame, 16).unwrap() & !(1 << 63);
            let walk = guest.mode.walk(&guest.vmi, guest.root, at).unwrap();
            let to = walk.translation().unwrap_or_else(|fault| panic!("{} {line}: {fault}", guest.name));
            assert_eq!(to.at.get(), frame, "{} {line}\n{walk}", guest.name);
            assert_eq!(to, guest.mode.translate(&guest.vmi, guest.root, at).unwrap());
            let entry = walk.leaf().unwrap();
            // X is printed where execution is disabled.
            for (letter, bit) in flags.chars().zip([63, 8, 7, 6, 5, 4, 3, 2, 1]) {
                assert_eq!(letter != '-', entry.flags().bits() >> bit & 1 == 1, "{} {line}: bit {bit} of {entry}", guest.name);
            }
            pages += 1;
        }
        let runs = guest.runs();
        let listed: u64 = runs.iter().map(|run| run.len >> run.page_shift).sum();
        assert_eq!(listed, pages, "{}: pages in all runs", guest.name);
        println!("{}: {pages} pages in {} runs, {:?}", guest.name, runs.len(), guest.mode);
    });
}

/// `info mem` prints runs with the same access in all levels: first address, end, length, user and write.
#[test]
fn every_run_of_info_mem() {
    each_guest(|guest| {
        let Some(text) = guest.unpack("info-mem.gz") else {
            println!("skipped: {}: QEMU has no `info mem` for 5-level paging", guest.name);
            return;
        };
        let mut merged: Vec<(u64, u64, bool, bool)> = Vec::new();
        for run in guest.runs() {
            let (first, end) = (run.at.get(), run.at.get() + run.len);
            match merged.last_mut() {
                Some(last) if (last.1, last.2, last.3) == (first, run.access.user, run.access.write) => last.1 = end,
                _ => merged.push((first, end, run.access.user, run.access.write)),
            }
        }
        let line = |(first, end, user, write): (u64, u64, bool, bool)| {
            let (user, write) = (if user { 'u' } else { '-' }, if write { 'w' } else { '-' });
            format!("{first:016x}-{end:016x} {:016x} {user}r{write}", end - first)
        };
        let ours: Vec<String> = merged.into_iter().map(line).collect();
        let theirs: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        assert_eq!(ours, theirs, "{}", guest.name);
    });
}

#[test]
fn descriptor_tables_agree_with_registers_and_symbols() {
    each_guest(|guest| {
        let (registers, space) = (&guest.registers, guest.vmi.address_space(guest.root, guest.mode));
        let gdtr = registers.gdtr.unwrap();
        let descriptors: Vec<Descriptor> = gdtr.descriptors(&space, guest.mode).map(Result::unwrap).collect();
        // What a segment register holds is what its descriptor says; the processor marks a loaded task state as busy.
        let busy = SegmentAttributes::WRITABLE;
        for loaded in [registers.segments.cs.unwrap(), registers.segments.ss.unwrap(), registers.segments.tr.unwrap()] {
            let found = descriptors.iter().find_map(|descriptor| match descriptor {
                Descriptor::Segment(segment) if segment.selector == loaded.selector & !7 => Some(*segment),
                _ => None,
            });
            let found = found.unwrap_or_else(|| panic!("{}: no descriptor for {loaded}", guest.name));
            assert_eq!((found.base, found.limit), (loaded.base, loaded.limit), "{}: {found} {loaded}", guest.name);
            let (is, was) = (found.attributes.unwrap(), loaded.attributes.unwrap());
            let ignored = if is.kind() == SegmentKind::TaskState { busy } else { SegmentAttributes::empty() };
            assert_eq!(is - ignored, was - ignored, "{}: {found} {loaded}", guest.name);
        }
        let gates: Vec<_> = registers.idtr.unwrap().gates(&space, guest.mode).map(Result::unwrap).collect();
        let Some(symbols) = guest.unpack("kallsyms.gz") else {
            println!("skipped: {}: its kernel keeps no symbols", guest.name);
            return;
        };
        let symbols: HashMap<&str, u64> = symbols
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let address = u64::from_str_radix(words.next()?, 16).ok()?;
                Some((words.nth(1)?, address))
            })
            .collect();
        let cs = registers.segments.cs.unwrap().selector;
        // The names before 5.8; a KVM guest then had another handler for page faults.
        let handlers: [(u16, &[&str]); 3] = [
            (0, &["asm_exc_divide_error", "divide_error"]),
            (3, &["asm_exc_int3", "int3"]),
            (14, &["asm_exc_page_fault", "page_fault", "async_page_fault"]),
        ];
        for (vector, names) in handlers {
            let gate = gates.iter().find(|gate| gate.index == vector).unwrap();
            let named = names.iter().any(|name| symbols.get(name) == Some(&gate.offset.get()));
            assert!(named, "{}: none of {names:?} is at {}", guest.name, gate.offset);
            assert_eq!((gate.selector, gate.present), (cs, true));
            assert_eq!(gate.privilege_level, if vector == 3 { 3 } else { 0 });
        }
        // A double fault has a stack of its own: in long mode by the interrupt stack table, else by a task.
        let double_fault = gates.iter().find(|gate| gate.index == 8).unwrap();
        let expected = if guest.mode.is_long() { GateKind::Interrupt } else { GateKind::Task };
        assert_eq!((double_fault.kind, double_fault.stack > 0), (expected, guest.mode.is_long()), "{}", guest.name);
        println!("{}: {} descriptors, {} gates", guest.name, descriptors.len(), gates.len());
    });
}

#[test]
fn derived_facts() {
    each_guest(|guest| {
        let registers = guest.registers;
        let long = guest.mode.is_long();
        assert_eq!(registers.long_mode(), Some(long));
        // QEMU's ELF notes leave EFER out.
        let mut without_efer = registers;
        without_efer.efer = None;
        assert_eq!(without_efer.paging_mode(), Some(guest.mode), "{}", guest.name);
        // The images are taken while the first vCPU is in the kernel.
        assert_eq!(registers.privilege_level(), Some(0));
        assert_eq!(registers.code_mode(), Some(if long { CodeMode::Long } else { CodeMode::Protected32 }), "{}", guest.name);
    });
}
