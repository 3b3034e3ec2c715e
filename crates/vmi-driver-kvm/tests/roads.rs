//! Both roads to memory on a real QEMU with nothing but its firmware, compared with what QEMU itself says of the guest's memory.
//!
//! `VMI_QEMU` names another QEMU than the one in the path.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use vmi_core::{ErrorKind, Memory, PhysAddr, ReadOp, Vmi};
use vmi_driver_kvm::{Options, QemuDriver, Road};

const MIB: u64 = 1 << 20;

/// A QEMU under TCG that runs its firmware, with a second monitor for the test.
struct Qemu {
    child: Child,
    directory: TempDir,
    monitor: BufReader<UnixStream>,
}

impl Qemu {
    /// `None`, with the reason printed, if this machine cannot start it.
    fn start(arguments: &[&str]) -> Option<Self> {
        let program: OsString = std::env::var_os("VMI_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into());
        let directory = tempfile::tempdir().unwrap();
        let socket = |name: &str| format!("unix:{},server=on,wait=off", directory.path().join(name).display());
        let mut command = Command::new(&program);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-vga", "std"]);
        command.args(["-qmp", &socket("qmp"), "-qmp", &socket("second")]).args(arguments);
        let mut child = match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => {
                println!("skipped: {}: {error}", program.display());
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
                println!("skipped: QEMU does not start with {arguments:?}: {}", text.trim());
                return None;
            }
            assert!(Instant::now() < deadline, "QEMU makes no monitor");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut qemu = Self { child, directory, monitor };
        qemu.execute("qmp_capabilities", json!({}));
        // Time for the firmware to fill its memory.
        std::thread::sleep(Duration::from_secs(1));
        Some(qemu)
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Value {
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
    fn save(&mut self, at: u64, len: u64) -> Vec<u8> {
        let path = self.directory.path().join("saved");
        self.execute("pmemsave", json!({ "val": at, "size": len, "filename": path }));
        std::fs::read(path).unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("qmp")
    }

    fn open(&self, road: Road) -> Vmi<QemuDriver> {
        Vmi::new(QemuDriver::connect(self.socket(), &Options::new().road(road)).unwrap())
    }

    fn end(&mut self) {
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
fn compare(arguments: &[&str], road: Road) {
    let Some(mut qemu) = Qemu::start(arguments) else { return };
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
        assert_eq!(vmi.read_vec(start, len as usize).unwrap(), theirs, "{arguments:?} {road}: {start}");
        assert_eq!(snapshot.read_vec(start, len as usize).unwrap(), theirs, "snapshot, {arguments:?} {road}: {start}");
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
        assert!(matches!(error.kind(), ErrorKind::Driver { source, .. } if source.to_string().contains("has ended")), "{error}");
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

const SHARED: &str = "memory-backend-memfd,id=ram,size=64M,share=on";

#[test]
fn shared_ram_is_what_qemu_says() {
    for machine in ["pc,memory-backend=ram", "q35,memory-backend=ram"] {
        compare(&["-m", "64", "-object", SHARED, "-machine", machine], Road::Shared);
    }
}

#[test]
fn shared_ram_read_as_process_memory_is_what_qemu_says() {
    compare(&["-m", "64", "-object", SHARED, "-machine", "q35,memory-backend=ram"], Road::Process);
}

#[test]
fn private_ram_is_what_qemu_says() {
    for machine in ["pc", "q35"] {
        compare(&["-m", "64", "-machine", machine], Road::Process);
    }
}

#[test]
fn ram_above_4_gib_is_what_qemu_says() {
    // 128 MiB below, as the board is told, and 64 MiB above.
    let machine = "pc,max-ram-below-4g=128M,memory-backend=ram";
    let object = "memory-backend-memfd,id=ram,size=192M,share=on";
    compare(&["-m", "192", "-object", object, "-machine", machine], Road::Shared);
    compare(&["-m", "192", "-machine", "pc,max-ram-below-4g=128M"], Road::Process);
}

#[test]
fn two_memory_backends_are_one_guest() {
    let nodes = |second: &str| {
        let share = "size=48M,share=on";
        let mut arguments = vec!["-m".to_owned(), "96".to_owned(), "-machine".to_owned(), "q35".to_owned()];
        for object in [format!("memory-backend-memfd,id=a,{share}"), format!("{second},id=b,size=48M")] {
            arguments.extend(["-object".to_owned(), object]);
        }
        for node in ["node,memdev=a", "node,memdev=b"] {
            arguments.extend(["-numa".to_owned(), node.to_owned()]);
        }
        arguments
    };
    for second in ["memory-backend-memfd,share=on", "memory-backend-ram"] {
        let arguments = nodes(second);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        compare(&arguments, Road::Shared);
        compare(&arguments, Road::Process);
    }
}

#[test]
fn huge_pages_are_what_qemu_says() {
    let object = "memory-backend-memfd,id=ram,size=64M,share=on,hugetlb=on,hugetlbsize=2M";
    compare(&["-m", "64", "-object", object, "-machine", "q35,memory-backend=ram"], Road::Shared);
}
