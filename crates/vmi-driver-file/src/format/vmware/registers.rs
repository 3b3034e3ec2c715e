//! The group `cpu`: the first index of a tag is the vCPU.
//!
//! Recent products write the general registers as one block, `gpregs`, and the control registers as another, `CR64`; older ones write a
//! tag for each. The order in the block is that of the processor's encoding but for RBP and RSP, which have changed places (crash,
//! `vmware_vmss.h`, `vmssregs64`).

use std::collections::BTreeMap;

use vmi_arch_x86::{Registers, Segment, Table};
use vmi_core::VirtAddr;
use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use super::tags::{self, Tag};
use crate::FormatError;
use crate::source::Source;

/// VMware's products allow 768.
const MAX_VCPUS: u32 = 4096;

/// What has been found of a vCPU.
#[derive(Default)]
struct Vcpu {
    registers: Registers,
    /// Whether the instruction pointer, which every form has, was among it.
    any: bool,
}

/// The registers of each vCPU; none if those of one are missing.
pub(super) fn read(source: &Source, group: u64, narrow: bool) -> Result<Vec<Registers>, FormatError> {
    let mut vcpus = BTreeMap::<u32, Vcpu>::new();
    tags::walk(source, group, narrow, |tag| {
        // Not all tags are of a vCPU.
        let Some(number) = tag.index(0).filter(|number| *number < MAX_VCPUS) else { return Ok(()) };
        vcpus.entry(number).or_default().add(&tag, source)
    })?;
    let mut list = Vec::new();
    for (number, vcpu) in vcpus.into_iter().filter(|(_, vcpu)| vcpu.any) {
        if usize::try_from(number) != Ok(list.len()) {
            tracing::warn!(number, "the registers of a vCPU are missing");
            return Ok(Vec::new());
        }
        list.push(vcpu.registers);
    }
    Ok(list)
}

impl Vcpu {
    fn add(&mut self, tag: &Tag, source: &Source) -> Result<(), FormatError> {
        let registers = &mut self.registers;
        match (&*tag.name, tag.len(), tag.index(1)) {
            (b"gpregs", 128, None) => {
                let Some(values) = words::<16, 128>(tag, source)? else { return Ok(()) };
                let [rax, rcx, rdx, rbx, rbp, rsp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = values;
                (registers.rax, registers.rcx, registers.rdx, registers.rbx) = (rax, rcx, rdx, rbx);
                (registers.rbp, registers.rsp, registers.rsi, registers.rdi) = (rbp, rsp, rsi, rdi);
                (registers.r8, registers.r9, registers.r10, registers.r11) = (r8, r9, r10, r11);
                (registers.r12, registers.r13, registers.r14, registers.r15) = (r12, r13, r14, r15);
            }
            (b"CR64", 72, None) => {
                let Some([cr0, _, cr2, cr3, cr4, _, _, _, cr8]) = words::<9, 72>(tag, source)? else { return Ok(()) };
                (registers.cr0, registers.cr2, registers.cr3) = (Some(cr0), Some(cr2), Some(cr3));
                (registers.cr4, registers.cr8) = (Some(cr4), Some(cr8));
            }
            (b"CR64", ..=8, Some(number)) => {
                let value = Some(tag.number(source)?);
                match number {
                    0 => registers.cr0 = value,
                    2 => registers.cr2 = value,
                    3 => registers.cr3 = value,
                    4 => registers.cr4 = value,
                    8 => registers.cr8 = value,
                    _ => {}
                }
            }
            (b"IDTR", 10, None) => registers.idtr = table(tag, source)?,
            (b"GDTR", 10, None) => registers.gdtr = table(tag, source)?,
            (b"S.base64", ..=8, Some(segment)) => self.base(segment, tag.number(source)?),
            (b"S.base64", 64, None) => {
                for (segment, base) in (0..).zip(words::<8, 64>(tag, source)?.unwrap_or_default()) {
                    self.base(segment, base);
                }
            }
            (name, ..=8, None) => {
                let Some(register) = named(registers, name) else { return Ok(()) };
                *register = tag.number(source)?;
                self.any |= name == b"rip";
            }
            _ => {}
        }
        Ok(())
    }

    /// The base of a segment: es cs ss ds fs gs ldtr tr. Only those of FS and GS are kept, where 64-bit code looks at nothing but the
    /// base: the selectors are elsewhere.
    fn base(&mut self, segment: u32, base: u64) {
        let segments = &mut self.registers.segments;
        match segment {
            4 => segments.fs = Some(Segment { base, ..Segment::default() }),
            5 => segments.gs = Some(Segment { base, ..Segment::default() }),
            _ => {}
        }
    }
}

/// The register that has a tag by itself.
fn named<'r>(registers: &'r mut Registers, name: &[u8]) -> Option<&'r mut u64> {
    Some(match name {
        b"rax" => &mut registers.rax,
        b"rbx" => &mut registers.rbx,
        b"rcx" => &mut registers.rcx,
        b"rdx" => &mut registers.rdx,
        b"rsi" => &mut registers.rsi,
        b"rdi" => &mut registers.rdi,
        b"rsp" => &mut registers.rsp,
        b"rbp" => &mut registers.rbp,
        b"r8" => &mut registers.r8,
        b"r9" => &mut registers.r9,
        b"r10" => &mut registers.r10,
        b"r11" => &mut registers.r11,
        b"r12" => &mut registers.r12,
        b"r13" => &mut registers.r13,
        b"r14" => &mut registers.r14,
        b"r15" => &mut registers.r15,
        b"rip" => &mut registers.rip,
        b"eflags" | b"EFLAGS" => &mut registers.rflags,
        b"efer" => registers.efer.get_or_insert_default(),
        _ => return None,
    })
}

/// The value as words; `LEN` is eight times `N`.
fn words<const N: usize, const LEN: usize>(tag: &Tag, source: &Source) -> Result<Option<[u64; N]>, FormatError> {
    let bytes = tag.bytes::<LEN>(source)?;
    Ok(bytes.and_then(|bytes| <[U64; N]>::read_from_bytes(&bytes).ok()).map(|words| words.map(U64::get)))
}

/// A descriptor-table register as the processor stores it: limit, base.
fn table(tag: &Tag, source: &Source) -> Result<Option<Table>, FormatError> {
    let Some([low, high, base @ ..]) = tag.bytes::<10>(source)? else { return Ok(None) };
    Ok(Some(Table { base: VirtAddr::new(u64::from_le_bytes(base)), limit: u16::from_le_bytes([low, high]) }))
}
