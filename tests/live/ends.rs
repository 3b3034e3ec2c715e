//! No guest outlives its test, whichever way that ends.

use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::{LiveGuest, Machine, Memory, Qemu, Shape};

/// Makes the test below hold a guest until it is killed.
const HOLD: &str = "VMI_LIVE_HOLD";

const SHAPE: Shape = Shape { qemu: Qemu::Own, machine: Machine::One, memory: Memory::File };

fn process(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

fn gone(pid: u32, directory: &Path) {
    let began = Instant::now();
    while process(pid).exists() || directory.exists() {
        assert!(began.elapsed() < Duration::from_secs(10), "{pid} or {} is still there", directory.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_test_that_panics_leaves_no_guest() {
    let guest = match LiveGuest::boot(&SHAPE) {
        Ok(guest) => guest,
        Err(skip) => return println!("{skip}"),
    };
    let (pid, directory) = (guest.pid(), guest.directory().to_owned());
    assert!(process(pid).exists() && directory.exists());
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        guest.qmp2().execute("stop", serde_json::json!({})).unwrap();
        resume_unwind(Box::new("on purpose, with a paused guest"));
    }));
    assert!(panicked.is_err());
    gone(pid, &directory);
}

#[test]
fn a_test_that_is_killed_leaves_no_guest() {
    if std::env::var_os(HOLD).is_some() {
        let guest = match LiveGuest::boot(&SHAPE) {
            Ok(guest) => guest,
            Err(skip) => return println!("\n{skip}"),
        };
        println!("\nholding {} {}", guest.pid(), guest.directory().display());
        std::thread::sleep(Duration::from_secs(600));
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "ends::a_test_that_is_killed_leaves_no_guest", "--nocapture"]).env(HOLD, "1");
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let said = lines.find(|line| line.starts_with("holding ") || line.starts_with("skipped: ")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    match said.split(' ').collect::<Vec<_>>().as_slice() {
        ["holding", pid, directory] => gone(pid.parse().unwrap(), Path::new(directory)),
        _ => println!("{said}"),
    }
}
