//! Registers of PV domains: `vcpu_guest_context` (Xen, xen/include/public/arch-x86/xen.h and xen-x86_64.h; filled by `arch_get_info_guest` in
//! xen/arch/x86/domctl.c).

use vmi_arch_x86::{Registers, Segment};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::RegistersError;

/// The 64-bit structure.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
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
    /// The virtual interrupt table.
    traps: [[U64; 2]; 256],
    /// Base, entries.
    ldt: [U64; 2],
    /// Machine frames of the GDT, entries.
    gdt: [U64; 17],
    /// ss, sp.
    kernel: [U64; 2],
    /// cr0 to cr7; cr1 is the CR3 of user mode.
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
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Selector {
    value: U16,
    rest: [U16; 3],
}

/// `VGCF_in_kernel`: a PV domain's kernel runs in ring 3 as its programs do.
const IN_KERNEL: u64 = 1 << 2;

/// IA32_EFER with long mode active and enabled, and SYSCALL: Xen runs every 64-bit PV domain so (xen/arch/x86/boot/head.S); the structure does not have it.
const EFER: u64 = 1 | 1 << 8 | 1 << 10;

/// What the context says.
pub(super) struct Read {
    /// Without CR3.
    pub(super) registers: Registers,
    /// CR3 of the kernel, as a machine address (`xen_pfn_to_cr3`: on x86-64 the frame's address).
    pub(super) cr3: u64,
}

/// The registers of a vCPU of a 64-bit domain.
pub(super) fn read(bytes: &[u8]) -> Result<Read, RegistersError> {
    let (context, _) = Context::ref_from_prefix(bytes).map_err(|_| RegistersError::Short { len: bytes.len() })?;
    let mut registers = Registers::default();
    let [r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi] = context.general.map(U64::get);
    registers.set_general([rax, rcx, rdx, rbx, context.rsp.get(), rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]);
    (registers.rip, registers.rflags) = (context.rip.get(), context.rflags.get());

    let (kernel, user) = (context.gs_base_kernel.get(), context.gs_base_user.get());
    let (gs_base, other) = if context.flags.get() & IN_KERNEL != 0 { (kernel, user) } else { (user, kernel) };
    // Limits and attributes are not in the structure, nor are bases of other segments, which 64-bit code does not have.
    let segment = |selector: Selector, base| Some(Segment { selector: selector.value.get(), base, ..Segment::default() });
    let [ss, es, ds, fs, gs] = context.selectors;
    registers.segments.cs = segment(context.cs, 0);
    registers.segments.ss = segment(ss, 0);
    registers.segments.es = segment(es, 0);
    registers.segments.ds = segment(ds, 0);
    registers.segments.fs = segment(fs, context.fs_base.get());
    registers.segments.gs = segment(gs, gs_base);
    registers.kernel_gs_base = Some(other);

    // CR2 is in the page that the domain shares with Xen.
    let [cr0, _, _, cr3, cr4, ..] = context.control.map(U64::get);
    (registers.cr0, registers.cr4, registers.efer) = (Some(cr0), Some(cr4), Some(EFER));
    registers.dr = Some(context.debug.map(U64::get));
    Ok(Read { registers, cr3 })
}

/// Puts what `wanted` tells into a context whose registers are `now`, CR3 apart. Says whether anything changed.
///
/// General registers, flags, FS, GS and the debug registers can be set; Xen refuses the others for a vCPU that runs (`arch_set_info_guest` in
/// xen/arch/x86/domain.c).
pub(super) fn change(bytes: &mut [u8], now: &Registers, wanted: &Registers) -> Result<bool, RegistersError> {
    let len = bytes.len();
    let (context, _) = Context::mut_from_prefix(bytes).map_err(|_| RegistersError::Short { len })?;
    let fixed = |name, now: Option<u64>, wanted: Option<u64>| match wanted {
        Some(_) if wanted != now => Err(RegistersError::Fixed { register: name }),
        _ => Ok(()),
    };
    fixed("CR0", now.cr0, wanted.cr0)?;
    fixed("CR2", now.cr2, wanted.cr2)?;
    fixed("CR3", now.cr3, wanted.cr3)?;
    fixed("CR4", now.cr4, wanted.cr4)?;
    fixed("CR8", now.cr8, wanted.cr8)?;
    fixed("XCR0", now.xcr0, wanted.xcr0)?;
    fixed("EFER", now.efer, wanted.efer)?;
    fixed("STAR", now.star, wanted.star)?;
    fixed("LSTAR", now.lstar, wanted.lstar)?;
    fixed("CSTAR", now.cstar, wanted.cstar)?;
    fixed("FMASK", now.sfmask, wanted.sfmask)?;
    fixed("PAT", now.pat, wanted.pat)?;
    fixed("SYSENTER_CS", now.sysenter_cs, wanted.sysenter_cs)?;
    fixed("SYSENTER_ESP", now.sysenter_esp, wanted.sysenter_esp)?;
    fixed("SYSENTER_EIP", now.sysenter_eip, wanted.sysenter_eip)?;
    for (name, now, wanted) in [("GDTR", now.gdtr, wanted.gdtr), ("IDTR", now.idtr, wanted.idtr)] {
        if wanted.is_some() && wanted != now {
            return Err(RegistersError::Fixed { register: name });
        }
    }
    let (have, want) = (&now.segments, &wanted.segments);
    for (name, now, wanted) in [
        ("CS", have.cs, want.cs),
        ("SS", have.ss, want.ss),
        ("DS", have.ds, want.ds),
        ("ES", have.es, want.es),
        ("LDTR", have.ldt, want.ldt),
        ("TR", have.tr, want.tr),
    ] {
        if wanted.is_some() && wanted != now {
            return Err(RegistersError::Fixed { register: name });
        }
    }
    let before = context.as_bytes().to_vec();
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = wanted.general();
    context.general = [r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi].map(U64::new);
    (context.rsp, context.rip, context.rflags) = (rsp.into(), wanted.rip.into(), wanted.rflags.into());
    let in_kernel = context.flags.get() & IN_KERNEL != 0;
    let (gs_base, other) = match in_kernel {
        true => (&mut context.gs_base_kernel, &mut context.gs_base_user),
        false => (&mut context.gs_base_user, &mut context.gs_base_kernel),
    };
    if let Some(base) = wanted.kernel_gs_base {
        *other = base.into();
    }
    let [_, _, _, fs, gs] = &mut context.selectors;
    for (selector, base, segment) in [(fs, &mut context.fs_base, want.fs), (gs, gs_base, want.gs)] {
        if let Some(segment) = segment {
            selector.value = segment.selector.into();
            *base = segment.base.into();
        }
    }
    if let Some(dr) = wanted.dr {
        context.debug = dr.map(U64::new);
    }
    Ok(before != context.as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbered() -> Vec<u8> {
        (0..1024u64).flat_map(|index| (index * 8).to_le_bytes()).collect()
    }

    /// Offsets counted by hand in the header: the structure has 5168 bytes.
    #[test]
    fn fields_lie_where_the_header_says() {
        assert_eq!(size_of::<Context>(), 5168);
        let Read { registers, cr3 } = read(&numbered()).unwrap();
        assert_eq!((registers.r15, registers.rdi, registers.rip), (520, 632, 648));
        assert_eq!((registers.rflags, registers.rsp), (664, 672));
        let segments = registers.segments;
        assert_eq!(
            (segments.cs.unwrap().selector, segments.ss.unwrap().selector, segments.gs.unwrap().selector),
            (656, 680, 712)
        );
        // Interrupt table at 720, LDT 4816, GDT 4832, kernel stack 4968, control registers 4984, debug registers 5048, callbacks 5112, assist 5136.
        assert_eq!((registers.cr0, registers.cr4, cr3), (Some(4984), Some(5016), 5008));
        assert_eq!(registers.dr.unwrap()[7], 5104);
        assert_eq!(segments.fs.unwrap().base, 5144);
        // The flags at 512 are 512: bit 2 is clear, so it is in user mode.
        assert_eq!((segments.gs.unwrap().base, registers.kernel_gs_base), (5160, Some(5152)));
    }

    #[test]
    fn what_xen_refuses_is_refused() {
        let mut bytes = numbered();
        let mut now = read(&bytes).unwrap().registers;
        now.cr3 = Some(0x1000);
        assert!(!change(&mut bytes, &now, &now).unwrap());
        let mut wanted = now;
        wanted.cr3 = Some(0x2000);
        let refused = change(&mut bytes, &now, &wanted);
        assert!(matches!(refused, Err(RegistersError::Fixed { register: "CR3" })));
        (wanted.cr3, wanted.cr0) = (None, None);
        assert!(!change(&mut bytes, &now, &wanted).unwrap());
    }

    proptest! {
        #[test]
        fn registers_survive_both_ways(start in proptest::collection::vec(any::<u8>(), 5168), general: [u64; 16], fs: u64, gs: u64, rip: u64) {
            let mut bytes = start;
            let now = read(&bytes).unwrap().registers;
            let mut wanted = now;
            wanted.set_general(general);
            wanted.rip = rip;
            wanted.segments.fs.as_mut().unwrap().base = fs;
            wanted.segments.gs.as_mut().unwrap().base = gs;
            change(&mut bytes, &now, &wanted).unwrap();
            prop_assert_eq!(read(&bytes).unwrap().registers, wanted);
        }

        #[test]
        fn any_bytes_are_read(mut bytes in proptest::collection::vec(any::<u8>(), 0..6000)) {
            let _ = read(&bytes);
            let _ = change(&mut bytes, &Registers::default(), &Registers::default());
        }
    }
}
