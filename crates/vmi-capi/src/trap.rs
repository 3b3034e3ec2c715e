//! What can be asked for in an event session.

use vmi::x86::{ControlRegister, Watch, X86};
use vmi::{Accesses, PhysAddr, Trap, VcpuId, VirtAddr};

use crate::error::{Failure, Result};

/// What springs a trap, or what an event is. Which of them a back end has, vmi_events_get_abilities tells: QEMU's gdb stub has the first five and steps, Xen most.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmi_event_kind {
    /// An instruction is about to run, found by a breakpoint instruction or what the back end has in its place.
    SoftwareBreakpoint = 0,
    /// An instruction is about to run, found by a debug register: it changes no guest memory, and there are few.
    HardwareBreakpoint = 1,
    /// Memory was written.
    Write = 2,
    /// Memory was read.
    Read = 3,
    /// Memory was read or written.
    Access = 4,
    /// The vCPU ran one instruction. As a trap: each instruction of the vCPU `which` is an event; else the one that VMI_ACTION_STEP let it run.
    Step = 5,
    /// Not for traps: it stopped for another reason.
    Stop = 6,
    /// Guest-physical memory is about to be touched in one of the ways of `access`.
    Memory = 7,
    /// A control register, `which` as a vmi_control_register, is written.
    ControlRegister = 8,
    /// The model-specific register of number `which` is written.
    Msr = 9,
    /// CPUID is run.
    Cpuid = 10,
    /// A debug exception (vector 1) is raised.
    DebugException = 11,
    /// INT3 is run that is the guest's own.
    OwnBreakpoint = 12,
    /// A descriptor-table register is read or written.
    DescriptorTable = 13,
    /// The guest asks for an event by a hypercall.
    GuestRequest = 14,
    /// The guest calls a higher privilege.
    PrivilegedCall = 15,
    /// Not for traps: an interrupt is delivered.
    Interrupt = 16,
    /// The hypervisor was to emulate an instruction and cannot.
    EmulationFailure = 17,
    /// Every exit to the hypervisor.
    Exit = 18,
    /// Not for traps: something that has no name here, by the hypervisor's number in `which`.
    Other = 19,
}

/// A control register whose writes can be watched.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmi_control_register {
    /// CR0: paging, write protection.
    Cr0 = 0,
    /// CR3: the page tables.
    Cr3 = 3,
    /// CR4: extensions.
    Cr4 = 4,
    /// XCR0: which processor state XSAVE keeps.
    Xcr0 = 256,
    /// This and above: another one, by the hypervisor's own number.
    Other = 65536,
}

/// Memory is read: a bit of `access`, and of the rights of a view.
pub const VMI_ACCESS_READ: u32 = 1;
/// Memory is written.
pub const VMI_ACCESS_WRITE: u32 = 2;
/// An instruction is fetched.
pub const VMI_ACCESS_EXECUTE: u32 = 4;

/// A request to be told when a vCPU does something. What its kind does not need is not looked at, and 0 in a literal that names the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_trap {
    /// What springs it: a vmi_event_kind.
    pub kind: u32,
    /// First virtual address; of a breakpoint, of the instruction; of VMI_EVENT_KIND_MEMORY the first guest-physical one.
    pub at: u64,
    /// Bytes that are watched; not looked at for breakpoints.
    pub length: u64,
    /// Only while the vCPU runs on page tables with one of these roots (vmi_guest_get_page_tables); NULL for all.
    pub roots: *const u64,
    /// How many roots there are.
    pub root_count: usize,
    /// VMI_EVENT_KIND_MEMORY: some of VMI_ACCESS_READ and its siblings.
    pub access: u32,
    /// A register or vCPU, as the kind says.
    pub which: u32,
    /// Writes of registers: only if the value changes.
    pub on_change: bool,
}

/// The accesses of a number.
pub(crate) fn accesses(bits: u32) -> Result<Accesses> {
    if bits & !(VMI_ACCESS_READ | VMI_ACCESS_WRITE | VMI_ACCESS_EXECUTE) != 0 {
        return Err(Failure::argument(format!("{bits:#x} has bits that are no access")));
    }
    let has = |bit| bits & bit != 0;
    Ok(Accesses { read: has(VMI_ACCESS_READ), write: has(VMI_ACCESS_WRITE), execute: has(VMI_ACCESS_EXECUTE) })
}

/// The number of accesses.
pub(crate) fn number_of(accesses: Accesses) -> u32 {
    let bit = |has, bit| if has { bit } else { 0 };
    bit(accesses.read, VMI_ACCESS_READ) | bit(accesses.write, VMI_ACCESS_WRITE) | bit(accesses.execute, VMI_ACCESS_EXECUTE)
}

/// The number of a control register.
pub(crate) fn number_of_register(register: ControlRegister) -> u64 {
    match register {
        ControlRegister::Cr0 => vmi_control_register::Cr0 as u64,
        ControlRegister::Cr3 => vmi_control_register::Cr3 as u64,
        ControlRegister::Cr4 => vmi_control_register::Cr4 as u64,
        ControlRegister::Xcr0 => vmi_control_register::Xcr0 as u64,
        ControlRegister::Other(number) => (vmi_control_register::Other as u64).saturating_add(number.into()),
        _ => u64::MAX,
    }
}

fn register(number: u32) -> Result<ControlRegister> {
    let known = [ControlRegister::Cr0, ControlRegister::Cr3, ControlRegister::Cr4, ControlRegister::Xcr0];
    if let Some(register) = known.into_iter().find(|register| number_of_register(*register) == u64::from(number)) {
        return Ok(register);
    }
    let other = number.checked_sub(vmi_control_register::Other as u32).map(ControlRegister::Other);
    other.ok_or_else(|| Failure::argument(format!("{number} is no vmi_control_register")))
}

/// The trap that C describes.
pub(crate) fn of(given: &vmi_trap, roots: &[u64]) -> Result<Trap<X86>> {
    use vmi_event_kind as K;
    let at = VirtAddr::new(given.at);
    let (index, on_change) = (given.which, given.on_change);
    let watches = [
        (K::Cpuid, Watch::Cpuid),
        (K::DebugException, Watch::DebugExceptions),
        (K::OwnBreakpoint, Watch::Breakpoints),
        (K::DescriptorTable, Watch::DescriptorTables),
        (K::GuestRequest, Watch::GuestRequests),
        (K::PrivilegedCall, Watch::PrivilegedCalls),
        (K::EmulationFailure, Watch::EmulationFailures),
        (K::Exit, Watch::Exits),
    ];
    let is = |kind: K| given.kind == kind as u32;
    let trap = if let Some((_, watch)) = watches.into_iter().find(|(kind, _)| is(*kind)) {
        Trap::processor(watch)
    } else if is(K::SoftwareBreakpoint) {
        Trap::breakpoint(at)
    } else if is(K::HardwareBreakpoint) {
        Trap::breakpoint(at).hardware()
    } else if is(K::Write) {
        Trap::write(at, given.length)
    } else if is(K::Read) {
        Trap::read(at, given.length)
    } else if is(K::Access) {
        Trap::access(at, given.length)
    } else if is(K::Memory) {
        let on = accesses(given.access)?;
        if on.is_none() {
            return Err(Failure::argument(
                "a trap on memory needs an access: VMI_ACCESS_READ, VMI_ACCESS_WRITE, VMI_ACCESS_EXECUTE",
            ));
        }
        Trap::memory(PhysAddr::new(given.at), given.length, on)
    } else if is(K::Step) {
        Trap::instructions(VcpuId(given.which))
    } else if is(K::ControlRegister) {
        Trap::processor(Watch::ControlRegister { register: register(given.which)?, on_change })
    } else if is(K::Msr) {
        Trap::processor(Watch::Msr { index, on_change })
    } else {
        return Err(Failure::argument(format!("{} is no kind of trap", given.kind)));
    };
    Ok(roots.iter().fold(trap, |trap, root| trap.in_address_space(PhysAddr::new(*root))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmi::{Cause, EventAbility};

    #[test]
    fn every_ability_to_report_has_a_kind() {
        let trap = |kind: u32| vmi_trap {
            kind,
            at: 0x1000,
            length: 8,
            roots: core::ptr::null(),
            root_count: 0,
            access: VMI_ACCESS_WRITE,
            which: 3,
            on_change: true,
        };
        let mut had: Vec<EventAbility> =
            (0..20).filter_map(|kind| of(&trap(kind), &[]).ok()).map(|trap| trap.cause().ability()).collect();
        had.sort_unstable();
        had.dedup();
        // What follows are answers; interrupts are reported unasked.
        let all = EventAbility::ALL.iter().take_while(|ability| **ability != EventAbility::SetRegisters);
        let wanted: Vec<EventAbility> = all.copied().filter(|ability| *ability != EventAbility::Interrupt).collect();
        assert_eq!(had, wanted);
        let cause = of(&trap(vmi_event_kind::ControlRegister as u32), &[]).unwrap().cause();
        assert_eq!(cause, Cause::Processor(Watch::ControlRegister { register: ControlRegister::Cr3, on_change: true }));
        assert!(of(&vmi_trap { access: 0, ..trap(vmi_event_kind::Memory as u32) }, &[]).is_err());
        assert!(of(&vmi_trap { which: 2, ..trap(vmi_event_kind::ControlRegister as u32) }, &[]).is_err());
        assert!(of(&trap(20), &[]).is_err());
    }
}
