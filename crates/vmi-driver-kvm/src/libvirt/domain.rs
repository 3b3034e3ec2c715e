//! One domain of libvirt, and the list of them.

use std::fs;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};
use std::{fmt, io, thread};

use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::{Value, json};
use virt::connect::Connect;
use virt::domain::{Domain, DomainState};
use virt::error::ErrorNumber;

use super::call::{CallError, with_limit};
use super::{LibvirtError, LibvirtTarget};
use crate::qmp::{Monitor, MonitorError, query};

/// What a list shows at most of the names that run.
const NAMES_SHOWN: usize = 20;

/// How long libvirt may need to clear up after a domain that has ended. 1 to 2.5 seconds were seen with libvirt 9.0.
const NOTICED: Duration = Duration::from_secs(8);
const NOTICE_STEP: Duration = Duration::from_millis(20);

/// A running domain of libvirt's QEMU driver: QEMU's monitor through libvirt (`virDomainQemuMonitorCommand`), pause and resume
/// by libvirt's own calls, so that libvirt knows the domain's state, and the process behind it.
///
/// libvirt marks a domain whose monitor was used so as tainted (`custom-monitor`) in its log; it has no other effect.
/// Every call ends within the time limit. libvirt's own printing of errors is switched off in this process; they are in the errors here.
pub struct LibvirtDomain {
    /// `None` only while it is dropped.
    handle: Option<Arc<Handle>>,
    name: String,
    uuid: String,
    uri: String,
    limit: Duration,
}

struct Handle {
    domain: Domain,
    /// Behind the domain, so that it is closed after it.
    _connection: Connect,
}

impl LibvirtDomain {
    /// Finds a running domain: by UUID if the target looks like one, then by name. Each call to libvirt must end within `limit`.
    ///
    /// # Errors
    /// [`LibvirtError::Connect`], [`LibvirtError::NotQemu`], [`LibvirtError::NoDomain`], [`LibvirtError::NotRunning`], and those of calls.
    pub fn open(target: &LibvirtTarget, limit: Duration) -> Result<Self, LibvirtError> {
        let wanted = target.clone();
        call(limit, format!("opening {target}"), move || {
            let (connection, uri) = connect(wanted.uri.as_deref())?;
            let domain = look_up(&connection, &wanted.name, &uri)?;
            let failed = |source| LibvirtError::Call { action: format!("asking about the domain `{}`", wanted.name), source };
            let name = domain.name().map_err(failed)?;
            let uuid = domain.uuid_string().map_err(failed)?;
            if !domain.is_active().map_err(failed)? {
                let (state, _) = domain.state().map_err(failed)?;
                return Err(LibvirtError::NotRunning { name, state: state.to_string() });
            }
            Ok(Self { handle: Some(Arc::new(Handle { domain, _connection: connection })), name, uuid, uri, limit })
        })
    }

    /// The domain's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The domain's UUID, as libvirt writes it.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// The connection, as libvirt tells its URI.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Whether libvirt takes the domain for paused.
    ///
    /// # Errors
    /// [`LibvirtError::Call`], [`LibvirtError::TimedOut`].
    pub fn is_paused(&self) -> Result<bool, LibvirtError> {
        Ok(self.state()? == Some(DomainState::Paused))
    }

    /// The process of the domain's QEMU on this host.
    ///
    /// libvirt does not tell it, and its file of the pid lies wherever that libvirt was told to keep it. QEMU itself tells the threads of its
    /// vCPUs (`query-cpus-fast`); the process of such a thread is taken if its command line names the domain's UUID, so that a thread
    /// number of another host or another pid namespace is not mistaken for one here.
    ///
    /// # Errors
    /// [`LibvirtError::NoProcess`] if there is none (the domain may run on another host), [`LibvirtError::Monitor`].
    pub fn process(&self) -> Result<Pid, LibvirtError> {
        let threads: Vec<VcpuThread> = query(self, "query-cpus-fast")?;
        process_of(&threads, &self.uuid).map_err(|why| LibvirtError::NoProcess { name: self.name.clone(), why })
    }

    fn state(&self) -> Result<Option<DomainState>, LibvirtError> {
        let action = format!("asking for the state of `{}`", self.name);
        let handle = self.handle(&action)?;
        call(self.limit, action.clone(), move || match handle.domain.state() {
            Ok((state, _)) => Ok(state.known()),
            Err(source) => Err(LibvirtError::Call { action, source }),
        })
    }

    fn handle(&self, action: &str) -> Result<Arc<Handle>, LibvirtError> {
        self.handle
            .clone()
            .ok_or_else(|| LibvirtError::Io { action: action.to_owned(), source: io::ErrorKind::NotConnected.into() })
    }

    /// Runs a call on the domain for the monitor's sake.
    fn on_domain<T: Send + 'static>(
        &self,
        command: &str,
        call: impl FnOnce(&Domain) -> Result<T, virt::error::Error> + Send + 'static,
    ) -> Result<T, MonitorError> {
        let io = |source| MonitorError::Io { monitor: self.describe(), command: command.to_owned(), source };
        let handle = self.handle.clone().ok_or_else(|| io(io::ErrorKind::NotConnected.into()))?;
        match with_limit(self.limit, move || call(&handle.domain)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => match self.ended(error.code().known()) {
                true => Err(MonitorError::Closed { monitor: self.describe(), command: command.to_owned() }),
                false => Err(io(io::Error::other(error))),
            },
            Err(CallError::TimedOut) => {
                Err(MonitorError::TimedOut { monitor: self.describe(), command: command.to_owned(), limit: self.limit })
            }
            Err(CallError::Failed(source)) => Err(io(source)),
        }
    }

    /// Whether a call failed because the domain runs no more.
    fn ended(&self, code: Option<ErrorNumber>) -> bool {
        let early = matches!(code, Some(ErrorNumber::InternalError | ErrorNumber::SystemError | ErrorNumber::OperationFailed));
        let since = Instant::now();
        loop {
            let Some(handle) = self.handle.clone() else { return false };
            match with_limit(self.limit, move || handle.domain.is_active()) {
                // A transient domain that ended does not exist any more.
                Ok(Ok(false)) => return true,
                Ok(Err(error)) if error.code().is(ErrorNumber::NoDomain) => return true,
                // The end of QEMU's monitor is an internal or system error at first; libvirt has yet to find out why it ended.
                Ok(_) if early && since.elapsed() < NOTICED => thread::sleep(NOTICE_STEP),
                _ => return false,
            }
        }
    }
}

impl Monitor for LibvirtDomain {
    fn execute(&self, command: &str, arguments: Value) -> Result<Value, MonitorError> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        let answer = self.on_domain(command, move |domain| {
            domain.qemu_monitor_command(&text, virt::sys::VIR_DOMAIN_QEMU_MONITOR_COMMAND_DEFAULT)
        })?;
        let unexpected = |answer: Value| MonitorError::unexpected(self.describe(), command, &answer);
        let mut answer: Value = serde_json::from_str(&answer).map_err(|_| unexpected(Value::String(answer)))?;
        if let Some(value) = answer.get_mut("return") {
            return Ok(value.take());
        }
        match answer.get("error").map(Refusal::deserialize) {
            Some(Ok(Refusal { class, desc })) => {
                Err(MonitorError::Refused { monitor: self.describe(), command: command.to_owned(), class, description: desc })
            }
            _ => Err(unexpected(answer)),
        }
    }

    fn describe(&self) -> String {
        format!("libvirt domain `{}` at {}", self.name, self.uri)
    }

    fn stop(&self) -> Result<(), MonitorError> {
        self.on_domain("stop", Domain::suspend)
    }

    fn cont(&self) -> Result<(), MonitorError> {
        let result = self.on_domain("cont", Domain::resume);
        // QEMU's `cont` does nothing to a guest that runs; libvirt calls the same an error.
        match result {
            Err(_) if self.state().is_ok_and(|state| state == Some(DomainState::Running)) => Ok(()),
            other => other,
        }
    }
}

impl Drop for LibvirtDomain {
    /// Closing a connection asks the daemon, which may hang.
    fn drop(&mut self) {
        let handle = self.handle.take();
        let _ = with_limit(self.limit, move || drop(handle));
    }
}

impl fmt::Debug for LibvirtDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LibvirtDomain")
            .field("name", &self.name)
            .field("uuid", &self.uuid)
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}

/// QEMU's word for a refusal.
#[derive(Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

/// What `query-cpus-fast` says of a vCPU.
#[derive(Deserialize)]
struct VcpuThread {
    #[serde(rename = "thread-id")]
    thread: i32,
}

/// A running domain in the list.
#[derive(Debug)]
pub struct DomainRow {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Whether libvirt takes it for paused.
    pub paused: bool,
    /// Its QEMU on this host, whose memory may be read if this user may trace it.
    pub process: Result<Pid, LibvirtError>,
    /// What opens it.
    pub target: LibvirtTarget,
}

/// The running domains of libvirt at `uri` (`None`: libvirt chooses). Every one of them has a monitor; whether its RAM can be read depends
/// on [`DomainRow::process`].
///
/// # Errors
/// As [`LibvirtDomain::open`]. A domain that ends meanwhile is left out.
pub fn domains(uri: Option<&str>, limit: Duration) -> Result<Vec<DomainRow>, LibvirtError> {
    let wanted = uri.map(str::to_owned);
    let names = call(limit, "listing the domains".to_owned(), move || {
        let (connection, uri) = connect(wanted.as_deref())?;
        running(&connection).map_err(|source| LibvirtError::Call { action: format!("listing the domains of {uri}"), source })
    })?;
    let mut rows = Vec::with_capacity(names.len());
    for name in names {
        let target = LibvirtTarget { name, uri: uri.map(str::to_owned) };
        let domain = match LibvirtDomain::open(&target, limit) {
            Ok(domain) => domain,
            Err(LibvirtError::NoDomain { .. } | LibvirtError::NotRunning { .. }) => continue,
            Err(error) => return Err(error),
        };
        rows.push(DomainRow {
            name: domain.name.clone(),
            uuid: domain.uuid.clone(),
            paused: domain.is_paused()?,
            process: domain.process(),
            target,
        });
    }
    Ok(rows)
}

/// Runs a call that gives our own error.
fn call<T: Send + 'static>(
    limit: Duration,
    action: String,
    call: impl FnOnce() -> Result<T, LibvirtError> + Send + 'static,
) -> Result<T, LibvirtError> {
    match with_limit(limit, call) {
        Ok(result) => result,
        Err(CallError::TimedOut) => Err(LibvirtError::TimedOut { action, limit }),
        Err(CallError::Failed(source)) => Err(LibvirtError::Io { action, source }),
    }
}

/// Connects, and gives libvirt's own word for the URI.
fn connect(uri: Option<&str>) -> Result<(Connect, String), LibvirtError> {
    static QUIET: Once = Once::new();
    QUIET.call_once(virt::error::clear_error_callback);
    let shown = uri.unwrap_or("its default URI").to_owned();
    let failed = |source| LibvirtError::Connect { uri: shown.clone(), source };
    let connection = Connect::open(uri).map_err(failed)?;
    let uri = connection.uri().map_err(failed)?;
    // Others than QEMU's driver have no monitor: xen, lxc, test, esx.
    match uri.split(['+', ':']).next() {
        Some("qemu") => Ok((connection, uri)),
        _ => Err(LibvirtError::NotQemu { uri }),
    }
}

fn look_up(connection: &Connect, name: &str, uri: &str) -> Result<Domain, LibvirtError> {
    if looks_like_uuid(name)
        && let Ok(domain) = connection.lookup_domain_by_uuid_string(name)
    {
        return Ok(domain);
    }
    connection.lookup_domain_by_name(name).map_err(|source| match source.code().known() {
        Some(ErrorNumber::NoDomain) => {
            let mut running = running(connection).unwrap_or_default();
            running.truncate(NAMES_SHOWN);
            LibvirtError::NoDomain { name: name.to_owned(), uri: uri.to_owned(), running }
        }
        _ => LibvirtError::Call { action: format!("looking for the domain `{name}`"), source },
    })
}

/// Names of the running domains.
fn running(connection: &Connect) -> Result<Vec<String>, virt::error::Error> {
    let domains = connection.list_all_domains(virt::sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)?;
    // One that is gone by now has no name any more.
    Ok(domains.iter().filter_map(|domain| domain.name().ok()).collect())
}

fn looks_like_uuid(name: &str) -> bool {
    let digits = name.chars().filter(|c| c.is_ascii_hexdigit()).count();
    digits == 32 && name.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

/// The process of the vCPUs' threads, if its command line has this UUID.
fn process_of(threads: &[VcpuThread], uuid: &str) -> Result<Pid, String> {
    let thread = threads.first().ok_or("QEMU tells no vCPU")?.thread;
    let elsewhere = "it runs on another host, or in another pid namespace";
    let status = fs::read_to_string(format!("/proc/{thread}/status"))
        .map_err(|error| format!("no thread {thread}, which its first vCPU is ({error}): {elsewhere}"))?;
    let pid = status
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:")?.trim().parse::<i32>().ok())
        .ok_or_else(|| format!("/proc/{thread}/status tells no process"))?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).map_err(|error| format!("/proc/{pid}/cmdline: {error}"))?;
    let mut arguments = command.split(|byte| *byte == 0);
    let named = arguments.any(|argument| argument == b"-uuid")
        && arguments.next().is_some_and(|next| next.eq_ignore_ascii_case(uuid.as_bytes()));
    match named {
        true => Ok(Pid::from_raw(pid)),
        false => Err(format!("process {pid} is not the QEMU of UUID {uuid}: {elsewhere}")),
    }
}
