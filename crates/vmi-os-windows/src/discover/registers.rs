//! What the vCPUs tell: the page tables that they use, and where they enter the kernel.

use std::collections::BTreeSet;

use vmi_arch_x86::{PagingMode, Registers, X86Driver, a_vcpu_runs_on};
use vmi_core::{AddressSpace, Memory, PAGE_SIZE, Paging, PhysAddr, VcpuId, VirtAddr, Vmi};

use super::Failure;
use super::lead::{Lead, is_kernel_address};
use crate::Kernel;

/// vCPUs that are asked.
const MAX_VCPUS: u32 = 64;
/// Places where a processor enters the kernel that are hints where its image lies: most handlers are its own, some are those of drivers.
const MAX_ENTRY_HINTS: usize = 8;
/// How far a processor's control region (`_KPCR` with `_KPRCB`) reaches: 0xb080 bytes in Windows 10 2004.
const CONTROL_REGION: u64 = 0x10000;
/// Page tables that one control region may name and that are tried.
const MAX_ROOTS: usize = 16;

/// Members of `_KPCR` that have never moved: its own address and the address of `DBGKD_GET_VERSION64` (zero where the kernel keeps none).
struct ControlRegion {
    own_address: u64,
    version_block: u64,
}
const CONTROL_REGION_64: ControlRegion = ControlRegion { own_address: 0x18, version_block: 0x108 };
const CONTROL_REGION_32: ControlRegion = ControlRegion { own_address: 0x1c, version_block: 0x34 };
/// Where `DBGKD_GET_VERSION64` has the base of the kernel's image (Microsoft's wdbgexts.h).
const VERSION_KERNEL_BASE: u64 = 0x10;

/// What each vCPU tells, those in kernel mode first. A vCPU that is in its firmware, is not started or cannot be read leaves the others to be asked.
pub(super) fn leads<D: X86Driver>(vmi: &Vmi<D>) -> Result<Vec<Lead>, Failure> {
    let vcpus = vmi.driver().vcpus().ok_or(Failure::NotThere("this source has no vCPU registers"))?;
    let mut leads: Vec<(bool, Lead)> = Vec::new();
    let mut unreadable = None;
    for vcpu in 0..vcpus.vcpu_count().min(MAX_VCPUS) {
        match vcpus.registers(VcpuId(vcpu)) {
            Ok(registers) => {
                if let (Some(cr3), Some(mode)) = (registers.cr3, registers.paging_mode()) {
                    let in_user_mode = registers.privilege_level() == Some(3);
                    leads.push((in_user_mode, lead(vmi, &registers, PhysAddr::new(cr3), mode)));
                }
            }
            Err(error) => unreadable = Some(Failure::Unreadable(error.to_string())),
        }
    }
    if leads.is_empty() {
        let none = Failure::NotThere("no vCPU has paging enabled, or the source does not tell its control registers");
        return Err(unreadable.unwrap_or(none));
    }
    leads.sort_by_key(|(in_user_mode, _)| *in_user_mode);
    let mut leads: Vec<Lead> = leads.into_iter().map(|(_, lead)| lead).collect();
    leads.dedup();
    Ok(leads)
}

fn lead<D: X86Driver>(vmi: &Vmi<D>, registers: &Registers, cr3: PhysAddr, mode: PagingMode) -> Lead {
    let mut lead = Lead::new(cr3, mode);
    let space = vmi.address_space(lead.root, mode);
    lead.entries = entries(&space, registers);
    lead.hints.extend(lead.entries.iter().take(MAX_ENTRY_HINTS));
    let rip = VirtAddr::new(registers.rip);
    if is_kernel_address(mode, rip) {
        lead.hints.push(rip);
    }
    if let Some(region) = control_region(&space, registers) {
        lead.bases.extend(version_base(&space, region));
    }
    lead
}

/// Where a processor enters the kernel: by SYSCALL, or SYSENTER of 32-bit systems, which not every source tells, and by interrupts.
fn entries<D: X86Driver>(space: &AddressSpace<'_, D>, registers: &Registers) -> Vec<VirtAddr> {
    let mode = space.mode();
    let call = if mode.is_long() { registers.lstar } else { registers.sysenter_eip };
    let gates = registers.idtr.into_iter().flat_map(|idtr| idtr.gates(space, mode)).flatten();
    let handlers = gates.filter(|gate| gate.present).map(|gate| gate.offset);
    call.map(VirtAddr::new).into_iter().chain(handlers).filter(|&at| is_kernel_address(mode, at)).collect()
}

/// Where the processor's control region is: GS leads there, in user mode after an exchange; in 32-bit kernels FS.
fn control_region<D: X86Driver>(space: &AddressSpace<'_, D>, registers: &Registers) -> Option<VirtAddr> {
    let mode = space.mode();
    let candidates = if mode.is_long() {
        [registers.segments.gs.map(|gs| gs.base), registers.kernel_gs_base]
    } else {
        [registers.segments.fs.map(|fs| fs.base), None]
    };
    let member = if mode.is_long() { CONTROL_REGION_64 } else { CONTROL_REGION_32 }.own_address;
    candidates
        .into_iter()
        .flatten()
        .map(VirtAddr::new)
        .find(|&at| is_kernel_address(mode, at) && space.read_pointer(at.wrapping_add(member)).is_ok_and(|own| own == at))
}

/// The base of the kernel's image that a control region leads to.
fn version_base<D: X86Driver>(space: &AddressSpace<'_, D>, region: VirtAddr) -> Option<VirtAddr> {
    let member = if space.mode().is_long() { CONTROL_REGION_64 } else { CONTROL_REGION_32 }.version_block;
    let block = space.read_pointer(region.checked_add(member)?).ok().filter(|&at| is_kernel_address(space.mode(), at))?;
    let base: u64 = space.read(block.checked_add(VERSION_KERNEL_BASE)?).ok()?;
    let base = VirtAddr::new(if space.mode().is_long() { base } else { base & 0xffff_ffff });
    (is_kernel_address(space.mode(), base) && base.is_aligned(PAGE_SIZE)).then_some(base)
}

/// The kernel's page tables for a vCPU whose CR3 is that of user mode under a KVA shadow. The control region is mapped there, and holds the
/// kernel's CR3 (`_KPRCB.KernelDirectoryTableBase`, whose place differs between builds): any number in it that is the root of tables which map the
/// control region and the entries where the user's tables do.
pub(super) fn kernel_tables<D: X86Driver>(vmi: &Vmi<D>, user: &Lead) -> Vec<Lead> {
    let Some(vcpus) = vmi.driver().vcpus() else { return Vec::new() };
    let space = vmi.address_space(user.root, user.mode);
    let place = |entry: &VirtAddr| space.translate(*entry).ok().map(|page| (*entry, page.at));
    let entries: Vec<_> = user.entries.iter().filter_map(place).collect();
    if entries.is_empty() {
        return Vec::new();
    }
    let width = user.mode.pointer_size();
    let mut seen = BTreeSet::from([user.root]);
    let mut leads = Vec::new();
    for vcpu in 0..vcpus.vcpu_count().min(MAX_VCPUS) {
        let Ok(registers) = vcpus.registers(VcpuId(vcpu)) else { continue };
        let Some(region) = control_region(&space, &registers) else { continue };
        let Ok(region_at) = space.translate(region).map(|page| page.at) else { continue };
        let mut bytes = vec![0; CONTROL_REGION as usize];
        if space.read_lossy(region, &mut bytes).is_err() {
            continue;
        }
        for word in bytes.chunks_exact(width) {
            let value = word.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
            // Below the address stands the process-context identifier; Windows uses the first few.
            let root = user.mode.top_table(PhysAddr::new(value));
            if root.is_null() || value & 0xff0 != 0 || vmi.machine().memory.region_at(root).is_none() || !seen.insert(root) {
                continue;
            }
            let maps = |at, to| user.mode.translate(vmi, root, at).is_ok_and(|page| page.at == to);
            if entries.iter().all(|&(entry, at)| maps(entry, at)) && maps(region, region_at) {
                leads.push(Lead { root, ..user.clone() });
                if leads.len() >= MAX_ROOTS {
                    return leads;
                }
            }
        }
    }
    leads
}

/// Whether a vCPU runs under a kernel that was found elsewhere: page tables in use map what the kernel's own map.
///
/// The RAM of a machine that was reset still holds the kernel that ran before, page tables and all; only the vCPUs tell that it is over.
///
/// # Errors
/// [`Failure::NotRunning`] if no vCPU does. A source that does not show vCPUs proves nothing.
pub(super) fn run<D: X86Driver>(vmi: &Vmi<D>, kernel: &Kernel) -> Result<(), Failure> {
    let place = |root, at| kernel.mode.translate(vmi, root, at).ok().map(|page| page.at);
    let expected = place(kernel.root, kernel.base);
    let runs = a_vcpu_runs_on(vmi, |registers, cr3, mode| {
        let root = mode.top_table(cr3);
        // The tables of user mode under a KVA shadow map only where the kernel is entered.
        let inside = |at: &VirtAddr| at.offset_from(kernel.base).is_some_and(|offset| offset < kernel.size);
        let entered = || {
            let entries = entries(&vmi.address_space(root, mode), registers).into_iter().filter(inside);
            entries.into_iter().any(|at| place(root, at).is_some_and(|here| Some(here) == place(kernel.root, at)))
        };
        mode == kernel.mode && (place(root, kernel.base) == expected || entered())
    });
    runs.map_err(|vcpus| Failure::NotRunning { base: kernel.base, vcpus })
}
