//! Holding a guest, and letting it go: pauses, registers, attaching and detaching, snapshots.

use std::process::Command;
use std::time::{Duration, Instant};

use vmi::kvm::{Options, QemuDriver};
use vmi::linux::{Linux, Task};
use vmi::{Driver, Memory, PhysAddr, VcpuId, Vcpus, Vmi};

use crate::harness::LiveGuest;
use crate::roads::open;

/// How often a pause and an attachment are made.
const TIMES: u32 = 1000;

/// A pause stops the guest's clock, nests, and ends with the guard.
pub(crate) fn pause(guest: &LiveGuest) {
    const PAUSE: Duration = Duration::from_secs(1);
    let vmi = open(guest, &Options::new());
    assert_eq!(vmi.epoch(), None);
    let (began, before) = (Instant::now(), guest.report());
    let outer = vmi.pause().unwrap();
    let inner = vmi.pause().unwrap();
    assert!(vmi.epoch().is_some());
    let ticks: u64 = vmi.read(PhysAddr::new(guest.actor().physical)).unwrap();
    std::thread::sleep(PAUSE);
    drop(inner);
    assert!(!guest.qmp2().is_running());
    assert_eq!(vmi.read::<u64>(PhysAddr::new(guest.actor().physical)).unwrap(), ticks);
    assert!(vmi.epoch().is_some());
    // All views of the processes are of one moment now.
    let linux = Linux::attach(&vmi).unwrap();
    let survey = linux.survey_processes();
    assert!(survey.problems.is_empty() && survey.processes.iter().all(|process| !process.hidden), "{survey:?}");
    let of_actor = survey.processes.iter().find(|process| process.pid == guest.actor().pid).map(|process| &process.views);
    assert!(of_actor.is_some_and(|views| views.iter().all(|(_, known)| *known == Some(true))), "{survey:?}");
    drop(outer);
    // Of one that runs each row is of its own moment; the actor does not come or go.
    let is_actor =
        |thread: vmi::Result<Task<'_, '_, _>>| thread.is_ok_and(|thread| thread.pid().is_ok_and(|pid| pid == guest.actor().pid));
    assert!(linux.threads_by_id().any(is_actor));
    assert_eq!(vmi.epoch(), None);
    let (after, elapsed) = (guest.report(), began.elapsed());
    let guest_elapsed = after.clock - before.clock;
    assert!(guest_elapsed + PAUSE < elapsed + Duration::from_millis(200), "{guest_elapsed:?} of {elapsed:?}");
    drop(vmi.pause().unwrap());
    assert!(guest.qmp2().is_running());
    // A guest that somebody else has paused stays so.
    guest.qmp2().while_paused(|qmp| {
        drop(vmi.pause().unwrap());
        assert!(!qmp.is_running());
        let registers = vmi.registers(VcpuId(0)).unwrap();
        assert!(vmi.set_registers(VcpuId(0), &registers).is_ok());
        assert!(!qmp.is_running());
    });
}

/// Many pauses and many attachments leave the guest running, and nothing open.
pub(crate) fn many_times(guest: &LiveGuest) {
    let before = guest.report();
    // In a process of its own: others run in this one.
    let test = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nothing_is_left_open", "--ignored", "--nocapture"])
        .env(SOCKET, guest.qmp_path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&test.stdout);
    said.lines().filter(|line| line.starts_with("    ")).for_each(|line| println!("{line}"));
    assert!(test.status.success(), "{said}{}", String::from_utf8_lossy(&test.stderr));
    assert!(guest.qmp2().is_running());
    guest.wait_for_report(|report| report.ticks > before.ticks);
}

/// The variable that names the guest for [`nothing_is_left_open`].
const SOCKET: &str = "VMI_LIVE_SOCKET";

/// Open files and threads of this process.
fn open_things() -> (usize, usize) {
    let count = |directory| std::fs::read_dir(directory).unwrap().count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

/// What [`many_times`] does in a process of its own.
pub(crate) fn nothing_is_left_open() {
    let socket = std::env::var_os(SOCKET).expect("started by `many_times`, which names a guest");
    let open = || Vmi::new(QemuDriver::connect(&socket, &Options::new()).unwrap_or_else(|error| panic!("{error}")));
    let once = |all: bool| {
        let vmi = open();
        if all {
            let linux = Linux::attach(&vmi).unwrap();
            assert!(linux.processes().count() > 20);
            drop(vmi.events().unwrap());
            vmi.registers(VcpuId(0)).unwrap();
            drop(vmi.snapshot().unwrap());
            drop(vmi.pause().unwrap());
        }
    };
    // What a process opens once, such as the threads of a pool, is open after the first time.
    once(true);
    let before = open_things();
    let began = Instant::now();
    (0..TIMES).for_each(|round| once(round % 100 == 0));
    println!("    {TIMES} attachments in {:.1?}", began.elapsed());
    let vmi = open();
    let began = Instant::now();
    (0..TIMES).for_each(|_| drop(vmi.pause().unwrap()));
    println!("    {TIMES} pauses in {:.1?}", began.elapsed());
    drop(vmi);
    let (files, threads) = open_things();
    println!("    open files {} -> {files}, threads {} -> {threads}", before.0, before.1);
    assert_eq!((files, threads), before);
}

/// Registers are those that QEMU prints, and take what they are given.
pub(crate) fn registers(guest: &LiveGuest) {
    let vmi = open(guest, &Options::new());
    let _paused = vmi.pause().unwrap();
    let text = guest.qmp2().monitor("info registers -a");
    let count = text.matches("CPU#").count();
    assert_eq!(vmi.driver().vcpu_count() as usize, count);
    for vcpu in 0..count as u32 {
        let registers = vmi.registers(VcpuId(vcpu)).unwrap();
        let section = text.split("CPU#").nth(vcpu as usize + 1).unwrap();
        assert!(section.contains(&format!("CR3={:016x}", registers.cr3.unwrap())), "{section}");
        assert!(section.to_lowercase().contains(&format!("ip={:016x}", registers.rip)), "{section}\n{registers}");
        assert!(section.contains(&format!("{:016x}", registers.idtr.unwrap().base.get())));
        assert_eq!(registers.lstar, None);
        let mut changed = registers;
        changed.r15 = !registers.r15;
        changed.rax = registers.rax.wrapping_add(1);
        vmi.set_registers(VcpuId(vcpu), &changed).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(vmi.registers(VcpuId(vcpu)).unwrap(), changed);
        vmi.set_registers(VcpuId(vcpu), &registers).unwrap();
        assert_eq!(vmi.registers(VcpuId(vcpu)).unwrap(), registers);
        let mut refused = registers;
        refused.lstar = Some(1);
        assert!(vmi.set_registers(VcpuId(vcpu), &refused).unwrap_err().to_string().contains("lstar"));
    }
    assert!(vmi.registers(VcpuId(count as u32)).is_err());
}

/// A snapshot is what QEMU saves at that moment, answers as the guest did, and can be made again in the same memory.
pub(crate) fn snapshot(guest: &LiveGuest) {
    let vmi = open(guest, &Options::new());
    let check = |frozen: &Vmi<vmi::Snapshot<vmi::x86::X86>>| {
        let linux = Linux::attach(frozen).unwrap_or_else(|error| panic!("{error}"));
        let pid = guest.actor().pid;
        assert!(linux.processes().any(|task| task.is_ok_and(|task| task.pid().is_ok_and(|found| found == pid))));
        assert!(frozen.slice(PhysAddr::new(guest.actor().physical), 4096).is_some());
    };
    let outer = vmi.pause().unwrap();
    let frozen = vmi.snapshot().unwrap();
    let ranges = guest.qmp2().ram();
    for range in ranges {
        let saved = guest.qmp2().pmemsave(range.start, range.length);
        assert!(frozen.slice(PhysAddr::new(range.start), saved.len()).is_none_or(|copy| copy == saved), "{range:x?}");
        assert!(frozen.read_vec(PhysAddr::new(range.start), saved.len()).unwrap() == saved, "{range:x?}");
    }
    let registers = vmi.registers(VcpuId(0)).unwrap();
    assert_eq!(frozen.driver().vcpus().unwrap().registers(VcpuId(0)).unwrap(), registers);
    drop(outer);
    check(&frozen);
    let ticks: u64 = frozen.read(PhysAddr::new(guest.actor().physical)).unwrap();
    guest.wait_for_report(|report| report.ticks > ticks);
    assert_eq!(frozen.read::<u64>(PhysAddr::new(guest.actor().physical)).unwrap(), ticks);
    let again = vmi.snapshot_again(frozen).unwrap();
    assert!(again.read::<u64>(PhysAddr::new(guest.actor().physical)).unwrap() > ticks);
    check(&again);
    assert!(guest.qmp2().is_running());
    println!("    stood still for {:?}", again.driver().report().stood_still);
}
