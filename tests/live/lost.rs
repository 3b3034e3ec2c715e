//! Guests that end while the library holds them, and guests that cannot be had.

use std::fmt::Debug;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use vmi::kvm::{Options, QemuDriver, Road};
use vmi::linux::Linux;
use vmi::{Driver, ErrorKind, Memory, PhysAddr, Trap, VcpuId, Vmi, WriteMemory};

use crate::breakpoints;
use crate::harness::{LiveGuest, Machine, Memory as Backing, Qemu, Qmp, Shape};
use crate::roads::open;

/// Set where a test runs alone in its process.
const ALONE: &str = "VMI_LIVE_ALONE";
/// The longest that a test may take, with the guest's boot.
const LIMIT: Duration = Duration::from_secs(180);
/// The longest that a call may take that cannot succeed any more.
const SOON: Duration = Duration::from_secs(5);
/// How long QEMU may need to be gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// Called all the time.
const BUSY: &str = "__x64_sys_clock_nanosleep";

/// Runs `work` on a guest, in a process of its own, where every guardian is ours and a call that hangs is ended.
fn alone(test: &str, memory: Backing, work: fn(&LiveGuest)) {
    if std::env::var_os(ALONE).is_some() {
        match LiveGuest::boot(&Shape { qemu: Qemu::Own, machine: Machine::One, memory }) {
            Ok(guest) => work(&guest),
            Err(skip) => println!("\n{skip}"),
        }
        let left = guardians();
        assert!(left.is_empty(), "{left:?}");
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("lost::{test}"), "--nocapture"]).env(ALONE, "1").stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let said = thread::spawn(move || {
        let mut text = String::new();
        output.read_to_string(&mut text).map(|_| text)
    });
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{test} hangs");
        }
        thread::sleep(Duration::from_millis(20));
    };
    let said = said.join().unwrap().unwrap();
    assert!(status.success(), "{status}: {said}");
    said.lines().filter(|line| line.starts_with("skipped: ") || line.starts_with("  ")).for_each(|line| println!("{line}"));
}

/// Processes that watch over a connection of this one.
fn guardians() -> Vec<String> {
    let children = fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap();
    let mut all = children.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let children = fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
        all.extend(children.split_whitespace().map(str::to_owned));
    }
    all.retain(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "vmi-guardian"));
    all.sort();
    all.dedup();
    all
}

/// Kills QEMU, and waits until it is gone.
fn kill_qemu(pid: u32) {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    wait_until_gone(pid);
}

/// Waits until the process has no memory any more.
fn wait_until_gone(pid: u32) {
    let began = Instant::now();
    // What is dead and not waited for has no memory any more.
    while fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| !maps.is_empty()) {
        assert!(began.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(1));
    }
}

/// A call fails because the guest is gone, and soon.
fn gone<T: Debug>(what: &str, call: impl FnOnce() -> vmi::Result<T>) {
    let began = Instant::now();
    let result = call();
    let took = began.elapsed();
    let error = result.map(|value| panic!("{what}: {value:?}")).unwrap_err();
    println!("  {what} ({took:.2?}): {error}");
    assert!(matches!(error.kind(), ErrorKind::Ended { .. }), "{what}: {error:?}");
    assert!(took < SOON, "{what}: {took:?}");
}

/// Everything but reading memory: that a mapping goes on to do.
fn all_but_memory_is_gone(vmi: &Vmi<QemuDriver>) {
    gone("check", || vmi.driver().check());
    gone("registers", || vmi.registers(VcpuId(0)));
    gone("pause", || vmi.pause().map(drop));
    gone("events", || vmi.events().map(drop));
    gone("snapshot", || vmi.snapshot().map(drop));
    gone("check again", || vmi.driver().check());
}

fn memory_is_gone(vmi: &Vmi<QemuDriver>, at: PhysAddr) {
    gone("read", || vmi.read::<u64>(at));
    gone("read much", || vmi.read_vec(at, 1 << 20));
    gone("write", || vmi.driver().write(at, &[0; 8]));
}

fn killed_by_road(guest: &LiveGuest, road: Road) {
    let vmi = open(guest, &Options::new().road(road));
    let at = PhysAddr::new(guest.actor().physical);
    vmi.read::<u64>(at).unwrap();
    drop(vmi.pause().unwrap());
    kill_qemu(guest.pid());
    if road == Road::Shared {
        // The memory is there as long as the mapping: the driver says that nobody works in it any more.
        let before = vmi.read::<u64>(at).unwrap();
        assert_eq!(vmi.read::<u64>(at).unwrap(), before);
    } else {
        memory_is_gone(&vmi, at);
    }
    all_but_memory_is_gone(&vmi);
    let began = Instant::now();
    drop(vmi);
    assert!(began.elapsed() < SOON);
    let error = QemuDriver::connect(guest.qmp_path(), &Options::new()).unwrap_err().to_string();
    assert!(error.contains("ended") || error.contains("running"), "{error}");
    let error = QemuDriver::attach(guest.pid(), &Options::new()).unwrap_err().to_string();
    println!("  attach: {error}");
    assert!(error.contains(&guest.pid().to_string()), "{error}");
}

#[test]
fn killed_while_it_is_mapped() {
    alone("killed_while_it_is_mapped", Backing::Memfd, |guest| killed_by_road(guest, Road::Shared));
}

#[test]
fn killed_while_its_process_is_read() {
    alone("killed_while_its_process_is_read", Backing::Private, |guest| killed_by_road(guest, Road::Process));
}

#[test]
fn killed_while_gdb_is_used() {
    alone("killed_while_gdb_is_used", Backing::Private, |guest| killed_by_road(guest, Road::Gdb));
}

#[test]
fn killed_in_an_event_loop() {
    alone("killed_in_an_event_loop", Backing::Private, |guest| {
        let vmi = open(guest, &Options::new());
        let mut events = vmi.events().unwrap();
        let pid = guest.pid();
        let killer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(500));
            kill_qemu(pid);
        });
        // Nothing is set: this waits until the end.
        gone("next", || events.next(PATIENCE));
        killer.join().unwrap();
        gone("next again", || events.next(PATIENCE));
        gone("set", || events.set(Trap::breakpoint(vmi::VirtAddr::new(0xffff_ffff_8100_0000))));
        gone("check", || vmi.driver().check());
        let began = Instant::now();
        drop(events);
        assert!(began.elapsed() < SOON);
        all_but_memory_is_gone(&vmi);
    });
}

#[test]
fn killed_at_an_event() {
    alone("killed_at_an_event", Backing::Memfd, |guest| {
        let vmi = open(guest, &Options::new());
        let linux = Linux::attach(&vmi).unwrap();
        let at = linux.symbols().address(BUSY).unwrap();
        let mut events = vmi.events().unwrap();
        events.set(breakpoints::at(at)).unwrap();
        let event = events.next(PATIENCE).unwrap().expect("a call");
        kill_qemu(guest.pid());
        gone("reply", || event.reply(vmi::Reply::resume()));
        gone("next", || events.next(PATIENCE));
        let began = Instant::now();
        drop(events);
        assert!(began.elapsed() < SOON);
        all_but_memory_is_gone(&vmi);
    });
}

#[test]
fn killed_during_a_pause() {
    alone("killed_during_a_pause", Backing::Private, |guest| {
        let vmi = open(guest, &Options::new());
        let outer = vmi.pause().unwrap();
        kill_qemu(guest.pid());
        memory_is_gone(&vmi, PhysAddr::new(guest.actor().physical));
        gone("check", || vmi.driver().check());
        gone("registers", || vmi.registers(VcpuId(0)));
        gone("events", || vmi.events().map(drop));
        let began = Instant::now();
        drop(outer);
        assert!(began.elapsed() < SOON);
        all_but_memory_is_gone(&vmi);
    });
}

#[test]
fn powered_off_by_itself() {
    alone("powered_off_by_itself", Backing::Private, |guest| {
        let vmi = open(guest, &Options::new());
        let linux = Linux::attach(&vmi).unwrap();
        let at = linux.symbols().address("__x64_sys_reboot").unwrap();
        let mut events = vmi.events().unwrap();
        events.set(breakpoints::at(at)).unwrap();
        thread::scope(|scope| {
            // The shell does not answer any more.
            scope.spawn(|| guest.sh_within("poweroff -f", PATIENCE));
            let event = events.next(PATIENCE).unwrap().expect("the call that ends it");
            drop(event);
            let began = Instant::now();
            let error = loop {
                match events.next(PATIENCE) {
                    Ok(Some(event)) => println!("  {:?}", event.what()),
                    Ok(None) => panic!("no end after {:?}", began.elapsed()),
                    Err(error) => break error,
                }
            };
            println!("  next ({:.2?}): {error}", began.elapsed());
            assert!(matches!(error.kind(), ErrorKind::Ended { .. }), "{error:?}");
        });
        drop(events);
        // QEMU tells the debugger first, and then ends.
        wait_until_gone(guest.pid());
        memory_is_gone(&vmi, PhysAddr::new(guest.actor().physical));
        all_but_memory_is_gone(&vmi);
    });
}

/// The output of an example that cannot do what it is told.
fn denied(program: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program).args(arguments);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn taken_or_forbidden() {
    alone("taken_or_forbidden", Backing::Private, |guest| {
        taken(guest);
        if geteuid().is_root() {
            forbidden(guest);
        } else {
            println!("\nskipped: only root can run a program as another user");
        }
    });
}

/// Somebody else has the monitor, and the stub.
fn taken(guest: &LiveGuest) {
    let other = Qmp::connect(guest.qmp_path());
    let began = Instant::now();
    let error = QemuDriver::connect(guest.qmp_path(), &Options::new()).unwrap_err().to_string();
    let took = began.elapsed();
    drop(other);
    println!("  {error}");
    assert!(error.contains("one client at a time") && took < SOON, "{took:?}: {error}");
    let vmi = open(guest, &Options::new());
    let other = UnixStream::connect(guest.gdb_path()).unwrap();
    // The stub stops the guest for whoever connects: it is theirs now.
    thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    let error = vmi.events().unwrap_err().to_string();
    println!("  ({:.2?}) {error}", began.elapsed());
    assert!(error.contains("gdb stub") && error.contains("one debugger at a time"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(15));
    // What needs no stub goes on.
    vmi.read::<u64>(PhysAddr::new(guest.actor().physical)).unwrap();
    vmi.registers(VcpuId(0)).unwrap();
    drop(vmi.pause().unwrap());
    drop(other);
    guest.qmp2().execute("cont", serde_json::json!({})).unwrap();
    thread::sleep(Duration::from_millis(100));
    drop(vmi.events().unwrap_or_else(|error| panic!("{error}")));
    assert!(guest.qmp2().is_running());
}

/// A user who reaches the monitor and not the process.
fn forbidden(guest: &LiveGuest) {
    let allow = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let built = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/process-list");
    assert!(built.exists(), "{} is not built: run `cargo build --examples` first", built.display());
    let directory = tempfile::tempdir().unwrap();
    allow(directory.path(), 0o755);
    let program = directory.path().join("process-list");
    fs::copy(&built, &program).unwrap();
    allow(&program, 0o755);
    let target = format!("qemu:{}", guest.qmp_path().display());
    allow(guest.directory(), 0o755);
    allow(guest.qmp_path(), 0o600);
    let (good, said) = denied(&program, &[&target]);
    println!("  {}", said.trim().trim_start_matches("error: "));
    assert!(!good && said.contains("root"), "{said}");
    allow(guest.qmp_path(), 0o666);
    allow(guest.gdb_path(), 0o600);
    let (good, said) = denied(&program, &["--road", "process", &target]);
    println!("  {}", said.trim().trim_start_matches("error: "));
    assert!(!good && said.contains("root"), "{said}");
    let (good, said) = denied(&program, &[&target]);
    println!("  {}", said.trim().trim_start_matches("error: "));
    assert!(!good && said.contains("gdb"), "{said}");
    allow(guest.gdb_path(), 0o666);
    let (good, said) = denied(&program, &[&target]);
    assert!(good && said.contains("actor"), "{said}");
    assert!(guest.qmp2().is_running());
}
