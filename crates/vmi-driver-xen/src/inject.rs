//! Interrupts and exceptions that a vCPU is given, by libxendevicemodel.

use vmi_arch_x86::{Injection, X86};
use vmi_core::{Injector, Result, VcpuId};

use crate::failure::Failures;
use crate::libraries::device_model::{DeviceModel, Injected, kind};
use crate::vm_event::Debug;

/// The non-maskable interrupt.
const NMI: u8 = 2;
/// The page fault.
const PAGE_FAULT: u8 = 14;

/// Injection into one domain. The library is opened when it is needed.
#[derive(Debug)]
pub(crate) struct XenInjector {
    domain: u16,
    failures: Failures,
    device_model: Option<DeviceModel>,
}

impl XenInjector {
    pub(crate) fn new(domain: u32, failures: Failures) -> Self {
        // Domain numbers have 16 bits (xen/include/public/xen.h, `domid_t`).
        Self { domain: u16::try_from(domain).unwrap_or(u16::MAX), failures, device_model: None }
    }

    fn give(&mut self, vcpu: u32, event: Injected) -> Result<()> {
        let failed = |failures: &Failures, error| {
            failures.interface(&format!("injecting vector {} into vCPU {vcpu}", event.vector), error)
        };
        let device_model = match self.device_model.take() {
            Some(open) => open,
            None => DeviceModel::open().map_err(|error| failed(&self.failures, error))?,
        };
        let result = device_model.inject(self.domain, vcpu, event);
        self.device_model = Some(device_model);
        result.map_err(|error| failed(&self.failures, error.into()))
    }

    /// Gives the guest the breakpoint or debug exception of an event.
    pub(crate) fn reinject(&mut self, vcpu: u32, vector: u8, debug: &Debug) -> Result<()> {
        let kind = if vector == 3 && debug.kind == 0 { kind::SOFTWARE_EXCEPTION } else { debug.kind };
        let length = u8::try_from(debug.length).unwrap_or(0);
        // Exceptions that the processor raises by itself have no length (xen/arch/x86/hvm, `hvm_inject_event`).
        let length = if kind == kind::HARDWARE_EXCEPTION { 0 } else { length };
        self.give(vcpu, Injected { vector, kind, error_code: None, length, extra: debug.pending.unwrap_or(0) })
    }
}

/// An injection as the interface numbers it.
fn injected(what: Injection) -> Option<Injected> {
    let event = |vector, kind, error_code, extra| Some(Injected { vector, kind, error_code, length: 0, extra });
    match what {
        Injection::Interrupt { vector } => event(vector, kind::EXTERNAL_INTERRUPT, None, 0),
        Injection::Exception { vector: NMI, .. } => event(NMI, kind::NMI, None, 0),
        Injection::Exception { vector, error_code } => event(vector, kind::HARDWARE_EXCEPTION, error_code, 0),
        Injection::PageFault { at, error_code } => event(PAGE_FAULT, kind::HARDWARE_EXCEPTION, Some(error_code), at.get()),
        _ => None,
    }
}

impl Injector<X86> for XenInjector {
    fn inject(&mut self, vcpu: VcpuId, what: Injection) -> Result<()> {
        let event = injected(what).ok_or_else(|| self.failures.other("injecting", format!("{what:?} has no number for Xen")))?;
        self.give(vcpu.0, event)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use vmi_core::VirtAddr;

    use super::*;

    #[test]
    fn a_page_fault_brings_its_address() {
        let fault = injected(Injection::PageFault { at: VirtAddr::new(0x7000), error_code: 4 }).unwrap();
        assert_eq!(fault, Injected { vector: 14, kind: 3, error_code: Some(4), length: 0, extra: 0x7000 });
        assert_eq!(injected(Injection::Interrupt { vector: 0x30 }).unwrap().kind, 0);
        assert_eq!(injected(Injection::Exception { vector: 2, error_code: None }).unwrap().kind, 2);
    }
}
