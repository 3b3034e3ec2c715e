//! Events of a domain: see [`XenDriver`]'s table.

use vmi_arch_x86::X86;
use vmi_core::{EventAbilities, EventSession, EventSource, Result};

use crate::XenDriver;
use crate::events::{self, XenEvents};
use crate::failure::Failures;

/// What can be reported depends on the processor and on the domain's configuration: [`EventSource::abilities`] asks Xen, and touches neither the event ring nor views. A session turns the
/// ring on, and gives it back when it is dropped; one program at a time has it.
///
/// If a program with a session is killed, its guardian process (see [`Options::guardian`](crate::Options::guardian)) turns the ring off, and the domain runs on. Where there are
/// breakpoints or views that is not enough, and without a guardian nothing is done: Xen keeps the ring then, and a vCPU that causes an event waits. The next session of this
/// library cleans up and logs that it did: breakpoints are taken out of the domain's memory, views and single steps end, and the ring is turned off and on again.
/// A vCPU that waited at a CPUID instruction runs it a second time in both cases.
///
/// | trap | needs |
/// |---|---|
/// | breakpoints | nothing; on processors of Intel they are hidden from the guest's own reads |
/// | accesses of memory, single steps | an Intel processor with EPT |
/// | views | the same, and `altp2m = "external"` in the domain's configuration |
/// | control registers, MSRs, CPUID, debug exceptions | nothing |
///
/// A vCPU gets no interrupts while it steps (xen/arch/x86/hvm/vmx/intr.c, `vmx_intr_assist`): an instruction at a time is one instruction, and a guest that is stepped for long misses its clock.
///
/// Xen 4.17 has written a register when it tells of the write: [`Reply::deny`](vmi_core::Reply::deny) is not supported.
///
/// Linear addresses are found by the page tables of the first vCPU that maps them, or by those of [`Trap::in_address_space`](vmi_core::Trap::in_address_space).
impl EventSource for XenDriver {
    fn abilities(&self) -> Result<EventAbilities> {
        events::abilities(self.domain().info.id, &Failures::new(&vmi_core::Driver::machine(self).name))
    }

    fn subscribe(&self) -> Result<Box<dyn EventSession<X86> + '_>> {
        Ok(Box::new(XenEvents::new(self, self.domain().info.id, self.is_guarded())?))
    }
}
