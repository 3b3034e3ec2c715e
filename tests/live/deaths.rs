//! Tools that are killed while they hold the guest: it runs on.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vmi::Memory;
use vmi::kvm::Options;
use vmi::linux::Linux;

use crate::harness::LiveGuest;
use crate::roads::open;

/// Starts `break-on` at a function that the guest calls all the time, and waits for its first hit.
fn start(guest: &LiveGuest) -> Child {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/break-on");
    assert!(program.exists(), "{} is not built: run `cargo build --examples` first", program.display());
    let target = format!("qemu:{}", guest.qmp_path().display());
    // Whoever runs the tests in the background of a shell has SIGINT ignored, and what they start too.
    let mut tool = Command::new("env")
        .arg("--default-signal=INT")
        .arg(program)
        .args(["--quiet", "__x64_sys_nanosleep,__x64_sys_clock_nanosleep", &target])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tool.stdout.take().unwrap()).lines();
    // The heading, and a hit: the actor sleeps every 5 ms.
    assert!(lines.next().unwrap().unwrap().contains("process"));
    assert!(lines.next().unwrap().unwrap().contains("actor"));
    std::thread::spawn(move || lines.for_each(drop));
    tool
}

/// Whatever ends a tool in its event loop, the guest runs on, with no breakpoint in it, and others can connect.
pub(crate) fn of_tools(guest: &LiveGuest) {
    let vmi = open(guest, &Options::new());
    let linux = Linux::attach(&vmi).unwrap();
    let at = linux.symbols().address("__x64_sys_clock_nanosleep").unwrap();
    let code = linux.kernel_space().read_vec(at, 16).unwrap();
    drop(linux);
    drop(vmi);
    for signal in ["TERM", "INT", "KILL", "ABRT"] {
        let mut tool = start(guest);
        assert!(Command::new("kill").args(["-s", signal, &tool.id().to_string()]).status().unwrap().success());
        tool.wait().unwrap();
        let began = Instant::now();
        while !guest.qmp2().is_running() || guest.report().ticks == guest.report().ticks {
            assert!(began.elapsed() < Duration::from_secs(10), "after SIG{signal} the guest stands still");
            std::thread::sleep(Duration::from_millis(20));
        }
        let before = guest.report().ticks;
        std::thread::sleep(Duration::from_millis(300));
        assert!(guest.qmp2().is_running(), "after SIG{signal}");
        guest.wait_for_report(|report| report.ticks > before);
        let vmi = open(guest, &Options::new());
        let linux = Linux::attach(&vmi).unwrap();
        assert_eq!(linux.kernel_space().read_vec(at, 16).unwrap(), code);
        drop(vmi.events().unwrap_or_else(|error| panic!("after SIG{signal}: {error}")));
        assert!(guest.qmp2().is_running());
    }
}
