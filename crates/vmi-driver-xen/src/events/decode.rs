//! The words of Xen and those of core.

use vmi_arch_x86::{ControlRegister, DescriptorTable, Incident, Watch, X86};
use vmi_core::{
    AccessOrigin, Accesses, Cause, EventAbilities, EventAbility, Gfn, MemoryAccess, PAGE_SIZE, PhysAddr, ViewId, VirtAddr,
};

use crate::libraries::monitor_calls::Monitor;
use crate::vm_event::{AccessFlags, Debug, Reason, Request};

/// What the bits of `xc_monitor_get_capabilities` mean: `XEN_DOMCTL_MONITOR_EVENT_*` (xen/include/public/domctl.h).
const CAPABILITIES: &[(u32, EventAbility)] = &[
    (0, EventAbility::ControlRegister),
    (1, EventAbility::ModelRegister),
    (2, EventAbility::Step),
    (2, EventAbility::Instructions),
    // Rights of pages have no bit. They need VMX with EPT, as the monitor trap flag does (xen/arch/x86/include/asm/mem_access.h).
    (2, EventAbility::MemoryAccess),
    (3, EventAbility::SoftwareBreakpoint),
    (3, EventAbility::GuestBreakpoint),
    (4, EventAbility::GuestRequest),
    (5, EventAbility::DebugException),
    (6, EventAbility::Identification),
    (7, EventAbility::PrivilegedCall),
    (9, EventAbility::DescriptorTable),
    (10, EventAbility::EmulationFailure),
    (12, EventAbility::Exit),
];

/// What there is, by Xen's capabilities and whether the domain may have views. What Xen 4.17 does with a register is done when it tells of it, so it cannot be denied.
pub(super) fn abilities(capabilities: u32, views: bool) -> EventAbilities {
    let there = CAPABILITIES.iter().filter(|(bit, _)| capabilities & 1u32.wrapping_shl(*bit) != 0).map(|(_, ability)| *ability);
    let always = [EventAbility::SetRegisters, EventAbility::Emulate, EventAbility::Reinject, EventAbility::Inject];
    there.chain(always).chain(views.then_some(EventAbility::View)).collect()
}

/// The number of a control register: `VM_EVENT_X86_*`.
fn number(register: ControlRegister) -> u16 {
    match register {
        ControlRegister::Cr0 => 0,
        ControlRegister::Cr3 => 1,
        ControlRegister::Cr4 => 2,
        ControlRegister::Xcr0 => 3,
        ControlRegister::Other(number) => u16::try_from(number).unwrap_or(u16::MAX),
        _ => u16::MAX,
    }
}

/// The monitors that are needed for what is asked for. A register has one, which tells of all writes if somebody wants them all.
pub(super) fn monitors(armed: &[Cause<X86>], steps: bool) -> Vec<Monitor> {
    let mut wanted: Vec<Monitor> = Vec::new();
    // Without a vCPU that steps it costs nothing.
    if steps {
        wanted.push(Monitor::SingleStep);
    }
    for cause in armed {
        let monitor = match cause {
            Cause::Place(_) | Cause::Processor(Watch::Breakpoints) => Monitor::SoftwareBreakpoint,
            Cause::Processor(Watch::ControlRegister { register, .. }) => {
                let all = |cause: &Cause<X86>| matches!(cause, Cause::Processor(Watch::ControlRegister { register: other, on_change: false }) if other == register);
                Monitor::ControlRegister { index: number(*register), on_change: !armed.iter().any(all) }
            }
            Cause::Processor(Watch::Msr { index, .. }) => {
                let all = |cause: &Cause<X86>| matches!(cause, Cause::Processor(Watch::Msr { index: other, on_change: false }) if other == index);
                Monitor::Msr { index: *index, on_change: !armed.iter().any(all) }
            }
            Cause::Processor(Watch::Cpuid) => Monitor::Cpuid,
            Cause::Processor(Watch::DebugExceptions) => Monitor::DebugExceptions,
            Cause::Processor(Watch::DescriptorTables) => Monitor::DescriptorAccess,
            Cause::Processor(Watch::GuestRequests) => Monitor::GuestRequest,
            Cause::Processor(Watch::PrivilegedCalls) => Monitor::PrivilegedCall,
            Cause::Processor(Watch::EmulationFailures) => Monitor::EmulUnimplemented,
            Cause::Processor(Watch::Exits) => Monitor::VmExit,
            _ => continue,
        };
        if !wanted.contains(&monitor) {
            wanted.push(monitor);
        }
    }
    wanted
}

/// What the processor did; `None` for what is no event of the processor.
pub(super) fn incident(reason: &Reason) -> Option<Incident> {
    Some(match *reason {
        Reason::WriteCtrlReg { index, new, old } => {
            let register = match index {
                0 => ControlRegister::Cr0,
                1 => ControlRegister::Cr3,
                2 => ControlRegister::Cr4,
                3 => ControlRegister::Xcr0,
                other => ControlRegister::Other(other),
            };
            Incident::ControlRegister { register, new, old }
        }
        Reason::MovToMsr { msr, new, old } => Incident::Msr { index: msr, new, old },
        Reason::Cpuid { length, leaf, subleaf } => Incident::Cpuid { leaf, subleaf, length },
        Reason::DebugException(Debug { pending, length, kind, .. }) => Incident::DebugException { kind, length, pending },
        Reason::DescriptorAccess { descriptor, write, .. } => {
            let table = match descriptor {
                1 => DescriptorTable::Idtr,
                2 => DescriptorTable::Gdtr,
                3 => DescriptorTable::Ldtr,
                4 => DescriptorTable::Tr,
                other => DescriptorTable::Other(other),
            };
            Incident::DescriptorTable { table, write }
        }
        Reason::GuestRequest => Incident::GuestRequest,
        Reason::PrivilegedCall => Incident::PrivilegedCall,
        Reason::Interrupt { vector, kind, error_code, cr2 } => Incident::Interrupt { vector, kind, error_code, cr2 },
        Reason::EmulUnimplemented => Incident::EmulationFailure,
        Reason::VmExit { reason, qualification } => Incident::Exit { reason, qualification },
        Reason::Other(number) => Incident::Other(number),
        Reason::Unknown => Incident::Other(0),
        Reason::MemSharing { .. } => Incident::Other(2),
        Reason::MemPaging { .. } => Incident::Other(3),
        Reason::MemAccess { .. } | Reason::SoftwareBreakpoint(_) | Reason::SingleStep { .. } => return None,
    })
}

/// The access of a request.
pub(super) fn memory_access(request: &Request) -> Option<MemoryAccess> {
    let Reason::MemAccess { gfn, offset, gla, flags } = request.reason else { return None };
    let kinds = Accesses {
        read: flags.contains(AccessFlags::R),
        write: flags.contains(AccessFlags::W),
        execute: flags.contains(AccessFlags::X),
    };
    let mut access = MemoryAccess::new(PhysAddr::new(gfn.saturating_mul(PAGE_SIZE).saturating_add(offset)), kinds);
    access.linear = flags.contains(AccessFlags::GLA_VALID).then_some(VirtAddr::new(gla));
    access.origin = if flags.contains(AccessFlags::FAULT_IN_GPT) {
        Some(AccessOrigin::Walk)
    } else {
        flags.contains(AccessFlags::FAULT_WITH_GLA).then_some(AccessOrigin::Linear)
    };
    access.view = request.view.map(ViewId);
    Some(access)
}

/// Where the instruction of a breakpoint event is.
pub(super) fn byte_of(debug: &Debug, rip: VirtAddr) -> PhysAddr {
    PhysAddr::new(debug.gfn.saturating_mul(PAGE_SIZE).saturating_add(rip.get() % PAGE_SIZE))
}

/// The frame of an address.
pub(super) fn frame(at: PhysAddr) -> Gfn {
    Gfn::new(at.get() / PAGE_SIZE)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_those_that_were_measured() {
        // On SVM 0x1f7b, without single steps and therefore without rights of pages; on VMX 0x1f7f.
        let svm = abilities(0x1f7b, false);
        assert!(
            svm.has(EventAbility::ControlRegister)
                && svm.has(EventAbility::Identification)
                && svm.has(EventAbility::SoftwareBreakpoint)
        );
        assert!(!svm.has(EventAbility::Step) && !svm.has(EventAbility::MemoryAccess) && !svm.has(EventAbility::View));
        assert!(!svm.has(EventAbility::PrivilegedCall) && !svm.has(EventAbility::Deny) && svm.has(EventAbility::SetRegisters));
        let vmx = abilities(0x1f7f, true);
        assert!(vmx.has(EventAbility::Step) && vmx.has(EventAbility::MemoryAccess) && vmx.has(EventAbility::View));
    }

    #[test]
    fn a_register_has_one_monitor() {
        let cr3 = |on_change| Cause::Processor(Watch::ControlRegister { register: ControlRegister::Cr3, on_change });
        assert_eq!(monitors(&[cr3(true)], false), [Monitor::ControlRegister { index: 1, on_change: true }]);
        assert_eq!(monitors(&[cr3(true), cr3(false)], false), [Monitor::ControlRegister { index: 1, on_change: false }]);
        assert_eq!(monitors(&[], true), [Monitor::SingleStep]);
    }
}
