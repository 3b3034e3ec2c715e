//! Getting at the guest's gdb stub: the one that QEMU was started with, or one that its monitor opens for us alone.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use serde_json::json;
use vmi_core::{Capability, Error, Result};

use crate::failure::Failures;
use crate::gdb::{GdbAddress, GdbClient, GdbOptions};
use crate::qmp::{Monitor, MonitorError, query};

/// The name that our own character device has in QEMU.
const OURS: &str = "vmi-gdb";

/// Where a guest's gdb stub is.
#[derive(Debug)]
pub(crate) struct GdbStub {
    /// Where the user says that it is.
    given: Option<GdbAddress>,
    /// QEMU's process, whose working directory relative paths start from.
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
        if devices.iter().any(|device| device.label == OURS) {
            // What a process that was killed has left.
            monitor.human("gdbserver none").map_err(failed)?;
        } else if let Some(device) = devices.iter().find(|device| device.label == "gdb")
            && let Some(address) = self.address(&device.filename)
        {
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
                let address = self.open_local(monitor, failures)?;
                self.ours.store(true, Ordering::Release);
                connect(&address).inspect_err(|_| self.close(Some(monitor)))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Where QEMU says that its stub is: `disconnected:unix:guest.gdb,server=on`.
    fn address(&self, filename: &str) -> Option<GdbAddress> {
        let text = filename.strip_prefix("disconnected:").unwrap_or(filename);
        let address: GdbAddress = text.parse().ok()?;
        Some(match (address, self.pid) {
            (GdbAddress::Unix(path), Some(pid)) if path.is_relative() => {
                GdbAddress::Unix(Path::new("/proc").join(pid.to_string()).join("cwd").join(path))
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

    /// Opens a stub on a port of the loopback device, where QEMU cannot be handed a socket. Any local user could connect while it is open.
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
        let stub = GdbStub::new(None, Some(7), GdbOptions::default());
        let address = |text: &str| stub.address(text).map(|address| address.to_string());
        assert_eq!(address("disconnected:unix:g.sock,server=on").unwrap(), "unix:/proc/7/cwd/g.sock");
        assert_eq!(address("unix:/run/g.sock,server=on").unwrap(), "unix:/run/g.sock");
        assert_eq!(address("disconnected:tcp:0.0.0.0:1234,server=on").unwrap(), "tcp:0.0.0.0:1234");
        assert_eq!(address("stdio"), None);
    }
}
