//! What back ends of hypervisors have beyond events: abilities, views of memory, injection.

use core::mem::MaybeUninit;

use vmi::x86::Injection;
use vmi::{EventAbility, Gfn, VcpuId, VirtAddr};

use crate::border::{self, VMI_UNKNOWN_ADDRESS};
use crate::error::{Failure, vmi_error, vmi_status};
use crate::event;
use crate::events::vmi_events;
use crate::table;
use crate::trap;

/// One thing that a back end may be able to report (the kinds of events), or an answer that it may be able to carry out. As a bit of vmi_events_get_abilities: 1 shifted left
/// by it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmi_event_ability {
    /// VMI_EVENT_KIND_SOFTWARE_BREAKPOINT.
    SoftwareBreakpoint = 0,
    /// VMI_EVENT_KIND_HARDWARE_BREAKPOINT.
    HardwareBreakpoint = 1,
    /// VMI_EVENT_KIND_WRITE, VMI_EVENT_KIND_READ, VMI_EVENT_KIND_ACCESS.
    Watchpoint = 2,
    /// VMI_EVENT_KIND_MEMORY.
    MemoryAccess = 3,
    /// VMI_EVENT_KIND_STEP as a trap.
    Instructions = 4,
    /// VMI_EVENT_KIND_CONTROL_REGISTER.
    ControlRegister = 5,
    /// VMI_EVENT_KIND_MSR.
    ModelRegister = 6,
    /// VMI_EVENT_KIND_CPUID.
    Identification = 7,
    /// VMI_EVENT_KIND_DEBUG_EXCEPTION.
    DebugException = 8,
    /// VMI_EVENT_KIND_OWN_BREAKPOINT.
    GuestBreakpoint = 9,
    /// VMI_EVENT_KIND_PRIVILEGED_CALL.
    PrivilegedCall = 10,
    /// VMI_EVENT_KIND_GUEST_REQUEST.
    GuestRequest = 11,
    /// VMI_EVENT_KIND_INTERRUPT.
    Interrupt = 12,
    /// VMI_EVENT_KIND_DESCRIPTOR_TABLE.
    DescriptorTable = 13,
    /// VMI_EVENT_KIND_EMULATION_FAILURE.
    EmulationFailure = 14,
    /// VMI_EVENT_KIND_EXIT.
    Exit = 15,
    /// Registers in the answer to an event.
    SetRegisters = 16,
    /// VMI_ACTION_STEP.
    Step = 17,
    /// VMI_ACTION_DENY.
    Deny = 18,
    /// VMI_ACTION_EMULATE.
    Emulate = 19,
    /// VMI_ACTION_REINJECT.
    Reinject = 20,
    /// Views of memory.
    View = 21,
    /// vmi_events_inject.
    Inject = 22,
}

/// The number of an ability; `None` for one that has none here.
fn number(ability: EventAbility) -> Option<vmi_event_ability> {
    use vmi_event_ability as A;
    Some(match ability {
        EventAbility::SoftwareBreakpoint => A::SoftwareBreakpoint,
        EventAbility::HardwareBreakpoint => A::HardwareBreakpoint,
        EventAbility::Watchpoint => A::Watchpoint,
        EventAbility::MemoryAccess => A::MemoryAccess,
        EventAbility::Instructions => A::Instructions,
        EventAbility::ControlRegister => A::ControlRegister,
        EventAbility::ModelRegister => A::ModelRegister,
        EventAbility::Identification => A::Identification,
        EventAbility::DebugException => A::DebugException,
        EventAbility::GuestBreakpoint => A::GuestBreakpoint,
        EventAbility::PrivilegedCall => A::PrivilegedCall,
        EventAbility::GuestRequest => A::GuestRequest,
        EventAbility::Interrupt => A::Interrupt,
        EventAbility::DescriptorTable => A::DescriptorTable,
        EventAbility::EmulationFailure => A::EmulationFailure,
        EventAbility::Exit => A::Exit,
        EventAbility::SetRegisters => A::SetRegisters,
        EventAbility::Step => A::Step,
        EventAbility::Deny => A::Deny,
        EventAbility::Emulate => A::Emulate,
        EventAbility::Reinject => A::Reinject,
        EventAbility::View => A::View,
        EventAbility::Inject => A::Inject,
        _ => return None,
    })
}

/// What the back end can report and do for this guest: a bit for each vmi_event_ability.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_events_get_abilities(
    events: *mut vmi_events,
    abilities: Option<&mut MaybeUninit<u64>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::place(abilities, "the place for the abilities")?;
        let found = table::get(events)?.session.abilities()?;
        place.write(found.iter().filter_map(number).fold(0, |all, ability| all | 1u64.wrapping_shl(ability as u32)));
        Ok(())
    })
}

/// Makes a view: another arrangement of guest-physical memory, in which all of it may be accessed as `rights` says (some of VMI_ACCESS_READ and its siblings). It is gone at
/// the end of the session, and every vCPU is back in view 0, the memory as it is. Whether an event is held or not, as for all calls of views.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_events_create_view(
    events: *mut vmi_events,
    rights: u32,
    view: Option<&mut MaybeUninit<u32>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::place(view, "the place for the view")?;
        place.write(table::get(events)?.session.create_view(trap::accesses(rights)?)?.0.into());
        Ok(())
    })
}

/// Destroys a view; vCPUs in it go to view 0.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_events_destroy_view(
    events: *mut vmi_events,
    view: u32,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || Ok(table::get(events)?.session.destroy_view(event::view(view)?)?))
}

/// Says how the page at the guest-physical address `page` may be accessed in a view; what is not allowed is an event.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_events_allow(
    events: *mut vmi_events,
    view: u32,
    page: u64,
    rights: u32,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let events = table::get(events)?;
        Ok(events.session.allow(event::view(view)?, frame(page), trap::accesses(rights)?)?)
    })
}

/// Shows the page at `instead` where `page` is, in a view; VMI_UNKNOWN_ADDRESS shows the page itself again.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_events_remap(
    events: *mut vmi_events,
    view: u32,
    page: u64,
    instead: u64,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let events = table::get(events)?;
        let instead = (instead != VMI_UNKNOWN_ADDRESS).then(|| frame(instead));
        Ok(events.session.remap(event::view(view)?, frame(page), instead)?)
    })
}

/// All vCPUs go on in this view.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_events_switch_view(
    events: *mut vmi_events,
    view: u32,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || Ok(table::get(events)?.session.switch_view(event::view(view)?)?))
}

fn frame(page: u64) -> Gfn {
    vmi::PhysAddr::new(page).gfn()
}

/// What vmi_events_inject puts into a vCPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmi_injection_kind {
    /// An external interrupt, of a vector from 32 on.
    Interrupt = 0,
    /// An exception that the processor raises, of a vector below 32.
    Exception = 1,
    /// A page fault (vector 14): CR2 becomes `at`.
    PageFault = 2,
}

/// An interrupt or exception.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_injection {
    /// What it is: a vmi_injection_kind.
    pub kind: u32,
    /// Its vector; not looked at for page faults.
    pub vector: u8,
    /// Exceptions: whether the vector has an error code (Intel SDM, volume 3, table 6-1).
    pub has_error_code: bool,
    /// The error code of an exception or page fault.
    pub error_code: u32,
    /// Page faults: the linear address.
    pub at: u64,
}

/// Puts an interrupt or exception into a vCPU, which takes it when it goes on.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_events_inject(
    events: *mut vmi_events,
    vcpu: u32,
    injection: Option<&vmi_injection>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let given = injection.ok_or_else(|| Failure::null("the injection"))?;
        let vmi_injection { vector, error_code, .. } = *given;
        let is = |kind: vmi_injection_kind| given.kind == kind as u32;
        let what = if is(vmi_injection_kind::Interrupt) {
            Injection::Interrupt { vector }
        } else if is(vmi_injection_kind::Exception) {
            Injection::Exception { vector, error_code: given.has_error_code.then_some(error_code) }
        } else if is(vmi_injection_kind::PageFault) {
            Injection::PageFault { at: VirtAddr::new(given.at), error_code }
        } else {
            return Err(Failure::argument(format!("{} is no vmi_injection_kind", given.kind)));
        };
        Ok(table::get(events)?.session.inject(VcpuId(vcpu), what)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ability_has_a_number_of_its_own() {
        let numbers: Vec<u32> = EventAbility::ALL.iter().map(|ability| number(*ability).unwrap() as u32).collect();
        assert_eq!(numbers, (0..23).collect::<Vec<_>>());
    }
}
