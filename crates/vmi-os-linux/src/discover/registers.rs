//! The page tables that the vCPUs use.

use vmi_arch_x86::{PagingMode, X86Driver, a_vcpu_runs_on};
use vmi_core::{Paging, PhysAddr, VcpuId, Vmi};

use super::Failure;
use crate::Kernel;

/// vCPUs that are asked.
const MAX_VCPUS: u32 = 64;

/// The bit of CR3 by which the kernel tells a process's user page tables from its kernel ones under page-table isolation
/// (kernel: arch/x86/include/asm/pgtable.h, PTI_PGTABLE_SWITCH_BIT).
const PTI_USER: u64 = 1 << 12;

/// The roots in use, most probable first. Without isolation that bit is part of the address, so each root comes in both readings.
/// A vCPU that is in its firmware, is not started or cannot be read leaves the others to be asked.
pub(super) fn roots<D: X86Driver>(vmi: &Vmi<D>) -> Result<Vec<(PhysAddr, PagingMode)>, Failure> {
    let vcpus = vmi.driver().vcpus().ok_or(Failure::NotThere("this source has no vCPU registers"))?;
    let mut roots = Vec::new();
    let mut unreadable = None;
    for vcpu in 0..vcpus.vcpu_count().min(MAX_VCPUS) {
        match vcpus.registers(VcpuId(vcpu)) {
            Ok(registers) => {
                if let (Some(cr3), Some(mode)) = (registers.cr3, registers.paging_mode()) {
                    roots.extend(readings(PhysAddr::new(cr3), mode));
                }
            }
            Err(error) => unreadable = Some(Failure::Unreadable(error.to_string())),
        }
    }
    if roots.is_empty() {
        let none = Failure::NotThere("no vCPU has paging enabled, or the source does not tell its control registers");
        return Err(unreadable.unwrap_or(none));
    }
    // All kernel readings before all others.
    roots.sort_by_key(|(root, _)| (root.get() & PTI_USER, *root));
    roots.dedup();
    Ok(roots)
}

/// Whether a vCPU runs under a kernel that was found elsewhere: page tables in use map what the kernel's own map.
///
/// The RAM of a machine that was reset still holds the kernel that ran before, page tables and all; only the vCPUs tell that it is over.
///
/// # Errors
/// [`Failure::NotRunning`] if no vCPU does. A source that does not show vCPUs proves nothing.
pub(super) fn run<D: X86Driver>(vmi: &Vmi<D>, kernel: &Kernel) -> Result<(), Failure> {
    let mark = ["init_task", "_stext"].into_iter().find_map(|name| kernel.symbols.find(name)).map(|symbol| symbol.address);
    let Some(mark) = mark else { return Ok(()) };
    let place = |root, mode: PagingMode| mode.translate(vmi, root, mark).ok().map(|page| page.at);
    let expected = place(kernel.root, kernel.mode);
    let runs = a_vcpu_runs_on(vmi, |_, cr3, mode| {
        mode == kernel.mode && readings(cr3, mode).into_iter().any(|(root, mode)| place(root, mode) == expected)
    });
    // `Linux version 6.1.0-50-cloud-amd64`: no more of it.
    let release = || kernel.banner.split(' ').take(3).collect::<Vec<_>>().join(" ");
    runs.map_err(|vcpus| Failure::NotRunning { release: release(), vcpus })
}

/// What CR3 can mean: the kernel's tables, and (last) the tables exactly as they are.
pub(super) fn readings(cr3: PhysAddr, mode: PagingMode) -> Vec<(PhysAddr, PagingMode)> {
    // The low bits hold flags and the process-context identifier; a PAE root is aligned to 32 bytes only.
    let flags = if mode == PagingMode::Pae { 0x1f } else { 0xfff };
    let root = cr3.get() & !flags & if mode.pointer_size() == 4 { 0xffff_ffff } else { 0x000f_ffff_ffff_ffff };
    let mut readings = vec![(PhysAddr::new(root & !PTI_USER), mode)];
    if root & PTI_USER != 0 {
        readings.push((PhysAddr::new(root), mode));
    }
    readings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_half_comes_before_the_user_half() {
        // Page-table isolation and a process-context identifier: the kernel's tables are the even page.
        let user = PhysAddr::new(0x8000_0000_1234_5801);
        let both = [0x1234_4000, 0x1234_5000].map(|root| (PhysAddr::new(root), PagingMode::Level4));
        assert_eq!(readings(user, PagingMode::Level4), both);
        assert_eq!(readings(PhysAddr::new(0x0121_59c0), PagingMode::Pae)[1].0, PhysAddr::new(0x0121_59c0));
        assert_eq!(readings(PhysAddr::new(0x2000), PagingMode::Bits32).len(), 1);
    }
}
