//! Where linear addresses lie in guest-physical memory.

use vmi_arch_x86::{Registers, X86};
use vmi_core::{ErrorKind, Memory, Paging, PhysAddr, Result, VcpuId, VirtAddr, WriteMemory};

/// Bit 12 of CR3 tells the two tables of a process under Linux's page-table isolation apart; the kernel is in the one where it is clear
/// (kernel: arch/x86/include/asm/processor-flags.h, `PTI_USER_PGTABLE_BIT`).
const ISOLATED: u64 = 1 << 12;

/// A driver's memory.
struct Physical<'d>(&'d dyn WriteMemory<Arch = X86>);

impl Memory for Physical<'_> {
    type Addr = PhysAddr;

    fn read_into(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        self.0.read(at, buf)
    }
}

/// Where an address lies, by the page tables that a vCPU runs on.
pub(super) fn translate(driver: &dyn WriteMemory<Arch = X86>, registers: &Registers, at: VirtAddr) -> Option<PhysAddr> {
    let mode = registers.paging_mode()?;
    mode.translate(&Physical(driver), registers.page_table_root()?, at).ok().map(|found| found.at)
}

/// Where an address lies: by each of the roots, or, without any, by the page tables that the vCPUs run on.
pub(super) fn bytes_of(driver: &dyn WriteMemory<Arch = X86>, at: VirtAddr, roots: &[PhysAddr]) -> Result<Vec<PhysAddr>> {
    let no_vcpus = || ErrorKind::NoObject { what: "vCPU with paging".to_owned() };
    let vcpus = driver.vcpus().ok_or_else(no_vcpus)?;
    let mut found: Vec<PhysAddr> = Vec::new();
    let mut failed = None;
    for vcpu in (0..vcpus.vcpu_count()).map(VcpuId) {
        let registers = vcpus.registers(vcpu)?;
        let (Some(mode), Some(root)) = (registers.paging_mode(), registers.page_table_root()) else { continue };
        let both = [root, PhysAddr::new(root.get() & !ISOLATED)];
        for root in if roots.is_empty() { &both[..] } else { roots } {
            match mode.translate(&Physical(driver), *root, at) {
                Ok(translation) if !found.contains(&translation.at) => found.push(translation.at),
                Ok(_) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        // One vCPU is enough: the tables are named, or the system's part is the same in all.
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(failed.unwrap_or_else(|| no_vcpus().into()))
}
