//! A machine under a real QEMU: two processors that count, started from a multiboot image of a few bytes.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::env;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use vmi_driver_kvm::gdb::{GdbAddress, GdbClient, GdbOptions};

/// The first processor adds one here for each of its rounds, in 32-bit code; a double word.
pub const FIRST: u64 = 0x9000;
/// The second one here, in 16-bit code; a word.
pub const SECOND: u64 = 0x9004;
/// Both call a function here in each round: `nop`, `ret`.
pub const SHARED: u64 = 0x8100;

/// Loaded at 1 MiB, entered in 32-bit protected mode.
fn image() -> Vec<u8> {
    const LOAD: u32 = 0x10_0000;
    let magic = 0x1bad_b002_u32;
    let flags = 0x1_0000_u32;
    let head = [magic, flags, 0_u32.wrapping_sub(magic.wrapping_add(flags)), LOAD, LOAD, 0, 0, LOAD + 32];
    let mut image: Vec<u8> = head.iter().flat_map(|word| word.to_le_bytes()).collect();
    let first_len = 64_u32;
    let second = LOAD + 32 + first_len;
    let mut first = vec![0xbc, 0, 0x70, 0, 0]; // mov esp, 0x7000
    first.push(0xbe); // mov esi, second
    first.extend(second.to_le_bytes());
    first.extend([0xbf, 0, 0x80, 0, 0, 0xb9, 0, 2, 0, 0, 0xf3, 0xa4]); // mov edi, 0x8000; mov ecx, 0x200; rep movsb
    first.extend([0xc7, 0x05, 0, 3, 0xe0, 0xfe, 0, 0x45, 0x0c, 0]); // mov dword [0xfee00300], INIT to all but self
    first.extend([0xb9, 0, 0, 0x10, 0, 0xe2, 0xfe]); // mov ecx, 0x100000; loop $
    first.extend([0xc7, 0x05, 0, 3, 0xe0, 0xfe, 8, 0x46, 0x0c, 0]); // mov dword [0xfee00300], start at 0x8000
    let round = LOAD + 32 + first.len() as u32;
    first.extend([0xff, 0x05, 0, 0x90, 0, 0, 0xe8]); // inc dword [0x9000]; call SHARED
    first.extend((SHARED as u32).wrapping_sub(round + 11).to_le_bytes());
    first.extend([0xeb, 0xf3]); // jmp round
    assert!(first.len() <= first_len as usize, "{}", first.len());
    first.resize(first_len as usize, 0x90);
    image.extend(first);
    let mut second = vec![0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0, 0x60]; // xor ax, ax; mov ds, ax; mov ss, ax; mov sp, 0x6000
    second.extend([0xff, 0x06, 4, 0x90, 0xe8, 0xf0, 0, 0xeb, 0xf7]); // inc word [0x9004]; call SHARED; jmp back
    second.resize(0x100, 0x90);
    second.extend([0x90, 0xc3]);
    second.resize(0x200, 0);
    image.extend(second);
    image
}

/// QEMU in its two versions, as far as this host has them.
pub fn emulators() -> Vec<PathBuf> {
    let home = env::var_os("HOME").map_or_else(PathBuf::new, PathBuf::from);
    let cache = env::var_os("VMI_LAB_CACHE").map_or_else(|| home.join(".cache/vmi-lab"), PathBuf::from);
    let found: Vec<_> = ["qemu-system-x86_64".into(), cache.join("qemu10/qemu")].into_iter().filter(|path| works(path)).collect();
    if found.is_empty() {
        println!("skipped: no qemu-system-x86_64 on this host");
    } else if found.len() == 1 {
        println!("skipped in part: only {}; the lab's qemu10.sh unpacks QEMU 10", found[0].display());
    }
    found
}

pub fn works(emulator: &Path) -> bool {
    Command::new(emulator)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

pub struct Machine {
    pub qemu: Child,
    directory: tempfile::TempDir,
    monitor: BufReader<UnixStream>,
}

impl Machine {
    /// Two processors that count already.
    pub fn start(emulator: &Path) -> Self {
        let mut machine = Self::with(emulator, &[]);
        let limit = Instant::now() + Duration::from_secs(60);
        while machine.count(FIRST) == 0 || machine.count(SECOND) == 0 {
            assert!(Instant::now() < limit, "the machine does not count");
            sleep(Duration::from_millis(20));
        }
        machine
    }

    pub fn with(emulator: &Path, more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let socket = |name: &str| {
            let mut text = OsString::from("unix:");
            text.push(path(name));
            text.push(",server=on,wait=off");
            text
        };
        std::fs::write(path("image"), image()).unwrap();
        let mut command = Command::new(emulator);
        command.args(["-nodefaults", "-display", "none", "-accel", "tcg", "-m", "16", "-smp", "2"]);
        command.arg("-kernel").arg(path("image")).arg("-gdb").arg(socket("gdb")).arg("-qmp").arg(socket("qmp")).args(more);
        let qemu = command.stdin(Stdio::null()).spawn().unwrap();
        let limit = Instant::now() + Duration::from_secs(30);
        let monitor = loop {
            match UnixStream::connect(path("qmp")) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < limit, "{error}"),
            }
            sleep(Duration::from_millis(10));
        };
        monitor.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut machine = Self { qemu, directory, monitor: BufReader::new(monitor) };
        machine.line();
        machine.monitor(r#"{"execute":"qmp_capabilities"}"#);
        machine
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.monitor.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "QEMU has ended");
        line
    }

    /// A command of QMP, past the gdb stub.
    pub fn monitor(&mut self, command: &str) -> String {
        self.monitor.get_mut().write_all(command.as_bytes()).unwrap();
        loop {
            let line = self.line();
            if line.contains("\"return\"") || line.contains("\"error\"") {
                return line;
            }
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.monitor(r#"{"execute":"query-status"}"#).contains("\"running\": true")
    }

    /// A word of memory, past the gdb stub.
    pub fn count(&mut self, at: u64) -> u16 {
        let answer = self.human(&format!("xp /1hx {at:#x}"));
        let value = answer.split("0x").nth(1).unwrap_or_else(|| panic!("{answer}"));
        u16::from_str_radix(&value[..4], 16).unwrap()
    }

    pub fn human(&mut self, command: &str) -> String {
        self.monitor(&format!(r#"{{"execute":"human-monitor-command","arguments":{{"command-line":"{command}"}}}}"#))
    }

    /// Both processors make progress, and their code is what it was.
    #[track_caller]
    pub fn assert_runs_on(&mut self) {
        assert!(self.is_running(), "the machine stands still");
        for at in [FIRST, SECOND] {
            let before = self.count(at);
            let limit = Instant::now() + Duration::from_secs(20);
            while self.count(at) == before {
                assert!(Instant::now() < limit, "no progress at {at:#x}");
                sleep(Duration::from_millis(5));
            }
        }
        // Later than any stop that was still under way.
        sleep(Duration::from_millis(20));
        assert!(self.is_running(), "the machine stopped after a while");
        assert_eq!(self.count(SHARED), 0xc390);
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("gdb")
    }

    pub fn address(&self) -> GdbAddress {
        GdbAddress::Unix(self.path())
    }

    pub fn attach(&self) -> GdbClient {
        GdbClient::connect(&self.address(), &GdbOptions::default()).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
