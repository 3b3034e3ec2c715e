//! Page tables and descriptor tables of a guest.

use vmi_arch_x86::{Mapping, PagingMode, Table, X86};
use vmi_core::synthetic::SyntheticDriver;
use vmi_core::{Memory, PhysAddr, VirtAddr, Vmi};

use super::head;

/// A machine out of bytes: 1 byte mode, 8 bytes root, 8 bytes address, then physical memory.
fn machine(data: &[u8]) -> Option<(PagingMode, PhysAddr, VirtAddr, Vmi<SyntheticDriver<X86>>)> {
    let ([mode], rest) = head::<1>(data)?;
    let (root, rest) = head::<8>(rest)?;
    let (at, memory) = head::<8>(rest)?;
    let mode = match mode % 4 {
        0 => PagingMode::Bits32,
        1 => PagingMode::Pae,
        2 => PagingMode::Level4,
        _ => PagingMode::Level5,
    };
    let vmi = Vmi::new(SyntheticDriver::with_arch([(PhysAddr::ZERO, memory.to_vec())]));
    Some((mode, PhysAddr::new(u64::from_le_bytes(root)), VirtAddr::new(u64::from_le_bytes(at)), vmi))
}

/// The walk with every entry must agree with the bare translation.
pub fn walk(data: &[u8]) -> bool {
    let Some((mode, root, at, vmi)) = machine(data) else { return false };
    let space = vmi.address_space(root, mode);
    let translated = space.translate(at);
    let walk = mode.walk(&vmi, root, at).expect("a synthetic machine never fails otherwise");
    assert_eq!(translated.as_ref().ok(), walk.translation().as_ref().ok());
    assert!(walk.entries().count() <= 5);
    let _ = space.read_vec(at, 100);
    let _ = space.read_c_string(at, 10_000);
    let _ = space.slice(at, 100_000);
    translated.is_ok()
}

/// Ascending, bounded, and each run agrees with the walk at both ends.
pub fn mappings(data: &[u8]) -> bool {
    let Some((mode, root, at, vmi)) = machine(data) else { return false };
    let mut last = None;
    for mapping in mode.mappings(&vmi, root, at..).limit(200).take(200_000) {
        if let Ok(Mapping::Pages(run)) = mapping {
            assert!(last.is_none_or(|last| last < run.at));
            last = Some(run.last());
            let space = vmi.address_space(root, mode);
            assert_eq!(space.translate(run.at).expect("mapped").at, run.target);
            assert!(space.translate(run.last()).is_ok());
        }
    }
    last.is_some()
}

/// 2 bytes limit; the table lies at the address of the machine, and is taken for a GDT and for an IDT.
pub fn descriptors(data: &[u8]) -> bool {
    let Some((limit, rest)) = head::<2>(data) else { return false };
    let Some((mode, root, at, vmi)) = machine(rest) else { return false };
    let space = vmi.address_space(root, mode);
    let table = Table { base: at, limit: u16::from_le_bytes(limit) };
    assert!(table.descriptors(&space, mode).count() <= 8193);
    assert!(table.gates(&space, mode).count() <= 8193);
    table.descriptors(&space, mode).all(|descriptor| descriptor.is_ok()) || table.gates(&space, mode).all(|gate| gate.is_ok())
}
