//! The registers of one vCPU.

use core::mem::MaybeUninit;

use vmi::x86::{Registers, Segment, SegmentAttributes, Table};
use vmi::{VcpuId, VirtAddr};

use crate::border;
use crate::error::{Failure, vmi_error, vmi_status};
use crate::machine::vmi_machine;
use crate::mappings::number_of;
use crate::table;

/// A segment register.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct vmi_segment {
    /// Linear address of the segment's first byte.
    pub base: u64,
    /// Last valid offset in bytes.
    pub limit: u32,
    /// The visible part.
    pub selector: u16,
    /// Type and access as in the access rights of a virtual-machine control structure (Intel SDM, volume 3, table 26-2); VMI_UNKNOWN_ATTRIBUTES if the source does not
    /// tell.
    pub attributes: u16,
}

/// The source does not tell a segment's attributes.
pub const VMI_UNKNOWN_ATTRIBUTES: u16 = 0xffff;

/// Bits of `known` in vmi_registers: which of its members the source tells. The general registers, RIP and RFLAGS are always known. Setting registers, what is not
/// known stays as it is.
pub const VMI_KNOWN_CR0: u32 = 1;
/// CR2 is known.
pub const VMI_KNOWN_CR2: u32 = 1 << 1;
/// CR3 is known.
pub const VMI_KNOWN_CR3: u32 = 1 << 2;
/// CR4 is known.
pub const VMI_KNOWN_CR4: u32 = 1 << 3;
/// CR8 is known.
pub const VMI_KNOWN_CR8: u32 = 1 << 4;
/// XCR0 is known.
pub const VMI_KNOWN_XCR0: u32 = 1 << 5;
/// EFER is known.
pub const VMI_KNOWN_EFER: u32 = 1 << 6;
/// STAR is known.
pub const VMI_KNOWN_STAR: u32 = 1 << 7;
/// LSTAR is known.
pub const VMI_KNOWN_LSTAR: u32 = 1 << 8;
/// CSTAR is known.
pub const VMI_KNOWN_CSTAR: u32 = 1 << 9;
/// SFMASK is known.
pub const VMI_KNOWN_SFMASK: u32 = 1 << 10;
/// KERNEL_GS_BASE is known.
pub const VMI_KNOWN_KERNEL_GS_BASE: u32 = 1 << 11;
/// PAT is known.
pub const VMI_KNOWN_PAT: u32 = 1 << 12;
/// SYSENTER_CS is known.
pub const VMI_KNOWN_SYSENTER_CS: u32 = 1 << 13;
/// SYSENTER_ESP is known.
pub const VMI_KNOWN_SYSENTER_ESP: u32 = 1 << 14;
/// SYSENTER_EIP is known.
pub const VMI_KNOWN_SYSENTER_EIP: u32 = 1 << 15;
/// CS is known.
pub const VMI_KNOWN_CS: u32 = 1 << 16;
/// DS is known.
pub const VMI_KNOWN_DS: u32 = 1 << 17;
/// ES is known.
pub const VMI_KNOWN_ES: u32 = 1 << 18;
/// FS is known.
pub const VMI_KNOWN_FS: u32 = 1 << 19;
/// GS is known.
pub const VMI_KNOWN_GS: u32 = 1 << 20;
/// SS is known.
pub const VMI_KNOWN_SS: u32 = 1 << 21;
/// LDT is known.
pub const VMI_KNOWN_LDT: u32 = 1 << 22;
/// TR is known.
pub const VMI_KNOWN_TR: u32 = 1 << 23;
/// GDTR is known.
pub const VMI_KNOWN_GDTR: u32 = 1 << 24;
/// IDTR is known.
pub const VMI_KNOWN_IDTR: u32 = 1 << 25;
/// The debug registers are known.
pub const VMI_KNOWN_DR: u32 = 1 << 26;

/// The registers of one vCPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "registers carry their own names")]
pub struct vmi_registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    /// Task priority, in bits 3 to 0.
    pub cr8: u64,
    pub xcr0: u64,
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub pat: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cs: vmi_segment,
    pub ds: vmi_segment,
    pub es: vmi_segment,
    pub fs: vmi_segment,
    pub gs: vmi_segment,
    pub ss: vmi_segment,
    pub ldt: vmi_segment,
    pub tr: vmi_segment,
    /// Linear address of the global descriptor table.
    pub gdtr_base: u64,
    /// Linear address of the interrupt descriptor table.
    pub idtr_base: u64,
    /// Debug registers 0 to 7; 4 and 5 do not exist.
    pub dr: [u64; 8],
    /// Last valid offset of the global descriptor table.
    pub gdtr_limit: u16,
    /// Last valid offset of the interrupt descriptor table.
    pub idtr_limit: u16,
    /// Which of the members are known: some of VMI_KNOWN_CR0 and its siblings. The others are 0.
    pub known: u32,
    /// The paging mode that they select: a vmi_paging_mode. Not looked at when registers are set.
    pub paging_mode: u32,
}

fn segment(segment: Segment) -> vmi_segment {
    let attributes = segment.attributes.map_or(VMI_UNKNOWN_ATTRIBUTES, |attributes| attributes.bits());
    vmi_segment { base: segment.base, limit: segment.limit, selector: segment.selector, attributes }
}

macro_rules! general {
    ($do:ident) => {
        $do!(rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags)
    };
}

macro_rules! system {
    ($do:ident) => {
        $do!(cr0 VMI_KNOWN_CR0, cr2 VMI_KNOWN_CR2, cr3 VMI_KNOWN_CR3, cr4 VMI_KNOWN_CR4, cr8 VMI_KNOWN_CR8, xcr0 VMI_KNOWN_XCR0,
            efer VMI_KNOWN_EFER, star VMI_KNOWN_STAR, lstar VMI_KNOWN_LSTAR, cstar VMI_KNOWN_CSTAR, sfmask VMI_KNOWN_SFMASK,
            kernel_gs_base VMI_KNOWN_KERNEL_GS_BASE, pat VMI_KNOWN_PAT, sysenter_cs VMI_KNOWN_SYSENTER_CS,
            sysenter_esp VMI_KNOWN_SYSENTER_ESP, sysenter_eip VMI_KNOWN_SYSENTER_EIP)
    };
}

macro_rules! segments {
    ($do:ident) => {
        $do!(cs VMI_KNOWN_CS, ds VMI_KNOWN_DS, es VMI_KNOWN_ES, fs VMI_KNOWN_FS, gs VMI_KNOWN_GS, ss VMI_KNOWN_SS,
            ldt VMI_KNOWN_LDT, tr VMI_KNOWN_TR)
    };
}

impl From<&Registers> for vmi_registers {
    fn from(from: &Registers) -> Self {
        let mut to = Self { paging_mode: number_of(from.paging_mode()) as u32, ..Self::default() };
        macro_rules! copy { ($($name:ident)*) => { $(to.$name = from.$name;)* }; }
        general!(copy);
        macro_rules! optional {
            ($($name:ident $bit:ident),*) => { $(if let Some(value) = from.$name { to.$name = value; to.known |= $bit; })* };
        }
        system!(optional);
        macro_rules! segment_of {
            ($($name:ident $bit:ident),*) => { $(if let Some(value) = from.segments.$name { to.$name = segment(value); to.known |= $bit; })* };
        }
        segments!(segment_of);
        if let Some(table) = from.gdtr {
            (to.gdtr_base, to.gdtr_limit) = (table.base.get(), table.limit);
            to.known |= VMI_KNOWN_GDTR;
        }
        if let Some(table) = from.idtr {
            (to.idtr_base, to.idtr_limit) = (table.base.get(), table.limit);
            to.known |= VMI_KNOWN_IDTR;
        }
        if let Some(dr) = from.dr {
            to.dr = dr;
            to.known |= VMI_KNOWN_DR;
        }
        to
    }
}

impl From<&vmi_registers> for Registers {
    fn from(from: &vmi_registers) -> Self {
        let mut to = Self::default();
        macro_rules! copy { ($($name:ident)*) => { $(to.$name = from.$name;)* }; }
        general!(copy);
        macro_rules! optional {
            ($($name:ident $bit:ident),*) => { $(to.$name = (from.known & $bit != 0).then_some(from.$name);)* };
        }
        system!(optional);
        macro_rules! segment_of {
            ($($name:ident $bit:ident),*) => { $(to.segments.$name = (from.known & $bit != 0).then(|| from.$name.into());)* };
        }
        segments!(segment_of);
        let table = |bit: u32, base, limit| (from.known & bit != 0).then(|| Table { base: VirtAddr::new(base), limit });
        to.gdtr = table(VMI_KNOWN_GDTR, from.gdtr_base, from.gdtr_limit);
        to.idtr = table(VMI_KNOWN_IDTR, from.idtr_base, from.idtr_limit);
        to.dr = (from.known & VMI_KNOWN_DR != 0).then_some(from.dr);
        to
    }
}

impl From<vmi_segment> for Segment {
    fn from(from: vmi_segment) -> Self {
        let known = from.attributes != VMI_UNKNOWN_ATTRIBUTES;
        let attributes = known.then(|| SegmentAttributes::from_bits_retain(from.attributes));
        Self { selector: from.selector, base: from.base, limit: from.limit, attributes }
    }
}

/// The registers of one vCPU.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_machine_get_registers(
    machine: *mut vmi_machine,
    vcpu: u32,
    registers: Option<&mut MaybeUninit<vmi_registers>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::place(registers, "the place for the registers")?;
        let values = table::get(machine)?.vmi().registers(VcpuId(vcpu))?;
        place.write((&values).into());
        Ok(())
    })
}

/// Sets the registers of one vCPU. The guest must stand still: see vmi_machine_pause.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_machine_set_registers(
    machine: *mut vmi_machine,
    vcpu: u32,
    registers: Option<&vmi_registers>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let registers = registers.ok_or_else(|| Failure::null("the registers"))?;
        Ok(table::get(machine)?.vmi().set_registers(VcpuId(vcpu), &registers.into())?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_survives_both_ways() {
        // A different value in each word, and every known bit on its own.
        let mut all = vmi_registers::default();
        macro_rules! number { ($($name:ident)*) => {{ let mut next = 1; $(all.$name = next; next += 0x1111;)* let _ = next; }}; }
        general!(number);
        macro_rules! known { ($($name:ident $bit:ident),*) => { $(all.$name = u64::from($bit) << 8;)* }; }
        system!(known);
        macro_rules! segment { ($($name:ident $bit:ident),*) => { $(all.$name = vmi_segment { base: u64::from($bit), limit: $bit, selector: 8, attributes: 0x9b };)* }; }
        segments!(segment);
        (all.gdtr_base, all.gdtr_limit, all.idtr_base, all.idtr_limit) = (1, 2, 3, 4);
        all.dr = [1, 2, 3, 4, 5, 6, 7, 8];
        for bit in 0..27 {
            let mut one = all;
            one.known = 1 << bit;
            let values = Registers::from(&one);
            let back = vmi_registers::from(&values);
            assert_eq!(back.known, one.known, "{bit}");
            assert_eq!(Registers::from(&back), values);
        }
        all.known = (1 << 27) - 1;
        let mut back = vmi_registers::from(&Registers::from(&all));
        back.paging_mode = 0;
        assert_eq!(back, all);
    }
}
