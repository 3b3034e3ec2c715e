//! The client of the gdb protocol against the stub of a real QEMU.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::expect_used,
    missing_docs
)]

mod gdb_machine;

use std::path::Path;
use std::time::{Duration, Instant};

use gdb_machine::{FIRST, Machine, SECOND, SHARED, emulators, works};
use vmi_core::{PhysAddr, VcpuId, VirtAddr};
use vmi_driver_kvm::gdb::{GdbCause, GdbClient, GdbOptions, GdbRead, StopReason, TrapKind};

const BSP: VcpuId = VcpuId(0);
const AP: VcpuId = VcpuId(1);
const LONG: Duration = Duration::from_secs(20);

fn word(gdb: &mut GdbClient, at: u64) -> u16 {
    let mut bytes = [0; 2];
    gdb.read_physical(PhysAddr::new(at), &mut bytes).unwrap();
    u16::from_le_bytes(bytes)
}

/// Where a vCPU is about to execute, with the base of its code.
fn place(gdb: &mut GdbClient, vcpu: VcpuId) -> u64 {
    let registers = gdb.registers(vcpu).unwrap();
    registers.rip + if vcpu == AP { 0x8000 } else { 0 }
}

#[test]
fn registers_and_memory() {
    for emulator in emulators() {
        let mut machine = Machine::start(&emulator);
        let mut gdb = machine.attach();
        assert!(!machine.is_running() && !gdb.is_running() && gdb.is_64_bit());
        assert_eq!(gdb.vcpus().iter().map(ToString::to_string).collect::<Vec<_>>(), ["p1.1", "p1.2"]);

        let (first, second) = (gdb.registers(BSP).unwrap(), gdb.registers(AP).unwrap());
        assert!((0x6ffc..=0x7000).contains(&first.rsp) && (0x5ffe..=0x6000).contains(&second.rsp), "{first}{second}");
        assert_eq!((first.cr0.unwrap() & 1, second.cr0.unwrap() & 1), (1, 0));
        assert_eq!(second.segments.cs.unwrap().selector, 0x800);
        assert_eq!((first.efer, first.cr3, first.kernel_gs_base, first.lstar), (Some(0), Some(0), Some(0), None));
        let text = gdb.monitor("info registers").unwrap();
        assert!(text.contains(&format!("ESP={:08x}", first.rsp)), "{text}");
        assert!(gdb.monitor("nonsense").unwrap().contains("unknown command"));

        // Any length and place, many at once, and past the end of a page.
        let mut all = vec![0; 0x5003];
        gdb.read_physical(PhysAddr::new(0x7ffd), &mut all).unwrap();
        let mut parts: Vec<_> =
            [(0x7ffd, 1), (0x8000, 0x1000), (0x8fff, 2), (0xcfff, 1), (0x9000, 0)].map(|(at, len)| (at, vec![0_u8; len])).into();
        let mut reads: Vec<_> = parts.iter_mut().map(|(at, part)| GdbRead::new(PhysAddr::new(*at), part)).collect();
        gdb.read_physical_many(&mut reads);
        assert!(reads.iter().all(|read| read.result.is_ok()));
        for (at, part) in parts {
            let from = at as usize - 0x7ffd;
            assert_eq!(part, &all[from..from + part.len()]);
        }
        let data: Vec<u8> = (0..0x3001_u32).map(|at| (at * 7) as u8).collect();
        gdb.write_physical(PhysAddr::new(0x20_0fff), &data).unwrap();
        let mut back = vec![0; data.len()];
        gdb.read_virtual(BSP, VirtAddr::new(0x20_0fff), &mut back).unwrap();
        assert_eq!(back, data);
        gdb.write_virtual(BSP, VirtAddr::new(0x20_1000), b"virtual").unwrap();
        assert!(machine.human("xp /7xb 0x201000").contains("0x76 0x69 0x72 0x74 0x75 0x61 0x6c"));

        assert!(matches!(gdb.registers(VcpuId(2)).unwrap_err().cause(), GdbCause::NoVcpu { vcpu: 2, count: 2 }));
        gdb.detach().unwrap();
        machine.assert_runs_on();
    }
}

#[test]
fn written_registers_are_read_back() {
    for emulator in emulators() {
        let mut machine = Machine::start(&emulator);
        let mut gdb = machine.attach();
        let before = gdb.registers(BSP).unwrap();
        let mut wanted = before;
        (wanted.rbx, wanted.rdi, wanted.cr2) = (0x1234_5678, 0x9abc, Some(0x5ead_b000));
        wanted.dr = Some([0; 8]);
        let written = gdb.write_registers(BSP, &wanted).unwrap();
        assert_eq!((written.changed, written.untold), (vec!["cr2", "rbx", "rdi"], vec!["dr"]));
        let now = gdb.registers(BSP).unwrap();
        assert_eq!((now.rbx, now.rdi, now.cr2, now.rip), (0x1234_5678, 0x9abc, Some(0x5ead_b000), before.rip));
        // 64-bit registers do not exist in 32-bit code; the stub says OK all the same.
        wanted.r8 = 1;
        let error = gdb.write_registers(BSP, &wanted).unwrap_err();
        assert!(matches!(error.cause(), GdbCause::NotTaken(names) if *names == ["r8"]), "{error}");
        // A real-mode selector, on the other vCPU: untouched are those of the first.
        let mut second = gdb.registers(AP).unwrap();
        second.segments.es.as_mut().unwrap().selector = 0x777;
        assert_eq!(gdb.write_registers(AP, &second).unwrap().changed, ["es"]);
        assert_eq!(gdb.registers(AP).unwrap().segments.es.unwrap().selector, 0x777);
        assert_eq!(gdb.registers(BSP).unwrap().segments.es, before.segments.es);
        gdb.write_registers(BSP, &before).unwrap();
        gdb.detach().unwrap();
        machine.assert_runs_on();
    }
}

#[test]
fn breakpoints_watchpoints_and_steps() {
    for emulator in emulators() {
        let mut machine = Machine::start(&emulator);
        let mut gdb = machine.attach();
        for kind in [TrapKind::Software, TrapKind::Hardware] {
            gdb.insert(kind, VirtAddr::new(SHARED), 1).unwrap();
            let mut hits = [0; 2];
            while hits.iter().any(|count| *count < 5) {
                gdb.resume().unwrap();
                assert!(matches!(gdb.registers(BSP).unwrap_err().cause(), GdbCause::Running));
                let stop = gdb.wait(LONG).unwrap().expect("a hit");
                let vcpu = stop.vcpu.unwrap();
                assert!(matches!(stop.reason, StopReason::Trap | StopReason::Breakpoint(_)), "{stop:?}");
                assert_eq!(place(&mut gdb, vcpu), SHARED);
                hits[vcpu.0 as usize] += 1;
                assert!(hits.iter().sum::<i32>() < 1000, "{hits:?}");
                // Past the trap, this vCPU alone.
                let other = VcpuId(1 - vcpu.0);
                let still = gdb.registers(other).unwrap();
                gdb.remove(kind, VirtAddr::new(SHARED), 1).unwrap();
                gdb.step(vcpu).unwrap();
                let stop = gdb.wait(LONG).unwrap().expect("the end of a step");
                assert_eq!((stop.vcpu, stop.reason), (Some(vcpu), StopReason::Trap));
                assert_eq!(place(&mut gdb, vcpu), SHARED + 1);
                assert_eq!(gdb.registers(other).unwrap(), still);
                gdb.insert(kind, VirtAddr::new(SHARED), 1).unwrap();
            }
            gdb.remove(kind, VirtAddr::new(SHARED), 1).unwrap();
        }
        assert!(gdb.remove(TrapKind::Software, VirtAddr::new(SHARED), 1).is_err());
        for (kind, at, vcpu) in [(TrapKind::Write, FIRST, BSP), (TrapKind::Access, SECOND, AP), (TrapKind::Read, SECOND, AP)] {
            gdb.insert(kind, VirtAddr::new(at), 2).unwrap();
            for _ in 0..3 {
                gdb.resume().unwrap();
                let stop = gdb.wait(LONG).unwrap().expect("a hit");
                assert_eq!((stop.vcpu, stop.reason), (Some(vcpu), StopReason::Watchpoint(kind, VirtAddr::new(at))));
            }
            gdb.remove(kind, VirtAddr::new(at), 2).unwrap();
        }
        assert!(matches!(gdb.insert(TrapKind::Write, VirtAddr::new(FIRST), 0).unwrap_err().cause(), GdbCause::Refused { .. }));
        assert_eq!(gdb.traps(), []);

        // Nothing happens: the guest runs on while we give up waiting.
        gdb.resume().unwrap();
        assert_eq!(gdb.wait(Duration::from_millis(50)).unwrap(), None);
        assert!(gdb.is_running() && machine.is_running());
        let stop = gdb.interrupt().unwrap();
        assert_eq!(stop.reason, StopReason::Paused);
        assert!(!machine.is_running());
        let before = word(&mut gdb, FIRST);
        gdb.step(BSP).unwrap();
        gdb.wait(LONG).unwrap().unwrap();
        assert!(word(&mut gdb, FIRST).wrapping_sub(before) <= 1);
        gdb.detach().unwrap();
        machine.assert_runs_on();
    }
}

/// The order to stop and a breakpoint race; whatever wins, there is one stop, and the next request has its own answer.
#[test]
fn an_interrupt_races_with_breakpoints() {
    for emulator in emulators() {
        let mut machine = Machine::start(&emulator);
        let mut gdb = machine.attach();
        gdb.insert(TrapKind::Hardware, VirtAddr::new(SHARED), 1).unwrap();
        for round in 0..200_u64 {
            gdb.resume().unwrap();
            std::thread::sleep(Duration::from_micros(round * 5));
            gdb.interrupt().unwrap();
            assert_eq!(word(&mut gdb, SHARED), 0xc390);
            let _ = (place(&mut gdb, BSP), place(&mut gdb, AP));
        }
        gdb.detach().unwrap();
        machine.assert_runs_on();
    }
}

/// However a client ends, the guest runs.
#[test]
fn every_way_to_leave() {
    for emulator in emulators() {
        let mut machine = Machine::start(&emulator);
        for round in 0..30 {
            for way in 0..6 {
                let mut gdb = machine.attach();
                if way > 0 {
                    gdb.insert(TrapKind::Software, VirtAddr::new(SHARED), 1).unwrap();
                    gdb.insert(TrapKind::Write, VirtAddr::new(FIRST), 4).unwrap();
                }
                match way {
                    2 | 4 => gdb.resume().unwrap(),
                    3 => {
                        gdb.resume().unwrap();
                        std::thread::sleep(Duration::from_micros(100 * round));
                    }
                    5 => gdb.step(BSP).unwrap(),
                    _ => {}
                }
                if way == 4 {
                    gdb.wait(LONG).unwrap().unwrap();
                }
                if round % 2 == 0 {
                    gdb.detach().unwrap()
                } else {
                    drop(gdb)
                }
                assert!(machine.is_running(), "way {way} in round {round}");
            }
        }
        machine.assert_runs_on();
    }
}

#[test]
fn a_paused_guest_runs_after_detach() {
    for emulator in emulators() {
        let mut machine = Machine::start(&emulator);
        machine.monitor(r#"{"execute":"stop"}"#);
        let gdb = machine.attach();
        gdb.detach().unwrap();
        machine.assert_runs_on();
        // Paused past us while it runs under us.
        let mut gdb = machine.attach();
        gdb.resume().unwrap();
        machine.monitor(r#"{"execute":"stop"}"#);
        let stop = gdb.wait(LONG).unwrap().unwrap();
        assert_eq!(stop.reason, StopReason::Paused);
        // Resumed past us: requests fail, or answer rightly; the client finds back.
        machine.monitor(r#"{"execute":"cont"}"#);
        let mut bytes = [0; 2];
        let begun = Instant::now();
        if let Err(error) = gdb.read_physical(PhysAddr::new(SHARED), &mut bytes) {
            println!("{}: {error}", emulator.display());
            assert!(begun.elapsed() < LONG);
            gdb.read_physical(PhysAddr::new(SHARED), &mut bytes).unwrap();
        }
        assert_eq!(bytes, [0x90, 0xc3]);
        drop(gdb);
        machine.assert_runs_on();
    }
}

#[test]
fn a_stub_that_serves_another() {
    for emulator in emulators() {
        let mut machine = Machine::start(&emulator);
        let first = machine.attach();
        let options = GdbOptions::default().connect(Duration::from_millis(300));
        // One waits in the queue; those behind it are not even let in.
        for _ in 0..3 {
            let begun = Instant::now();
            let error = GdbClient::connect(&machine.address(), &options).unwrap_err();
            assert!(matches!(error.cause(), GdbCause::Busy { .. }), "{error}");
            assert!(error.to_string().contains("one debugger at a time"));
            assert!(begun.elapsed() < Duration::from_secs(3));
        }
        first.detach().unwrap();
        // QEMU now takes the connections of those who gave up; the guest must not stand still for them.
        std::thread::sleep(Duration::from_millis(300));
        machine.assert_runs_on();
        machine.attach().detach().unwrap();
        machine.assert_runs_on();
    }
}

#[test]
fn a_stub_that_ends() {
    for emulator in emulators() {
        let mut machine = Machine::start(&emulator);
        let mut gdb = machine.attach();
        gdb.resume().unwrap();
        machine.qemu.kill().unwrap();
        machine.qemu.wait().unwrap();
        let end = gdb.wait(LONG);
        assert!(end.as_ref().is_err_and(|error| matches!(error.cause(), GdbCause::Closed)), "{end:?}");
        assert!(matches!(gdb.registers(BSP).unwrap_err().cause(), GdbCause::Exited));
        let address = machine.address();
        let error = GdbClient::connect(&address, &GdbOptions::default()).unwrap_err();
        assert!(matches!(error.cause(), GdbCause::Connect(_)) && error.to_string().contains("-gdb unix:"), "{error}");
        assert!(gdb.detach().is_err());
    }
}

/// QEMU quits in order, under a client that waits.
#[test]
fn a_guest_that_ends() {
    for emulator in emulators() {
        let mut machine = Machine::start(&emulator);
        let mut gdb = machine.attach();
        gdb.resume().unwrap();
        machine.monitor(r#"{"execute":"quit"}"#);
        match gdb.wait(LONG) {
            Ok(Some(stop)) => assert!(stop.reason.is_end() || stop.reason == StopReason::Paused, "{stop:?}"),
            Err(error) => assert!(matches!(error.cause(), GdbCause::Closed), "{error}"),
            Ok(None) => panic!("no end"),
        }
        assert!(gdb.detach().is_err());
    }
}

#[test]
fn a_32_bit_machine() {
    let emulator = Path::new("qemu-system-i386");
    if !works(emulator) {
        println!("skipped: no qemu-system-i386 on this host");
        return;
    }
    let mut machine = Machine::start(emulator);
    let mut gdb = machine.attach();
    assert!(!gdb.is_64_bit());
    let (first, second) = (gdb.registers(BSP).unwrap(), gdb.registers(AP).unwrap());
    assert!((0x6ffc..=0x7000).contains(&first.rsp) && (0x5ffe..=0x6000).contains(&second.rsp), "{first}{second}");
    assert_eq!((second.segments.cs.unwrap().selector, first.kernel_gs_base), (0x800, None));
    assert_eq!(first.cr0.unwrap() & 1, 1);
    let mut wanted = first;
    wanted.rsi = 0x1_0000_0000;
    assert!(matches!(gdb.write_registers(BSP, &wanted).unwrap_err().cause(), GdbCause::NotTaken(_)));
    wanted.rsi = 0x77;
    assert_eq!(gdb.write_registers(BSP, &wanted).unwrap().changed, ["rsi"]);
    gdb.insert(TrapKind::Hardware, VirtAddr::new(SHARED), 1).unwrap();
    gdb.resume().unwrap();
    let vcpu = gdb.wait(LONG).unwrap().unwrap().vcpu.unwrap();
    assert_eq!(place(&mut gdb, vcpu), SHARED);
    drop(gdb);
    machine.assert_runs_on();
}

/// One hundred clients, one after another, leave nothing open.
#[test]
fn attaching_again_and_again() {
    for emulator in emulators() {
        let mut machine = Machine::start(&emulator);
        let open = || std::fs::read_dir(format!("/proc/{}/fd", machine.qemu.id())).unwrap().count();
        let before = open();
        for _ in 0..100 {
            machine.attach().detach().unwrap();
        }
        assert!(open() <= before + 1, "{before} descriptors became {}", open());
        machine.assert_runs_on();
    }
}
