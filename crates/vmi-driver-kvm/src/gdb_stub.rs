//! Getting at the guest's gdb stub: the one that QEMU was started with, or one that its monitor opens for us alone.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::{Uid, chown, geteuid, mkdtemp};
use serde::Deserialize;
use serde_json::json;
use vmi_core::{Capability, Error, Result};

use crate::failure::Failures;
use crate::gdb::{GdbAddress, GdbClient, GdbOptions};
use crate::processes::from_start;
use crate::qmp::{Monitor, MonitorError, query};

/// The name that our own character device has in QEMU.
const OURS: &str = "vmi-gdb";

/// How the directory of a socket begins that we had QEMU make.
const HIDDEN: &str = "/vmi-gdb-";

/// What QEMU says before the name of a socket to which nobody is connected.
const NOBODY: &str = "disconnected:";

/// Where a guest's gdb stub is.
#[derive(Debug)]
pub(crate) struct GdbStub {
    /// Where the user says that it is.
    given: Option<GdbAddress>,
    /// QEMU's process: relative paths start where it was started.
    pid: Option<u32>,
    options: GdbOptions,
    /// Whether the stub that is open is one that we opened.
    ours: AtomicBool,
}

/// A row of `query-chardev`.
#[derive(Deserialize)]
struct CharDevice {
    label: String,
    filename: String,
}

impl CharDevice {
    /// Whether nobody is connected.
    fn is_free(&self) -> bool {
        self.filename.starts_with(NOBODY)
    }
}

impl GdbStub {
    pub(crate) fn new(given: Option<GdbAddress>, pid: Option<u32>, options: GdbOptions) -> Self {
        Self { given, pid, options, ours: AtomicBool::new(false) }
    }

    /// Connects. The guest stands still then.
    pub(crate) fn connect(&self, monitor: Option<&dyn Monitor>, failures: &Failures) -> Result<GdbClient> {
        let connect = |address: &GdbAddress| {
            GdbClient::connect(address, &self.options).map_err(|error| failures.gdb("connecting to the gdb stub", error))
        };
        let failed = |error: MonitorError| failures.monitor("opening a gdb stub", error);
        if let Some(address) = &self.given {
            return connect(address);
        }
        let Some(monitor) = monitor else {
            return Err(Error::unsupported(Capability::Events, failures.machine()));
        };
        let devices: Vec<CharDevice> = query(monitor, "query-chardev").map_err(failed)?;
        let stub = devices.iter().find(|device| device.label == "gdb");
        let hidden = stub.filter(|device| device.filename.contains(HIDDEN));
        if devices.iter().any(|device| device.label == OURS) || hidden.is_some_and(CharDevice::is_free) {
            // What a process that was killed has left.
            monitor.human("gdbserver none").map_err(failed)?;
        } else if let Some(device) = hidden {
            let why = format!("another process uses the gdb stub that it has opened ({}); end that one", device.filename);
            return Err(failures.other("connecting to the gdb stub", why));
        } else if let Some(address) = stub.and_then(|device| self.address(&device.filename)) {
            // QEMU has one stub: to open ours would take this one from its user.
            return connect(&address);
        }
        match self.open_private(monitor) {
            Ok(stream) => {
                self.ours.store(true, Ordering::Release);
                let client = GdbClient::over(stream, OURS, &self.options);
                client.map_err(|error| failures.gdb("greeting our gdb stub", error)).inspect_err(|_| self.close(Some(monitor)))
            }
            Err(MonitorError::NoFiles { .. }) => {
                self.ours.store(true, Ordering::Release);
                let connected = self.open_hidden(monitor, failures).and_then(|(_directory, address)| connect(&address));
                let connected = connected.or_else(|error| {
                    tracing::debug!(%error, "no gdb stub in a directory of ours");
                    connect(&self.open_local(monitor, failures)?)
                });
                connected.inspect_err(|_| self.close(Some(monitor)))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Where QEMU says that its stub is: `disconnected:unix:guest.gdb,server=on`.
    fn address(&self, filename: &str) -> Option<GdbAddress> {
        let text = filename.strip_prefix(NOBODY).unwrap_or(filename);
        let address: GdbAddress = text.parse().ok()?;
        Some(match (address, self.pid) {
            (GdbAddress::Unix(path), Some(pid)) if path.is_relative() => {
                GdbAddress::Unix(from_start(&Path::new("/proc").join(pid.to_string()), &path))
            }
            (address, _) => address,
        })
    }

    /// Opens a stub on a socket pair, one end of which QEMU gets: nobody else can connect, and no name is left in any file system.
    fn open_private(&self, monitor: &dyn Monitor) -> Result<UnixStream, MonitorError> {
        let (ours, theirs) = UnixStream::pair().map_err(|source| MonitorError::Io {
            monitor: monitor.describe(),
            command: "getfd".to_owned(),
            source,
        })?;
        monitor.execute_with_file("getfd", json!({ "fdname": OURS }), theirs.as_fd())?;
        let address = json!({ "type": "fd", "data": { "str": OURS } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
        monitor.execute("chardev-add", json!({ "id": OURS, "backend": backend }))?;
        let said = monitor.human(&format!("gdbserver chardev:{OURS}"))?;
        expect_waiting(monitor, &said)?;
        Ok(ours)
    }

    /// Opens a stub in a new directory that we and QEMU's user alone can enter, where QEMU cannot be handed a socket. The directory is there until we are
    /// connected. A QEMU that is confined to files of its own refuses.
    fn open_hidden(&self, monitor: &dyn Monitor, failures: &Failures) -> Result<(Directory, GdbAddress)> {
        const ACTION: &str = "opening a gdb stub in a directory of ours";
        let directory = Directory::new(self.pid).map_err(|error| failures.other(ACTION, error))?;
        let path = directory.0.join(SOCKET);
        // The rest would have to be escaped for the monitor and for the option.
        let plain = |text: &&str| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-'));
        let text = path.to_str().filter(plain);
        let text = text.ok_or_else(|| failures.other(ACTION, format!("{}: an unusual path", path.display())))?;
        let said = monitor.human(&format!("gdbserver unix:{text},server=on,wait=off"));
        let opened = said.and_then(|said| expect_waiting(monitor, &said));
        opened.map_err(|error| failures.monitor(ACTION, error))?;
        Ok((directory, GdbAddress::Unix(path)))
    }

    /// Opens a stub on a port of the loopback device, where QEMU can do nothing else. Any local user could connect while it is open.
    fn open_local(&self, monitor: &dyn Monitor, failures: &Failures) -> Result<GdbAddress> {
        // A port that was free a moment ago: QEMU does not tell which one it chose itself.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.map_err(|error| failures.other("looking for a free port", error))?;
        let said = monitor.human(&format!("gdbserver tcp:{address}"));
        let opened = said.and_then(|said| expect_waiting(monitor, &said));
        opened.map_err(|error| failures.monitor("opening a gdb stub", error))?;
        Ok(GdbAddress::Tcp(address.to_string()))
    }

    /// Closes the stub if it is one that we opened. The guest does what it did.
    pub(crate) fn close(&self, monitor: Option<&dyn Monitor>) {
        if self.ours.swap(false, Ordering::AcqRel)
            && let Some(monitor) = monitor
            && let Err(error) = monitor.human("gdbserver none")
            && !error.is_closed()
        {
            tracing::warn!(%error, "our gdb stub stays open");
        }
    }
}

/// The name of a stub's socket.
const SOCKET: &str = "gdb";

/// A new directory for a socket, which goes with this.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    /// Makes one that only this user can enter; if this is root, only the user of process `qemu`.
    fn new(qemu: Option<u32>) -> std::io::Result<Self> {
        let directory = Self(mkdtemp(&std::env::temp_dir().join(format!("{}XXXXXX", HIDDEN.trim_start_matches('/'))))?);
        let user =
            qemu.and_then(|pid| std::fs::metadata(format!("/proc/{pid}")).ok()).map(|process| Uid::from_raw(process.uid()));
        if geteuid().is_root() {
            chown(&directory.0, user, None)?;
        }
        Ok(directory)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0.join(SOCKET));
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// What `gdbserver` prints when it worked: `Waiting for gdb connection on device ...`.
fn expect_waiting(monitor: &dyn Monitor, said: &str) -> Result<(), MonitorError> {
    if said.starts_with("Waiting for gdb connection") {
        Ok(())
    } else {
        Err(MonitorError::unexpected(monitor.describe(), "gdbserver", &json!(said)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stub_that_qemu_was_started_with_is_found() {
        // There is no such process.
        let stub = GdbStub::new(None, Some(u32::MAX), GdbOptions::default());
        let address = |text: &str| stub.address(text).map(|address| address.to_string());
        assert_eq!(address("disconnected:unix:g.sock,server=on").unwrap(), "unix:/proc/4294967295/cwd/g.sock");
        assert_eq!(address("unix:/run/g.sock,server=on").unwrap(), "unix:/run/g.sock");
        assert_eq!(address("disconnected:tcp:0.0.0.0:1234,server=on").unwrap(), "tcp:0.0.0.0:1234");
        assert_eq!(address("stdio"), None);
    }
}
