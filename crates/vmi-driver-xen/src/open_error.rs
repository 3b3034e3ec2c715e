//! Why a domain could not be opened.

use crate::domain_info::DomainKind;
use crate::p2m::P2mError;
use crate::{CallError, InterfaceError};

/// Why a domain could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Xen or one of its libraries cannot be used.
    #[error("cannot use Xen: {0}")]
    Interface(#[from] InterfaceError),
    /// No such domain.
    #[error("Xen has no domain with the name, number or UUID `{wanted}`{}", known(running))]
    NoDomain {
        /// What was asked for.
        wanted: String,
        /// The domains that there are.
        running: Vec<String>,
    },
    /// The domain is being destroyed.
    #[error("domain {domain} is being destroyed")]
    Dying {
        /// The domain.
        domain: String,
    },
    /// A PV domain with a 32-bit kernel.
    #[error("domain {domain} is a PV domain with a {width}-byte interface to Xen; only 64-bit PV domains can be looked into")]
    Narrow {
        /// The domain.
        domain: String,
        /// Bytes in a word of its interface.
        width: u32,
    },
    /// Xen refuses to tell something.
    #[error("domain {domain} ({kind}): {action}: {source}")]
    Call {
        /// The domain.
        domain: String,
        /// How it is run.
        kind: DomainKind,
        /// What was tried.
        action: &'static str,
        /// What Xen said.
        source: CallError,
    },
    /// The list of machine frames of a PV domain cannot be read.
    #[error("domain {domain} (PV): {source}")]
    Frames {
        /// The domain.
        domain: String,
        /// Why not.
        source: P2mError,
    },
    /// Its memory cannot be mapped.
    #[error(transparent)]
    Map(vmi_core::Error),
}

fn known(running: &[String]) -> String {
    if running.is_empty() { "; there is none but dom0".to_owned() } else { format!("; there are {}", running.join(", ")) }
}
