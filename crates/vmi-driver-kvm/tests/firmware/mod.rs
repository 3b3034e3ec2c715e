//! A real QEMU with nothing but its firmware, and the comparison of all its memory with what QEMU itself says.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use vmi_core::{ErrorKind, Memory, PhysAddr, ReadOp, Vmi};
use vmi_driver_kvm::{Options, QemuDriver, Road};

pub const MIB: u64 = 1 << 20;

/// What runs the guest.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    pub program: &'a Path,
    /// QEMU's name for it: `tcg`, `kvm`.
    pub accelerator: &'a str,
}

/// A QEMU that runs its firmware, with a second monitor for the test.
pub struct Qemu {
    child: Child,
    directory: TempDir,
    monitor: BufReader<UnixStream>,
}

impl Qemu {
    /// `None`, with the reason printed, if this machine cannot start it.
    pub fn start(host: Host<'_>, arguments: &[&str]) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let socket = |name: &str| format!("unix:{},server=on,wait=off", directory.path().join(name).display());
        let mut command = Command::new(host.program);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", host.accelerator, "-vga", "std"]);
        command.args(["-qmp", &socket("qmp"), "-qmp", &socket("second")]).args(arguments);
        let mut child = match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => {
                println!("skipped: {}: {error}", host.program.display());
                return None;
            }
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        let monitor = loop {
            // A QEMU that cannot start makes its sockets before it finds out.
            if let Ok(stream) = UnixStream::connect(directory.path().join("second")) {
                stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                let mut monitor = BufReader::new(stream);
                if monitor.read_line(&mut String::new()).is_ok_and(|len| len > 0) {
                    break monitor;
                }
            }
            if child.try_wait().unwrap().is_some() {
                let text = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
                println!("skipped: {} does not start with {arguments:?}: {}", host.program.display(), text.trim());
                return None;
            }
            assert!(Instant::now() < deadline, "QEMU makes no monitor");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut qemu = Self { child, directory, monitor };
        qemu.execute("qmp_capabilities", json!({}));
        qemu.rest();
        Some(qemu)
    }

    /// Waits until the firmware has found nothing to start: until then it moves memory into and out of the map.
    fn rest(&mut self) {
        let (mut last, mut same) = (String::new(), 0);
        let deadline = Instant::now() + Duration::from_secs(120);
        while same < 10 {
            let text = self.human("info registers");
            let line = text.lines().find(|line| line.contains("IP=") && line.contains("HLT=1")).unwrap_or_default().to_owned();
            same = if !line.is_empty() && line == last { same + 1 } else { 0 };
            last = line;
            assert!(Instant::now() < deadline, "the firmware does not come to rest: {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A line of the human monitor.
    pub fn human(&mut self, line: &str) -> String {
        self.execute("human-monitor-command", json!({ "command-line": line })).as_str().unwrap().to_owned()
    }

    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.monitor.get_mut(), "{request}").unwrap();
        loop {
            let mut line = String::new();
            assert!(self.monitor.read_line(&mut line).unwrap() > 0, "QEMU has ended");
            let answer: Value = serde_json::from_str(&line).unwrap();
            if let Some(value) = answer.get("return") {
                return value.clone();
            }
            assert!(answer.get("error").is_none(), "{command}: {answer}");
        }
    }

    /// What QEMU says is in guest-physical memory.
    pub fn save(&mut self, at: u64, len: u64) -> Vec<u8> {
        let path = self.directory.path().join("saved");
        self.execute("pmemsave", json!({ "val": at, "size": len, "filename": path }));
        std::fs::read(path).unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("qmp")
    }

    pub fn open(&self, road: Road) -> Vmi<QemuDriver> {
        Vmi::new(QemuDriver::connect(self.socket(), &Options::new().road(road)).unwrap())
    }

    pub fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.end();
    }
}

/// Compares all of the guest's memory, by reads of several sizes and by a snapshot, with QEMU's own answer.
pub fn compare(host: Host<'_>, arguments: &[&str], road: Road) {
    if let Some(qemu) = Qemu::start(host, arguments) {
        compare_all(qemu, road);
    }
}

/// The same with a guest that runs already; it ends here.
pub fn compare_all(mut qemu: Qemu, road: Road) {
    let vmi = qemu.open(road);
    // In free memory of the firmware's, up to the last byte of the highest region.
    let end = vmi.machine().memory.end().get();
    for (at, data) in [(40 * MIB + 3, &b"some bytes"[..]), (end - 5, b"last!"), (32 * MIB, &[0x5a; 0x2345])] {
        vmi.write(PhysAddr::new(at), data).unwrap();
        assert_eq!(qemu.save(at, data.len() as u64), data, "written at {at:#x}");
    }
    let rom = vmi.write(PhysAddr::new(0xffff_fff0), b"x").unwrap_err();
    assert!(matches!(rom.kind(), ErrorKind::ReadOnly { .. } | ErrorKind::Hole { .. }), "{rom}");

    let paused = vmi.pause().unwrap();
    let snapshot = vmi.snapshot().unwrap();
    assert_eq!(snapshot.driver().report().missing, []);
    assert_eq!(qemu.execute("query-status", json!({}))["running"], false, "pauses nest");
    let mut total = 0;
    for region in vmi.machine().memory.regions() {
        let (start, len) = (region.start(), region.len());
        let theirs = qemu.save(start.get(), len);
        assert_eq!(vmi.read_vec(start, len as usize).unwrap(), theirs, "{road}: {start} of {:?}", vmi.machine().memory);
        assert_eq!(
            snapshot.read_vec(start, len as usize).unwrap(),
            theirs,
            "snapshot, {road}: {start} of {:?}",
            vmi.machine().memory
        );
        assert_eq!(snapshot.slice(start, len as usize).map(|bytes| bytes == theirs), Some(true));
        total += len;
    }
    assert!(total >= 63 * MIB, "{:?}", vmi.machine().memory);
    drop(paused);
    assert_eq!(qemu.execute("query-status", json!({}))["running"], true);
    assert!(snapshot.registers(vmi_core::VcpuId(0)).is_ok());

    qemu.end();
    let mut buf = [0; 16];
    let read = vmi.driver().read_memory(&mut buf);
    if road == Road::Process {
        let error = read.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Ended { .. }), "{error}");
    }
}

/// A read past the handle and its caches.
trait ReadMemory {
    fn read_memory(&self, buf: &mut [u8]) -> vmi_core::Result<()>;
}

impl ReadMemory for QemuDriver {
    fn read_memory(&self, buf: &mut [u8]) -> vmi_core::Result<()> {
        let mut ops = [ReadOp::new(PhysAddr::new(32 * MIB), buf)];
        vmi_core::Driver::read_batch(self, &mut ops);
        let [op] = ops;
        op.result
    }
}
