//! The register file of one vCPU.

use core::fmt;

use vmi_core::{PhysAddr, VirtAddr};

use crate::{PagingMode, SegmentAttributes, Segments};

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
    /// Task priority: the local APIC's register, in bits 3 to 0.
    pub cr8: Option<u64>,
    /// Which processor state XSAVE keeps.
    pub xcr0: Option<u64>,
    /// Debug registers 0 to 7; 4 and 5 do not exist.
    pub dr: Option<[u64; 8]>,
    /// IA32_EFER (MSR 0xc0000080): long mode and its like.
    pub efer: Option<u64>,
    /// IA32_STAR (MSR 0xc0000081).
    pub star: Option<u64>,
    /// IA32_LSTAR (MSR 0xc0000082): where SYSCALL enters the kernel from 64-bit code.
    pub lstar: Option<u64>,
    /// IA32_CSTAR (MSR 0xc0000083): where SYSCALL enters the kernel from 32-bit code.
    pub cstar: Option<u64>,
    /// IA32_FMASK (MSR 0xc0000084): which flags SYSCALL clears.
    pub sfmask: Option<u64>,
    /// IA32_KERNEL_GS_BASE (MSR 0xc0000102): what SWAPGS exchanges the GS base with.
    pub kernel_gs_base: Option<u64>,
    /// IA32_PAT (MSR 0x277): the memory types that page-table entries select from.
    pub pat: Option<u64>,
    /// IA32_SYSENTER_CS (MSR 0x174).
    pub sysenter_cs: Option<u64>,
    /// IA32_SYSENTER_ESP (MSR 0x175).
    pub sysenter_esp: Option<u64>,
    /// IA32_SYSENTER_EIP (MSR 0x176): where SYSENTER enters the kernel.
    pub sysenter_eip: Option<u64>,
}

/// A descriptor-table register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Linear address of the table.
    pub base: VirtAddr,
    /// Last valid offset in bytes.
    pub limit: u16,
}

/// What kind of code a vCPU executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeMode {
    /// Real-address mode.
    Real,
    /// Virtual-8086 mode.
    Virtual8086,
    /// 16-bit protected mode.
    Protected16,
    /// 32-bit protected mode.
    Protected32,
    /// 16-bit code under a 64-bit system.
    Compatibility16,
    /// 32-bit code under a 64-bit system.
    Compatibility32,
    /// 64-bit code.
    Long,
}

impl Registers {
    /// The general registers in the order in which instructions number them: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15 (Intel SDM,
    /// volume 2, section 2.1.3).
    pub fn general(&self) -> [u64; 16] {
        [
            self.rax, self.rcx, self.rdx, self.rbx, self.rsp, self.rbp, self.rsi, self.rdi, self.r8, self.r9, self.r10, self.r11,
            self.r12, self.r13, self.r14, self.r15,
        ]
    }

    /// Sets all general registers, in the order of [`Registers::general`].
    pub fn set_general(&mut self, values: [u64; 16]) {
        [
            self.rax, self.rcx, self.rdx, self.rbx, self.rsp, self.rbp, self.rsi, self.rdi, self.r8, self.r9, self.r10, self.r11,
            self.r12, self.r13, self.r14, self.r15,
        ] = values;
    }

    /// The paging mode that the control registers and [`Registers::long_mode`] select; `None` if paging is off or the source does
    /// not tell enough.
    pub fn paging_mode(&self) -> Option<PagingMode> {
        PagingMode::select(self.cr0?, self.cr4?, self.long_mode()?)
    }

    /// The page-table root with the flags that CR3 carries below it.
    pub fn page_table_root(&self) -> Option<PhysAddr> {
        self.cr3.map(PhysAddr::new)
    }

    /// Whether CR3 points at the tables at `root`; the flags that CR3 carries below and above the address are left aside in both. `None` if
    /// the source does not tell CR3.
    pub fn runs_on(&self, root: PhysAddr) -> Option<bool> {
        // Under PAE the four top entries are aligned to 32 bytes, else a table takes a page (Intel SDM, volume 3, table 5-3).
        let mask = if self.paging_mode() == Some(PagingMode::Pae) { 0xffff_ffe0 } else { 0x000f_ffff_ffff_f000 };
        self.cr3.map(|cr3| (cr3 ^ root.get()) & mask == 0)
    }

    /// Whether long mode is active, be it for 64-bit or for compatibility code.
    ///
    /// EFER says so. A source without EFER (QEMU's ELF notes) is judged by what cannot be outside of long mode: 64-bit
    /// code, PCID or 5-level paging in CR4 (Intel SDM, volume 3, section 2.5), an instruction pointer, stack or descriptor table above
    /// 4 GiB; and without CR4.PAE there is no long mode. `None` if nothing of this is known; a source that tells the tables
    /// but none of this evidence shows a 32-bit system.
    pub fn long_mode(&self) -> Option<bool> {
        const LMA: u64 = 1 << 10;
        const PAE: u64 = 1 << 5;
        const LA57: u64 = 1 << 12;
        const PCIDE: u64 = 1 << 17;
        if let Some(efer) = self.efer {
            return Some(efer & LMA != 0);
        }
        let cr4 = self.cr4?;
        if cr4 & PAE == 0 {
            return Some(false);
        }
        let long_code = self.cs_attributes().is_some_and(|cs| cs.contains(SegmentAttributes::LONG));
        let tables = [self.gdtr, self.idtr].map(|table| table.map_or(0, |table| table.base.get()));
        let wide = tables.iter().chain(&[self.rip, self.rsp]).any(|address| address >> 32 != 0);
        if long_code || wide || cr4 & (LA57 | PCIDE) != 0 { Some(true) } else { self.gdtr.map(|_| false) }
    }

    /// What kind of code the vCPU executes; `None` if the source does not tell CR0, the attributes of CS or long mode.
    pub fn code_mode(&self) -> Option<CodeMode> {
        const PE: u64 = 1;
        if self.cr0? & PE == 0 {
            return Some(CodeMode::Real);
        }
        if self.is_virtual_8086() {
            return Some(CodeMode::Virtual8086);
        }
        let cs = self.cs_attributes()?;
        let wide = cs.contains(SegmentAttributes::DEFAULT_32);
        Some(match (self.long_mode()?, cs.contains(SegmentAttributes::LONG), wide) {
            (true, true, _) => CodeMode::Long,
            (true, false, true) => CodeMode::Compatibility32,
            (true, false, false) => CodeMode::Compatibility16,
            (false, _, true) => CodeMode::Protected32,
            (false, _, false) => CodeMode::Protected16,
        })
    }

    /// The current privilege level: 0 in the kernel, 3 in user mode. `None` if the source does not tell CS.
    pub fn privilege_level(&self) -> Option<u8> {
        const PE: u64 = 1;
        let selector = self.segments.cs?.selector;
        Some(match (self.cr0, self.is_virtual_8086()) {
            (Some(cr0), _) if cr0 & PE == 0 => 0,
            (_, true) => 3,
            _ => (selector & 3) as u8,
        })
    }

    /// Whether RFLAGS.VM is set, which has no meaning in long mode.
    fn is_virtual_8086(&self) -> bool {
        const VM: u64 = 1 << 17;
        self.rflags & VM != 0 && self.long_mode() != Some(true)
    }

    fn cs_attributes(&self) -> Option<SegmentAttributes> {
        self.segments.cs?.attributes
    }
}

/// All registers in hexadecimal, a few in a line; `-` for what the source does not tell.
impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let general = [
            ("rax", self.rax),
            ("rbx", self.rbx),
            ("rcx", self.rcx),
            ("rdx", self.rdx),
            ("rsi", self.rsi),
            ("rdi", self.rdi),
            ("rbp", self.rbp),
            ("rsp", self.rsp),
            ("r8", self.r8),
            ("r9", self.r9),
            ("r10", self.r10),
            ("r11", self.r11),
            ("r12", self.r12),
            ("r13", self.r13),
            ("r14", self.r14),
            ("r15", self.r15),
            ("rip", self.rip),
            ("rflags", self.rflags),
        ];
        let debug = |index: usize| self.dr.and_then(|dr| dr.get(index).copied());
        let system = [
            ("cr0", self.cr0),
            ("cr2", self.cr2),
            ("cr3", self.cr3),
            ("cr4", self.cr4),
            ("cr8", self.cr8),
            ("xcr0", self.xcr0),
            ("efer", self.efer),
            ("pat", self.pat),
            ("star", self.star),
            ("lstar", self.lstar),
            ("cstar", self.cstar),
            ("sfmask", self.sfmask),
            ("kernel_gs", self.kernel_gs_base),
            ("sysent_cs", self.sysenter_cs),
            ("sysent_sp", self.sysenter_esp),
            ("sysent_ip", self.sysenter_eip),
            ("dr0", debug(0)),
            ("dr1", debug(1)),
            ("dr2", debug(2)),
            ("dr3", debug(3)),
            ("dr6", debug(6)),
            ("dr7", debug(7)),
        ];
        columns(f, &general.map(|(name, value)| (name, Some(value))))?;
        let s = &self.segments;
        for (name, segment) in
            [("cs", s.cs), ("ss", s.ss), ("ds", s.ds), ("es", s.es), ("fs", s.fs), ("gs", s.gs), ("ldt", s.ldt), ("tr", s.tr)]
        {
            line(f, name, segment)?;
        }
        line(f, "gdtr", self.gdtr)?;
        line(f, "idtr", self.idtr)?;
        columns(f, &system)
    }
}

/// Four registers in a line.
fn columns(f: &mut fmt::Formatter<'_>, registers: &[(&str, Option<u64>)]) -> fmt::Result {
    for row in registers.chunks(4) {
        let cell = |(name, value): &(&str, Option<u64>)| match value {
            Some(value) => format!("{name:9} {value:016x}  "),
            None => format!("{name:9} {:16}  ", "-"),
        };
        writeln!(f, "{}", row.iter().map(cell).collect::<String>().trim_end())?;
    }
    Ok(())
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, value: Option<impl fmt::Display>) -> fmt::Result {
    match value {
        Some(value) => writeln!(f, "{name:9} {value}"),
        None => writeln!(f, "{name:9} -"),
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "base {:016x} limit {:04x}", self.base, self.limit)
    }
}
