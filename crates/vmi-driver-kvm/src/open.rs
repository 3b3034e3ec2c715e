//! From a socket, a process or a monitor to a guest that can be read.

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use serde::Deserialize;
use serde_json::{Value, json};
use vmi_core::{Liveness, MachineInfo};

use crate::driver::Parts;
use crate::execution::Execution;
use crate::failure::Failures;
use crate::gdb::{GdbAddress, GdbError};
use crate::gdb_stub::GdbStub;
use crate::human_registers;
use crate::memory::{self, GdbMemory, PhysicalMemory, PmemMemory, ProcessMemory, RamPiece, SharedMemory};
use crate::options::{Options, Road};
use crate::pmemaccess::{COMMAND, PATH_LIMIT, PmemAccess, PmemError};
use crate::processes::QemuProcess;
use crate::qmp::{Monitor, MonitorError, QmpSocket, query};
use crate::ram_layout::{LayoutError, RamLayout};

/// How long a `pmemaccess` server may take.
const PMEM_LIMIT: Duration = Duration::from_secs(10);

/// Why a guest could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// QEMU's monitor cannot be used.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The guest's memory could not be found out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The gdb stub cannot be used.
    #[error(transparent)]
    Gdb(#[from] GdbError),
    /// A core operation failed while the guest was being opened.
    #[error(transparent)]
    Guest(#[from] vmi_core::Error),
    /// No way to memory works.
    #[error("{machine}: no way to its memory works:{}", tried.iter().map(|attempt| format!("\n  {attempt}")).collect::<String>())]
    NoRoad {
        /// The machine.
        machine: String,
        /// What was tried, and why it failed.
        tried: Vec<RoadAttempt>,
    },
    /// There is no such process, or it is no QEMU that can be opened.
    #[error("process {pid}: {why}")]
    Process {
        /// The process id.
        pid: u32,
        /// What is missing, and what to do.
        why: String,
    },
}

/// A way to memory that did not work.
#[derive(Debug, thiserror::Error)]
#[error("{road}: {why}")]
pub struct RoadAttempt {
    /// The way.
    pub road: Road,
    /// Why it failed.
    pub why: RoadError,
}

/// Why a way to memory did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RoadError {
    /// The QEMU process does not let itself be read.
    #[error(transparent)]
    Memory(#[from] memory::OpenError),
    /// The process is not known, or not on this host.
    #[error("QEMU's process is not known: its socket was made by somebody else, or it is not on this host")]
    NoProcess,
    /// The `pmemaccess` socket cannot be used.
    #[error(transparent)]
    Pmem(#[from] PmemError),
    /// No `pmemaccess` socket can be made there.
    #[error("{}: {why}; name a socket that is there, or one that QEMU can make", path.display())]
    PmemPath {
        /// Where it was to be.
        path: PathBuf,
        /// Why it cannot.
        why: String,
    },
    /// This QEMU has no `pmemaccess`.
    #[error("this QEMU has not got LibVMI's patch: {0}")]
    NoPmem(MonitorError),
    /// The gdb stub cannot be used.
    #[error(transparent)]
    Gdb(#[from] vmi_core::Error),
}

/// What `query-name` says.
#[derive(Deserialize)]
struct Name {
    name: Option<String>,
}

/// What `query-version` says.
#[derive(Deserialize)]
struct Version {
    qemu: Release,
}

#[derive(Deserialize)]
struct Release {
    major: u32,
    minor: u32,
}

pub(crate) fn qmp(path: &Path, options: &Options) -> Result<Parts, OpenError> {
    let socket = QmpSocket::connect(path, options.qmp)?;
    let pid = socket.peer_pid().and_then(|pid| u32::try_from(pid).ok());
    over(Arc::new(socket), pid, options)
}

pub(crate) fn process(pid: u32, options: &Options) -> Result<Parts, OpenError> {
    let process = QemuProcess::find(pid).map_err(|error| OpenError::Process { pid, why: error.to_string() })?;
    let mut failed = Vec::new();
    for socket in process.qmp_sockets() {
        match qmp(socket, options) {
            Ok(parts) => return Ok(parts),
            Err(error) => failed.push(error.to_string()),
        }
    }
    if let Some(address) = process.gdb_stub() {
        match gdb(address.clone(), options) {
            Ok(parts) => return Ok(parts),
            Err(error) => failed.push(error.to_string()),
        }
    }
    let why = if failed.is_empty() {
        "its command line names neither a QMP socket nor a gdb stub. Start QEMU with `-qmp unix:PATH,server=on,wait=off`; for a guest of libvirt use a target \
         `libvirt:NAME`"
            .to_owned()
    } else {
        failed.join("; ")
    };
    Err(OpenError::Process { pid, why })
}

pub(crate) fn over(monitor: Arc<dyn Monitor>, pid: Option<u32>, options: &Options) -> Result<Parts, OpenError> {
    let name: Name = query(&*monitor, "query-name")?;
    let vcpus: Vec<Value> = query(&*monitor, "query-cpus-fast")?;
    let vcpus = u32::try_from(vcpus.len()).unwrap_or(u32::MAX);
    let layout = RamLayout::ask(&*monitor)?;
    let machine = match (name.name.filter(|name| !name.is_empty()), pid) {
        (Some(name), _) => format!("QEMU guest {name}"),
        (None, Some(pid)) => format!("QEMU guest (pid {pid})"),
        (None, None) => format!("QEMU guest at {}", monitor.describe()),
    };
    let failures = Failures::new(&machine);
    let stub = GdbStub::new(options.gdb.clone(), pid, options.gdb_options);
    let execution = Arc::new(Execution::new(Some(Arc::clone(&monitor)), stub, options.guardian, failures.clone()));
    let source = Source { monitor: &monitor, execution: &execution, machine: &machine, pid };
    let (road, memory, pid) = source.memory(&layout.pieces, options)?;
    let machine = MachineInfo { name: machine, memory: layout.main, liveness: Liveness::Live, notes: Vec::new() };
    Ok(Parts { machine, road, memory, monitor, execution, failures, vcpus, pid, holds_link: false })
}

pub(crate) fn gdb(address: GdbAddress, options: &Options) -> Result<Parts, OpenError> {
    let machine = format!("QEMU guest at {address}");
    let failures = Failures::new(&machine);
    let stub = GdbStub::new(Some(address), None, options.gdb_options);
    let execution = Arc::new(Execution::new(None, stub, options.guardian, failures.clone()));
    execution.acquire()?;
    // From here on the connection is given up with the last reference to `execution`, also on an error.
    let peer = execution.connection()?.and_then(|socket| getsockopt(&socket, sockopt::PeerCredentials).ok());
    let pid = peer.and_then(|peer| u32::try_from(peer.pid()).ok()).filter(|pid| *pid != 0);
    let monitor: Arc<dyn Monitor> = Arc::new(GdbMonitor { execution: Arc::clone(&execution), machine: machine.clone() });
    let layout = RamLayout::ask(&*monitor)?;
    let vcpus = human_registers::parse(&monitor.human("info registers -a")?).map_or(1, |all| all.len());
    let source = Source { monitor: &monitor, execution: &execution, machine: &machine, pid };
    let (road, memory, pid) = source.memory(&layout.pieces, options)?;
    let vcpus = u32::try_from(vcpus).unwrap_or(u32::MAX);
    let machine = MachineInfo { name: machine, memory: layout.main, liveness: Liveness::Live, notes: Vec::new() };
    Ok(Parts { machine, road, memory, monitor, execution, failures, vcpus, pid, holds_link: true })
}

/// What the ways to memory start from.
struct Source<'s> {
    monitor: &'s Arc<dyn Monitor>,
    execution: &'s Arc<Execution>,
    machine: &'s str,
    pid: Option<u32>,
}

type Opened = (Road, Box<dyn PhysicalMemory>, Option<u32>);

impl Source<'_> {
    /// The first way that works, or the one that is insisted on.
    fn memory(&self, pieces: &[RamPiece], options: &Options) -> Result<Opened, OpenError> {
        let wanted = options.road.map_or(Road::ALL.to_vec(), |road| vec![road]);
        let mut tried = Vec::new();
        for road in wanted {
            match self.road(road, pieces, options) {
                Ok((memory, pid)) => {
                    tracing::debug!(%road, machine = self.machine, "guest memory");
                    return Ok((road, memory, pid));
                }
                Err(why) => tried.push(RoadAttempt { road, why }),
            }
        }
        Err(OpenError::NoRoad { machine: self.machine.to_owned(), tried })
    }

    fn road(
        &self,
        road: Road,
        pieces: &[RamPiece],
        options: &Options,
    ) -> Result<(Box<dyn PhysicalMemory>, Option<u32>), RoadError> {
        let pid = self.pid.ok_or(RoadError::NoProcess);
        Ok(match road {
            Road::Shared => (Box::new(SharedMemory::open(pid?, pieces.to_vec())?), self.pid),
            Road::Process => (Box::new(ProcessMemory::open(pid?, pieces.to_vec())?), self.pid),
            Road::PmemAccess => (Box::new(self.pmemaccess(pieces, options)?), self.pid),
            Road::Gdb => {
                let memory = GdbMemory::new(Arc::clone(self.execution), pieces.to_vec())?;
                // Whether there is a stub shows only now; it must, before a way is called working.
                self.execution.while_stopped("trying the gdb stub", |_| Ok(()))?;
                (Box::new(memory), self.pid)
            }
        })
    }

    fn pmemaccess(&self, pieces: &[RamPiece], options: &Options) -> Result<PmemMemory, RoadError> {
        let named = options.pmemaccess.as_deref();
        let path = named.map_or_else(|| Ok(fresh_path()), std::path::absolute);
        let unusable = |path: &Path, why: String| RoadError::PmemPath { path: path.to_owned(), why };
        let path = path.map_err(|error| unusable(named.unwrap_or(Path::new("")), error.to_string()))?;
        let text = path.to_str().filter(|text| text.len() < PATH_LIMIT).ok_or_else(|| {
            unusable(
                &path,
                format!("it must be UTF-8 and shorter than {PATH_LIMIT} bytes: a longer one overruns a buffer in QEMU"),
            )
        })?;
        let make = || {
            self.monitor.execute(COMMAND, json!({ "path": text })).map_err(RoadError::NoPmem)?;
            let socket = PmemAccess::connect(&path, PMEM_LIMIT)?;
            let server = socket.server().and_then(|server| u32::try_from(server.as_raw()).ok());
            match (server, self.pid) {
                (Some(server), Some(pid)) if server != pid => {
                    Err(unusable(&path, format!("process {server} listens there, which is not this guest's QEMU")))
                }
                _ => Ok(socket),
            }
        };
        let socket = match std::fs::symlink_metadata(&path) {
            // The user says that it is there already; if nobody listens any more, QEMU replaces it.
            Ok(there) if named.is_some() && there.file_type().is_socket() => match PmemAccess::connect(&path, PMEM_LIMIT) {
                Ok(socket) => socket,
                Err(PmemError::Connect { source, .. }) if source.kind() == ErrorKind::ConnectionRefused => make()?,
                Err(error) => return Err(error.into()),
            },
            // QEMU removes whatever file lies there.
            Ok(_) => return Err(unusable(&path, "there is a file of that name, which QEMU would remove".to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => make()?,
            Err(error) => return Err(unusable(&path, error.to_string())),
        };
        Ok(PmemMemory::new(socket, self.machine.to_owned(), pieces.to_vec(), self.no_pmem_writes())?)
    }

    /// Why nothing may be written through a `pmemaccess` socket, if so: the patches before that for QEMU 2.8 write into QEMU's stack.
    fn no_pmem_writes(&self) -> Option<String> {
        const BEFORE: &str = "the patch of QEMU before 2.8 overwrites QEMU's stack when it writes";
        match query::<Version, _>(&**self.monitor, "query-version") {
            Ok(Version { qemu: Release { major, minor } }) if (major, minor) >= (2, 8) => None,
            Ok(Version { qemu: Release { major, minor } }) => Some(format!("{BEFORE}, and this is {major}.{minor}")),
            Err(error) => Some(format!("{BEFORE}, and its version is not known: {error}")),
        }
    }
}

/// A name for a socket that nobody has.
fn fresh_path() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("vmi-pmemaccess-{}-{count}", std::process::id()))
}

/// The human monitor behind a gdb stub. The guest stands still while it is asked.
#[derive(Debug)]
struct GdbMonitor {
    execution: Arc<Execution>,
    machine: String,
}

impl GdbMonitor {
    fn refused(&self, command: &str, description: &str) -> MonitorError {
        MonitorError::Refused {
            monitor: self.describe(),
            command: command.to_owned(),
            class: "CommandNotFound".to_owned(),
            description: description.to_owned(),
        }
    }
}

impl Monitor for GdbMonitor {
    fn execute(&self, command: &str, _arguments: Value) -> Result<Value, MonitorError> {
        match command {
            // What the stub knows itself.
            "query-status" => {
                let alive = self.execution.while_stopped("asking whether the guest lives", |_| Ok(()));
                alive.map_err(|error| match error.kind() {
                    vmi_core::ErrorKind::Ended { .. } => {
                        MonitorError::Closed { monitor: self.describe(), command: command.to_owned() }
                    }
                    _ => self.refused(command, &error.to_string()),
                })?;
                Ok(json!({ "running": self.execution.epoch().is_none(), "status": "unknown" }))
            }
            _ => {
                Err(self
                    .refused(command, "a gdb stub passes on commands of the human monitor alone; QMP commands need a QMP socket"))
            }
        }
    }

    fn describe(&self) -> String {
        format!("gdb stub of {}", self.machine)
    }

    fn human(&self, line: &str) -> Result<String, MonitorError> {
        let text = self.execution.while_stopped("asking the monitor", |client| client.monitor(line));
        text.map_err(|error| match error.kind() {
            vmi_core::ErrorKind::Ended { .. } => MonitorError::Closed { monitor: self.describe(), command: line.to_owned() },
            _ => self.refused(line, &error.to_string()),
        })
    }
}
