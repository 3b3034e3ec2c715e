//! `.xen_prstatus`: an array of `vcpu_guest_context`, as `XEN_DOMCTL_getvcpucontext` fills it. Xen's tools write the 64-bit structure for a 32-bit guest with hardware
//! support too.

use vmi_arch_x86::Registers;
use vmi_arch_x86::xen::VcpuContext;

use super::{Section, malformed};
use crate::FormatError;
use crate::image::Input;
use crate::machine_frames::MachineFrames;

/// Xen: `HVM_MAX_VCPUS` is 128, and domains without hardware support may have 8192.
const MAX_VCPUS: u64 = 8192;

/// The registers of `count` vCPUs. In those of a domain without hardware support, CR3 is the address of the page that `frames` says.
pub(super) fn read(
    input: Input<'_>,
    section: Section,
    count: u64,
    paravirtual: bool,
    frames: Option<&MachineFrames>,
) -> Result<Vec<Registers>, FormatError> {
    const LEN: u64 = VcpuContext::LEN as u64;
    if count > MAX_VCPUS {
        return Err(malformed(section.offset, format!("{count} vCPUs, of which no domain has more than {MAX_VCPUS}")));
    }
    if section.len != count.saturating_mul(LEN) {
        // 2800 bytes each in cores of a 32-bit Xen.
        tracing::warn!(len = section.len, count, "vCPUs of unknown form");
        return Ok(Vec::new());
    }
    let present = input.present(section.offset, section.len, || "the registers".to_owned())?;
    let whole = present.checked_div(LEN).unwrap_or(0);
    let context = |index: u64| {
        let at = index.saturating_mul(LEN).saturating_add(section.offset);
        input.source.get(at, LEN, "the registers").map(|bytes| (at, bytes))
    };
    if paravirtual && whole > 0 && VcpuContext::is_of_32_bits(&context(0)?.1) {
        tracing::warn!("registers of a 32-bit PV domain are not read");
        return Ok(Vec::new());
    }
    let vcpu = |index: u64| -> Result<Registers, FormatError> {
        let (at, bytes) = context(index)?;
        let context = VcpuContext::of(&bytes).map_err(|error| malformed(at, error.to_string()))?;
        if !paravirtual {
            return Ok(context.hardware());
        }
        let (mut registers, cr3) = context.paravirtual();
        registers.cr3 = frames.map(|frames| frames.page_of(cr3).get());
        Ok(registers)
    };
    (0..whole).map(vcpu).collect()
}
