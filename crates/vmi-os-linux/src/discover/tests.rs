//! Discovery on synthetic machines: a kernel image, its page tables and its symbol table, and what may mislead.

use vmi_arch_x86::{Registers, X86};
use vmi_core::synthetic::{LiveDriver, SyntheticDriver};
use vmi_core::{Driver, Error, ErrorKind, MachineInfo, PhysAddr, VcpuId, Vcpus, Vmi};

use super::kallsyms::tests::builder::{self, LAYOUTS, Layout, Line};
use super::*;

const MIB: u64 = 1 << 20;
const BANNER: &str = "Linux version 6.1.0-test (someone@somewhere) #1 SMP";

/// A 64-bit kernel of three large pages (text, constants, data) in 32 MiB of memory.
#[derive(Clone)]
struct Machine {
    memory: Vec<u8>,
    virt: u64,
    phys: u64,
    lines: Vec<Line>,
}

impl Machine {
    fn new(layout: Layout, mode: PagingMode) -> Self {
        Self::at(layout, mode, 0xffff_ffff_9a00_0000, 16 * MIB, &["linux_banner", "init_top_pgt"])
    }

    fn at(layout: Layout, mode: PagingMode, virt: u64, phys: u64, data_symbols: &[&str]) -> Self {
        let mut lines: Vec<Line> = vec![(virt, 'T', "_stext".into()), (virt, 'T', "_text".into())];
        lines.extend((1..3000).map(|i| (virt + i * 64, 't', format!("function_{i}"))));
        let data = [(virt + 2 * MIB, 'D', "linux_banner".to_owned()), (virt + 4 * MIB, 'D', "init_top_pgt".to_owned())];
        lines.extend(data.into_iter().filter(|line| data_symbols.contains(&line.2.as_str())));

        let mut constants = format!("{BANNER}\n\0").into_bytes();
        constants.resize(0x1000, 0);
        builder::write(&mut constants, virt + 2 * MIB, &lines, layout);
        let mut machine = Self { memory: vec![0; 32 << 20], virt, phys, lines };
        machine.put(phys + 2 * MIB, &constants);
        machine.page_tables(mode);
        machine
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.memory[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn entry(&mut self, table: u64, index: u64, entry: u64) {
        self.put(table + (index & 511) * 8, &entry.to_le_bytes());
    }

    /// The root lies at the start of the data, the lower tables behind it; a copy of its last entry lies in the first MiB.
    fn page_tables(&mut self, mode: PagingMode) {
        let (root, virt, phys) = (self.phys + 4 * MIB, self.virt, self.phys);
        let mut top = root;
        if mode == PagingMode::Level5 {
            self.entry(root, 511, (root + 0x3000) | 3);
            top = root + 0x3000;
        }
        self.entry(top, 511, (root + 0x1000) | 3);
        self.entry(root + 0x1000, virt >> 30, (root + 0x2000) | 3);
        let no_execute = 1 << 63;
        for (index, flags) in [(0, 0x81), (1, 0x81 | no_execute), (2, 0x83 | no_execute)] {
            self.entry(root + 0x2000, (virt >> 21) + index, (phys + index * 2 * MIB) | flags);
        }
        let last = self.memory[root as usize + 0xff8..][..8].to_vec();
        self.put(0x9_cff8, &last);
    }

    fn find(&self, strategy: Strategy) -> Result<Kernel, DiscoverError> {
        find_by(&Vmi::new(SyntheticDriver::<X86>::with_arch([(PhysAddr::ZERO, self.memory.clone())])), strategy)
    }

    fn check(&self, kernel: &Kernel, mode: PagingMode) {
        assert_eq!((kernel.mode, kernel.root.get()), (mode, self.phys + 4 * MIB));
        assert_eq!(kernel.banner, BANNER);
        // The table's own pieces, which it does not list, are tested with it.
        let listed = kernel.symbols.iter().filter(|symbol| !(symbol.kind == b'?' && symbol.name.starts_with("kallsyms_")));
        let found: Vec<Line> = listed.map(|s| (s.address.get(), char::from(s.kind), s.name.to_owned())).collect();
        assert!(found == self.lines, "{} symbols instead of {}", found.len(), self.lines.len());
    }
}

fn find_by<D: X86Driver>(vmi: &Vmi<D>, strategy: Strategy) -> Result<Kernel, DiscoverError> {
    find_with(vmi, &Options { strategies: vec![strategy], ..Options::default() })
}

/// The layouts of 64-bit kernels.
fn layouts() -> impl Iterator<Item = Layout> {
    LAYOUTS.into_iter().map(|(_, layout)| layout).filter(|layout| layout.pointer == 8)
}

#[test]
fn every_layout_is_found_in_both_modes() {
    for layout in layouts() {
        for mode in [PagingMode::Level4, PagingMode::Level5] {
            let machine = Machine::new(layout, mode);
            for strategy in [Strategy::Trampoline, Strategy::Kallsyms] {
                machine.check(&machine.find(strategy).unwrap(), mode);
            }
        }
    }
}

#[test]
fn copies_that_no_page_table_maps_are_passed_over() {
    for layout in layouts() {
        let mut machine = Machine::new(layout, PagingMode::Level4);
        let image = machine.memory[16 << 20..22 << 20].to_vec();
        // A copy before the kernel, as the decompressor leaves it, and one behind: page tables and all.
        machine.put(6 * MIB, &image);
        machine.put(24 * MIB, &image);
        machine.check(&machine.find(Strategy::Kallsyms).unwrap(), PagingMode::Level4);

        // The copies alone: the page tables in them map what is no more.
        machine.memory[16 << 20..22 << 20].fill(0);
        let error = machine.find(Strategy::Kallsyms).unwrap_err();
        assert!(matches!(error.attempts[..], [(Strategy::Kallsyms, Failure::Stale { .. })]), "{error}");
    }
}

#[test]
fn a_table_of_code_alone_leads_to_the_root_by_content() {
    for layout in layouts() {
        let machine = Machine::at(layout, PagingMode::Level4, 0xffff_ffff_8100_0000, 2 * MIB, &[]);
        for strategy in [Strategy::Trampoline, Strategy::Kallsyms] {
            machine.check(&machine.find(strategy).unwrap(), PagingMode::Level4);
        }
    }
}

#[test]
fn vmcoreinfo_is_found_across_chunks_and_with_a_negative_base() {
    let (_, layout) = LAYOUTS[5];
    // Lower in memory than it was linked for.
    let mut machine = Machine::at(layout, PagingMode::Level4, 0xffff_ffff_8100_0000, 8 * MIB, &["linux_banner", "init_top_pgt"]);
    let text = b"VMCOREINFO\0\0OSRELEASE=6.1.0-test\nSYMBOL(swapper_pg_dir)=ffffffff81400000\nNUMBER(phys_base)=-8388608\n";
    machine.put((4 << 18) - 5, text);
    machine.check(&machine.find(Strategy::VmCoreInfo).unwrap(), PagingMode::Level4);
}

#[test]
fn a_live_machine_is_searched_through_copies() {
    let (_, layout) = LAYOUTS[9];
    let machine = Machine::new(layout, PagingMode::Level4);
    let vmi = Vmi::new(LiveDriver::<X86>::new(machine.memory.clone(), Some(1)));
    for strategy in [Strategy::Trampoline, Strategy::Kallsyms] {
        machine.check(&find_by(&vmi, strategy).unwrap(), PagingMode::Level4);
    }
}

#[test]
fn a_hole_at_the_kernel_is_an_error_that_says_so() {
    let machine = Machine::new(LAYOUTS[6].1, PagingMode::Level4);
    let (low, high) = (machine.memory[..17 << 20].to_vec(), machine.memory[20 << 20..].to_vec());
    let vmi = Vmi::new(SyntheticDriver::<X86>::with_arch([(PhysAddr::ZERO, low), (PhysAddr::new(20 * MIB), high)]));
    let error = find(&vmi).unwrap_err();
    let no_symbols = |attempt: &(Strategy, Failure)| matches!(attempt, (Strategy::Trampoline, Failure::NoSymbols { .. }));
    assert!(error.attempts.iter().any(no_symbols), "{error}");
}

#[test]
fn a_failed_strategy_is_remarked_on() {
    let (_, layout) = LAYOUTS[6];
    let mut machine = Machine::new(layout, PagingMode::Level4);
    // The start-up table of another kernel: its tables map zeros.
    machine.put(0x9_c000, &[0; 4096]);
    machine.put(0x9_cff8, &((29 * MIB) | 3).to_le_bytes());
    machine.entry(29 * MIB, 510, (29 * MIB + 0x1000) | 3);
    machine.entry(29 * MIB + 0x1000, 0, 0x20_0083);
    let vmi = Vmi::new(SyntheticDriver::<X86>::with_arch([(PhysAddr::ZERO, machine.memory.clone())]));
    let kernel = find(&vmi).unwrap();
    machine.check(&kernel, PagingMode::Level4);
    assert!(kernel.remarks.iter().any(|remark| remark.contains("start-up page table")), "{:?}", kernel.remarks);
}

#[test]
fn given_symbols_move_to_where_the_kernel_runs() {
    let (_, layout) = LAYOUTS[6];
    let mut machine = Machine::new(layout, PagingMode::Level4);
    let mut given = vmi_core::SymbolsBuilder::default();
    let linked = 0xffff_ffff_8100_0000u64;
    given.push("__per_cpu_start", vmi_core::VirtAddr::ZERO, b'A');
    for (address, kind, name) in &machine.lines {
        given.push(name, vmi_core::VirtAddr::new(address - machine.virt + linked), *kind as u8);
    }
    let options = Options { symbols: Some(Arc::new(given.build())), ..Options::default() };
    machine.lines.insert(0, (0, 'A', "__per_cpu_start".into()));
    // With and without a table in memory.
    for _ in 0..2 {
        let vmi = Vmi::new(SyntheticDriver::<X86>::with_arch([(PhysAddr::ZERO, machine.memory.clone())]));
        machine.check(&find_with(&vmi, &options).unwrap(), PagingMode::Level4);
        machine.memory[(18 << 20) + 0x1000..20 << 20].fill(0);
    }
}

/// A running machine with these vCPUs; `None` is one that cannot be read.
struct LiveMachine {
    memory: LiveDriver<X86>,
    vcpus: Vec<Option<Registers>>,
}

impl Driver for LiveMachine {
    type Arch = X86;

    fn machine(&self) -> &MachineInfo {
        self.memory.machine()
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> vmi_core::Result<()> {
        self.memory.read(at, buf)
    }

    fn vcpus(&self) -> Option<&dyn Vcpus<Arch = X86>> {
        Some(self)
    }
}

impl Vcpus for LiveMachine {
    fn vcpu_count(&self) -> u32 {
        self.vcpus.len() as u32
    }

    fn registers(&self, vcpu: VcpuId) -> vmi_core::Result<Registers> {
        self.vcpus[vcpu.0 as usize].ok_or_else(|| Error::from(ErrorKind::NoObject { what: vcpu.to_string() }))
    }
}

/// A vCPU in long mode with this CR3.
fn long_mode(cr3: u64) -> Option<Registers> {
    let mut registers = Registers::default();
    (registers.cr0, registers.cr3, registers.cr4, registers.efer) = (Some(0x8005_0033), Some(cr3), Some(0x20), Some(0xd01));
    Some(registers)
}

/// A vCPU in real mode, as firmware begins.
fn real_mode() -> Option<Registers> {
    let mut registers = Registers::default();
    (registers.cr0, registers.cr3, registers.cr4, registers.efer) = (Some(0x10), Some(0), Some(0), Some(0));
    Some(registers)
}

fn live(machine: &Machine, vcpus: Vec<Option<Registers>>) -> Vmi<LiveMachine> {
    Vmi::new(LiveMachine { memory: LiveDriver::new(machine.memory.clone(), None), vcpus })
}

#[test]
fn one_useful_vcpu_among_others_is_enough() {
    let machine = Machine::new(layouts().next().unwrap(), PagingMode::Level4);
    let kernel = machine.phys + 4 * MIB;
    // Page tables of the firmware: nothing where a kernel lies.
    let firmware = long_mode(8 * MIB);
    for vcpus in [
        vec![long_mode(kernel)],
        // In user mode under page-table isolation, with a process-context identifier.
        vec![long_mode(kernel | 0x1801)],
        vec![real_mode(), firmware, long_mode(kernel | 0x1801)],
        // One that cannot be read leaves the others to be asked.
        vec![None, long_mode(kernel)],
    ] {
        machine.check(&find_by(&live(&machine, vcpus), Strategy::Registers).unwrap(), PagingMode::Level4);
    }
    let error = find_by(&live(&machine, vec![real_mode(), None]), Strategy::Registers).unwrap_err();
    assert!(matches!(&error.attempts[..], [(_, Failure::Unreadable(why))] if why.contains("vCPU 1")), "{error}");
}

/// After a reset the memory still holds the kernel that ran before, page tables and all.
#[test]
fn a_kernel_that_no_vcpu_runs_is_not_that_of_the_guest() {
    let machine = Machine::new(layouts().next().unwrap(), PagingMode::Level4);
    let kernel = machine.phys + 4 * MIB;
    for strategy in [Strategy::Trampoline, Strategy::Kallsyms] {
        for vcpus in [vec![real_mode()], vec![long_mode(8 * MIB), real_mode()]] {
            let error = find_by(&live(&machine, vcpus), strategy).unwrap_err();
            assert!(matches!(&error.attempts[..], [(_, Failure::NotRunning { .. })]), "{error}");
            assert!(error.to_string().contains("try again when it has booted"), "{error}");
        }
        // A vCPU runs under it, or it is not known what the vCPUs do.
        for vcpus in [vec![real_mode(), long_mode(kernel | 0x1801)], vec![None], vec![Some(Registers::default())], Vec::new()] {
            machine.check(&find_by(&live(&machine, vcpus), strategy).unwrap(), PagingMode::Level4);
        }
        // The registers of an image are of the moment that it was taken in, and those of firmware then are no reason to refuse it.
        machine.check(&machine.find(strategy).unwrap(), PagingMode::Level4);
    }
}
