//! The registers in the state of the devices `cpu`: `vmstate_x86_cpu` in QEMU, target/i386/machine.c.

use vmi_arch_x86::{Registers, Segment, SegmentAttributes, Table};
use vmi_core::VirtAddr;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::devices::{Devices, State};

/// `vmstate_segment`, of a machine with 64 bits.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct CpuSegment {
    selector: U32,
    base: U64,
    limit: U32,
    flags: U32,
}

impl CpuSegment {
    fn segment(self) -> Option<Segment> {
        // A selector has 16 bits; the state keeps it in 32.
        let selector = u16::try_from(self.selector.get() & 0xffff).ok()?;
        let attributes = Some(SegmentAttributes::from_descriptor(self.flags.get()));
        Some(Segment { selector, base: self.base.get(), limit: self.limit.get(), attributes })
    }

    fn table(self) -> Option<Table> {
        Some(Table { base: VirtAddr::new(self.base.get()), limit: u16::try_from(self.limit.get()).ok()? })
    }
}

/// Of each vCPU, by number; none if one cannot be told, as it would be another's number.
pub(super) fn registers(devices: &Devices) -> Vec<Registers> {
    let registers: Option<Vec<_>> = devices.all("cpu").map(of_cpu).collect();
    registers.unwrap_or_else(|| {
        tracing::warn!("the state of a vCPU is not that of a 64-bit machine: there are no registers");
        Vec::new()
    })
}

fn of_cpu(cpu: &State) -> Option<Registers> {
    let mut registers = Registers::default();
    // Kept in the order in which instructions number them.
    registers.set_general(cpu.numbers("env.regs")?);
    registers.rip = cpu.number("env.eip")?;
    registers.rflags = cpu.number("env.eflags")?;
    let [es, cs, ss, ds, fs, gs] = <[CpuSegment; 6]>::read_from_bytes(cpu.bytes("env.segs")?).ok()?;
    let one = |name| CpuSegment::read_from_bytes(cpu.bytes(name)?).ok();
    registers.segments.cs = cs.segment();
    registers.segments.ds = ds.segment();
    registers.segments.es = es.segment();
    registers.segments.fs = fs.segment();
    registers.segments.gs = gs.segment();
    registers.segments.ss = ss.segment();
    registers.segments.ldt = one("env.ldt").and_then(CpuSegment::segment);
    registers.segments.tr = one("env.tr").and_then(CpuSegment::segment);
    registers.gdtr = one("env.gdt").and_then(CpuSegment::table);
    registers.idtr = one("env.idt").and_then(CpuSegment::table);
    registers.cr0 = cpu.number("env.cr[0]");
    registers.cr2 = cpu.number("env.cr[2]");
    registers.cr3 = cpu.number("env.cr[3]");
    registers.cr4 = cpu.number("env.cr[4]");
    registers.xcr0 = cpu.number("env.xcr0");
    registers.dr = cpu.numbers("env.dr");
    registers.efer = cpu.number("env.efer");
    registers.star = cpu.number("env.star");
    registers.lstar = cpu.number("env.lstar");
    registers.cstar = cpu.number("env.cstar");
    registers.sfmask = cpu.number("env.fmask");
    registers.kernel_gs_base = cpu.number("env.kernelgsbase");
    registers.pat = cpu.number("env.pat");
    registers.sysenter_cs = cpu.number("env.sysenter_cs");
    registers.sysenter_esp = cpu.number("env.sysenter_esp");
    registers.sysenter_eip = cpu.number("env.sysenter_eip");
    Some(registers)
}
