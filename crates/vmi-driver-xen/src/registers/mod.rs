//! Registers of vCPUs: what Xen tells of them as bytes, and back.

mod hvm;
mod pv;
mod records;

use vmi_arch_x86::Registers;

/// What Xen tells of a vCPU cannot be understood, or not be set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistersError {
    /// The save records do not come to an end.
    #[error("the save records of the domain end in the midst of one, at byte {at} of {len}")]
    Truncated {
        /// Where the last record starts.
        at: usize,
        /// Bytes in all.
        len: usize,
    },
    /// Xen tells nothing of a vCPU that is not online.
    #[error("vCPU {vcpu} is not online: Xen keeps no registers of it")]
    Offline {
        /// The vCPU.
        vcpu: u32,
    },
    /// Fewer bytes than the structure has.
    #[error("the registers have {len} bytes only: a version of Xen that is not known; 4.17 to 4.20 are")]
    Short {
        /// The number of bytes.
        len: usize,
    },
    /// A register that cannot be set.
    #[error("{register} of this domain cannot be set from outside; leave it as it is, or give none")]
    Fixed {
        /// The register.
        register: &'static str,
    },
}

impl From<records::Truncated> for RegistersError {
    fn from(error: records::Truncated) -> Self {
        Self::Truncated { at: error.at, len: error.len }
    }
}

/// The registers of vCPU `vcpu` out of the save records of an HVM or PVH domain.
///
/// # Errors
/// Records that are cut off or shorter than their structure; a vCPU that has none.
pub fn from_hvm_context(bytes: &[u8], vcpu: u16) -> Result<Registers, RegistersError> {
    hvm::read(bytes, vcpu)
}

/// The registers of a vCPU of a 64-bit PV domain out of its `vcpu_guest_context`, and its CR3, which is a machine address.
///
/// # Errors
/// Fewer bytes than the structure has.
pub fn from_pv_context(bytes: &[u8]) -> Result<(Registers, u64), RegistersError> {
    pv::read(bytes).map(|read| (read.registers, read.cr3))
}

/// The save records that set what of `wanted` differs; `None` if nothing does.
pub(crate) fn change_hvm(bytes: &[u8], vcpu: u16, wanted: &Registers) -> Result<Option<Vec<u8>>, RegistersError> {
    hvm::change(bytes, vcpu, wanted)
}

/// Puts what of `wanted` differs into a `vcpu_guest_context`; says whether anything does.
pub(crate) fn change_pv(bytes: &mut [u8], now: &Registers, wanted: &Registers) -> Result<bool, RegistersError> {
    pv::change(bytes, now, wanted)
}
