//! The registers of a request, and back.

use vmi_arch_x86::{Registers, Segment, SegmentAttributes, Table};
use vmi_core::VirtAddr;
use zerocopy::{FromBytes, IntoBytes};

use super::InterfaceVersion;
use super::layout::{FirstRegisters, LastRegisters, MiddleRegisters};

pub(super) fn decode(bytes: &[u8], version: InterfaceVersion) -> Option<Registers> {
    let (first, rest) = FirstRegisters::read_from_prefix(bytes).ok()?;
    let rest = if version == InterfaceVersion::V7 { rest.get(size_of::<MiddleRegisters>()..)? } else { rest };
    let (last, _) = LastRegisters::read_from_prefix(rest).ok()?;
    let mut registers = Registers::default();
    registers.set_general([
        first.rax, first.rcx, first.rdx, first.rbx, first.rsp, first.rbp, first.rsi, first.rdi, first.r8, first.r9, first.r10,
        first.r11, first.r12, first.r13, first.r14, first.r15,
    ]);
    registers.rip = first.rip;
    registers.rflags = first.rflags;
    // Debug registers 0 to 3 are not told, so none of them are.
    registers.cr0 = Some(first.cr0);
    registers.cr2 = Some(first.cr2);
    registers.cr3 = Some(first.cr3);
    registers.cr4 = Some(first.cr4);
    registers.sysenter_cs = Some(first.sysenter_cs);
    registers.sysenter_esp = Some(first.sysenter_esp);
    registers.sysenter_eip = Some(first.sysenter_eip);
    registers.efer = Some(first.msr_efer);
    registers.star = Some(first.msr_star);
    registers.lstar = Some(first.msr_lstar);
    registers.kernel_gs_base = Some(last.shadow_gs);
    registers.gdtr = Some(Table { base: VirtAddr::new(first.gdtr_base), limit: last.gdtr_limit });
    registers.segments.cs = Some(segment(last.cs_sel, last.cs_base.into(), last.cs));
    registers.segments.ss = Some(segment(last.ss_sel, last.ss_base.into(), last.ss));
    registers.segments.ds = Some(segment(last.ds_sel, last.ds_base.into(), last.ds));
    registers.segments.es = Some(segment(last.es_sel, last.es_base.into(), last.es));
    registers.segments.fs = Some(segment(last.fs_sel, last.fs_base, last.fs));
    registers.segments.gs = Some(segment(last.gs_sel, last.gs_base, last.gs));
    Some(registers)
}

fn segment(selector: u16, base: u64, packed: u32) -> Segment {
    // Xen packs the rights into twelve bits: those that VMX has in bits 12 to 15 are bits 8 to 11 (xen/arch/x86/vm_event.c, vm_event_pack_segment_register).
    let rights = packed >> 20;
    let attributes = SegmentAttributes::from_access_rights((rights & 0xff) | ((rights & 0xf00) << 4));
    let limit = packed & 0xf_ffff;
    let limit = if attributes.contains(SegmentAttributes::GRANULARITY) { (limit << 12) | 0xfff } else { limit };
    Segment { selector, base, limit, attributes: Some(attributes) }
}

/// Writes what Xen takes back: general registers, flags, instruction pointer. `bytes` need no alignment; too few of them are left alone.
pub(super) fn encode(registers: &Registers, bytes: &mut [u8]) {
    let Ok((mut first, _)) = FirstRegisters::read_from_prefix(bytes) else { return };
    [
        first.rax, first.rcx, first.rdx, first.rbx, first.rsp, first.rbp, first.rsi, first.rdi, first.r8, first.r9, first.r10,
        first.r11, first.r12, first.r13, first.r14, first.r15,
    ] = registers.general();
    first.rip = registers.rip;
    first.rflags = registers.rflags;
    _ = first.write_to_prefix(bytes); // as long as what was read
}

/// Whether what differs between the two is what Xen sets with a response.
pub(crate) fn settable(from: &Registers, to: &Registers) -> bool {
    let mut same = *to;
    same.set_general(from.general());
    same.rip = from.rip;
    same.rflags = from.rflags;
    same == *from
}
