//! vCPU registers as QEMU's human monitor prints them: `info registers -a`.
//!
//! QEMU: `x86_cpu_dump_state` in target/i386/cpu-dump.c. The form was the same in QEMU 7.2 and 10.0: names and values in hexadecimal with `=` between them, 64-bit
//! names and widths while the vCPU runs 64-bit code, 32-bit ones elsewhere. It tells no MSR but EFER, so the SYSCALL entry points stay `None`;
//! nor CR8, nor what SWAPGS exchanges.

use vmi_arch_x86::{Registers, Segment, SegmentAttributes, Table};
use vmi_core::VirtAddr;

/// More vCPUs than QEMU has on x86 (4096 on the largest machine types).
const MAX_VCPUS: usize = 4096;

/// Why the text is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistersError {
    /// A register that every version prints is missing.
    #[error("`info registers -a` does not tell {register} of vCPU {vcpu}")]
    Missing {
        /// Its name in QEMU's text.
        register: &'static str,
        /// The vCPU's number.
        vcpu: usize,
    },
    /// The vCPUs are not numbered from 0.
    #[error("`info registers -a` shows `{header}` where vCPU {expected} was expected")]
    Numbering {
        /// The line.
        header: String,
        /// The number that was expected.
        expected: usize,
    },
    /// There is no vCPU.
    #[error("`info registers -a` shows no vCPU")]
    None,
}

/// The registers of all vCPUs, in order, out of the text of `info registers -a`.
///
/// # Errors
/// [`RegistersError`] says what is missing.
pub fn parse(text: &str) -> Result<Vec<Registers>, RegistersError> {
    let mut vcpus = Vec::new();
    let mut sections = text.split("CPU#");
    sections.next();
    for section in sections {
        let vcpu = vcpus.len();
        let (header, body) = section.split_once('\n').unwrap_or((section, ""));
        if header.trim() != vcpu.to_string() || vcpu >= MAX_VCPUS {
            return Err(RegistersError::Numbering { header: crate::qmp::beginning(header), expected: vcpu });
        }
        vcpus.push(parse_vcpu(body).map_err(|register| RegistersError::Missing { register, vcpu })?);
    }
    if vcpus.is_empty() { Err(RegistersError::None) } else { Ok(vcpus) }
}

fn parse_vcpu(body: &str) -> Result<Registers, &'static str> {
    let find = |name: &str| body.split_ascii_whitespace().find_map(|word| hex(word.strip_prefix(name)?.strip_prefix('=')?));
    let general = |wide: &'static str, narrow: &str| find(wide).or_else(|| find(narrow)).ok_or(wide);
    let line = |name: &str| body.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='));
    let segment = |name: &str| parse_segment(line(name)?);
    let table = |name: &str| parse_table(line(name)?);

    let mut registers = Registers::default();
    registers.rax = general("RAX", "EAX")?;
    registers.rbx = general("RBX", "EBX")?;
    registers.rcx = general("RCX", "ECX")?;
    registers.rdx = general("RDX", "EDX")?;
    registers.rsi = general("RSI", "ESI")?;
    registers.rdi = general("RDI", "EDI")?;
    registers.rbp = general("RBP", "EBP")?;
    registers.rsp = general("RSP", "ESP")?;
    registers.rip = general("RIP", "EIP")?;
    registers.rflags = general("RFL", "EFL")?;
    // QEMU pads one-digit names with a space: `R8 =`.
    let spaced = |name: &str| {
        let mut rest = body;
        loop {
            let (_, behind) = rest.split_once(name)?;
            if let Some(value) = behind.trim_start_matches(' ').strip_prefix('=') {
                return hex(value.split_ascii_whitespace().next()?);
            }
            rest = behind;
        }
    };
    // While no 64-bit code runs the upper eight are not told; they keep their value in the processor, but nothing uses them.
    for (name, register) in [
        ("R8", &mut registers.r8),
        ("R9", &mut registers.r9),
        ("R10", &mut registers.r10),
        ("R11", &mut registers.r11),
        ("R12", &mut registers.r12),
        ("R13", &mut registers.r13),
        ("R14", &mut registers.r14),
        ("R15", &mut registers.r15),
    ] {
        *register = spaced(name).unwrap_or(0);
    }
    let s = &mut registers.segments;
    for (name, slot) in [
        ("CS", &mut s.cs),
        ("SS", &mut s.ss),
        ("DS", &mut s.ds),
        ("ES", &mut s.es),
        ("FS", &mut s.fs),
        ("GS", &mut s.gs),
        ("LDT", &mut s.ldt),
        ("TR", &mut s.tr),
    ] {
        *slot = segment(name);
    }
    registers.gdtr = table("GDT");
    registers.idtr = table("IDT");
    registers.cr0 = Some(find("CR0").ok_or("CR0")?);
    registers.cr2 = find("CR2");
    registers.cr3 = Some(find("CR3").ok_or("CR3")?);
    registers.cr4 = Some(find("CR4").ok_or("CR4")?);
    registers.efer = find("EFER");
    if let (Some(d0), Some(d1), Some(d2), Some(d3), Some(d6), Some(d7)) =
        (find("DR0"), find("DR1"), find("DR2"), find("DR3"), find("DR6"), find("DR7"))
    {
        registers.dr = Some([d0, d1, d2, d3, 0, 0, d6, d7]);
    }
    Ok(registers)
}

/// `0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]`
fn parse_segment(text: &str) -> Option<Segment> {
    let mut words = text.split_ascii_whitespace().map(hex);
    let selector = u16::try_from(words.next()??).ok()?;
    let base = words.next()??;
    let limit = u32::try_from(words.next()??).ok()?;
    let flags = u32::try_from(words.next()??).ok()?;
    Some(Segment { selector, base, limit, attributes: Some(SegmentAttributes::from_descriptor(flags)) })
}

/// `fffffe0000001000 0000007f`
fn parse_table(text: &str) -> Option<Table> {
    let mut words = text.split_ascii_whitespace().map(hex);
    let base = VirtAddr::new(words.next()??);
    Some(Table { base, limit: u16::try_from(words.next()??).ok()? })
}

fn hex(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmi_arch_x86::{CodeMode, PagingMode};

    /// What QEMU 7.2 printed of a Linux guest's vCPU in 64-bit code and of one in the firmware's 32-bit code, without the floating-point part.
    const TWO: &str = "\r\nCPU#0\r
RAX=ffffffff8e2a4d80 RBX=0000000000000001 RCX=ffff8b2f87c00000 RDX=0000000000006a4c\r
RSI=ffffffff8ea26f40 RDI=ffffffff8ea330a3 RBP=ffffffff8f016118 RSP=ffffffff8f003e98\r
R8 =000000000000000a R9 =000000000000000b R10=0000000000000001 R11=0000000000000000\r
R12=0000000000000000 R13=0000000000000000 R14=0000000000000000 R15=0000000000000009\r
RIP=ffffffff8e2a4d8b RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r
ES =0000 0000000000000000 ffffffff 00c00000\r
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\r
SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]\r
DS =0000 0000000000000000 ffffffff 00c00000\r
FS =0000 0000000000000000 ffffffff 00c00000\r
GS =0000 ffff8b2f87c00000 ffffffff 00c00000\r
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT\r
TR =0040 fffffe0000003000 00004087 00008b00 DPL=0 TSS64-busy\r
GDT=     fffffe0000001000 0000007f\r
IDT=     fffffe0000000000 00000fff\r
CR0=80050033 CR2=00007ffd7a8f6ff8 CR3=00000000027b4000 CR4=000006f0\r
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000 \r
DR6=00000000ffff0ff0 DR7=0000000000000400\r
CCS=0000000000000000 CCD=ffffffff8f003eb8 CCO=EFLAGS\r
EFER=0000000000000d01\r
\r
CPU#1\r
EAX=000f49f6 EBX=00000000 ECX=000002ff EDX=00000001\r
ESI=00000000 EDI=00000000 EBP=00000000 ESP=00006c5c\r
EIP=000fd09a EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1\r
ES =0010 00000000 ffffffff 00cf9300 DPL=0 DS   [-WA]\r
CS =0008 00000000 ffffffff 00cf9b00 DPL=0 CS32 [-RA]\r
SS =0010 00000000 ffffffff 00cf9300 DPL=0 DS   [-WA]\r
GDT=     000f6180 00000037\r
IDT=     000f61be 00000000\r
CR0=00000011 CR2=00000000 CR3=00000000 CR4=00000000\r
";

    #[test]
    fn both_widths_are_read() {
        let [long, short] = parse(TWO).unwrap().try_into().unwrap();
        assert_eq!((long.rax, long.r8, long.r9, long.r15), (0xffff_ffff_8e2a_4d80, 10, 11, 9));
        assert_eq!((long.rip, long.rflags), (0xffff_ffff_8e2a_4d8b, 0x246));
        assert_eq!(long.segments.gs.unwrap().base, 0xffff_8b2f_87c0_0000);
        assert_eq!(long.segments.tr.unwrap().limit, 0x4087);
        assert_eq!(long.idtr.unwrap(), Table { base: VirtAddr::new(0xffff_fe00_0000_0000), limit: 0xfff });
        assert_eq!((long.cr3, long.efer, long.lstar), (Some(0x27b_4000), Some(0xd01), None));
        assert_eq!((long.code_mode(), long.paging_mode()), (Some(CodeMode::Long), Some(PagingMode::Level4)));
        assert_eq!(long.dr.unwrap()[6], 0xffff_0ff0);
        assert_eq!((short.rip, short.rsp, short.efer), (0xfd09a, 0x6c5c, None));
        assert_eq!((short.segments.cs.unwrap().selector, short.segments.tr), (8, None));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(parse("").unwrap_err(), RegistersError::None);
        assert!(matches!(parse(&TWO.replace("CPU#1", "CPU#2")).unwrap_err(), RegistersError::Numbering { expected: 1, .. }));
        let missing = parse(&TWO.replace("CR3=00000000\r", "\r").replace("CR3=00000000 ", " ")).unwrap_err();
        assert_eq!(missing, RegistersError::Missing { register: "CR3", vcpu: 1 });
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(cut in 0..TWO.len(), noise in "[ -~\r\n]{0,40}") {
            let _ = parse(&format!("{}{noise}{}", &TWO[..cut], &TWO[cut..]));
            let _ = parse(&noise);
        }

        #[test]
        fn general_registers_come_back(values in proptest::array::uniform16(any::<u64>())) {
            let names = ["RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP", "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15"];
            let mut text = "CPU#0\n".to_owned();
            for (name, value) in names.iter().zip(values) {
                text += &format!("{name}={value:016x} ");
            }
            text += "\nRIP=0000000000000001 RFL=00000002\nCR0=80000011 CR3=1000 CR4=20\n";
            let r = &parse(&text).unwrap()[0];
            let read = [r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15];
            prop_assert_eq!(read, values);
        }
    }
}
