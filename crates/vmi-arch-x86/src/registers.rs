//! The register file of one vCPU.

use vmi_core::{PhysAddr, VirtAddr};

use crate::PagingMode;

/// The registers of one vCPU. What a source does not tell is `None`, never zero.
///
/// Follows the Intel SDM, volume 3, chapter 2 (system registers).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the general registers carry their own names
#[non_exhaustive]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    /// Segment registers with their hidden parts.
    pub segments: Segments,
    /// Global descriptor table.
    pub gdtr: Option<Table>,
    /// Interrupt descriptor table.
    pub idtr: Option<Table>,
    pub cr0: Option<u64>,
    pub cr2: Option<u64>,
    pub cr3: Option<u64>,
    pub cr4: Option<u64>,
    /// Debug registers 0 to 7; 4 and 5 do not exist.
    pub dr: Option<[u64; 8]>,
    /// IA32_EFER (MSR 0xc0000080).
    pub efer: Option<u64>,
    /// IA32_STAR (MSR 0xc0000081).
    pub star: Option<u64>,
    /// IA32_LSTAR (MSR 0xc0000082): where SYSCALL enters the kernel from 64-bit code.
    pub lstar: Option<u64>,
    /// IA32_CSTAR (MSR 0xc0000083): where SYSCALL enters the kernel from 32-bit code.
    pub cstar: Option<u64>,
    /// IA32_FMASK (MSR 0xc0000084).
    pub sfmask: Option<u64>,
    /// IA32_KERNEL_GS_BASE (MSR 0xc0000102): what SWAPGS exchanges the GS base with.
    pub kernel_gs_base: Option<u64>,
    /// IA32_SYSENTER_CS (MSR 0x174).
    pub sysenter_cs: Option<u64>,
    /// IA32_SYSENTER_ESP (MSR 0x175).
    pub sysenter_esp: Option<u64>,
    /// IA32_SYSENTER_EIP (MSR 0x176).
    pub sysenter_eip: Option<u64>,
}

/// The segment registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Segments {
    pub cs: Option<Segment>,
    pub ds: Option<Segment>,
    pub es: Option<Segment>,
    pub fs: Option<Segment>,
    pub gs: Option<Segment>,
    pub ss: Option<Segment>,
    /// Local descriptor table.
    pub ldt: Option<Segment>,
    /// Task state segment.
    pub tr: Option<Segment>,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector: index, table and requested privilege.
    pub selector: u16,
    /// Linear address of the segment's first byte.
    pub base: u64,
    /// Last valid offset in bytes.
    pub limit: u32,
    /// Attribute bits as the source keeps them; `None` if it does not.
    pub attributes: Option<u32>,
}

/// A descriptor-table register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Linear address of the table.
    pub base: VirtAddr,
    /// Last valid offset in bytes.
    pub limit: u16,
}

impl Registers {
    /// The paging mode that CR0, CR4 and EFER select; `None` if paging is off or the source does not tell enough.
    pub fn paging_mode(&self) -> Option<PagingMode> {
        PagingMode::from_control_registers(self.cr0?, self.cr4?, self.efer?)
    }

    /// The page-table root with the flags that CR3 carries below it.
    pub fn page_table_root(&self) -> Option<PhysAddr> {
        self.cr3.map(PhysAddr::new)
    }
}
