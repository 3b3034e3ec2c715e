//! QEMU's note on a vCPU: `QEMUCPUState` in QEMU, target/i386/arch_dump.c.

use vmi_arch_x86::{Registers, Segment, SegmentAttributes, Table};
use vmi_core::VirtAddr;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `n_type` of the note.
pub(crate) const TYPE: u32 = 0;

const VERSION: u32 = 1;

/// Where a segment's attributes stand in the upper half of its descriptor.
const ATTRIBUTES_SHIFT: u32 = 8;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct CpuState {
    version: U32,
    size: U32,
    /// rax rbx rcx rdx rsi rdi rsp rbp r8 to r15.
    general: [U64; 16],
    rip: U64,
    rflags: U64,
    /// cs ds es fs gs ss ldt tr gdt idt.
    segments: [CpuSegment; 10],
    /// cr0 to cr4; cr1 does not exist.
    control: [U64; 5],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct CpuSegment {
    selector: U32,
    limit: U32,
    flags: U32,
    pad: U32,
    base: U64,
}

impl CpuSegment {
    fn segment(self) -> Option<Segment> {
        // Selectors have 16 bits; the note keeps them in 32.
        let selector = u16::try_from(self.selector.get() & 0xffff).ok()?;
        Some(Segment {
            selector,
            base: self.base.get(),
            limit: self.limit.get(),
            attributes: Some(SegmentAttributes::from_descriptor(self.flags.get())),
        })
    }

    fn of_segment(segment: Option<Segment>) -> Option<Self> {
        let segment = segment?;
        let flags = u32::from(segment.attributes?.bits()) << ATTRIBUTES_SHIFT;
        Some(Self {
            selector: U32::new(segment.selector.into()),
            limit: U32::new(segment.limit),
            flags: U32::new(flags),
            pad: U32::ZERO,
            base: U64::new(segment.base),
        })
    }

    fn of_table(table: Option<Table>) -> Option<Self> {
        let table = table?;
        let limit = U32::new(table.limit.into());
        Some(Self { selector: U32::ZERO, limit, flags: U32::ZERO, pad: U32::ZERO, base: U64::new(table.base.get()) })
    }

    fn table(self) -> Option<Table> {
        Some(Table { base: VirtAddr::new(self.base.get()), limit: u16::try_from(self.limit.get()).ok()? })
    }
}

/// The registers in one note; `None` if its version or length is unknown.
pub(super) fn registers(note: &[u8]) -> Option<Registers> {
    let (state, rest) = CpuState::read_from_prefix(note).ok()?;
    if state.version.get() != VERSION {
        tracing::warn!(version = state.version.get(), "a QEMU note of an unknown version");
        return None;
    }
    let mut registers = Registers::default();
    let [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15] = state.general.map(U64::get);
    registers.set_general([rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]);
    registers.rip = state.rip.get();
    registers.rflags = state.rflags.get();
    let [cs, ds, es, fs, gs, ss, ldt, tr, gdt, idt] = state.segments;
    registers.segments.cs = cs.segment();
    registers.segments.ds = ds.segment();
    registers.segments.es = es.segment();
    registers.segments.fs = fs.segment();
    registers.segments.gs = gs.segment();
    registers.segments.ss = ss.segment();
    registers.segments.ldt = ldt.segment();
    registers.segments.tr = tr.segment();
    registers.gdtr = gdt.table();
    registers.idtr = idt.table();
    let [cr0, _, cr2, cr3, cr4] = state.control.map(|register| Some(register.get()));
    (registers.cr0, registers.cr2, registers.cr3, registers.cr4) = (cr0, cr2, cr3, cr4);
    // QEMU before 4.0 ends the note here.
    registers.kernel_gs_base = U64::read_from_prefix(rest).ok().map(|(base, _)| base.get());
    Some(registers)
}

/// A note with `registers`; `None` if not all that it tells is known.
pub(crate) fn note(registers: &Registers) -> Option<Vec<u8>> {
    let r = registers;
    let s = &r.segments;
    let general = [r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15];
    let [cs, ds, es] = [s.cs, s.ds, s.es].map(CpuSegment::of_segment);
    let [fs, gs, ss] = [s.fs, s.gs, s.ss].map(CpuSegment::of_segment);
    let [ldt, tr] = [s.ldt, s.tr].map(CpuSegment::of_segment);
    let [gdt, idt] = [r.gdtr, r.idtr].map(CpuSegment::of_table);
    let kernel_gs_base = r.kernel_gs_base.map(|base| base.to_le_bytes());
    let size = size_of::<CpuState>().saturating_add(kernel_gs_base.map_or(0, |base| base.len()));
    let state = CpuState {
        version: U32::new(VERSION),
        size: U32::new(u32::try_from(size).ok()?),
        general: general.map(U64::new),
        rip: U64::new(r.rip),
        rflags: U64::new(r.rflags),
        segments: [cs?, ds?, es?, fs?, gs?, ss?, ldt?, tr?, gdt?, idt?],
        control: [r.cr0?, 0, r.cr2?, r.cr3?, r.cr4?].map(U64::new),
    };
    let mut bytes = state.as_bytes().to_vec();
    bytes.extend(kernel_gs_base.into_iter().flatten());
    Some(bytes)
}
