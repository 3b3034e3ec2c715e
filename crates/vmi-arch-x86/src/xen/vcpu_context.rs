//! `vcpu_guest_context` (Xen, xen/include/public/arch-x86/xen.h and xen-x86_64.h; filled by `arch_get_info_guest` in xen/arch/x86/domctl.c).

use core::fmt;

use vmi_core::PhysAddr;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::RegistersError;
use crate::{Registers, Segment};

/// What Xen keeps of a vCPU: the 64-bit structure, as a 64-bit Xen hands it out of PV domains, and writes it into the cores of all.
///
/// A 32-bit PV domain has another structure, of 2800 bytes, which is not known here.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct VcpuContext {
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
    /// cr0 to cr7; in PV domains cr1 is the CR3 of user mode.
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

/// Length of the structure of a 32-bit PV domain (xen/include/public/arch-x86/xen-x86_32.h).
const LEN_32: usize = 2800;

/// `VGCF_in_kernel`: a PV domain's kernel runs in ring 3 as its programs do.
const IN_KERNEL: u64 = 1 << 2;

/// IA32_EFER with long mode active and enabled, and SYSCALL: Xen runs every 64-bit PV domain so (xen/arch/x86/boot/head.S); the structure does not have it.
const EFER: u64 = 1 | 1 << 8 | 1 << 10;

impl VcpuContext {
    /// Length of the structure in bytes.
    pub const LEN: usize = 5168;

    /// The context at the beginning of `bytes`.
    ///
    /// # Errors
    /// [`RegistersError::Short`] if there are fewer than [`VcpuContext::LEN`].
    pub fn of(bytes: &[u8]) -> Result<&Self, RegistersError> {
        const { assert!(size_of::<Self>() == Self::LEN) };
        Self::ref_from_prefix(bytes).map(|(context, _)| context).map_err(|_| RegistersError::Short { len: bytes.len() })
    }

    /// Whether `bytes` are those of a 32-bit PV domain, which Xen puts at the beginning of as many zeros as the 64-bit structure is longer. No 64-bit vCPU that has run has
    /// nothing there: CR3 is there.
    pub fn is_of_32_bits(bytes: &[u8]) -> bool {
        let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        bytes
            .get(..Self::LEN)
            .and_then(|bytes| bytes.split_at_checked(LEN_32))
            .is_some_and(|(context, rest)| !is_zero(context) && is_zero(rest))
    }

    /// The same, to be changed.
    ///
    /// # Errors
    /// As [`VcpuContext::of`].
    pub fn of_mut(bytes: &mut [u8]) -> Result<&mut Self, RegistersError> {
        let len = bytes.len();
        Self::mut_from_prefix(bytes).map(|(context, _)| context).map_err(|_| RegistersError::Short { len })
    }

    /// The registers of a vCPU of a 64-bit PV domain, without CR3; and CR3 of its kernel, as a machine address (`xen_pfn_to_cr3`: on x86-64 the frame's address), which
    /// the domain's own list of frames turns into one of its own.
    ///
    /// CR2 is not told: it is in the page that the domain shares with Xen.
    pub fn paravirtual(&self) -> (Registers, PhysAddr) {
        let mut registers = self.registers(self.is_in_kernel());
        let [cr0, _, _, cr3, cr4, ..] = self.control.map(U64::get);
        (registers.cr0, registers.cr4, registers.efer) = (Some(cr0), Some(cr4), Some(EFER));
        (registers, PhysAddr::new(cr3))
    }

    /// The registers of a vCPU of an HVM or PVH domain.
    pub fn hardware(&self) -> Registers {
        let mut registers = self.registers(self.cs.value.get() & 3 == 0);
        let [cr0, _, cr2, cr3, cr4, ..] = self.control.map(|value| Some(value.get()));
        (registers.cr0, registers.cr2, registers.cr3, registers.cr4) = (cr0, cr2, cr3, cr4);
        registers
    }

    fn is_in_kernel(&self) -> bool {
        self.flags.get() & IN_KERNEL != 0
    }

    /// What both kinds of domains have in the same places.
    fn registers(&self, in_kernel: bool) -> Registers {
        let mut registers = Registers::default();
        let [r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi] = self.general.map(U64::get);
        registers.set_general([rax, rcx, rdx, rbx, self.rsp.get(), rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]);
        (registers.rip, registers.rflags) = (self.rip.get(), self.rflags.get());

        let (kernel, user) = (self.gs_base_kernel.get(), self.gs_base_user.get());
        let (gs_base, other) = if in_kernel { (kernel, user) } else { (user, kernel) };
        // Limits and attributes are not in the structure, nor are bases of other segments, which 64-bit code does not have.
        let segment = |selector: Selector, base| Some(Segment { selector: selector.value.get(), base, ..Segment::default() });
        let [ss, es, ds, fs, gs] = self.selectors;
        registers.segments.cs = segment(self.cs, 0);
        registers.segments.ss = segment(ss, 0);
        registers.segments.es = segment(es, 0);
        registers.segments.ds = segment(ds, 0);
        registers.segments.fs = segment(fs, self.fs_base.get());
        registers.segments.gs = segment(gs, gs_base);
        registers.kernel_gs_base = Some(other);
        registers.dr = Some(self.debug.map(U64::get));
        registers
    }

    /// Makes `wanted` the registers of a vCPU of a PV domain, which has `now`: what [`VcpuContext::paravirtual`] gives, and CR3 as the caller tells it. Says whether
    /// anything changed. What `wanted` does not tell stays.
    ///
    /// General registers, flags, FS, GS and the debug registers can be set; Xen refuses the others for a vCPU that runs (`arch_set_info_guest` in
    /// xen/arch/x86/domain.c).
    ///
    /// # Errors
    /// [`RegistersError::Fixed`] if another register would change; nothing is changed then.
    pub fn change(&mut self, now: &Registers, wanted: &Registers) -> Result<bool, RegistersError> {
        refuse_fixed(now, wanted)?;
        let before = self.as_bytes().to_vec();
        self.put(wanted);
        Ok(before != self.as_bytes())
    }

    /// Puts what can be set.
    fn put(&mut self, wanted: &Registers) {
        let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = wanted.general();
        self.general = [r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi].map(U64::new);
        (self.rsp, self.rip, self.rflags) = (rsp.into(), wanted.rip.into(), wanted.rflags.into());
        let (gs_base, other) = match self.is_in_kernel() {
            true => (&mut self.gs_base_kernel, &mut self.gs_base_user),
            false => (&mut self.gs_base_user, &mut self.gs_base_kernel),
        };
        if let Some(base) = wanted.kernel_gs_base {
            *other = base.into();
        }
        let [_, _, _, fs, gs] = &mut self.selectors;
        for (selector, base, segment) in [(fs, &mut self.fs_base, wanted.segments.fs), (gs, gs_base, wanted.segments.gs)] {
            if let Some(segment) = segment {
                selector.value = segment.selector.into();
                *base = segment.base.into();
            }
        }
        if let Some(dr) = wanted.dr {
            self.debug = dr.map(U64::new);
        }
    }
}

impl fmt::Debug for VcpuContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuContext").field("flags", &self.flags).field("rip", &self.rip).finish_non_exhaustive()
    }
}

/// Whether a register would change that cannot be set.
fn refuse_fixed(now: &Registers, wanted: &Registers) -> Result<(), RegistersError> {
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> (Registers, PhysAddr) {
        VcpuContext::of(bytes).unwrap().paravirtual()
    }

    fn of_mut(bytes: &mut [u8]) -> &mut VcpuContext {
        VcpuContext::of_mut(bytes).unwrap()
    }

    fn numbered() -> Vec<u8> {
        (0..1024u64).flat_map(|index| (index * 8).to_le_bytes()).collect()
    }

    /// Offsets counted by hand in the header: the structure has 5168 bytes.
    #[test]
    fn fields_lie_where_the_header_says() {
        assert_eq!(size_of::<VcpuContext>(), 5168);
        let (registers, cr3) = read(&numbered());
        assert_eq!((registers.r15, registers.rdi, registers.rip), (520, 632, 648));
        assert_eq!((registers.rflags, registers.rsp), (664, 672));
        let segments = registers.segments;
        assert_eq!(
            (segments.cs.unwrap().selector, segments.ss.unwrap().selector, segments.gs.unwrap().selector),
            (656, 680, 712)
        );
        // Interrupt table at 720, LDT 4816, GDT 4832, kernel stack 4968, control registers 4984, debug registers 5048, callbacks 5112, assist 5136.
        assert_eq!((registers.cr0, registers.cr4, cr3), (Some(4984), Some(5016), PhysAddr::new(5008)));
        assert_eq!(registers.dr.unwrap()[7], 5104);
        assert_eq!(segments.fs.unwrap().base, 5144);
        // The flags at 512 are 512: bit 2 is clear, so it is in user mode.
        assert_eq!((segments.gs.unwrap().base, registers.kernel_gs_base), (5160, Some(5152)));
    }

    #[test]
    fn the_kernel_is_told_by_the_ring_where_there_is_one() {
        let mut bytes = numbered();
        let registers = VcpuContext::of(&bytes).unwrap().hardware();
        // The selector at 656 is 0x290: ring 0.
        assert_eq!((registers.segments.gs.unwrap().base, registers.kernel_gs_base), (5152, Some(5160)));
        assert_eq!(
            (registers.cr0, registers.cr2, registers.cr3, registers.cr4),
            (Some(4984), Some(5000), Some(5008), Some(5016))
        );
        assert_eq!(registers.efer, None);
        bytes[656] |= 3;
        let registers = VcpuContext::of(&bytes).unwrap().hardware();
        assert_eq!((registers.segments.gs.unwrap().base, registers.kernel_gs_base), (5160, Some(5152)));
        // A PV domain's kernel is told by the flag.
        bytes[512] |= 1 << 2;
        assert_eq!(read(&bytes).0.kernel_gs_base, Some(5160));
    }

    #[test]
    fn a_32_bit_context_is_told_by_what_is_behind_it() {
        let mut bytes = numbered();
        assert!(!VcpuContext::is_of_32_bits(&bytes));
        bytes[2800..5168].fill(0);
        assert!(VcpuContext::is_of_32_bits(&bytes));
        // One that never ran is none.
        bytes[..2800].fill(0);
        assert!(!VcpuContext::is_of_32_bits(&bytes));
        assert!(!VcpuContext::is_of_32_bits(&bytes[..5000]));
    }

    #[test]
    fn what_xen_refuses_is_refused() {
        let mut bytes = numbered();
        let mut now = read(&bytes).0;
        now.cr3 = Some(0x1000);
        assert!(!of_mut(&mut bytes).change(&now, &now).unwrap());
        let mut wanted = now;
        wanted.cr3 = Some(0x2000);
        let refused = of_mut(&mut bytes).change(&now, &wanted);
        assert!(matches!(refused, Err(RegistersError::Fixed { register: "CR3" })));
        (wanted.cr3, wanted.cr0) = (None, None);
        assert!(!of_mut(&mut bytes).change(&now, &wanted).unwrap());
    }

    proptest! {
        #[test]
        fn registers_survive_both_ways(start in proptest::collection::vec(any::<u8>(), 5168), general: [u64; 16], fs: u64, gs: u64, rip: u64) {
            let mut bytes = start;
            let now = read(&bytes).0;
            let mut wanted = now;
            wanted.set_general(general);
            wanted.rip = rip;
            wanted.segments.fs.as_mut().unwrap().base = fs;
            wanted.segments.gs.as_mut().unwrap().base = gs;
            of_mut(&mut bytes).change(&now, &wanted).unwrap();
            prop_assert_eq!(read(&bytes).0, wanted);
        }

        /// Bytes that are long enough are a context, whatever they are; what was read of it can be written back and changes nothing.
        #[test]
        fn any_bytes_are_read(mut bytes in proptest::collection::vec(any::<u8>(), 5000..5400)) {
            let len = bytes.len();
            prop_assert_eq!(VcpuContext::of(&bytes).is_ok(), len >= 5168);
            match VcpuContext::of_mut(&mut bytes) {
                Ok(context) => {
                    let (now, _) = context.paravirtual();
                    prop_assert_eq!(context.change(&now, &now), Ok(false));
                    let hardware = context.hardware();
                    prop_assert_eq!(hardware.general(), now.general());
                    let _ = context.change(&Registers::default(), &Registers::default());
                }
                Err(error) => prop_assert_eq!(error, RegistersError::Short { len }),
            }
        }
    }
}
