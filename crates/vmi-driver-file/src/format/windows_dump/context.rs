//! The registers in a dump's header: `CONTEXT` of Windows, as winnt.h of its SDK has it.
//!
//! They are those of the processor that wrote the dump, when the system stopped. The record has no control registers and no base of FS and GS. The
//! header's page tables are no substitute for CR3: they go into the note, as the hint that they are.

use vmi_arch_x86::{Registers, Segment};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Bits of `ContextFlags`: the architecture, and what is there.
const AMD64: u32 = 0x10_0000;
const I386: u32 = 0x1_0000;
const CONTROL: u32 = 1;
const INTEGER: u32 = 2;
const SEGMENTS: u32 = 4;
const DEBUG: u32 = 0x10;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Context64 {
    homes: [U64; 6],
    flags: U32,
    mxcsr: U32,
    cs: U16,
    ds: U16,
    es: U16,
    fs: U16,
    gs: U16,
    ss: U16,
    eflags: U32,
    /// 0 to 3, 6 and 7.
    debug: [U64; 6],
    /// rax rcx rdx rbx rsp rbp rsi rdi r8 to r15.
    general: [U64; 16],
    rip: U64,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Context32 {
    flags: U32,
    /// 0 to 3, 6 and 7.
    debug: [U32; 6],
    float: [u8; 112],
    gs: U32,
    fs: U32,
    es: U32,
    ds: U32,
    /// edi esi ebx edx ecx eax.
    general: [U32; 6],
    ebp: U32,
    eip: U32,
    cs: U32,
    eflags: U32,
    esp: U32,
    ss: U32,
}

/// The registers of a 64-bit processor; `None` if the record is not filled.
pub(super) fn long(bytes: &[u8]) -> Option<Registers> {
    let (context, _) = Context64::read_from_prefix(bytes).ok()?;
    let flags = context.flags.get();
    if !is_plausible(flags, AMD64, context.rip.get()) {
        return None;
    }
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = context.general.map(U64::get);
    let mut registers = Registers::default();
    registers.set_general([rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]);
    registers.rip = context.rip.get();
    registers.rflags = context.eflags.get().into();
    let [cs, ss, ds, es] = [context.cs, context.ss, context.ds, context.es].map(U16::get);
    segments(&mut registers, flags, [cs, ss, ds, es]);
    registers.dr = debug(flags, context.debug.map(U64::get));
    Some(registers)
}

/// The registers of a 32-bit processor; `None` if the record is not filled.
pub(super) fn short(bytes: &[u8]) -> Option<Registers> {
    let (context, _) = Context32::read_from_prefix(bytes).ok()?;
    let flags = context.flags.get();
    if !is_plausible(flags, I386, context.eip.get().into()) {
        return None;
    }
    let [rdi, rsi, rbx, rdx, rcx, rax] = context.general.map(|register| u64::from(register.get()));
    let mut registers = Registers::default();
    registers.rax = rax;
    registers.rbx = rbx;
    registers.rcx = rcx;
    registers.rdx = rdx;
    registers.rsi = rsi;
    registers.rdi = rdi;
    registers.rsp = context.esp.get().into();
    registers.rbp = context.ebp.get().into();
    registers.rip = context.eip.get().into();
    registers.rflags = context.eflags.get().into();
    // Selectors have 16 bits; the record keeps them in 32.
    let selectors = [context.cs, context.ss, context.ds, context.es].map(|selector| (selector.get() & 0xffff) as u16);
    segments(&mut registers, flags, selectors);
    registers.dr = debug(flags, context.debug.map(|register| register.get().into()));
    Some(registers)
}

/// Whether the record is of this architecture and holds what [`Registers`] cannot do without.
fn is_plausible(flags: u32, architecture: u32, instruction: u64) -> bool {
    let wanted = architecture | CONTROL | INTEGER;
    flags & wanted == wanted && flags & 0x3fff_0000 == architecture && instruction != 0
}

/// Windows runs on flat segments, so base and limit of these four are known; those of FS and GS are not.
fn segments(registers: &mut Registers, flags: u32, [cs, ss, ds, es]: [u16; 4]) {
    let flat = |selector| Some(Segment { selector, base: 0, limit: u32::MAX, attributes: None });
    registers.segments.cs = flat(cs);
    registers.segments.ss = flat(ss);
    if flags & SEGMENTS != 0 {
        registers.segments.ds = flat(ds);
        registers.segments.es = flat(es);
    }
}

fn debug(flags: u32, [dr0, dr1, dr2, dr3, dr6, dr7]: [u64; 6]) -> Option<[u64; 8]> {
    (flags & DEBUG != 0).then_some([dr0, dr1, dr2, dr3, 0, 0, dr6, dr7])
}
