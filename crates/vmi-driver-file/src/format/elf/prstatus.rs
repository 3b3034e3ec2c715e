//! The note NT_PRSTATUS: `struct elf_prstatus` of Linux (include/linux/elfcore.h) with `struct user_regs_struct`
//! (arch/x86/include/asm/user_64.h and user_32.h). kdump writes one for each processor.
//!
//! It has no control registers. Its segment bases are those of user space, so they are left out.

use vmi_arch_x86::{Registers, Segment};
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

/// `NT_PRSTATUS`.
pub(crate) const TYPE: u32 = 1;

/// Lengths of the whole structure, and where its registers start.
const LONG: (usize, usize) = (336, 112);
const SHORT: (usize, usize) = (144, 72);

/// The registers in one note; `None` if its length is neither that of x86-64 nor that of i386.
pub(super) fn registers(note: &[u8]) -> Option<Registers> {
    match note.len() {
        len if len == LONG.0 => long(note.get(LONG.1..)?),
        len if len == SHORT.0 => short(note.get(SHORT.1..)?),
        len => {
            tracing::warn!(len, "a register note of unknown length");
            None
        }
    }
}

fn long(bytes: &[u8]) -> Option<Registers> {
    let (values, _) = <[U64; 20]>::read_from_prefix(bytes).ok()?;
    let [r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, _orig_rax, rip, _cs, rflags, rsp] =
        values.map(U64::get);
    let mut registers = Registers::default();
    registers.set_general([rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]);
    registers.rip = rip;
    registers.rflags = rflags;
    Some(registers)
}

fn short(bytes: &[u8]) -> Option<Registers> {
    let (values, _) = <[U32; 16]>::read_from_prefix(bytes).ok()?;
    let [ebx, ecx, edx, esi, edi, ebp, eax, _ds, _es, _fs, _gs, _orig_eax, eip, _cs, eflags, esp] =
        values.map(|value| u64::from(value.get()));
    let mut registers = Registers::default();
    registers.rax = eax;
    registers.rbx = ebx;
    registers.rcx = ecx;
    registers.rdx = edx;
    registers.rsi = esi;
    registers.rdi = edi;
    registers.rsp = esp;
    registers.rbp = ebp;
    registers.rip = eip;
    registers.rflags = eflags;
    Some(registers)
}

/// The note of x86-64 with `registers`, of the task `thread`: QEMU counts the vCPUs from one there.
pub(crate) fn note(registers: &Registers, thread: u32) -> Vec<u8> {
    /// Where the task's number stands.
    const THREAD: usize = 32;
    let r = registers;
    let s = &r.segments;
    let selector = |segment: Option<Segment>| segment.map_or(0, |segment| u64::from(segment.selector));
    let base = |segment: Option<Segment>| segment.map_or(0, |segment| segment.base);
    let values = [r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi, r.rdi];
    // No system call is to be restarted.
    let orig_rax = u64::MAX;
    let system = [orig_rax, r.rip, selector(s.cs), r.rflags, r.rsp, selector(s.ss), base(s.fs), base(s.gs)];
    let data = [s.ds, s.es, s.fs, s.gs].map(selector);
    let mut note = vec![0; THREAD];
    note.extend(thread.to_le_bytes());
    note.resize(LONG.1, 0);
    note.extend(values.iter().chain(&system).chain(&data).flat_map(|value| value.to_le_bytes()));
    note.resize(LONG.0, 0);
    note
}
