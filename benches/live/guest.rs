//! A QEMU with a gibibyte of RAM, full of noise. No operating system: the firmware waits for one.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vmi::kvm::gdb::{GdbAddress, GdbOptions};
use vmi::kvm::{Options, QemuDriver, Road};
use vmi::prelude::*;

/// RAM of the guest.
pub const SIZE: u64 = 1 << 30;

/// Where the firmware leaves memory alone.
pub const FREE: std::ops::Range<u64> = 16 << 20..SIZE - (16 << 20);

pub struct Guest {
    child: Child,
    directory: tempfile::TempDir,
    shared: bool,
}

impl Guest {
    /// `shared`: RAM is a file that QEMU maps shared; else it is private. `None` if there is no QEMU.
    pub fn start(shared: bool) -> Option<Self> {
        // The file is in memory as a memfd would be, and has a name for the other contenders.
        let place = if fs::metadata("/dev/shm").is_ok() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let directory = tempfile::Builder::new().prefix("vmi-bench").tempdir_in(place).unwrap();
        let qemu = std::env::var_os("VMI_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into());
        let mut command = Command::new(qemu);
        let socket = directory.path().join("qmp");
        command.args(["-nodefaults", "-display", "none", "-accel", "tcg", "-m", "1024"]);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        command.arg("-gdb").arg(format!("unix:{},server=on,wait=off", directory.path().join("gdb").display()));
        command.arg("-machine").arg(if shared { "q35,memory-backend=ram" } else { "q35" });
        if shared {
            let path = directory.path().join("ram");
            command.arg("-object").arg(format!("memory-backend-file,id=ram,size=1G,share=on,mem-path={}", path.display()));
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().ok()?;
        let guest = Self { child, directory, shared };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !socket.exists() {
            assert!(Instant::now() < deadline, "QEMU makes no QMP socket");
            std::thread::sleep(Duration::from_millis(20));
        }
        // The firmware has done its work by then.
        std::thread::sleep(Duration::from_secs(2));
        Some(guest)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file that holds the RAM.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("ram")
    }

    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    pub fn open(&self) -> Vmi<QemuDriver> {
        let road = if self.shared { Road::Shared } else { Road::Process };
        Vmi::new(QemuDriver::connect(self.directory.path().join("qmp"), &Options::new().road(road)).unwrap())
    }

    /// The same guest by its gdb stub alone.
    pub fn open_gdb(&self, requests: GdbOptions) -> Vmi<QemuDriver> {
        let address = GdbAddress::Unix(self.directory.path().join("gdb"));
        Vmi::new(QemuDriver::gdb(address, &Options::new().road(Road::Gdb).gdb_options(requests)).unwrap())
    }

    /// Noise, not zeros: a guest that has run for a while has touched its memory.
    pub fn fill(&self, vmi: &Vmi<QemuDriver>) {
        let mut state = 1u64;
        let mut noise = vec![0u8; 1 << 20];
        for at in FREE.step_by(noise.len()) {
            for word in noise.chunks_exact_mut(8) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                word.copy_from_slice(&state.to_le_bytes());
            }
            vmi.write(PhysAddr::new(at), &noise).unwrap();
        }
    }

    /// Where the process has the guest's RAM.
    pub fn host(&self) -> u64 {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap();
        maps.lines()
            .filter_map(|line| {
                let (start, end) = line.split(' ').next()?.split_once('-')?;
                let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
                (end - start >= SIZE && line.contains(" rw")).then_some(start)
            })
            .next()
            .unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
