//! Why libvirt did not serve.

use std::io;
use std::time::Duration;

use crate::qmp::MonitorError;

/// Why libvirt did not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibvirtError {
    /// No connection.
    #[error(
        "cannot connect to libvirt at {uri}: {source}. Is libvirtd or virtqemud running, and may this user use it (root, or group libvirt)? \
         A connection is chosen by `libvirt:NAME?uri=qemu:///system` or by LIBVIRT_DEFAULT_URI"
    )]
    Connect {
        /// The URI asked for.
        uri: String,
        /// What libvirt said.
        source: virt::error::Error,
    },
    /// A hypervisor that is not QEMU.
    #[error("libvirt at {uri} manages another hypervisor than QEMU; give a URI such as `?uri=qemu:///system`")]
    NotQemu {
        /// The URI.
        uri: String,
    },
    /// No such domain.
    #[error("libvirt at {uri} has no domain with the name or UUID `{name}`{}", known(running))]
    NoDomain {
        /// What was asked for.
        name: String,
        /// The connection.
        uri: String,
        /// Names of the domains that run there.
        running: Vec<String>,
    },
    /// The domain does not run.
    #[error("the domain `{name}` does not run (libvirt calls it {state}); start it with `virsh start`")]
    NotRunning {
        /// The domain.
        name: String,
        /// libvirt's word for its state.
        state: String,
    },
    /// A call failed.
    #[error("libvirt: {action}: {source}")]
    Call {
        /// What was tried.
        action: String,
        /// What libvirt said.
        source: virt::error::Error,
    },
    /// A call did not end in time.
    #[error("libvirt: {action}: no answer within {limit:?}; the daemon hangs, or is not reached any more")]
    TimedOut {
        /// What was tried.
        action: String,
        /// The limit.
        limit: Duration,
    },
    /// A call could not be made.
    #[error("libvirt: {action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// The cause.
        source: io::Error,
    },
    /// The domain's QEMU is not a process that can be seen here.
    #[error("the domain `{name}` runs, but its QEMU is not seen among the processes here: {why}")]
    NoProcess {
        /// The domain.
        name: String,
        /// What was found instead.
        why: String,
    },
    /// QEMU's monitor failed.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
}

fn known(running: &[String]) -> String {
    match running {
        [] => "; none runs there".to_owned(),
        names => format!("; these run there: {}", names.join(", ")),
    }
}
