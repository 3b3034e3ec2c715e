//! Which running guests this host has.

use std::path::Path;

use vmi_driver_kvm::Road;
use vmi_driver_kvm::processes::{QemuProcess, processes};

use crate::{BackEnd, Target};

/// A running guest that was found on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FoundGuest {
    /// What [`open()`](crate::open()) takes; `None` if there is no way in.
    pub target: Option<Target>,
    /// The guest's name, if it has one.
    pub name: Option<String>,
    /// The process that runs it.
    pub pid: Option<u32>,
    /// How much memory it was given, as whoever started it wrote that.
    pub memory: Option<String>,
    /// The ways to its memory that are open to this user, best first.
    pub roads: Vec<Road>,
    /// Whether it can be paused and resumed.
    pub control: bool,
    /// Whether it reports events.
    pub events: bool,
    /// What is not possible and why, and what can be done about it; a sentence each.
    pub problems: Vec<String>,
}

/// The running guests of this host that this user can see: QEMU processes. Nothing is opened: another client may be talking to their sockets.
pub fn targets() -> Vec<FoundGuest> {
    #[allow(unused_mut, reason = "without libvirt and Xen there is nothing to add")]
    let mut guests: Vec<FoundGuest> = processes().iter().map(found).collect();
    #[cfg(feature = "libvirt")]
    for domain in domains() {
        name_domain(&mut guests, domain);
    }
    #[cfg(feature = "xen")]
    guests.extend(xen_domains());
    // A way to memory is no use where nothing tells what lies where.
    guests.iter_mut().filter(|guest| guest.target.is_none()).for_each(|guest| guest.roads.clear());
    guests
}

/// The domains of the Xen under which this runs, if this is its dom0 and the user is root.
#[cfg(feature = "xen")]
fn xen_domains() -> Vec<FoundGuest> {
    // Without Xen there is no device, and nothing to say.
    if !Path::new("/dev/xen/privcmd").exists() {
        return Vec::new();
    }
    let found = vmi_driver_xen::domains();
    let domains = found.inspect_err(|error| tracing::debug!(%error, "no list of Xen's domains")).unwrap_or_default();
    domains.into_iter().map(found_domain).collect()
}

#[cfg(feature = "xen")]
fn found_domain(domain: vmi_driver_xen::Domain) -> FoundGuest {
    // Xen counts pages of 4 KiB.
    let memory = format!("{} MiB", domain.info.pages >> 8);
    let address = domain.name.clone().unwrap_or_else(|| domain.info.id.to_string());
    FoundGuest {
        target: Some(Target::Live { back_end: BackEnd::Xen, address }),
        name: domain.name,
        pid: None,
        memory: Some(memory),
        roads: Vec::new(),
        control: true,
        events: domain.info.kind == vmi_driver_xen::DomainKind::Hardware,
        problems: Vec::new(),
    }
}

/// The domains of the libvirt that this user reaches; none if there is none, or if it does not answer soon.
#[cfg(feature = "libvirt")]
fn domains() -> Vec<vmi_driver_kvm::libvirt::DomainRow> {
    let found = vmi_driver_kvm::libvirt::domains(None, std::time::Duration::from_secs(5));
    found.inspect_err(|error| tracing::debug!(%error, "no list of libvirt's domains")).unwrap_or_default()
}

/// Adds what libvirt knows: its domains are processes that were found already, or are out of sight.
#[cfg(feature = "libvirt")]
fn name_domain(guests: &mut Vec<FoundGuest>, domain: vmi_driver_kvm::libvirt::DomainRow) {
    let pid = domain.process.as_ref().ok().and_then(|pid| u32::try_from(pid.as_raw()).ok());
    let target = Some(Target::from(domain.target.to_string()));
    let known = guests.iter_mut().find(|guest| guest.pid.is_some() && guest.pid == pid);
    let guest = match known {
        Some(guest) => guest,
        None => {
            guests.push(FoundGuest {
                target: None,
                name: None,
                pid,
                memory: None,
                roads: Vec::new(),
                control: false,
                events: false,
                problems: Vec::new(),
            });
            let Some(last) = guests.last_mut() else { return };
            last.problems.extend(domain.process.err().map(|error| format!("its memory cannot be read directly: {error}")));
            last
        }
    };
    guest.problems.retain(|problem| !problem.contains("libvirt:NAME"));
    (guest.target, guest.name) = (target, Some(domain.name));
    (guest.control, guest.events) = (true, true);
    if !guest.roads.contains(&Road::Gdb) {
        guest.roads.push(Road::Gdb);
    }
}

fn found(process: &QemuProcess) -> FoundGuest {
    let mut problems = Vec::new();
    let usable = |path: &&std::path::PathBuf| may_connect(path);
    let socket = process.qmp_sockets().iter().find(usable);
    let stub = process.gdb_stub();
    let back_end = |back_end, address: String| Some(Target::Live { back_end, address });
    let target = match (socket, stub) {
        (Some(path), _) => back_end(BackEnd::Qemu, path.display().to_string()),
        (None, Some(address)) => back_end(BackEnd::Gdb, address.to_string()),
        (None, None) => None,
    };
    if let (None, Some(path)) = (socket, process.qmp_sockets().first()) {
        problems.push(format!("{}: this user may not connect to its QMP socket; run as its user, or as root", path.display()));
    } else if socket.is_none() {
        problems.push(
            "it has no QMP socket of its own: start QEMU with `-qmp unix:PATH,server=on,wait=off`, or reach a guest of libvirt by \
             `libvirt:NAME`"
                .to_owned(),
        );
    }
    let mut roads = Vec::new();
    match process.refused() {
        None if process.has_shared_memory() => roads.extend([Road::Shared, Road::Process]),
        None => roads.push(Road::Process),
        Some(why) => problems.push(format!("its memory cannot be read directly: {why}")),
    }
    if target.is_some() {
        roads.push(Road::Gdb);
    }
    FoundGuest {
        control: target.is_some(),
        events: target.is_some(),
        target,
        name: process.name().map(str::to_owned),
        pid: Some(process.pid()),
        memory: process.memory().map(str::to_owned),
        roads,
        problems,
    }
}

/// Whether this user may connect to a socket: that takes the right to write to it (unix(7)).
fn may_connect(path: &Path) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok()
}
