//! Descriptor tables written by hand, after the figures of the Intel SDM, volume 3.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod support;

use support::{ALL, Pages};
use vmi_arch_x86::PagingMode::{Level4, Pae};
use vmi_arch_x86::{Descriptor, Gate, GateKind, PagingMode, Segment, SegmentAttributes, SegmentKind, Table};
use vmi_core::{ErrorKind, PhysAddr, VirtAddr};

/// 8 KiB at virtual address 0x10000, filled with `words`; what lies behind is not mapped.
fn machine(mode: PagingMode, words: &[u64]) -> Pages {
    let pages = match mode {
        Pae => Pages::new().put64(0x1000, 0x3001),
        _ => Pages::new().put64(0x1000, 0x2000 | ALL).put64(0x2000, 0x3000 | ALL),
    };
    let pages = pages.put64(0x3000, 0x4000 | ALL).put64(0x4080, 0x5000 | ALL).put64(0x4088, 0x6000 | ALL).put64(0x6000, 0);
    words.iter().enumerate().fold(pages, |pages, (i, word)| pages.put64(0x5000 + i as u64 * 8, *word))
}

const BASE: VirtAddr = VirtAddr::new(0x10000);

fn descriptors(mode: PagingMode, limit: u16, words: &[u64]) -> Vec<Result<Descriptor, vmi_core::Error>> {
    let vmi = machine(mode, words).vmi();
    let space = vmi.address_space(PhysAddr::new(0x1000), mode);
    Table { base: BASE, limit }.descriptors(&space, mode).collect()
}

fn gates(mode: PagingMode, limit: u16, words: &[u64]) -> Vec<Result<Gate, vmi_core::Error>> {
    let vmi = machine(mode, words).vmi();
    let space = vmi.address_space(PhysAddr::new(0x1000), mode);
    Table { base: BASE, limit }.gates(&space, mode).collect()
}

/// Null, 32-bit code, data, TSS with base 0x89abcdef, call gate to 0x0010:0x12345678, task gate.
const GDT32: [u64; 7] =
    [0, 0x00cf_9a00_0000_ffff, 0x00cf_f300_0000_ffff, 0x8900_8bab_cdef_206b, 0x1234_ec00_0010_5678, 0, 0x0000_8500_0028_0000];

#[test]
fn legacy_gdt() {
    let found = descriptors(Pae, 0x37, &GDT32);
    let found: Vec<Descriptor> = found.into_iter().map(Result::unwrap).collect();
    let segment = |selector, base, limit, attributes| {
        Descriptor::Segment(Segment { selector, base, limit, attributes: Some(SegmentAttributes::from_descriptor(attributes)) })
    };
    let gate = Gate {
        index: 4,
        kind: GateKind::Call,
        bits: 32,
        selector: 0x10,
        offset: VirtAddr::new(0x1234_5678),
        privilege_level: 3,
        present: true,
        stack: 0,
    };
    assert_eq!(
        found,
        [
            segment(0x08, 0, 0xffff_ffff, 0x00cf_9a00),
            segment(0x10, 0, 0xffff_ffff, 0x00cf_f300),
            segment(0x18, 0x89ab_cdef, 0x206b, 0x8900_8bab),
            Descriptor::Gate(gate),
            Descriptor::Gate(Gate {
                index: 6,
                kind: GateKind::Task,
                bits: 0,
                selector: 0x28,
                offset: VirtAddr::ZERO,
                privilege_level: 0,
                ..gate
            }),
        ]
    );
}

#[test]
fn attributes_of_segments() {
    let code = SegmentAttributes::from_descriptor(0x00af_fb00);
    assert_eq!((code.kind(), code.privilege_level()), (SegmentKind::Code, 3));
    assert!(code.contains(SegmentAttributes::LONG | SegmentAttributes::PRESENT) && !code.contains(SegmentAttributes::DEFAULT_32));
    assert_eq!(SegmentAttributes::from_access_rights(0x0001_a0fb), code);
    assert_eq!(SegmentAttributes::from_descriptor(0x00cf_9300).kind(), SegmentKind::Data);
    for (kind, number) in [
        (SegmentKind::TaskState16, 1),
        (SegmentKind::LocalDescriptorTable, 2),
        (SegmentKind::TaskState, 9),
        (SegmentKind::TaskState, 11),
        (SegmentKind::Other(14), 14),
    ] {
        assert_eq!(SegmentAttributes::from_access_rights(0x80 | number).kind(), kind);
    }
}

/// In long mode a task state descriptor has 16 bytes; the second half is no entry of its own.
#[test]
fn long_gdt() {
    let words = [0, 0x00af_9b00_0000_ffff, 0xfe00_8b00_3000_4087, 0x0000_0000_ffff_ffff, 0x00cf_f300_0000_ffff];
    let found: Vec<_> = descriptors(Level4, 0x27, &words).into_iter().map(Result::unwrap).collect();
    let [Descriptor::Segment(code), Descriptor::Segment(task), Descriptor::Segment(data)] = found[..] else {
        panic!("{found:?}")
    };
    assert_eq!((code.selector, code.attributes.unwrap().kind()), (0x08, SegmentKind::Code));
    assert_eq!((task.selector, task.base, task.limit), (0x10, 0xffff_ffff_fe00_3000, 0x4087));
    assert_eq!(data.selector, 0x20);
}

#[test]
fn a_descriptor_that_the_limit_cuts_off() {
    let words = [0, 0xfe00_8b00_3000_4087, 0xffff_ffff];
    let found = descriptors(Level4, 0x0f, &words);
    assert!(matches!(&found[..], [Err(error)] if matches!(error.kind(), ErrorKind::Corrupt { .. })));
    // The limit is the last valid offset. An entry that it cuts off in the middle does not exist.
    assert_eq!(descriptors(Level4, 0x16, &words).len(), 1);
    assert_eq!(descriptors(Level4, 0, &words).len(), 0);
    assert_eq!(gates(Level4, 0, &words).len(), 0);
}

#[test]
fn idt_of_long_mode() {
    let page_fault = [0xa1e0_8e00_0010_0be0, 0x0000_0000_ffff_ffff];
    let double_fault = [0xa1e0_8e01_0010_0c00, 0x0000_0000_ffff_ffff];
    let mut words = [0; 64];
    words[28..30].copy_from_slice(&page_fault);
    words[16..18].copy_from_slice(&double_fault);
    words[6..8].copy_from_slice(&[0xa1e0_ef00_0010_0d00, 0xffff_ffff]);
    let found: Vec<Gate> = gates(Level4, 0xfff, &words).into_iter().map(Result::unwrap).collect();
    let facts: Vec<_> = found.iter().map(|g| (g.index, g.kind, g.bits, g.offset.get(), g.privilege_level, g.stack)).collect();
    assert_eq!(
        facts,
        [
            (3, GateKind::Trap, 64, 0xffff_ffff_a1e0_0d00, 3, 0),
            (8, GateKind::Interrupt, 64, 0xffff_ffff_a1e0_0c00, 0, 1),
            (14, GateKind::Interrupt, 64, 0xffff_ffff_a1e0_0be0, 0, 0),
        ]
    );
}

#[test]
fn idt_of_32_bits() {
    let words =
        [0xc010_8e00_0060_1234, 0xc010_ef00_0060_5678, 0x0000_8500_00f8_0000, 0x0001_8600_0060_9abc, 0x0000_8200_0000_0001];
    let found = gates(Pae, 0x7ff, &words);
    let facts: Vec<_> = found
        .iter()
        .map(|gate| {
            gate.as_ref().map(|g| (g.index, g.kind, g.bits, g.selector, g.offset.get())).map_err(|error| error.to_string())
        })
        .collect();
    assert_eq!(facts[0], Ok((0, GateKind::Interrupt, 32, 0x60, 0xc010_1234)));
    assert_eq!(facts[1], Ok((1, GateKind::Trap, 32, 0x60, 0xc010_5678)));
    assert_eq!(facts[2], Ok((2, GateKind::Task, 0, 0xf8, 0)));
    assert_eq!(facts[3], Ok((3, GateKind::Interrupt, 16, 0x60, 0x9abc)));
    assert!(facts[4].as_ref().unwrap_err().contains("vector 4"), "{facts:?}");
    assert_eq!(facts.len(), 5);
}

/// The largest limits over a table that ends in a hole: as many items as entries, no more.
#[test]
fn tables_that_are_not_mapped() {
    let found = descriptors(Level4, u16::MAX, &[0xffff_ffff_ffff_ffff; 512]);
    let good = found.iter().filter(|item| item.is_ok()).count();
    // One page is filled, one is empty, the rest of 64 KiB is not mapped.
    assert_eq!((good, found.len() - good), (512, 8192 - 1024));
    assert!(found.iter().filter_map(|item| item.as_ref().err()).all(|error| error.is_absent()));
    assert_eq!(gates(Level4, u16::MAX, &[0]).len(), 0);
    let vmi = Pages::new().put64(0x1000, 0).vmi();
    let space = vmi.address_space(PhysAddr::new(0x1000), Level4);
    let last = Table { base: VirtAddr::new(u64::MAX), limit: u16::MAX };
    assert_eq!(last.gates(&space, Level4).filter(Result::is_err).count(), 256);
}
