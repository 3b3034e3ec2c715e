//! One running guest.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

use super::inside::{Inside, Reach};
use super::qmp::Qmp;
use super::server::{Server, Skip};

/// Which QEMU runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Qemu {
    /// The machine's own: 7.2 on Debian 12.
    Own,
    /// 10.0, as the lab fetches it.
    V10,
}

/// What the guest's machine is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Machine {
    /// One vCPU, 128 MiB, i440fx.
    One,
    /// Two vCPUs, 128 MiB, q35.
    Smp,
    /// 128 MiB at address 0, 64 MiB at 4 GiB.
    High,
    /// Two memory backends as two NUMA nodes; half of the second one is at 4 GiB.
    Numa,
    /// One into which a DIMM can be plugged (`object-add`, `device_add pc-dimm`); the guest takes it into use.
    Dimm,
    /// 1 GiB, for benchmarks.
    #[expect(dead_code, reason = "for benchmarks")]
    Big,
}

/// What backs the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Memory {
    /// Files, shared.
    File,
    /// memfds, shared.
    Memfd,
    /// memfds of huge pages, shared.
    Huge,
    /// Anonymous memory of QEMU.
    Private,
}

/// What to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) qemu: Qemu,
    pub(crate) machine: Machine,
    pub(crate) memory: Memory,
}

/// A memory backend of the guest.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Backend {
    /// Of the QEMU object; RAM without a backend has none.
    pub(crate) id: Option<String>,
    pub(crate) mib: u64,
    pub(crate) shared: bool,
    /// Of a file.
    pub(crate) path: Option<PathBuf>,
}

/// What `live.py serve` says.
#[derive(Debug, Deserialize)]
struct Served {
    pid: u32,
    directory: PathBuf,
    qmp: PathBuf,
    qmp2: PathBuf,
    gdb: PathBuf,
    memory: Vec<Backend>,
    qemu: String,
    release: String,
    boot_seconds: f64,
    #[serde(flatten)]
    inside: Reach,
}

/// A guest that runs until this is dropped, or this process ends in whichever way.
#[derive(Debug)]
pub(crate) struct LiveGuest {
    served: Served,
    inside: Inside,
    qmp2: Mutex<Qmp>,
    _server: Server,
}

impl Deref for LiveGuest {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.inside
    }
}

impl LiveGuest {
    /// Boots a guest, and waits until its shell and its actor are there.
    ///
    /// # Panics
    /// If it does not boot although nothing is missing.
    pub(crate) fn boot(shape: &Shape) -> Result<Self, Skip> {
        let qemu = match shape.qemu {
            Qemu::Own => "own",
            Qemu::V10 => "10.0",
        };
        let (machine, memory) = (format!("{:?}", shape.machine), format!("{:?}", shape.memory));
        let arguments = ["serve", "--qemu", qemu, "--shape", &machine.to_lowercase(), "--memory", &memory.to_lowercase()];
        let (server, served): (_, Served) = Server::start("live.py", &arguments)?;
        let (inside, qmp2) = (Inside::new(&served.inside), Mutex::new(Qmp::connect(&served.qmp2)));
        Ok(Self { served, inside, qmp2, _server: server })
    }

    /// Where its sockets and logs are; gone when the guest is.
    pub(crate) fn directory(&self) -> &Path {
        &self.served.directory
    }

    /// The monitor for the library, free.
    pub(crate) fn qmp_path(&self) -> &Path {
        &self.served.qmp
    }

    /// The gdb stub, free.
    pub(crate) fn gdb_path(&self) -> &Path {
        &self.served.gdb
    }

    /// QEMU's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.served.pid
    }

    /// What QEMU says of its version.
    pub(crate) fn version(&self) -> &str {
        &self.served.qemu
    }

    /// The guest's kernel release.
    pub(crate) fn release(&self) -> &str {
        &self.served.release
    }

    /// How long it took to boot.
    pub(crate) fn boot_seconds(&self) -> f64 {
        self.served.boot_seconds
    }

    /// What backs the guest's RAM.
    pub(crate) fn backends(&self) -> &[Backend] {
        &self.served.memory
    }

    /// A second monitor, for what tests do behind the library's back.
    pub(crate) fn qmp2(&self) -> MutexGuard<'_, Qmp> {
        self.qmp2.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
