//! The targets.

use vmi_arch_x86::{PagingMode, X86};
use vmi_core::synthetic::SyntheticDriver;
use vmi_core::{Memory, PhysAddr, VirtAddr, Vmi};

use crate::Target;

/// All targets.
pub const TARGETS: &[Target] = &[Target { name: "page_walk", about: "page walks of every mode over hostile tables", run: page_walk }];

/// Splits off a fixed head.
fn head<const N: usize>(data: &[u8]) -> Option<([u8; N], &[u8])> {
    data.split_first_chunk::<N>().map(|(head, rest)| (*head, rest))
}

/// 1 byte mode, 8 bytes root, 8 bytes address, then physical memory.
fn page_walk(data: &[u8]) {
    let Some(([mode], rest)) = head::<1>(data) else { return };
    let Some((root, rest)) = head::<8>(rest) else { return };
    let Some((at, memory)) = head::<8>(rest) else { return };
    let mode = [PagingMode::Bits32, PagingMode::Pae, PagingMode::Level4, PagingMode::Level5][usize::from(mode % 4)];
    let vmi = Vmi::new(SyntheticDriver::<X86>::with_arch([(PhysAddr::ZERO, memory.to_vec())]));
    let space = vmi.address_space(PhysAddr::new(u64::from_le_bytes(root)), mode);
    let at = VirtAddr::new(u64::from_le_bytes(at));
    let _ = space.translate(at);
    let _ = space.read_vec(at, 100);
    let _ = space.read_c_string(at, 10_000);
}
