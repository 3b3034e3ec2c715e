//! The structures of xen/include/public/vm_event.h, byte by byte.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Declares structures of plain integers.
macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub(super) struct $name { $(pub(super) $field: $type,)* }
    )* };
}

structures! {
    /// The head of `vm_event_st`.
    Head { version: u32, flags: u32, reason: u32, vcpu_id: u32, altp2m_idx: u16, _pad: [u16; 3], }
    /// `vm_event_mem_access`
    MemAccessData { gfn: u64, offset: u64, gla: u64, flags: u32, _pad: u32, }
    /// `vm_event_write_ctrlreg`
    CtrlRegData { index: u32, _pad: u32, new_value: u64, old_value: u64, }
    /// `vm_event_mov_to_msr`
    MsrData { msr: u64, new_value: u64, old_value: u64, }
    /// `vm_event_debug` of version 5.
    DebugData5 { gfn: u64, insn_length: u32, kind: u8, _pad: [u8; 3], }
    /// `vm_event_debug` of versions 6 and 7.
    DebugData6 { gfn: u64, pending_dbg: u64, insn_length: u32, kind: u8, _pad: [u8; 3], }
    /// `vm_event_desc_access`
    DescriptorData { instr_info: u32, _pad1: u32, exit_qualification: u64, descriptor: u8, is_write: u8, _pad: [u8; 6], }
    /// `vm_event_cpuid`
    CpuidData { insn_length: u32, leaf: u32, subleaf: u32, _pad: u32, }
    /// `vm_event_interrupt_x86`
    InterruptData { vector: u32, kind: u32, error_code: u32, _pad: u32, cr2: u64, }
    /// `vm_event_paging`, and `vm_event_sharing`, which has padding for the flags.
    PagingData { gfn: u64, p2mt: u32, flags: u32, }
    /// `vm_event_vmexit`
    VmExitData { reason: u64, qualification: u64, }

    /// `vm_event_regs_x86` as far as all versions have it in common.
    FirstRegisters {
        rax: u64, rcx: u64, rdx: u64, rbx: u64, rsp: u64, rbp: u64, rsi: u64, rdi: u64,
        r8: u64, r9: u64, r10: u64, r11: u64, r12: u64, r13: u64, r14: u64, r15: u64,
        rflags: u64, dr6: u64, dr7: u64, rip: u64, cr0: u64, cr2: u64, cr3: u64, cr4: u64,
        sysenter_cs: u64, sysenter_esp: u64, sysenter_eip: u64, msr_efer: u64, msr_star: u64, msr_lstar: u64, gdtr_base: u64,
    }
    /// What version 7 has between the parts.
    MiddleRegisters { npt_base: u64, vmtrace_pos: u64, }
    /// The last part of `vm_event_regs_x86`. `cs` and its like: limit in bits 0 to 19, access rights in 20 to 31.
    LastRegisters {
        cs_base: u32, ss_base: u32, ds_base: u32, es_base: u32, fs_base: u64, gs_base: u64,
        cs: u32, ss: u32, ds: u32, es: u32, fs: u32, gs: u32, shadow_gs: u64,
        gdtr_limit: u16, cs_sel: u16, ss_sel: u16, ds_sel: u16, es_sel: u16, fs_sel: u16, gs_sel: u16, _pad: u16,
    }
}
