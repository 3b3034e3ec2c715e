//! Whether a machine's vCPUs run on certain page tables.

use vmi_core::{PhysAddr, VcpuId, Vmi};

use crate::{PagingMode, Registers, X86Driver};

/// vCPUs that are asked.
const MAX_VCPUS: u32 = 64;

/// How often they are asked before it is said that none of them fits.
const LOOKS: usize = 4;

/// CR0.PG (Intel SDM, volume 3, section 2.5).
const PAGING: u64 = 1 << 31;

/// Whether a vCPU runs on page tables of which `fits` says so, by its registers, CR3 and the mode of paging. A running guest may change them between being asked for and
/// being read, so a no is asked for again.
///
/// # Errors
/// What the vCPUs do instead, one sentence each. Success if the source tells too little of them to say.
pub fn a_vcpu_runs_on<D: X86Driver>(
    vmi: &Vmi<D>,
    mut fits: impl FnMut(&Registers, PhysAddr, PagingMode) -> bool,
) -> Result<(), Vec<String>> {
    let Some(vcpus) = vmi.driver().vcpus() else { return Ok(()) };
    let mut seen = Vec::new();
    for _ in 0..LOOKS {
        let mut found = Vec::new();
        for vcpu in 0..vcpus.vcpu_count().min(MAX_VCPUS) {
            let Ok(registers) = vcpus.registers(VcpuId(vcpu)) else { return Ok(()) };
            match (registers.cr0, registers.cr3, registers.paging_mode()) {
                (Some(_), Some(cr3), Some(mode)) => {
                    if fits(&registers, PhysAddr::new(cr3), mode) {
                        return Ok(());
                    }
                    found.push(format!("vCPU {vcpu} uses the page tables at {cr3:#x} ({mode:?})"));
                }
                (Some(cr0), ..) if cr0 & PAGING == 0 => found.push(format!("vCPU {vcpu} has paging off")),
                _ => return Ok(()),
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        seen = found;
    }
    Err(seen)
}
