//! VirtualBox's note on a vCPU: `DBGFCORECPU` in VirtualBox, include/VBox/vmm/dbgfcorefmt.h. The best register set of any image.

use vmi_arch_x86::{Registers, Segment, SegmentAttributes, Table};
use vmi_core::VirtAddr;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// `NT_VBOXCORE`.
pub(super) const CORE_TYPE: u32 = 0xb00;
/// `NT_VBOXCPU`.
pub(super) const TYPE: u32 = 0xb01;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct CoreCpu {
    /// rax rbx rcx rdx rsi rdi r8 to r15 rip rsp rbp rflags.
    general: [U64; 18],
    /// cs ds es fs gs ss.
    segments: [Selector; 6],
    cr0: U64,
    cr2: U64,
    cr3: U64,
    cr4: U64,
    dr: [U64; 8],
    gdtr: TableRegister,
    idtr: TableRegister,
    ldtr: Selector,
    tr: Selector,
    sysenter_cs: U64,
    sysenter_eip: U64,
    sysenter_esp: U64,
    efer: U64,
    star: U64,
    pat: U64,
    lstar: U64,
    cstar: U64,
    sfmask: U64,
    kernel_gs_base: U64,
}

#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Selector {
    base: U64,
    limit: U32,
    attributes: U32,
    selector: U16,
    pad: [U16; 3],
}

#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct TableRegister {
    base: U64,
    limit: U32,
    pad: U32,
}

impl Selector {
    fn segment(self) -> Option<Segment> {
        Some(Segment {
            selector: self.selector.get(),
            base: self.base.get(),
            limit: self.limit.get(),
            attributes: Some(SegmentAttributes::from_access_rights(self.attributes.get())),
        })
    }
}

impl TableRegister {
    fn table(self) -> Option<Table> {
        Some(Table { base: VirtAddr::new(self.base.get()), limit: u16::try_from(self.limit.get()).ok()? })
    }
}

/// The registers in one note; `None` if it is too short.
pub(super) fn registers(note: &[u8]) -> Option<Registers> {
    let (cpu, _) = CoreCpu::read_from_prefix(note).ok()?;
    let mut registers = Registers::default();
    let [rax, rbx, rcx, rdx, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, rip, rsp, rbp, rflags] = cpu.general.map(U64::get);
    registers.set_general([rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]);
    registers.rip = rip;
    registers.rflags = rflags;
    let [cs, ds, es, fs, gs, ss] = cpu.segments.map(Selector::segment);
    registers.segments.cs = cs;
    registers.segments.ds = ds;
    registers.segments.es = es;
    registers.segments.fs = fs;
    registers.segments.gs = gs;
    registers.segments.ss = ss;
    registers.segments.ldt = cpu.ldtr.segment();
    registers.segments.tr = cpu.tr.segment();
    registers.gdtr = cpu.gdtr.table();
    registers.idtr = cpu.idtr.table();
    registers.cr0 = Some(cpu.cr0.get());
    registers.cr2 = Some(cpu.cr2.get());
    registers.cr3 = Some(cpu.cr3.get());
    registers.cr4 = Some(cpu.cr4.get());
    registers.dr = Some(cpu.dr.map(U64::get));
    registers.efer = Some(cpu.efer.get());
    registers.pat = Some(cpu.pat.get());
    registers.star = Some(cpu.star.get());
    registers.lstar = Some(cpu.lstar.get());
    registers.cstar = Some(cpu.cstar.get());
    registers.sfmask = Some(cpu.sfmask.get());
    registers.kernel_gs_base = Some(cpu.kernel_gs_base.get());
    registers.sysenter_cs = Some(cpu.sysenter_cs.get());
    registers.sysenter_esp = Some(cpu.sysenter_esp.get());
    registers.sysenter_eip = Some(cpu.sysenter_eip.get());
    Some(registers)
}
