//! Discovery on synthetic NT layouts: machines with the structures of real builds, written by a builder that shares no code with this crate. What is expected comes
//! from the builder's truth.

use nt_machine::{Build, Kdbg, KvaShadow, NtMachine, Paging, ProcessSpec, Truth};
use vmi_arch_x86::{Registers, Segment, Table, X86};
use vmi_core::synthetic::{LiveDriver, SyntheticDriver};
use vmi_core::{Driver, MachineInfo, VcpuId, Vcpus, VirtAddr};

use super::*;

mod bounds;
mod real;
mod roads;

/// A machine with a few processes.
fn machine(build: &Build, options: nt_machine::Options) -> NtMachine {
    let mut machine = NtMachine::new(build.clone(), options);
    machine.populate();
    machine
}

fn named(name: &str) -> Build {
    Build::named(name).unwrap()
}

fn runs(machine: &NtMachine) -> impl Iterator<Item = (PhysAddr, Vec<u8>)> {
    machine.memory().into_iter().map(|(at, bytes)| (PhysAddr::new(at), bytes))
}

fn frozen(machine: &NtMachine) -> Vmi<SyntheticDriver<X86>> {
    Vmi::new(SyntheticDriver::with_arch(runs(machine)))
}

/// A machine whose source shows vCPUs.
struct WithRegisters<D> {
    memory: D,
    vcpus: Vec<Registers>,
}

impl<D: Driver<Arch = X86>> Driver for WithRegisters<D> {
    type Arch = X86;

    fn machine(&self) -> &MachineInfo {
        self.memory.machine()
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> vmi_core::Result<()> {
        self.memory.read(at, buf)
    }

    fn mapping(&self) -> Option<&vmi_core::GuestMapping> {
        self.memory.mapping()
    }

    fn vcpus(&self) -> Option<&dyn Vcpus<Arch = X86>> {
        Some(self)
    }
}

impl<D: Driver<Arch = X86>> Vcpus for WithRegisters<D> {
    fn vcpu_count(&self) -> u32 {
        self.vcpus.len() as u32
    }

    fn registers(&self, vcpu: VcpuId) -> vmi_core::Result<Registers> {
        Ok(self.vcpus[vcpu.0 as usize])
    }
}

/// The registers of the machine's first processor.
fn registers(machine: &NtMachine) -> Registers {
    let given = machine.registers();
    let segment = |selector: u16, base: u64| Some(Segment { selector, base, limit: u32::MAX, attributes: None });
    let mut registers = Registers::default();
    registers.rip = given.rip;
    registers.rsp = given.rsp;
    (registers.cr0, registers.cr3, registers.cr4) = (Some(given.cr0), Some(given.cr3), Some(given.cr4));
    registers.efer = Some(given.efer);
    registers.lstar = Some(given.lstar);
    registers.sysenter_eip = Some(given.sysenter_eip);
    registers.kernel_gs_base = Some(given.kernel_gs_base);
    registers.segments.cs = segment(given.cs, 0);
    registers.segments.gs = segment(0x2b, given.gs_base);
    registers.segments.fs = segment(0x30, given.fs_base);
    registers.idtr = Some(Table { base: VirtAddr::new(given.idt_base), limit: given.idt_limit });
    registers.gdtr = Some(Table { base: VirtAddr::new(given.gdt_base), limit: given.gdt_limit });
    registers
}

fn with_registers(machine: &NtMachine) -> Vmi<WithRegisters<SyntheticDriver<X86>>> {
    Vmi::new(WithRegisters { memory: SyntheticDriver::with_arch(runs(machine)), vcpus: vec![registers(machine)] })
}

fn find_by<D: X86Driver>(vmi: &Vmi<D>, strategy: Strategy) -> Result<Kernel, DiscoverError> {
    find_with(vmi, &Options { strategies: vec![strategy], ..Options::default() })
}

/// Whether the kernel is the one that the builder made.
#[track_caller]
fn check(kernel: &Kernel, truth: &Truth) {
    let at = |name: &str| truth.symbols.get(name).copied();
    let found = |name: &str| kernel.symbols.find(name).map(|symbol| symbol.address.get());
    let build = &truth.build;
    assert_eq!(kernel.base.get(), truth.kernel_base, "{build}: {:#?}", kernel.remarks);
    assert_eq!(kernel.size, truth.kernel_size, "{build}");
    assert_eq!(kernel.root.get(), truth.system_root, "{build}: {:#?}", kernel.remarks);
    assert_eq!(kernel.build, Some(truth.build_number), "{build}");
    for name in ["PsActiveProcessHead", "PsLoadedModuleList", "PsInitialSystemProcess"] {
        assert_eq!(found(name), at(name), "{build}: {name}: {:#?}", kernel.remarks);
    }
    let types = &*kernel.types;
    for member in ["ActiveProcessLinks", "UniqueProcessId", "ImageFileName", "Pcb.DirectoryTableBase"] {
        assert!(types.field("_EPROCESS", member).is_ok(), "{build}: {member}: {}", types.origin());
    }
}
