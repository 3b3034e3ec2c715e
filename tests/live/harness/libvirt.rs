//! A libvirtd of the tests' own, with domains.

use std::ops::Deref;

use serde::Deserialize;

use super::inside::{Inside, Reach};
use super::server::{Server, Skip};

/// What `libvirt_host.py serve` says.
#[derive(Debug, Deserialize)]
struct Served {
    uri: String,
    domains: Vec<ServedDomain>,
}

#[derive(Debug, Deserialize)]
struct ServedDomain {
    name: String,
    uuid: String,
    pid: u32,
    #[serde(flatten)]
    inside: Reach,
}

/// A libvirtd and its domains, which run until this is dropped, or this process ends in whichever way.
#[derive(Debug)]
pub(crate) struct Libvirt {
    uri: String,
    domains: Vec<Domain>,
    _server: Server,
}

/// A running domain: one vCPU under TCG, 128 MiB.
#[derive(Debug)]
pub(crate) struct Domain {
    name: String,
    uuid: String,
    pid: u32,
    inside: Inside,
}

impl Libvirt {
    /// Starts libvirtd and a domain for each kind of memory: `file`, `memfd` (both shared) or `private`.
    ///
    /// # Panics
    /// If a domain does not start although nothing is missing.
    pub(crate) fn start(memories: &[&str]) -> Result<Self, Skip> {
        let arguments = [&["serve"], memories].concat();
        let (server, Served { uri, domains }): (_, Served) = Server::start("libvirt_host.py", &arguments)?;
        let domain = |ServedDomain { name, uuid, pid, inside }| Domain { name, uuid, pid, inside: Inside::new(&inside) };
        Ok(Self { uri, domains: domains.into_iter().map(domain).collect(), _server: server })
    }

    /// By which a client reaches it.
    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// In the order in which they were asked for.
    pub(crate) fn domains(&self) -> &[Domain] {
        &self.domains
    }
}

impl Domain {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn uuid(&self) -> &str {
        &self.uuid
    }

    /// QEMU's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }
}

impl Deref for Domain {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.inside
    }
}
