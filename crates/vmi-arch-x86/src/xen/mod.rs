//! Registers of vCPUs in the structures in which Xen hands them out, and back: decoding and encoding of bytes, without Xen.
//!
//! | structure | who has it | type |
//! |---|---|---|
//! | save records | HVM and PVH domains, by `XEN_DOMCTL_gethvmcontext` | [`SaveRecords`] |
//! | `vcpu_guest_context` | PV domains, by `XEN_DOMCTL_getvcpucontext`; cores of all domains, in `.xen_prstatus` | [`VcpuContext`] |
//!
//! Both are part of Xen's public interface, so they are the same in all its releases; those of Xen 4.17 to 4.20 were looked at. What a domain is not trusted with is not
//! trusted here either: any bytes are decoded, or are an error.

mod records;
mod save_records;
mod vcpu_context;

pub use save_records::SaveRecords;
pub use vcpu_context::VcpuContext;

/// What Xen tells of a vCPU cannot be understood, or not be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
