//! `.xen_prstatus`: an array of `vcpu_guest_context` (Xen, xen/include/public/arch-x86/xen.h and xen-x86_64.h), as
//! `XEN_DOMCTL_getvcpucontext` fills it (xen/arch/x86/domctl.c, `arch_get_info_guest`).

use vmi_arch_x86::{Registers, Segment};
use vmi_core::PhysAddr;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Section, malformed};
use crate::FormatError;
use crate::image::Input;
use crate::machine_frames::MachineFrames;

/// Xen: `HVM_MAX_VCPUS` is 128, and domains without hardware support may have 8192.
const MAX_VCPUS: u64 = 8192;

/// The 64-bit structure. Xen's tools write it for a 32-bit guest with hardware support too.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Context {
    fpu: [u8; 512],
    flags: U64,
    /// r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi.
    general: [U64; 15],
    /// Error code and vector.
    trap: U64,
    rip: U64,
    cs: Selector,
    rflags: U64,
    rsp: U64,
    /// ss es ds fs gs.
    selectors: [Selector; 5],
    /// The virtual interrupt table of a PV domain.
    traps: [[U64; 2]; 256],
    /// Base, entries.
    ldt: [U64; 2],
    /// Machine frames of a PV domain's GDT, entries.
    gdt: [U64; 17],
    /// ss, sp.
    kernel: [U64; 2],
    /// cr0 to cr7.
    control: [U64; 8],
    debug: [U64; 8],
    callbacks: [U64; 3],
    assist: U64,
    fs_base: U64,
    /// What GS is based on in the kernel, or will be after SWAPGS.
    gs_base_kernel: U64,
    gs_base_user: U64,
}

/// The 16 bits of a selector in the place of 64.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Selector {
    value: U16,
    rest: [U16; 3],
}

/// `VGCF_in_kernel`: a PV domain's kernel runs in ring 3 as its programs do.
const IN_KERNEL: u64 = 1 << 2;

/// IA32_EFER with long mode active and enabled, and SYSCALL: Xen runs every 64-bit PV domain so (xen/arch/x86/boot/head.S); the structure does not have it.
const EFER: u64 = 1 | 1 << 8 | 1 << 10;

/// The registers of `count` vCPUs. In those of a domain without hardware support, CR3 is the address of the page that `frames` says.
pub(super) fn read(
    input: Input<'_>,
    section: Section,
    count: u64,
    paravirtual: bool,
    frames: Option<&MachineFrames>,
) -> Result<Vec<Registers>, FormatError> {
    const LEN: u64 = size_of::<Context>() as u64;
    if count > MAX_VCPUS {
        return Err(malformed(section.offset, format!("{count} vCPUs, of which no domain has more than {MAX_VCPUS}")));
    }
    if section.len != count.saturating_mul(LEN) {
        // 2800 bytes each in cores of a 32-bit Xen.
        tracing::warn!(len = section.len, count, "vCPUs of unknown form");
        return Ok(Vec::new());
    }
    let present = input.present(section.offset, section.len, || "the registers".to_owned())?;
    let whole = present.checked_div(LEN).unwrap_or(0);
    let vcpu = |index: u64| -> Result<Registers, FormatError> {
        let context: Context = input.source.read(index.saturating_mul(LEN).saturating_add(section.offset), "the registers")?;
        Ok(registers(&context, paravirtual, frames))
    };
    (0..whole).map(vcpu).collect()
}

fn registers(context: &Context, paravirtual: bool, frames: Option<&MachineFrames>) -> Registers {
    let mut registers = Registers::default();
    let [r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi] = context.general.map(U64::get);
    (registers.rax, registers.rbx, registers.rcx, registers.rdx) = (rax, rbx, rcx, rdx);
    (registers.rsi, registers.rdi, registers.rbp, registers.rsp) = (rsi, rdi, rbp, context.rsp.get());
    (registers.r8, registers.r9, registers.r10, registers.r11) = (r8, r9, r10, r11);
    (registers.r12, registers.r13, registers.r14, registers.r15) = (r12, r13, r14, r15);
    (registers.rip, registers.rflags) = (context.rip.get(), context.rflags.get());

    let in_kernel = if paravirtual { context.flags.get() & IN_KERNEL != 0 } else { context.cs.value.get() & 3 == 0 };
    let (kernel, user) = (context.gs_base_kernel.get(), context.gs_base_user.get());
    let (gs_base, other_gs_base) = if in_kernel { (kernel, user) } else { (user, kernel) };
    // Limits and attributes are not in the structure, nor are bases of other segments, which 64-bit code does not have.
    let segment = |selector: Selector, base| Some(Segment { selector: selector.value.get(), base, ..Segment::default() });
    let [ss, es, ds, fs, gs] = context.selectors;
    registers.segments.cs = segment(context.cs, 0);
    registers.segments.ss = segment(ss, 0);
    registers.segments.es = segment(es, 0);
    registers.segments.ds = segment(ds, 0);
    registers.segments.fs = segment(fs, context.fs_base.get());
    registers.segments.gs = segment(gs, gs_base);
    registers.kernel_gs_base = Some(other_gs_base);

    let [cr0, _, cr2, cr3, cr4, ..] = context.control.map(|value| Some(value.get()));
    if paravirtual {
        // CR2 is in the page that Xen shares with the domain.
        (registers.cr0, registers.cr4, registers.efer) = (cr0, cr4, Some(EFER));
        registers.cr3 = cr3.zip(frames).map(|(cr3, frames)| frames.page_of(PhysAddr::new(cr3)).get());
    } else {
        (registers.cr0, registers.cr2, registers.cr3, registers.cr4) = (cr0, cr2, cr3, cr4);
    }
    registers.dr = Some(context.debug.map(U64::get));
    registers
}
