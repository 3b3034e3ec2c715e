//! Page tables that name other frames than guest-physical ones, as those of Xen's paravirtualised domains do.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use vmi_arch_x86::{Mapping, PagingMode, X86};
use vmi_core::synthetic::SyntheticDriver;
use vmi_core::{Driver, ErrorKind, FaultKind, MachineInfo, Memory, PhysAddr, VirtAddr, Vmi};

/// Guest-physical page p is machine frame 0x7000 + p; other frames are not the guest's.
struct Paravirtual(SyntheticDriver<X86>);

impl Driver for Paravirtual {
    type Arch = X86;

    fn machine(&self) -> &MachineInfo {
        self.0.machine()
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> vmi_core::Result<()> {
        self.0.read(at, buf)
    }

    fn page_tables_name_others(&self) -> bool {
        true
    }

    fn resolve_frame(&self, named: PhysAddr) -> PhysAddr {
        PhysAddr::new(named.get().checked_sub(0x700_0000).unwrap_or(named.get() | 1 << 63))
    }
}

const AT: u64 = 0xffff_8881_2345_6000;

fn machine() -> Vmi<Paravirtual> {
    let mut memory = vec![0u8; 6 * 4096];
    let mut put = |page: usize, shift: u32, entry: u64| {
        let index = (AT >> shift) as usize % 512;
        memory[page * 4096 + index * 8..][..8].copy_from_slice(&entry.to_le_bytes());
    };
    put(1, 39, 0x700_2067);
    put(2, 30, 0x700_3067);
    put(3, 21, 0x700_4067);
    put(4, 12, 0x700_5067);
    // The next gigabyte is behind a table that is not the guest's.
    memory[2 * 4096 + ((AT >> 30) as usize % 512 + 1) * 8..][..8].copy_from_slice(&0x1_0067u64.to_le_bytes());
    memory[5 * 4096 + 0x10..][..4].copy_from_slice(b"here");
    Vmi::new(Paravirtual(SyntheticDriver::with_arch([(PhysAddr::ZERO, memory)])))
}

#[test]
fn walks_follow_them() {
    let vmi = machine();
    let space = vmi.address_space(PhysAddr::new(0x1000), PagingMode::Level4);
    assert_eq!(space.translate(VirtAddr::new(AT + 0x10)).unwrap().at, PhysAddr::new(0x5010));
    assert_eq!(space.read_vec(VirtAddr::new(AT + 0x10), 4).unwrap(), b"here");
    let error = space.translate(VirtAddr::new(AT + (1 << 30))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Fault(fault) if fault.kind == FaultKind::NoTable), "{error}");
    let walk = PagingMode::Level4.walk(&vmi, PhysAddr::new(0x1000), VirtAddr::new(AT)).unwrap();
    assert_eq!(walk.leaf().unwrap().value, 0x700_5067, "entries are told as they are");
}

#[test]
fn lists_of_mappings_follow_them() {
    let vmi = machine();
    let pages: Vec<_> = PagingMode::Level4
        .mappings(&vmi, PhysAddr::new(0x1000), ..VirtAddr::new(AT + 0x10_0000))
        .map(|mapping| match mapping.unwrap() {
            Mapping::Pages(run) => (run.at.get(), run.target.get(), run.len),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(pages, [(AT, 0x5000, 4096)]);
}
