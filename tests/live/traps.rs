//! Breakpoints, watchpoints and single steps in a running guest.

use std::time::{Duration, Instant};

use vmi::kvm::{Options, QemuDriver};
use vmi::linux::Linux;
use vmi::x86::{Registers, X86};
use vmi::{EventSource, Events, Guest, Memory, PhysAddr, Reply, Trap, VirtAddr, Vmi, What};

use crate::breakpoints;
use crate::harness::LiveGuest;
use crate::roads::open;

const SOON: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(60);

/// What a breakpoint is set on: called by nobody in the guest but the actor.
const FUNCTION: &str = "__x64_sys_personality";

/// Runs `line` in the guest and counts what `each` says of the events that happen meanwhile.
fn count(
    guest: &LiveGuest,
    events: &mut Events<'_, QemuDriver>,
    line: &str,
    mut each: impl FnMut(What<X86>, &Registers) -> bool,
) -> (usize, String) {
    std::thread::scope(|scope| {
        let shell = scope.spawn(|| guest.sh_within(line, PATIENCE));
        let (mut counted, began) = (0, Instant::now());
        loop {
            match events.next(SOON).unwrap_or_else(|error| panic!("{error}")) {
                Some(event) => counted += usize::from(each(event.what(), event.registers())),
                None if shell.is_finished() => break,
                None => assert!(began.elapsed() < PATIENCE, "{counted} events, and no end"),
            }
        }
        (counted, shell.join().unwrap().unwrap())
    })
}

fn symbol(linux: &Linux<'_, QemuDriver>, name: &str) -> VirtAddr {
    linux.symbols().address(name).unwrap_or_else(|error| panic!("{error}"))
}

/// A breakpoint by name fires once for each call, on every vCPU, and leaves the code as it was.
pub(crate) fn breakpoint(guest: &LiveGuest) {
    let vmi = open(guest, &Options::new());
    let linux = Linux::attach(&vmi).unwrap();
    let at = symbol(&linux, FUNCTION);
    let code = linux.kernel_space().read_vec(at, 64).unwrap();
    let cpus = breakpoints::together(guest.sh("grep -c ^processor /proc/cpuinfo").parse().unwrap());
    for hardware in [false, true].into_iter().filter(|hardware| *hardware || breakpoints::software()) {
        let mut events = vmi.events().unwrap();
        let trap = Trap::breakpoint(at);
        let id = events.set(if hardware { trap.hardware() } else { trap }).unwrap();
        for cpus in &cpus {
            let (hits, said) = count(guest, &mut events, &format!("actor call personality 50 {cpus}"), |what, registers| {
                assert_eq!(registers.rip, at.get());
                matches!(what, What::Trapped { .. })
            });
            assert_eq!(hits, 50 * said.lines().count(), "{said}");
        }
        events.remove(id).unwrap();
        let (hits, _) = count(guest, &mut events, "actor call personality 5", |_, _| true);
        assert_eq!(hits, 0);
        drop(events);
        assert_eq!(linux.kernel_space().read_vec(at, 64).unwrap(), code);
        assert!(guest.qmp2().is_running());
    }
}

/// Hits in other processes are passed over.
pub(crate) fn address_space(guest: &LiveGuest) {
    let vmi = open(guest, &Options::new());
    let linux = Linux::attach(&vmi).unwrap();
    let at = symbol(&linux, FUNCTION);
    let init = linux.process(1).unwrap();
    let mut events = vmi.events().unwrap();
    events.set(breakpoints::at(at).in_address_space(init.page_table().unwrap().unwrap())).unwrap();
    let (hits, said) = count(guest, &mut events, "actor call personality 10", |_, _| true);
    assert_eq!((hits, said.as_str()), (0, "cpu -1 made 10"));
    assert_eq!(events.passed_over(), 10);
}

/// A write watchpoint reports each ordered write and who made it.
pub(crate) fn watchpoint(guest: &LiveGuest) {
    let vmi = open(guest, &Options::new());
    let linux = Linux::attach(&vmi).unwrap();
    let actor = guest.actor();
    let process = Guest::processes(&linux).map(Result::unwrap).find(|process| process.pid == actor.pid).unwrap();
    // Two where the guest's kernel isolates its page tables: it writes on the one of user mode.
    let roots = linux.page_tables(&process);
    let watched = VirtAddr::new(actor.page + 16);
    let mut events = vmi.events().unwrap();
    let id = events.set(roots.iter().copied().fold(Trap::write(watched, 8), Trap::in_address_space)).unwrap();
    let before: u64 = vmi.read(PhysAddr::new(actor.physical + 16)).unwrap();
    let mut writer = Vec::new();
    let (writes, _) = count(guest, &mut events, "actor write 20", |what, registers| {
        writer.push((roots.iter().any(|root| registers.runs_on(*root) == Some(true)), registers.privilege_level()));
        matches!(what, What::Trapped { at, .. } if at == watched)
    });
    assert_eq!(writes, 20);
    assert!(writer.iter().all(|who| *who == (true, Some(3))), "{writer:?}");
    assert_eq!(vmi.read::<u64>(PhysAddr::new(actor.physical + 16)).unwrap(), before + 20);
    events.remove(id).unwrap();
    assert_eq!(count(guest, &mut events, "actor write 3", |_, _| true).0, 0);
}

/// A reply can step, and change registers: a call is turned into its return.
pub(crate) fn replies(guest: &LiveGuest) {
    let vmi = open(guest, &Options::new());
    let linux = Linux::attach(&vmi).unwrap();
    let at = symbol(&linux, FUNCTION);
    let mut events = vmi.events().unwrap();
    events.set(breakpoints::at(at)).unwrap();
    std::thread::scope(|scope| {
        let shell = scope.spawn(|| guest.sh_within("actor call personality 1", PATIENCE));
        let event = events.next(PATIENCE).unwrap().expect("a call");
        let vcpu = event.vcpu();
        event.reply(Reply::step()).unwrap();
        let event = events.next(PATIENCE).unwrap().expect("the end of the step");
        assert_eq!((event.what(), event.vcpu()), (What::Stepped, vcpu));
        assert!(event.registers().rip != at.get() && event.registers().rip.wrapping_sub(at.get()) < 16);
        assert!(vmi.epoch().is_some());
        let mut registers = *event.registers();
        registers.rbx ^= 0;
        event.reply(Reply::resume().with_registers(registers)).unwrap();
        while events.next(SOON).unwrap().is_some() || !shell.is_finished() {}
        assert_eq!(shell.join().unwrap().unwrap(), "cpu -1 made 1");
    });
}

/// Pauses, reads and registers work beside an open session, and somebody else's pause does no harm.
pub(crate) fn company(guest: &LiveGuest) {
    let vmi = open(guest, &Options::new());
    let linux = Linux::attach(&vmi).unwrap();
    let mut events = vmi.events().unwrap();
    events.set(breakpoints::at(symbol(&linux, FUNCTION))).unwrap();
    for _ in 0..3 {
        let paused = vmi.pause().unwrap();
        assert!(!guest.qmp2().is_running());
        assert!(events.next(Duration::from_millis(30)).unwrap().is_none());
        assert!(!guest.qmp2().is_running());
        drop(paused);
        assert!(guest.qmp2().is_running());
    }
    guest.qmp2().while_paused(|_| assert!(events.next(Duration::from_millis(100)).unwrap().is_none()));
    let mut seen = Vec::new();
    let (hits, _) = count(guest, &mut events, "actor call personality 7", |what, registers| {
        seen.push((what, registers.rip));
        true
    });
    assert_eq!(hits, 7, "{seen:x?}");
    // The stub serves one client: a second session is refused, and the first goes on.
    let error = open_second(guest).unwrap_err();
    assert!(error.contains("gdb") || error.contains("another"), "{error}");
    assert_eq!(count(guest, &mut events, "actor call personality 2", |_, _| true).0, 2);
    drop(events);
    // Now QEMU takes the refused client from its queue, stops for it, and finds the farewell that it has left there.
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    while !guest.qmp2().is_running() {
        assert!(began.elapsed() < Duration::from_secs(5), "the guest stands still after a client that was refused");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A second debugger at the same stub.
fn open_second(guest: &LiveGuest) -> Result<(), String> {
    let address = guest.gdb_path().to_str().unwrap().parse().unwrap();
    let second = Vmi::new(QemuDriver::gdb(address, &Options::new()).map_err(|error| error.to_string())?);
    second.driver().subscribe().map(drop).map_err(|error| error.to_string())
}
