//! Registers as KVM hands them out: `struct kvm_regs` and `struct kvm_sregs` (Linux, arch/x86/include/uapi/asm/kvm.h). Hypervisors
//! over KVM keep them so in their snapshots.

use vmi_arch_x86::{Registers, Segment, SegmentAttributes, Table};
use vmi_core::VirtAddr;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, KnownLayout, Unaligned};

/// `struct kvm_regs`: rax rbx rcx rdx rsi rdi rsp rbp r8 to r15 rip rflags.
pub(super) type General = [U64; 18];

/// `struct kvm_sregs`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Special {
    /// cs ds es fs gs ss tr ldt.
    pub(super) segments: [SegmentRegister; 8],
    /// gdt idt.
    pub(super) tables: [TableRegister; 2],
    /// cr0 cr2 cr3 cr4 cr8.
    pub(super) control: [U64; 5],
    pub(super) efer: U64,
    pub(super) apic_base: U64,
    interrupts: [U64; 4],
}

/// `struct kvm_segment`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SegmentRegister {
    base: U64,
    limit: U32,
    selector: U16,
    /// Type; present, dpl, db, s, l, g, avl, unusable.
    kind: u8,
    flags: [u8; 8],
    pad: u8,
}

/// `struct kvm_dtable`.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct TableRegister {
    base: U64,
    limit: U16,
    pad: [U16; 3],
}

impl SegmentRegister {
    /// Whether every field has a value that it can have.
    fn is_possible(&self) -> bool {
        let [present, dpl, rest @ ..] = self.flags;
        self.kind < 16 && dpl < 4 && self.pad == 0 && present < 2 && rest.iter().all(|&flag| flag < 2)
    }

    fn segment(&self) -> Segment {
        let [present, dpl, db, s, l, g, avl, _] = self.flags.map(u32::from);
        let rights = u32::from(self.kind) | s << 4 | dpl << 5 | present << 7 | avl << 12 | l << 13 | db << 14 | g << 15;
        let attributes = Some(SegmentAttributes::from_access_rights(rights));
        Segment { selector: self.selector.get(), base: self.base.get(), limit: self.limit.get(), attributes }
    }
}

impl TableRegister {
    fn table(self) -> Table {
        Table { base: VirtAddr::new(self.base.get()), limit: self.limit.get() }
    }
}

impl Special {
    /// Whether these can be the registers of a processor: every flag has a value that it can have, and the local APIC is where all
    /// firmware leaves it.
    pub(super) fn is_possible(&self) -> bool {
        const APIC: u64 = 0xfee0_0000;
        let tables = self.tables.iter().all(|table| table.pad.iter().all(|pad| pad.get() == 0));
        self.apic_base.get() & !0xfff == APIC && tables && self.segments.iter().all(SegmentRegister::is_possible)
    }

    /// Adds these to the general registers.
    pub(super) fn with(&self, general: &General) -> Registers {
        let mut registers = Registers::default();
        let [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags] = general.map(U64::get);
        (registers.rax, registers.rbx, registers.rcx, registers.rdx) = (rax, rbx, rcx, rdx);
        (registers.rsi, registers.rdi, registers.rsp, registers.rbp) = (rsi, rdi, rsp, rbp);
        (registers.r8, registers.r9, registers.r10, registers.r11) = (r8, r9, r10, r11);
        (registers.r12, registers.r13, registers.r14, registers.r15) = (r12, r13, r14, r15);
        (registers.rip, registers.rflags) = (rip, rflags);
        let [cs, ds, es, fs, gs, ss, tr, ldt] = self.segments.map(|segment| Some(segment.segment()));
        let segments = &mut registers.segments;
        (segments.cs, segments.ds, segments.es, segments.fs) = (cs, ds, es, fs);
        (segments.gs, segments.ss, segments.tr, segments.ldt) = (gs, ss, tr, ldt);
        [registers.gdtr, registers.idtr] = self.tables.map(|table| Some(table.table()));
        [registers.cr0, registers.cr2, registers.cr3, registers.cr4, registers.cr8] = self.control.map(|value| Some(value.get()));
        registers.efer = Some(self.efer.get());
        registers
    }
}

/// Names of the numbers of [`General`], as bindings to KVM have them.
const GENERAL: [&str; 18] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
];

/// The general registers by their names.
pub(super) fn named_general(number: impl Fn(&str) -> Option<u64>) -> Option<General> {
    let mut general = General::default();
    for (register, name) in general.iter_mut().zip(GENERAL) {
        *register = number(name)?.into();
    }
    Some(general)
}

impl Special {
    /// By the names of the structures' members.
    pub(super) fn named(number: impl Fn(&[&str]) -> Option<u64>) -> Option<Self> {
        let mut special = Self::new_zeroed();
        for (segment, name) in special.segments.iter_mut().zip(["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"]) {
            segment.base = number(&[name, "base"])?.into();
            segment.limit = u32::try_from(number(&[name, "limit"])?).ok()?.into();
            segment.selector = u16::try_from(number(&[name, "selector"])?).ok()?.into();
            // `type` is a word of Rust's.
            segment.kind = u8::try_from(number(&[name, "type_"]).or_else(|| number(&[name, "type"]))?).ok()?;
            for (flag, flag_name) in segment.flags.iter_mut().zip(["present", "dpl", "db", "s", "l", "g", "avl", "unusable"]) {
                *flag = u8::try_from(number(&[name, flag_name])?).ok()?;
            }
        }
        for (table, name) in special.tables.iter_mut().zip(["gdt", "idt"]) {
            table.base = number(&[name, "base"])?.into();
            table.limit = u16::try_from(number(&[name, "limit"])?).ok()?.into();
        }
        for (register, name) in special.control.iter_mut().zip(["cr0", "cr2", "cr3", "cr4", "cr8"]) {
            *register = number(&[name])?.into();
        }
        special.efer = number(&["efer"])?.into();
        special.apic_base = number(&["apic_base"])?.into();
        Some(special)
    }
}
