//! The client of the gdb protocol against a stub that plays a script: what a real QEMU does not do on demand.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::expect_used,
    missing_docs
)]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vmi_core::{PhysAddr, VcpuId, VirtAddr};
use vmi_driver_kvm::gdb::{
    Decoder, GdbAddress, GdbCause, GdbClient, GdbError, GdbOptions, GdbRead, Item, StopReason, TrapKind, encode,
};

/// What a stub sends on a request: the bytes themselves, acknowledgement included; or nothing, so that the usual answer is given.
type Script = Box<dyn FnMut(&str) -> Option<Vec<u8>> + Send>;

const XML: &str = r#"<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target><reg name="rax" bitsize="64" regnum="0"/>
<reg name="rip" bitsize="64"/><reg name="eflags" bitsize="32"/><reg name="cr3" bitsize="64"/></target>"#;

fn packet(payload: &str) -> Vec<u8> {
    let mut out = Vec::new();
    encode(payload.as_bytes(), &mut out);
    out
}

fn acknowledged(payload: &str) -> Option<Vec<u8>> {
    Some([b"+".to_vec(), packet(payload)].concat())
}

/// The address and the length of `m` or `M`.
fn range(request: &str) -> Option<(u64, usize)> {
    let (at, len) = request[1..].split(':').next()?.split_once(',')?;
    Some((u64::from_str_radix(at, 16).ok()?, usize::from_str_radix(len, 16).ok()?))
}

/// What a well-behaved stub answers. A byte of memory is the low byte of its address times three.
fn usual(request: &str) -> Option<String> {
    let answer = match request {
        "?" => "T05thread:p1.1;",
        "vCont?" => "vCont;c;C;s;S",
        "qfThreadInfo" => "mp1.2,p1.1",
        "qsThreadInfo" => "l",
        "qqemu.PhyMemMode" => "0",
        "qqemu.sstepbits" => "ENABLE=1,NOIRQ=2,NOTIMER=4",
        "g" => "01000000000000000020008100000000020000000030000000000000",
        _ if request.starts_with("qSupported") => "PacketSize=100;qXfer:features:read+;multiprocess+",
        _ if request.starts_with("vCont;s") => "T05thread:p1.1;",
        _ if request.starts_with("vCont;") => return None,
        _ if request.starts_with("qXfer:features:read:target.xml:") => {
            let (at, len) = request.rsplit(':').next()?.split_once(',')?;
            let (at, len) = (usize::from_str_radix(at, 16).ok()?, usize::from_str_radix(len, 16).ok()?);
            let part = &XML[at.min(XML.len())..(at + len).min(XML.len())];
            return Some(format!("{}{part}", if at + len >= XML.len() { 'l' } else { 'm' }));
        }
        _ if request.starts_with('m') => {
            let (at, len) = range(request)?;
            return Some((0..len as u64).map(|offset| format!("{:02x}", (at + offset).wrapping_mul(3) as u8)).collect());
        }
        _ if request.starts_with(['H', 'Q', 'Z', 'z', 'D', 'M', 'P']) => "OK",
        _ if request.starts_with("vAttach") => "T05thread:p1.1;",
        _ => "",
    };
    Some(answer.to_owned())
}

/// Serves one connection until it closes. Gives all requests that came.
fn serve(mut stream: UnixStream, mut script: Script) -> Vec<String> {
    let mut decoder = Decoder::default();
    let mut requests = Vec::new();
    let mut bytes = [0; 4096];
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    loop {
        while let Ok(Some(item)) = decoder.next_item() {
            let answer = match item {
                Item::Packet(request) => {
                    let request = String::from_utf8_lossy(&request).into_owned();
                    requests.push(request.clone());
                    script(&request).or_else(|| match usual(&request) {
                        Some(answer) => acknowledged(&answer),
                        None => Some(b"+".to_vec()),
                    })
                }
                Item::Nak => script("-"),
                _ => None,
            };
            if answer.is_some_and(|answer| stream.write_all(&answer).is_err()) {
                return requests;
            }
        }
        match stream.read(&mut bytes) {
            Ok(0) => return requests,
            Ok(len) => {
                if bytes[..len].contains(&3)
                    && let Some(answer) = script("\x03")
                {
                    let _ = stream.write_all(&answer);
                }
                decoder.push(&bytes[..len]);
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return requests,
            Err(error) => panic!("{error}"),
        }
    }
}

fn options() -> GdbOptions {
    let short = Duration::from_secs(1);
    GdbOptions::default().connect(short).reply(short).farewell(short)
}

fn connect(
    script: impl FnMut(&str) -> Option<Vec<u8>> + Send + 'static,
) -> (Result<GdbClient, GdbError>, JoinHandle<Vec<String>>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stub");
    let listener = UnixListener::bind(&path).unwrap();
    let stub = thread::spawn(move || serve(listener.accept().unwrap().0, Box::new(script)));
    (GdbClient::connect(&GdbAddress::Unix(path), &options()), stub)
}

/// Without anything of its own.
fn plain(_: &str) -> Option<Vec<u8>> {
    None
}

#[test]
fn a_whole_visit() {
    let (gdb, stub) = connect(plain);
    let mut gdb = gdb.unwrap();
    assert_eq!(gdb.vcpus().iter().map(ToString::to_string).collect::<Vec<_>>(), ["p1.1", "p1.2"]);
    let registers = gdb.registers(VcpuId(1)).unwrap();
    assert_eq!((registers.rax, registers.rip, registers.rflags, registers.cr3), (1, 0x8100_2000, 2, Some(0x3000)));
    assert_eq!((registers.cr0, registers.efer, registers.segments.cs), (None, None, None));
    let mut buf = [0; 700];
    gdb.read_physical(PhysAddr::new(0x12345), &mut buf).unwrap();
    assert!(buf.iter().zip(0x12345_u64..).all(|(byte, at)| *byte == (at * 3) as u8));
    gdb.write_virtual(VcpuId(0), VirtAddr::new(0x1ffe), &[1, 2, 3, 4]).unwrap();
    gdb.insert(TrapKind::Write, VirtAddr::new(0x10), 8).unwrap();
    gdb.remove(TrapKind::Write, VirtAddr::new(0x10), 8).unwrap();
    gdb.insert(TrapKind::Software, VirtAddr::new(0x20), 1).unwrap();
    let words = gdb.last_words();
    assert!(words.part().ends_with(b"$D;1#b0"));
    gdb.detach().unwrap();
    let requests = stub.join().unwrap();
    for request in ["M1ffe,2:0102", "M2000,2:0304", "Z2,10,8", "z2,10,8", "z0,20,1", "Qqemu.PhyMemMode:0", "D;1", "Hgp1.2"] {
        assert!(requests.iter().any(|known| known == request), "{request}: {requests:?}");
    }
}

#[test]
fn tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let stub = thread::spawn(move || {
        let stream = listener.accept().unwrap().0;
        // The same, by way of a socket of the other kind.
        serve(UnixStream::from(std::os::fd::OwnedFd::from(stream)), Box::new(plain))
    });
    let gdb = GdbClient::connect(&format!(":{port}").parse().unwrap(), &options()).unwrap();
    assert_eq!(gdb.address(), format!("tcp:localhost:{port}"));
    gdb.detach().unwrap();
    assert_eq!(stub.join().unwrap().last().unwrap(), "D;1");
    let error = GdbClient::connect(&format!(":{port}").parse().unwrap(), &options()).unwrap_err();
    assert!(matches!(error.cause(), GdbCause::Connect(_)), "{error}");
}

/// Damaged packets in both directions are repeated, but not for ever.
#[test]
fn damaged_packets() {
    let mut naks = 0;
    let mut garbled = 0;
    let (gdb, stub) = connect(move |request| match request {
        "qqemu.PhyMemMode" if naks < 2 => {
            naks += 1;
            Some(b"-".to_vec())
        }
        "g" if garbled == 0 => {
            garbled += 1;
            Some(b"+$0100#00".to_vec())
        }
        "-" => Some(packet(&usual("g").unwrap())),
        _ => None,
    });
    let mut gdb = gdb.unwrap();
    assert_eq!(gdb.registers(VcpuId(0)).unwrap().rax, 1);
    gdb.detach().unwrap();
    stub.join().unwrap();

    let (gdb, stub) = connect(|request| (request == "?" || request == "-").then(|| b"+$T05#00".to_vec()));
    let error = gdb.unwrap_err();
    assert!(matches!(error.cause(), GdbCause::Damaged { .. }), "{error}");
    stub.join().unwrap();
}

/// Runs, escapes, notifications and stop replies that nobody asked for, between and before answers.
#[test]
fn unusual_streams() {
    let (gdb, stub) = connect(|request| match request {
        "g" => Some(
            [
                b"+".to_vec(),
                b"%Stop:T05#35".to_vec(),
                packet("T02thread:p1.1;"),
                b"$010* 0*(20008100*\"020* 030* 0**#00".to_vec(),
            ]
            .concat(),
        ),
        "-" => acknowledged(&usual("g").unwrap()),
        _ if request.starts_with("qSupported") => {
            Some([packet("T02thread:01;"), b"+".to_vec(), packet(&usual(request).unwrap())].concat())
        }
        _ => None,
    });
    let mut gdb = gdb.unwrap();
    assert_eq!(gdb.registers(VcpuId(0)).unwrap().rip, 0x8100_2000);
    gdb.detach().unwrap();
    stub.join().unwrap();
}

#[test]
fn a_stub_that_is_silent_or_gone() {
    // From the start.
    let begun = Instant::now();
    let (gdb, stub) = connect(|_| Some(Vec::new()));
    let error = gdb.unwrap_err();
    assert!(matches!(error.cause(), GdbCause::Busy { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(6));
    // If it takes us from its queue later, it shall not keep the guest.
    assert_eq!(stub.join().unwrap().last().unwrap(), "D;1");

    // Later; the next request finds back to a known state.
    let mut silent = 1;
    let (gdb, stub) = connect(move |request| {
        silent -= i32::from(request == "g");
        (request == "g" && silent == 0).then(Vec::new)
    });
    let mut gdb = gdb.unwrap();
    let error = gdb.registers(VcpuId(0)).unwrap_err();
    assert!(matches!(error.cause(), GdbCause::Timeout { .. }), "{error}");
    assert_eq!(gdb.registers(VcpuId(0)).unwrap().rax, 1);
    drop(gdb);
    stub.join().unwrap();

    // In the midst of an answer, while the guest runs, and while it is left: all in bounded time.
    let (gdb, stub) = connect(|request| match request {
        "g" => Some(b"+$0100".to_vec()),
        _ if request.starts_with(['v', 'D', 'Q']) && request != "vCont?" => Some(Vec::new()),
        _ => None,
    });
    let begun = Instant::now();
    let mut gdb = gdb.unwrap();
    assert!(gdb.registers(VcpuId(0)).is_err());
    assert!(gdb.resume().is_err());
    assert!(gdb.detach().is_err());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    stub.join().unwrap();
}

#[test]
fn stops_of_all_kinds() {
    for (reply, reason, vcpu) in [
        ("T05thread:p1.2;swbreak:;", StopReason::Breakpoint(TrapKind::Software), Some(VcpuId(1))),
        ("T05thread:02;", StopReason::Trap, Some(VcpuId(1))),
        ("T05thread:p1.9;", StopReason::Trap, None),
        ("S05", StopReason::Trap, None),
        ("W01", StopReason::Exited(1), None),
        ("X09;process:1", StopReason::Killed(9), None),
    ] {
        let (gdb, stub) = connect(move |request| (request == "vCont;c").then(|| acknowledged(reply).unwrap()));
        let mut gdb = gdb.unwrap();
        gdb.resume().unwrap();
        let stop = gdb.wait(Duration::from_secs(5)).unwrap().unwrap();
        assert_eq!((stop.reason, stop.vcpu), (reason, vcpu), "{reply}");
        if reason.is_end() {
            assert!(matches!(gdb.registers(VcpuId(0)).unwrap_err().cause(), GdbCause::Exited));
            assert!(gdb.interrupt().is_err());
        } else {
            gdb.registers(VcpuId(0)).unwrap();
        }
        drop(gdb);
        stub.join().unwrap();
    }
    // Refused, damaged, nonsense, interrupted, never.
    for (reply, matches) in [
        (acknowledged("E22"), (|cause| matches!(cause, GdbCause::Refused { .. })) as fn(&GdbCause) -> bool),
        (acknowledged("Tzz"), |cause| matches!(cause, GdbCause::Answer { .. })),
        (Some(b"+$T05#00".repeat(9)), |cause| matches!(cause, GdbCause::Damaged { .. })),
    ] {
        let (gdb, stub) = connect(move |request| reply.clone().filter(|_| request == "vCont;c"));
        let mut gdb = gdb.unwrap();
        gdb.resume().unwrap();
        let error = gdb.wait(Duration::from_secs(5)).unwrap_err();
        assert!(matches(error.cause()), "{error}");
        drop(gdb);
        stub.join().unwrap();
    }
    let (gdb, stub) = connect(|request| (request == "\x03").then(|| packet("T02thread:p1.1;")));
    let mut gdb = gdb.unwrap();
    gdb.resume().unwrap();
    assert_eq!(gdb.wait(Duration::from_millis(20)).unwrap(), None);
    assert_eq!(gdb.interrupt().unwrap().reason, StopReason::Paused);
    assert_eq!(gdb.interrupt().unwrap().reason, StopReason::Paused);
    drop(gdb);
    stub.join().unwrap();
    let (gdb, stub) = connect(plain);
    let mut gdb = gdb.unwrap();
    gdb.resume().unwrap();
    assert!(matches!(gdb.interrupt().unwrap_err().cause(), GdbCause::Timeout { .. }));
    drop(gdb);
    stub.join().unwrap();
}

/// Each read has its own fate; but if one answer is missing or of the wrong length, none is believed.
#[test]
fn reads_of_which_some_fail() {
    let (gdb, stub) = connect(|request| {
        let (at, _) = range(request).filter(|_| request.starts_with('m'))?;
        match at {
            0x2000..0x3000 => acknowledged("E14"),
            0x5000 => acknowledged("0102"),
            // As after a packet that was swallowed.
            0x6000 => Some(Vec::new()),
            _ => None,
        }
    });
    let mut gdb = gdb.unwrap();
    let mut bufs = vec![vec![0_u8; 0x200]; 3];
    let mut attempt = |places: [u64; 3]| {
        let mut reads: Vec<_> = bufs.iter_mut().zip(places).map(|(buf, at)| GdbRead::new(PhysAddr::new(at), buf)).collect();
        gdb.read_physical_many(&mut reads);
        reads.into_iter().map(|read| read.result.map_err(|error| (error.done(), error))).collect::<Vec<_>>()
    };
    let results = attempt([0x1000, 0x1f80, 0x3000]);
    assert!(results[0].is_ok() && results[2].is_ok());
    let (done, error) = results[1].as_ref().unwrap_err();
    assert!(*done == 200 && matches!(error.cause(), GdbCause::Refused { code } if code == "E14"), "{error} after {done}");
    for bad in [0x5000, 0x6000] {
        let results = attempt([0x1000, bad, 0x3000]);
        assert!(results.iter().all(|result| result.as_ref().is_err_and(|(done, _)| *done == 0)), "{results:?}");
        // And the client finds back.
        assert!(attempt([0x1000, 0x7000, 0x3000]).iter().all(Result::is_ok));
    }
    let mut buf = [0; 0x1800];
    let error = gdb.read_virtual(VcpuId(0), VirtAddr::new(0x1000), &mut buf).unwrap_err();
    assert_eq!(error.done(), 0x1000);
    drop(gdb);
    stub.join().unwrap();
}

#[test]
fn other_stubs() {
    // No physical memory, no description: gdb's layout.
    let registers = "00".repeat(0x218);
    let (gdb, stub) = connect(move |request| match request {
        "qqemu.PhyMemMode" => acknowledged(""),
        "g" => acknowledged(&registers),
        _ if request.starts_with("qSupported") => acknowledged("PacketSize=3fff"),
        _ => None,
    });
    let mut gdb = gdb.unwrap();
    assert!(gdb.is_64_bit() && !gdb.has_physical_memory());
    assert!(matches!(gdb.read_physical(PhysAddr::new(0), &mut [0]).unwrap_err().cause(), GdbCause::Unsupported));
    gdb.read_virtual(VcpuId(0), VirtAddr::new(0), &mut [0]).unwrap();
    assert_eq!(gdb.registers(VcpuId(0)).unwrap().cr3, None);
    drop(gdb);
    stub.join().unwrap();
    // No gdb stub at all; one of another architecture; one that cannot resume single vCPUs; one with endless lists.
    for (about, script) in [
        ("banner", (|_| Some(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())) as fn(&str) -> Option<Vec<u8>>),
        ("arm", |request| {
            request.starts_with("qXfer").then(|| acknowledged("l<target><reg name=\"r0\" bitsize=\"32\"/></target>").unwrap())
        }),
        ("vCont", |request| (request == "vCont?").then(|| acknowledged("").unwrap())),
        ("threads", |request| request.starts_with("qsThread").then(|| acknowledged("m1,2,3").unwrap())),
        ("document", |request| request.starts_with("qXfer").then(|| acknowledged(&format!("m{}", " ".repeat(9000))).unwrap())),
        ("packet", |request| request.starts_with("qfThread").then(|| [b"+$".to_vec(), vec![b'1'; 3 << 20]].concat())),
        ("processes", |request| (request == "?").then(|| acknowledged("W00").unwrap())),
    ] {
        let begun = Instant::now();
        let (gdb, stub) = connect(script);
        let error = gdb.expect_err(about);
        println!("{about}: {error}");
        assert!(error.to_string().contains("; "), "no advice: {error}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{about}");
        stub.join().unwrap();
    }
}

#[test]
fn monitor_commands() {
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (gdb, stub) = connect(move |request| {
        let command = request.strip_prefix("qRcmd,")?;
        Some(match command {
            "61" => {
                [b"+".to_vec(), packet(&format!("O{}", hex("one\r\n"))), packet(&format!("O{}", hex("two\r\n"))), packet("OK")]
                    .concat()
            }
            "62" => acknowledged("E01")?,
            "63" => acknowledged("Oxy")?,
            _ => acknowledged("OK")?,
        })
    });
    let mut gdb = gdb.unwrap();
    assert_eq!(gdb.monitor("a").unwrap(), "one\ntwo\n");
    assert!(matches!(gdb.monitor("b").unwrap_err().cause(), GdbCause::Refused { .. }));
    assert!(matches!(gdb.monitor("c").unwrap_err().cause(), GdbCause::Answer { .. }));
    assert_eq!(gdb.monitor("").unwrap(), "");
    assert!(matches!(gdb.monitor(&"x".repeat(500)).unwrap_err().cause(), GdbCause::TooLong { .. }));
    drop(gdb);
    stub.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// A stub that answers anything: an error or a client, in bounded time, no panic.
    #[test]
    fn any_answers(answers in prop::collection::vec(prop::sample::select(vec![
        "OK", "", "E22", "l", "m1", "mp1.1", "T05thread:p1.1;", "W00", "O41", "PacketSize=10", "vCont;c;s", "1", "0", "00000000", "l<target/>", "x}*",
        "l<t><reg name=\"rip\" bitsize=\"64\"/></t>", "0000000000000000",
    ]), 1..20)) {
        let mut answers = answers.into_iter().cycle().take(60);
        let (gdb, stub) = connect(move |_| answers.next().map_or(Some(b"-".to_vec()), acknowledged));
        if let Ok(mut gdb) = gdb {
            let _ = gdb.registers(VcpuId(0));
            let _ = gdb.read_virtual(VcpuId(0), VirtAddr::new(0), &mut [0; 64]);
            let _ = gdb.resume();
            let _ = gdb.wait(Duration::from_millis(10));
        }
        stub.join().unwrap();
    }
}
