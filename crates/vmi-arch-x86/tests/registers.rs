//! What follows from a register file.
#![allow(clippy::unwrap_used)]

use vmi_arch_x86::{CodeMode, PagingMode, Registers, Segment, SegmentAttributes, Table};
use vmi_core::{PhysAddr, VirtAddr};

const PE: u64 = 1;
const PG: u64 = 1 << 31;
const PAE: u64 = 1 << 5;
const LMA: u64 = 1 << 10;

fn registers(cr0: u64, cr4: u64, efer: Option<u64>, cs: (u16, u32)) -> Registers {
    let mut registers = Registers::default();
    (registers.cr0, registers.cr4, registers.efer) = (Some(cr0), Some(cr4), efer);
    let attributes = Some(SegmentAttributes::from_descriptor(cs.1));
    registers.segments.cs = Some(Segment { selector: cs.0, base: 0, limit: u32::MAX, attributes });
    registers
}

const CODE64: (u16, u32) = (0x33, 0x00af_fb00);
const CODE32: (u16, u32) = (0x23, 0x00cf_fb00);
const CODE16: (u16, u32) = (0x10, 0x0000_9b00);

#[test]
fn nothing_is_known_of_nothing() {
    let unknown = Registers::default();
    assert_eq!((unknown.paging_mode(), unknown.page_table_root(), unknown.long_mode()), (None, None, None));
    assert_eq!((unknown.code_mode(), unknown.privilege_level()), (None, None));
}

#[test]
fn code_modes() {
    let mode = |registers: Registers| (registers.code_mode(), registers.privilege_level());
    assert_eq!(mode(registers(0, 0, Some(0), (0xf003, 0x9b00))), (Some(CodeMode::Real), Some(0)));
    assert_eq!(mode(registers(PE, 0, Some(0), CODE16)), (Some(CodeMode::Protected16), Some(0)));
    assert_eq!(mode(registers(PE | PG, 0, Some(0), CODE32)), (Some(CodeMode::Protected32), Some(3)));
    assert_eq!(mode(registers(PE | PG, PAE, Some(LMA), CODE64)), (Some(CodeMode::Long), Some(3)));
    assert_eq!(mode(registers(PE | PG, PAE, Some(LMA), CODE32)), (Some(CodeMode::Compatibility32), Some(3)));
    assert_eq!(mode(registers(PE | PG, PAE, Some(LMA), CODE16)), (Some(CodeMode::Compatibility16), Some(0)));
    let mut virtual_8086 = registers(PE | PG, 0, Some(0), (0xf000, 0xf300));
    virtual_8086.rflags = 1 << 17;
    assert_eq!(mode(virtual_8086), (Some(CodeMode::Virtual8086), Some(3)));
}

#[test]
fn paging_mode_without_efer() {
    // CS alone tells long mode.
    assert_eq!(registers(PE | PG, PAE, None, CODE64).paging_mode(), Some(PagingMode::Level4));
    assert_eq!(registers(PE | PG, PAE | 1 << 12, None, CODE64).paging_mode(), Some(PagingMode::Level5));
    // No PAE, no long mode; no paging, no mode.
    assert_eq!(registers(PE | PG, 0, None, CODE32).paging_mode(), Some(PagingMode::Bits32));
    assert_eq!(registers(PE, PAE, Some(0), CODE32).paging_mode(), None);
    // 32-bit code with PAE may run on a 64-bit kernel: the descriptor table tells.
    let mut compatibility = registers(PE | PG, PAE, None, CODE32);
    assert_eq!(compatibility.paging_mode(), None);
    compatibility.gdtr = Some(Table { base: VirtAddr::new(0xffff_fe00_0000_1000), limit: 0x7f });
    assert_eq!(compatibility.paging_mode(), Some(PagingMode::Level4));
    compatibility.gdtr = Some(Table { base: VirtAddr::new(0xff40_1000), limit: 0xff });
    assert_eq!(compatibility.paging_mode(), Some(PagingMode::Pae));
    compatibility.cr4 = Some(PAE | 1 << 17);
    assert_eq!(compatibility.paging_mode(), Some(PagingMode::Level4));
}

#[test]
fn text_form() {
    let mut registers = registers(PE | PG, PAE, None, CODE64);
    (registers.rax, registers.cr3) = (0x1234, Some(0x8005));
    registers.gdtr = Some(Table { base: VirtAddr::new(0xffff_fe00_0000_1000), limit: 0x7f });
    let text = registers.to_string();
    assert!(text.starts_with("rax       0000000000001234  rbx       0000000000000000"), "{text}");
    assert!(text.contains("\ncs        0033 base 0000000000000000 limit ffffffff Code dpl 3\n"), "{text}");
    assert!(text.contains("\nss        -\n"), "{text}");
    assert!(text.contains("\ngdtr      base fffffe0000001000 limit 007f\n"), "{text}");
    assert!(text.contains("efer      -                 "), "{text}");
    assert!(text.lines().all(|line| line == line.trim_end()), "{text}");
    assert_eq!(registers.page_table_root(), Some(PhysAddr::new(0x8005)));
}
