//! Registers of HVM and PVH domains: the record `CPU` of their save records, and what of others is a register (Xen,
//! xen/include/public/arch-x86/hvm/save.h; filled by `hvm_save_cpu_ctxt` in xen/arch/x86/hvm/hvm.c).

use vmi_core::VirtAddr;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::RegistersError;
use super::records::{self, Record, records};
use crate::{Registers, Segment, SegmentAttributes, Table};

/// The save records of an HVM or PVH domain, as `XEN_DOMCTL_gethvmcontext` gives them.
#[derive(Clone, Copy, Debug)]
pub struct SaveRecords<'b>(&'b [u8]);

/// `hvm_hw_cpu`, as it has been since Xen 4.7.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Cpu {
    fpu: [u8; 512],
    /// rax rbx rcx rdx rbp rsi rdi rsp r8 to r15.
    general: [U64; 16],
    rip: U64,
    rflags: U64,
    cr0: U64,
    cr2: U64,
    cr3: U64,
    cr4: U64,
    /// dr0 dr1 dr2 dr3 dr6 dr7.
    debug: [U64; 6],
    /// cs ds es fs gs ss tr ldtr.
    selectors: [U32; 8],
    /// The same, then idtr, gdtr.
    limits: [U32; 10],
    bases: [U64; 10],
    attributes: [U32; 8],
    sysenter_cs: U64,
    sysenter_esp: U64,
    sysenter_eip: U64,
    shadow_gs: U64,
    flags: U64,
    lstar: U64,
    star: U64,
    cstar: U64,
    syscall_mask: U64,
    efer: U64,
    tsc_aux: U64,
}

/// Xen keeps attributes as SVM does, with the four flags right above the lower byte (`struct segment_register` in xen/arch/x86/include/asm/x86_emulate.h;
/// VMX's are converted to it, `vmx_get_segment_register`); access rights have them four bits higher.
fn attributes(packed: u32) -> SegmentAttributes {
    SegmentAttributes::from_access_rights(packed & 0xff | (packed & 0xf00) << 4)
}

fn pack(attributes: SegmentAttributes) -> u32 {
    let bits = u32::from(attributes.bits());
    bits & 0xff | (bits >> 4) & 0xf00
}

impl<'b> SaveRecords<'b> {
    /// The records in `bytes`, which are looked at when they are asked for.
    pub fn new(bytes: &'b [u8]) -> Self {
        Self(bytes)
    }

    /// The registers of vCPU `vcpu`.
    ///
    /// # Errors
    /// Records that are cut off or shorter than their structure; a vCPU that has none.
    pub fn registers(self, vcpu: u16) -> Result<Registers, RegistersError> {
        let mut registers = None;
        let (mut xcr0, mut pat, mut cr8) = (None, None, None);
        let word =
            |content: &[u8], at: usize| content.get(at..).and_then(<[u8]>::first_chunk).map(|bytes| u64::from_le_bytes(*bytes));
        for record in records(self.0) {
            let Record { code, instance, content } = record?;
            if instance != vcpu {
                continue;
            }
            match code {
                records::CPU => registers = Some(of(cpu(content)?)),
                // `hvm_hw_cpu_xsave`: a mask that is ignored, XCR0.
                records::XSAVE => xcr0 = word(content, 8),
                // `hvm_hw_mtrr`: first the PAT.
                records::MTRR => pat = word(content, 0),
                // The page of the local APIC: the task priority at 0x80, whose upper half is CR8 (Intel SDM, volume 3, section 11.8.6).
                records::LAPIC_REGISTERS => cr8 = word(content, 0x80).map(|word| (word >> 4) & 0xf),
                _ => {}
            }
        }
        let mut registers = registers.ok_or(RegistersError::Offline { vcpu: vcpu.into() })?;
        (registers.xcr0, registers.pat, registers.cr8) = (xcr0, pat, cr8);
        Ok(registers)
    }

    /// The records that make `wanted` the registers of a vCPU, for `XEN_DOMCTL_sethvmcontext`: the header, the vCPU's changed record, the end. `None` if nothing is to
    /// change. What `wanted` does not tell stays; Xen leaves alone what has no record.
    ///
    /// # Errors
    /// Those of [`SaveRecords::registers`]; [`RegistersError::Fixed`] if XCR0, PAT or CR8 would change, which other records hold.
    pub fn change(self, vcpu: u16, wanted: &Registers) -> Result<Option<Vec<u8>>, RegistersError> {
        let now = self.registers(vcpu)?;
        for (name, now, wanted) in [("XCR0", now.xcr0, wanted.xcr0), ("PAT", now.pat, wanted.pat), ("CR8", now.cr8, wanted.cr8)] {
            if wanted.is_some() && wanted != now {
                return Err(RegistersError::Fixed { register: name });
            }
        }
        let mut changed = Vec::new();
        let mut is_new = false;
        for record in records(self.0) {
            let Record { code, instance, content } = record?;
            match code {
                records::HEADER => records::append(&mut changed, code, instance, content),
                records::CPU if instance == vcpu => {
                    let mut new = content.to_vec();
                    let len = content.len();
                    let (cpu, _) = Cpu::mut_from_prefix(&mut new).map_err(|_| RegistersError::Short { len })?;
                    put(cpu, wanted);
                    is_new |= new != content;
                    records::append(&mut changed, code, instance, &new);
                }
                _ => {}
            }
        }
        records::append(&mut changed, records::END, 0, &[]);
        Ok(is_new.then_some(changed))
    }
}

fn cpu(content: &[u8]) -> Result<&Cpu, RegistersError> {
    Cpu::ref_from_prefix(content).map(|(cpu, _)| cpu).map_err(|_| RegistersError::Short { len: content.len() })
}

fn of(cpu: &Cpu) -> Registers {
    let mut registers = Registers::default();
    let [rax, rbx, rcx, rdx, rbp, rsi, rdi, rsp, upper @ ..] = cpu.general.map(U64::get);
    let [r8, r9, r10, r11, r12, r13, r14, r15] = upper;
    registers.set_general([rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]);
    (registers.rip, registers.rflags) = (cpu.rip.get(), cpu.rflags.get());
    registers.cr0 = Some(cpu.cr0.get());
    registers.cr2 = Some(cpu.cr2.get());
    registers.cr3 = Some(cpu.cr3.get());
    registers.cr4 = Some(cpu.cr4.get());
    let [dr0, dr1, dr2, dr3, dr6, dr7] = cpu.debug.map(U64::get);
    registers.dr = Some([dr0, dr1, dr2, dr3, 0, 0, dr6, dr7]);
    let [b0, b1, b2, b3, b4, b5, b6, b7, idt_base, gdt_base] = cpu.bases.map(U64::get);
    let [l0, l1, l2, l3, l4, l5, l6, l7, idt_limit, gdt_limit] = cpu.limits.map(U32::get);
    let [s0, s1, s2, s3, s4, s5, s6, s7] = cpu.selectors.map(U32::get);
    let [a0, a1, a2, a3, a4, a5, a6, a7] = cpu.attributes.map(U32::get);
    let segment = |selector: u32, base, limit, packed| {
        // Selectors have 16 bits; the upper half of the field is zero.
        Some(Segment { selector: selector as u16, base, limit, attributes: Some(attributes(packed)) })
    };
    let segments = &mut registers.segments;
    segments.cs = segment(s0, b0, l0, a0);
    segments.ds = segment(s1, b1, l1, a1);
    segments.es = segment(s2, b2, l2, a2);
    segments.fs = segment(s3, b3, l3, a3);
    segments.gs = segment(s4, b4, l4, a4);
    segments.ss = segment(s5, b5, l5, a5);
    segments.tr = segment(s6, b6, l6, a6);
    segments.ldt = segment(s7, b7, l7, a7);
    // Limits of tables have 16 bits.
    let table = |base, limit: u32| Some(Table { base: VirtAddr::new(base), limit: limit as u16 });
    registers.idtr = table(idt_base, idt_limit);
    registers.gdtr = table(gdt_base, gdt_limit);
    registers.efer = Some(cpu.efer.get());
    registers.star = Some(cpu.star.get());
    registers.lstar = Some(cpu.lstar.get());
    registers.cstar = Some(cpu.cstar.get());
    registers.sfmask = Some(cpu.syscall_mask.get());
    registers.kernel_gs_base = Some(cpu.shadow_gs.get());
    registers.sysenter_cs = Some(cpu.sysenter_cs.get());
    registers.sysenter_esp = Some(cpu.sysenter_esp.get());
    registers.sysenter_eip = Some(cpu.sysenter_eip.get());
    registers
}

/// Puts what `wanted` tells into `cpu`.
fn put(cpu: &mut Cpu, wanted: &Registers) {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = wanted.general();
    cpu.general = [rax, rbx, rcx, rdx, rbp, rsi, rdi, rsp, r8, r9, r10, r11, r12, r13, r14, r15].map(U64::new);
    (cpu.rip, cpu.rflags) = (wanted.rip.into(), wanted.rflags.into());
    for (field, value) in [
        (&mut cpu.cr0, wanted.cr0),
        (&mut cpu.cr2, wanted.cr2),
        (&mut cpu.cr3, wanted.cr3),
        (&mut cpu.cr4, wanted.cr4),
        (&mut cpu.efer, wanted.efer),
        (&mut cpu.star, wanted.star),
        (&mut cpu.lstar, wanted.lstar),
        (&mut cpu.cstar, wanted.cstar),
        (&mut cpu.syscall_mask, wanted.sfmask),
        (&mut cpu.shadow_gs, wanted.kernel_gs_base),
        (&mut cpu.sysenter_cs, wanted.sysenter_cs),
        (&mut cpu.sysenter_esp, wanted.sysenter_esp),
        (&mut cpu.sysenter_eip, wanted.sysenter_eip),
    ] {
        if let Some(value) = value {
            *field = value.into();
        }
    }
    if let Some([dr0, dr1, dr2, dr3, _, _, dr6, dr7]) = wanted.dr {
        cpu.debug = [dr0, dr1, dr2, dr3, dr6, dr7].map(U64::new);
    }
    let s = &wanted.segments;
    let places = cpu.selectors.iter_mut().zip(&mut cpu.limits).zip(&mut cpu.bases).zip(&mut cpu.attributes);
    for ((((selector, limit), base), packed), segment) in places.zip([s.cs, s.ds, s.es, s.fs, s.gs, s.ss, s.tr, s.ldt]) {
        let Some(segment) = segment else { continue };
        (*selector, *limit, *base) = (u32::from(segment.selector).into(), segment.limit.into(), segment.base.into());
        if let Some(attributes) = segment.attributes {
            *packed = pack(attributes).into();
        }
    }
    let [.., idt_limit, gdt_limit] = &mut cpu.limits;
    let [.., idt_base, gdt_base] = &mut cpu.bases;
    for (limit, base, table) in [(idt_limit, idt_base, wanted.idtr), (gdt_limit, gdt_base, wanted.gdtr)] {
        if let Some(table) = table {
            (*limit, *base) = (u32::from(table.limit).into(), table.base.get().into());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record whose every 8 bytes tell where they are.
    fn numbered() -> Vec<u8> {
        (0..129u64).flat_map(|index| (index * 8).to_le_bytes()).collect()
    }

    fn whole(cpu: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        records::append(&mut bytes, records::HEADER, 0, &[7; 24]);
        records::append(&mut bytes, records::CPU, 0, &[0; 1032]);
        records::append(&mut bytes, records::CPU, 1, cpu);
        records::append(&mut bytes, records::MTRR, 1, &0x0007_0406_0007_0406u64.to_le_bytes());
        records::append(&mut bytes, records::END, 0, &[]);
        bytes
    }

    /// Offsets counted by hand in the header.
    #[test]
    fn fields_lie_where_the_header_says() {
        let registers = SaveRecords::new(&whole(&numbered())).registers(1).unwrap();
        assert_eq!((registers.rax, registers.rbx, registers.rsp, registers.r15), (512, 520, 568, 632));
        assert_eq!((registers.rip, registers.rflags), (640, 648));
        assert_eq!((registers.cr0, registers.cr2, registers.cr3, registers.cr4), (Some(656), Some(664), Some(672), Some(680)));
        assert_eq!(registers.dr, Some([688, 696, 704, 712, 0, 0, 720, 728]));
        // Selectors from 736, limits from 768, bases from 808, attributes from 888.
        let segments = registers.segments;
        assert_eq!(
            (segments.cs.unwrap().selector, segments.es.unwrap().selector, segments.tr.unwrap().selector),
            (736, 744, 760)
        );
        assert_eq!((segments.cs.unwrap().limit, segments.cs.unwrap().base, segments.ldt.unwrap().base), (768, 808, 864));
        assert_eq!((registers.idtr.unwrap().base.get(), registers.gdtr.unwrap().base.get()), (872, 880));
        assert_eq!(segments.cs.unwrap().attributes.unwrap().bits(), attributes(888).bits());
        assert_eq!((registers.sysenter_cs, registers.sysenter_eip, registers.kernel_gs_base), (Some(920), Some(936), Some(944)));
        assert_eq!((registers.lstar, registers.star, registers.cstar), (Some(960), Some(968), Some(976)));
        assert_eq!((registers.sfmask, registers.efer), (Some(984), Some(992)));
        assert_eq!(registers.pat, Some(0x0007_0406_0007_0406));
    }

    #[test]
    fn attributes_are_those_of_64_bit_code() {
        // Xen's form of a flat 64-bit code segment: granularity, long, present, code that was accessed.
        let code = attributes(0xa9b);
        assert!(code.contains(SegmentAttributes::LONG | SegmentAttributes::GRANULARITY | SegmentAttributes::PRESENT));
        assert_eq!(pack(code), 0xa9b);
    }

    #[test]
    fn a_vcpu_that_is_off_is_said_to_be() {
        assert!(matches!(SaveRecords::new(&whole(&numbered())).registers(2), Err(RegistersError::Offline { vcpu: 2 })));
        assert!(matches!(SaveRecords::new(&whole(&[0; 100])).registers(1), Err(RegistersError::Short { len: 100 })));
    }

    #[test]
    fn only_what_is_to_change_is_sent() {
        let bytes = whole(&numbered());
        let mut wanted = SaveRecords::new(&bytes).registers(1).unwrap();
        assert_eq!(SaveRecords::new(&bytes).change(1, &wanted).unwrap(), None);
        wanted.rax = 1;
        wanted.cr4 = None;
        let changed = SaveRecords::new(&bytes).change(1, &wanted).unwrap().unwrap();
        let sent: Vec<_> = records(&changed).map(Result::unwrap).collect();
        assert_eq!(sent.len(), 2);
        assert_eq!((sent[0].code, sent[0].content), (records::HEADER, &[7; 24][..]));
        let mut expected = numbered();
        expected[512..520].copy_from_slice(&1u64.to_le_bytes());
        assert_eq!((sent[1].code, sent[1].instance, sent[1].content), (records::CPU, 1, &expected[..]));
        wanted.pat = Some(0);
        assert!(matches!(SaveRecords::new(&bytes).change(1, &wanted), Err(RegistersError::Fixed { register: "PAT" })));
    }

    proptest! {
        /// What is set is what is read afterwards.
        #[test]
        fn registers_survive_both_ways(
            start in proptest::collection::vec(any::<u8>(), 1032),
            general: [u64; 16],
            rest in proptest::collection::vec(any::<u64>(), 20),
        ) {
            let bytes = whole(&start);
            let mut wanted = SaveRecords::new(&bytes).registers(1).unwrap();
            wanted.set_general(general);
            (wanted.rip, wanted.rflags, wanted.cr3, wanted.efer) = (rest[0], rest[1], Some(rest[2]), Some(rest[3]));
            wanted.segments.gs.as_mut().unwrap().base = rest[4];
            wanted.idtr.as_mut().unwrap().base = VirtAddr::new(rest[5]);
            let changed = SaveRecords::new(&bytes).change(1, &wanted).unwrap();
            if let Some(changed) = changed {
                let back = SaveRecords::new(&changed).registers(1).unwrap();
                wanted.pat = None;
                prop_assert_eq!(back, wanted);
            }
        }

        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..3000), cpu in proptest::collection::vec(any::<u8>(), 0..1100)) {
            let _ = SaveRecords::new(&bytes).registers(0);
            let _ = SaveRecords::new(&whole(&cpu)).registers(1);
            let _ = SaveRecords::new(&bytes).change(0, &Registers::default());
            let _ = SaveRecords::new(&whole(&cpu)).change(1, &Registers::default());
        }
    }
}
