//! What a process says over the gdb connection of another that was killed: the guest runs on, whatever the stub was doing.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::expect_used,
    missing_docs
)]

mod gdb_machine;

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use gdb_machine::{FIRST, Machine, SHARED, emulators};
use vmi_driver_kvm::gdb::{LastWords, encode};

/// The connection of the one who died, without manners.
struct Connection(UnixStream);

impl Connection {
    fn new(machine: &Machine) -> Self {
        let stream = UnixStream::connect(machine.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut connection = Self(stream);
        // The stop reply that QEMU 7.2 sends for attaching.
        sleep(Duration::from_millis(30));
        connection.send("qSupported:multiprocess+");
        while !connection.hear().contains("PacketSize") {}
        connection
    }

    fn send(&mut self, payload: &str) {
        let mut packet = b"+".to_vec();
        encode(payload.as_bytes(), &mut packet);
        self.0.write_all(&packet).unwrap();
    }

    /// Waits for the end of a packet; does not acknowledge it.
    fn hear(&mut self) -> String {
        let mut all = Vec::new();
        let mut bytes = [0; 4096];
        let limit = Instant::now() + Duration::from_secs(10);
        while all.iter().rev().nth(2).is_none_or(|byte| *byte != b'#') {
            match self.0.read(&mut bytes) {
                Ok(len) => {
                    assert!(len > 0, "QEMU has ended");
                    all.extend(&bytes[..len]);
                }
                Err(error) => assert!(error.kind() == ErrorKind::WouldBlock && Instant::now() < limit, "{error}"),
            }
        }
        String::from_utf8(all).unwrap()
    }

    fn ask(&mut self, payload: &str) -> String {
        self.send(payload);
        self.hear()
    }
}

type Deed = (&'static str, fn(&mut Connection, &mut Machine));

/// Every state that the stub can be in.
const DEEDS: &[Deed] = &[
    ("attached only", |_, _| {}),
    ("answer not acknowledged", |connection, _| drop(connection.ask("g"))),
    ("physical memory", |connection, _| drop(connection.ask("Qqemu.PhyMemMode:1"))),
    ("running", |connection, _| connection.send("vCont;c")),
    ("running for a while", |connection, _| {
        connection.send("vCont;c");
        sleep(Duration::from_millis(30));
    }),
    ("running into breakpoints", |connection, _| {
        connection.ask(&format!("Z0,{SHARED:x},1"));
        connection.send("vCont;c");
    }),
    ("at a breakpoint, not acknowledged", |connection, _| {
        connection.ask(&format!("Z0,{SHARED:x},1"));
        connection.send("vCont;c");
        assert!(connection.hear().contains("T05"));
    }),
    ("running into watchpoints", |connection, _| {
        connection.ask(&format!("Z2,{FIRST:x},4"));
        connection.ask(&format!("Z1,{SHARED:x},1"));
        connection.send("vCont;c");
    }),
    ("at a watchpoint", |connection, _| {
        connection.ask(&format!("Z2,{FIRST:x},4"));
        connection.ask(&format!("Z1,{SHARED:x},1"));
        connection.send("vCont;c");
        connection.hear();
    }),
    ("in a step", |connection, _| {
        connection.ask("Hcp1.2");
        connection.send("vCont;s:p1.2");
    }),
    ("after a step", |connection, _| {
        connection.send("vCont;s:p1.1");
        connection.hear();
    }),
    ("half a packet", |connection, _| connection.0.write_all(b"+$m0,4").unwrap()),
    ("half a write", |connection, _| connection.0.write_all(b"+$M9000,4:00").unwrap()),
    ("an escape", |connection, _| connection.0.write_all(b"+$m}").unwrap()),
    ("a run", |connection, _| connection.0.write_all(b"+$m0*").unwrap()),
    ("no checksum", |connection, _| connection.0.write_all(b"+$vCont;c#").unwrap()),
    ("half a checksum", |connection, _| connection.0.write_all(b"+$k#6").unwrap()),
    ("many answers unread", |connection, _| {
        connection.0.write_all(&b"$m0,800#61".repeat(600)).unwrap();
    }),
    ("many answers unread and half a packet", |connection, _| {
        connection.0.write_all(&b"$m0,800#61".repeat(600)).unwrap();
        connection.0.write_all(b"$M9000,4:").unwrap();
    }),
    ("running under someone else", |_, machine| drop(machine.monitor(r#"{"execute":"cont"}"#))),
    ("paused under someone else", |connection, machine| {
        connection.send("vCont;c");
        machine.monitor(r#"{"execute":"stop"}"#);
    }),
    ("detached already", |connection, _| drop(connection.ask("D;1"))),
];

#[test]
fn the_guest_runs_on_from_any_state() {
    for emulator in emulators() {
        let mut machine = Machine::start(&emulator);
        let gdb = machine.attach();
        let words: LastWords = gdb.last_words();
        gdb.detach().unwrap();
        for round in 0..4 {
            for (name, deed) in DEEDS {
                let mut connection = Connection::new(&machine);
                deed(&mut connection, &mut machine);
                let begun = Instant::now();
                let confirmed = words.speak(connection.0.as_fd(), Duration::from_secs(5)).unwrap();
                let took = begun.elapsed();
                assert!(confirmed, "{name} in round {round}: not confirmed within {took:?}");
                drop(connection);
                println!("{}: {name}: {took:?}", emulator.display());
                machine.assert_runs_on();
                // Nothing is left over for the next one.
                if round == 0 {
                    let mut gdb = machine.attach();
                    let mut code = [0; 2];
                    gdb.read_virtual(vmi_core::VcpuId(0), vmi_core::VirtAddr::new(SHARED), &mut code).unwrap();
                    assert_eq!(code, [0x90, 0xc3]);
                    gdb.detach().unwrap();
                    machine.assert_runs_on();
                }
            }
        }
    }
}

/// A predecessor died without last words: half a packet and its breakpoints are still there.
#[test]
fn a_successor_clears_up() {
    for emulator in emulators() {
        let mut machine = Machine::start(&emulator);
        for rest in [&b"$m0,4"[..], b"$m}", b"$m0*", b"$vCont;c#", b"$m0#6", b"", b"-"] {
            let mut connection = Connection::new(&machine);
            connection.ask(&format!("Z0,{SHARED:x},1"));
            connection.ask("Qqemu.PhyMemMode:1");
            connection.0.write_all(rest).unwrap();
            drop(connection);
            assert!(!machine.is_running());
            machine.attach().detach().unwrap();
            machine.assert_runs_on();
        }
    }
}

/// A stub that says nothing: the words end in time.
#[test]
fn a_silent_stub() {
    let emulators = emulators();
    let Some(emulator) = emulators.first() else { return };
    let machine = Machine::start(emulator);
    let words = machine.attach().last_words();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let begun = Instant::now();
    assert!(!words.speak(ours.as_fd(), Duration::from_millis(300)).unwrap());
    assert!((Duration::from_millis(250)..Duration::from_secs(2)).contains(&begun.elapsed()));
    drop(theirs);
    assert!(words.speak(ours.as_fd(), Duration::from_secs(5)).is_err());
}
