//! Where QEMU has a machine's RAM: real machines that are not started, and memory so large that the hole below 4 GiB cuts it. Their streams hold hardly
//! more than zeros.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vmi::{Driver, MemoryMap, PhysAddr, Region};

use crate::harness::Qmp;

/// Names of machines, and their options.
const MACHINES: &[&[&str]] = &[
    &["-M", "pc", "-m", "3583M"],
    &["-M", "pc", "-m", "3584M"],
    &["-M", "q35", "-m", "2815M"],
    &["-M", "q35", "-m", "3G"],
    &["-M", "q35,max-ram-below-4g=1G", "-m", "2G"],
    &["-M", "pc-i440fx-2.0", "-m", "5G"],
    &["-M", "microvm", "-m", "4G"],
    // Backends of other sizes and in another order than nodes.
    &[
        "-M",
        "q35",
        "-m",
        "4G",
        "-object",
        "memory-backend-ram,id=big,size=3G",
        "-object",
        "memory-backend-ram,id=a,size=1G",
        "-numa",
        "node,nodeid=0,memdev=a",
        "-numa",
        "node,nodeid=1,memdev=big",
    ],
];

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn places() {
    if std::env::var_os("VMI_LAB_LIVE").is_none_or(|live| live != "1") {
        return println!("skipped: machines are started where VMI_LAB_LIVE=1, as cargo xtask test sets it");
    }
    for options in MACHINES {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("qmp");
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-S", "-display", "none", "-accel", "tcg", "-nodefaults", "-qmp"]);
        command.arg(format!("unix:{},server=on,wait=off", socket.display())).args(*options).stdin(Stdio::null());
        let _running = Running(command.spawn().unwrap_or_else(|error| panic!("qemu-system-x86_64: {error}")));
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "{options:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut qmp = Qmp::connect(&socket);
        let ram = qmp.ram();
        let path = directory.path().join("image");
        crate::qemu::migrate(&mut qmp, &format!("exec:cat > {}", path.display())).unwrap();
        let vmi = vmi::open(path.as_path()).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        let region = |start, end: u64| Region::new(PhysAddr::new(start), end - start).unwrap();
        // The firmware has not yet put RAM under its own place.
        let firmware = region(0xa_0000, 0x10_0000);
        let known = |regions: &[Region]| MemoryMap::new(regions.iter().copied().chain([firmware]));
        // The firmware of a microvm is in RAM of its own below 4 GiB.
        let ram = ram.iter().filter(|range| !(0xfec0_0000..1 << 32).contains(&range.start));
        let expected: Vec<Region> = ram.map(|range| region(range.start, range.start + range.length)).collect();
        assert_eq!(known(vmi.machine().memory.regions()), known(&expected), "{options:?}");
        // Machines up to 2.2 do not describe their devices.
        assert_eq!(vmi.driver().vcpus().is_some(), !options.contains(&"pc-i440fx-2.0"));
        println!("  {options:?}: {:x?}", vmi.machine().memory.regions());
    }
}
