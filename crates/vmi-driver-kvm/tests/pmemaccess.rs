//! The client of the `pmemaccess` socket against servers that keep to the protocol, and against others.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, listen, recv, socket};
use proptest::prelude::*;
use tempfile::TempDir;
use vmi_core::{ErrorKind, PhysAddr, ReadOp};
use vmi_driver_kvm::pmemaccess::{Operation, PmemAccess, PmemError, READ_LIMIT, WRITE_LIMIT};

/// What a test waits at most for an answer that comes.
const PATIENT: Duration = Duration::from_secs(20);
/// What a test waits for an answer that does not come.
const SHORT: Duration = Duration::from_millis(150);
/// By how much a loaded machine may overrun a time limit.
const SLACK: Duration = Duration::from_secs(5);

type Request = (u64, u64, usize);

/// A socket, and a thread that serves its first client.
struct Server {
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
    _directory: TempDir,
}

impl Server {
    fn start(serve: impl FnOnce(UnixStream) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pmem");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            drop(listener);
            serve(stream);
        });
        Self { path, thread: Some(thread), _directory: directory }
    }

    fn connect(&self, limit: Duration) -> PmemAccess {
        PmemAccess::connect(&self.path, limit).unwrap()
    }

    /// Waits until the server has ended, as it does after a quit.
    fn ended(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

fn request(stream: &mut UnixStream) -> Option<Request> {
    let mut bytes = [0; 24];
    stream.read_exact(&mut bytes).ok()?;
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    Some((number(0), number(8), usize::try_from(number(16)).unwrap()))
}

/// How a server tells that it refuses a read.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    /// As the patch's code does: one byte, whatever stands in its buffer.
    Byte(u8),
    /// As the patch's comment promises: all bytes, and the status 0.
    Whole,
}

/// How a server hands out its answers.
#[derive(Clone, Copy, Debug)]
enum Pace {
    AtOnce,
    /// So many bytes at a time, with a pause between.
    Pieces(usize, Duration),
    /// The first byte, a long pause, the others.
    FirstAlone,
}

/// Guest memory: pieces at their addresses. As in QEMU, a range that is not within one piece is refused.
#[derive(Clone, Debug)]
struct Memory(Vec<(u64, Vec<u8>)>);

impl Memory {
    fn flat(size: usize) -> Self {
        Self(vec![(0, (0..size).map(|at| (at * 31 + at / 251) as u8).collect())])
    }

    fn range(&mut self, at: u64, len: usize) -> Option<&mut [u8]> {
        self.0.iter_mut().find_map(|(start, bytes)| {
            let from = usize::try_from(at.checked_sub(*start)?).ok()?;
            bytes.get_mut(from..from.checked_add(len)?)
        })
    }
}

/// Serves as QEMU does. Ends at a quit, and panics if the client closes without one.
fn serve(mut stream: UnixStream, memory: &Mutex<Memory>, refusal: Refusal, pace: Pace) {
    loop {
        let (kind, at, len) = request(&mut stream).unwrap();
        let mut memory = memory.lock().unwrap();
        let answer = match kind as u8 {
            0 => return,
            // QEMU maps nothing for a length of 0, finds that it has mapped all of it, and grants that.
            1 if len == 0 => vec![1],
            1 => match (memory.range(at, len), refusal) {
                (Some(bytes), _) => [&*bytes, &[1]].concat(),
                (None, Refusal::Byte(byte)) => vec![byte],
                (None, Refusal::Whole) => vec![0; len + 1],
            },
            2 => {
                let mut data = vec![0; len];
                // One call, as in QEMU.
                let count = stream.read(&mut data).unwrap();
                match memory.range(at, len) {
                    Some(bytes) if count == len => {
                        bytes.copy_from_slice(&data);
                        vec![1]
                    }
                    _ => vec![0],
                }
            }
            _ => vec![0],
        };
        drop(memory);
        // The answers to a fence come at once, or the test would take minutes.
        match if kind == 1 && len > 0 { pace } else { Pace::AtOnce } {
            Pace::AtOnce => stream.write_all(&answer).unwrap(),
            Pace::Pieces(bytes, pause) => {
                for piece in answer.chunks(bytes) {
                    stream.write_all(piece).unwrap();
                    thread::sleep(pause);
                }
            }
            Pace::FirstAlone => {
                stream.write_all(&answer[..1]).unwrap();
                thread::sleep(Duration::from_millis(40));
                stream.write_all(&answer[1..]).unwrap();
            }
        }
    }
}

fn conforming(memory: Memory, refusal: Refusal, pace: Pace) -> (Server, Arc<Mutex<Memory>>) {
    let memory = Arc::new(Mutex::new(memory));
    let served = Arc::clone(&memory);
    (Server::start(move |stream| serve(stream, &served, refusal, pace)), memory)
}

fn at(address: u64) -> PhysAddr {
    PhysAddr::new(address)
}

#[test]
fn reads_and_writes() {
    let (server, memory) = conforming(Memory::flat(READ_LIMIT * 2 + 12_345), Refusal::Byte(0), Pace::AtOnce);
    let pmem = server.connect(PATIENT);
    assert_eq!(pmem.server().unwrap().as_raw(), i32::try_from(std::process::id()).unwrap());
    for (from, len) in
        [(0, 1), (1, 2), (4095, 2), (77, 4096), (3, READ_LIMIT), (9, READ_LIMIT + 1), (0, READ_LIMIT * 2 + 12_345), (5, 0)]
    {
        let mut buf = vec![0xaa; len];
        pmem.read(at(from), &mut buf).unwrap();
        assert_eq!(buf, memory.lock().unwrap().0[0].1[from as usize..][..len], "{len} bytes at {from}");
    }
    for (to, len) in [(0, 1), (4095, 2), (100, 4096), (1, WRITE_LIMIT), (5, WRITE_LIMIT * 3 + 17), (9, 0)] {
        let data: Vec<u8> = (0..len).map(|at| (at * 7 + 3) as u8).collect();
        pmem.write(at(to), &data).unwrap();
        assert_eq!(memory.lock().unwrap().0[0].1[to as usize..][..len], data, "{len} bytes to {to}");
    }
    drop(pmem);
    server.ended();
}

#[test]
fn a_refused_address_is_told_and_leaves_the_connection_alive() {
    let first = 0x20_000;
    for refusal in [Refusal::Byte(0), Refusal::Byte(1), Refusal::Byte(0x5a), Refusal::Whole] {
        let (server, _memory) = conforming(Memory::flat(first), refusal, Pace::AtOnce);
        let pmem = server.connect(PATIENT);
        for len in [1, 2, 63, 64, 65, 66, 4096, 70_000] {
            let mut buf = vec![0; len];
            match pmem.read(at(first as u64), &mut buf).unwrap_err() {
                PmemError::Refused { operation: Operation::Read, at, done: 0, .. } => assert_eq!(at.get(), first as u64),
                error => panic!("{refusal:?} {len}: {error}"),
            }
        }
        // Half of it is there: the error names the first page that is not.
        let mut buf = vec![0; 0x10_000];
        let error = pmem.read(at(0x19_ff0), &mut buf).unwrap_err();
        assert!(matches!(error, PmemError::Refused { at, .. } if at.get() == 0x20_000), "{error}");
        assert_eq!(error.done(), 0x6010);
        assert!(!error.is_dead());
        let flat = Memory::flat(first).0.remove(0).1;
        assert_eq!(buf[..0x6010], flat[0x19_ff0..]);
        let error = pmem.write(at(0x1f_ff0), &[1; 0x20]).unwrap_err();
        assert!(matches!(error, PmemError::Refused { operation: Operation::Write, done: 0x10, .. }), "{error}");
        let mut buf = [0; 16];
        pmem.read(at(0x1000), &mut buf).unwrap();
        assert_eq!(buf, flat[0x1000..][..16]);
        drop(pmem);
        server.ended();
    }
}

#[test]
fn memory_in_two_pieces_reads_across() {
    let pieces = Memory(vec![(0x1000, vec![1; 0x2000]), (0x3000, vec![2; 0x2000])]);
    let (server, _memory) = conforming(pieces, Refusal::Byte(0), Pace::AtOnce);
    let pmem = server.connect(PATIENT);
    let mut buf = vec![0; 0x4000];
    pmem.read(at(0x1000), &mut buf).unwrap();
    assert!(buf[..0x2000].iter().all(|byte| *byte == 1) && buf[0x2000..].iter().all(|byte| *byte == 2));
    pmem.write(at(0x2f00), &[3; 0x200]).unwrap();
    let mut ops_buf = [[0; 0x200], [0; 0x200]];
    let [one, two] = &mut ops_buf;
    let mut ops = [ReadOp::new(at(0x2f00), one), ReadOp::new(at(0x6000), two)];
    pmem.read_batch("test", &mut ops);
    assert!(ops[0].result.is_ok());
    let error = ops[1].result.as_ref().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == 0x6000), "{error}");
    assert_eq!(ops_buf[0], [3; 0x200]);
}

/// A slow server's first byte looks like a refusal, and a guest's page can hold what looks like any answer.
#[test]
fn slow_answers_are_put_together() {
    let pages = Memory(vec![(0, [vec![0; 4096], vec![1; 4096], Memory::flat(4096).0.remove(0).1].concat())]);
    for (pace, lens) in [
        (Pace::FirstAlone, vec![1, 2, 63, 64, 65, 66, 67, 4096]),
        (Pace::Pieces(1, Duration::from_millis(5)), vec![1, 2, 64, 65, 66, 100]),
        (Pace::Pieces(1, Duration::from_micros(1)), vec![4096]),
        (Pace::Pieces(1000, Duration::from_millis(5)), vec![1, 4096]),
    ] {
        let (server, memory) = conforming(pages.clone(), Refusal::Byte(1), pace);
        let pmem = server.connect(PATIENT);
        for len in lens {
            for from in [0, 4096, 8192] {
                let mut buf = vec![0xaa; len];
                pmem.read(at(from as u64), &mut buf).unwrap();
                assert_eq!(buf, memory.lock().unwrap().0[0].1[from..][..len], "{pace:?}: {len} bytes at {from}");
            }
        }
        let mut buf = [0; 8];
        assert!(matches!(pmem.read(at(0x10_0000), &mut buf), Err(PmemError::Refused { .. })));
        pmem.read(at(0), &mut buf).unwrap();
        drop(pmem);
        server.ended();
    }
}

/// What a read of 100 bytes and then a second one give on a server that behaves as `serve` does; checks the time that they took.
fn misbehaving(serve: impl FnOnce(UnixStream) + Send + 'static) -> PmemError {
    let server = Server::start(serve);
    let pmem = server.connect(SHORT);
    let begin = Instant::now();
    let error = pmem.read(at(0x1000), &mut [0; 100]).unwrap_err();
    assert!(begin.elapsed() < SHORT + SLACK, "{error} after {:?}", begin.elapsed());
    assert!(error.is_dead(), "{error}");
    assert!(error.to_string().contains("0x1000"), "{error}");
    let begin = Instant::now();
    let next = pmem.read(at(0x2000), &mut [0; 100]).unwrap_err();
    assert!(matches!(&next, PmemError::Dead { reason } if *reason == error.to_string()), "{next}");
    assert!(matches!(pmem.write(at(0x2000), &[0; 100]), Err(PmemError::Dead { .. })));
    assert!(matches!(pmem.check(), Err(PmemError::Dead { .. })));
    assert!(begin.elapsed() < SHORT, "a dead connection answers at once");
    error
}

/// Holds a stream open until the client closes it.
fn linger(mut stream: UnixStream) {
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

#[test]
fn a_server_that_dies_before_the_request() {
    let error = misbehaving(drop);
    assert!(matches!(error, PmemError::Closed { received: 0, expected: 101, .. }), "{error}");
}

#[test]
fn a_server_that_dies_after_the_request() {
    let error = misbehaving(|mut stream| {
        request(&mut stream).unwrap();
    });
    assert!(matches!(error, PmemError::Closed { received: 0, expected: 101, .. }), "{error}");
}

#[test]
fn a_server_that_dies_amid_its_answer() {
    for (sent, len) in [(1, 1), (50, 50), (100, 100)] {
        let error = misbehaving(move |mut stream| {
            request(&mut stream).unwrap();
            stream.write_all(&vec![7; sent]).unwrap();
        });
        assert!(matches!(error, PmemError::Closed { received, expected: 101, .. } if received == len), "{error}");
    }
}

#[test]
fn a_server_that_answers_short() {
    let error = misbehaving(|mut stream| {
        request(&mut stream).unwrap();
        stream.write_all(&[7; 60]).unwrap();
        linger(stream);
    });
    assert!(matches!(error, PmemError::TimedOut { received: 60, expected: 101, limit: SHORT, .. }), "{error}");
    // One byte is a refusal only if the server goes on to answer the fence.
    let error = misbehaving(|mut stream| {
        request(&mut stream).unwrap();
        stream.write_all(&[0]).unwrap();
        linger(stream);
    });
    assert!(matches!(error, PmemError::TimedOut { received: 1, .. }), "{error}");
}

#[test]
fn a_server_that_never_answers() {
    let error = misbehaving(linger);
    assert!(matches!(error, PmemError::TimedOut { received: 0, expected: 101, limit: SHORT, .. }), "{error}");
    assert!(error.to_string().contains("150ms"), "{error}");
}

#[test]
fn a_server_too_slow_for_the_limit() {
    let error = misbehaving(|mut stream| {
        request(&mut stream).unwrap();
        for _ in 0..101 {
            thread::sleep(Duration::from_millis(20));
            if stream.write_all(&[1]).is_err() {
                return;
            }
        }
        linger(stream);
    });
    assert!(matches!(error, PmemError::TimedOut { received: 1..101, .. }), "{error}");
}

#[test]
fn a_server_that_says_something_else() {
    // A status byte that is none.
    let error = misbehaving(|mut stream| {
        request(&mut stream).unwrap();
        stream.write_all(&[2; 101]).unwrap();
        linger(stream);
    });
    assert!(matches!(&error, PmemError::OutOfStep { what, .. } if what.contains("0x02")), "{error}");
    // An answer before the request: a greeting, such as QMP's.
    let (greeted, wait) = mpsc::channel();
    let server = Server::start(move |mut stream| {
        stream.write_all(b"{\"QMP\": {}}").unwrap();
        greeted.send(()).unwrap();
        linger(stream);
    });
    let pmem = server.connect(SHORT);
    wait.recv().unwrap();
    let error = pmem.read(at(0), &mut [0; 4]).unwrap_err();
    assert!(matches!(&error, PmemError::OutOfStep { what, .. } if what.contains("not asked for")), "{error}");
    // A second byte that comes alone, but is no part of an answer to the fence.
    let error = misbehaving(|mut stream| {
        request(&mut stream).unwrap();
        stream.write_all(&[0]).unwrap();
        for _ in 0..64 {
            request(&mut stream).unwrap();
        }
        stream.write_all(&[0; 164]).unwrap();
        linger(stream);
    });
    assert!(matches!(&error, PmemError::OutOfStep { .. }), "{error}");
}

#[test]
fn writes_fail_as_clearly() {
    let fails = |serve: fn(UnixStream)| {
        let server = Server::start(serve);
        let pmem = server.connect(SHORT);
        let error = pmem.write(at(0x1000), &[9; 6000]).unwrap_err();
        assert!(matches!(pmem.check(), Err(PmemError::Dead { .. })));
        error
    };
    let error = fails(linger);
    assert!(
        matches!(error, PmemError::TimedOut { operation: Operation::Write, received: 0, expected: 1, done: 0, .. }),
        "{error}"
    );
    let error = fails(drop);
    assert!(matches!(error, PmemError::Closed { operation: Operation::Write, received: 0, done: 0, .. }), "{error}");
    let error = fails(|mut stream| {
        let (_, _, len) = request(&mut stream).unwrap();
        stream.read_exact(&mut vec![0; len]).unwrap();
        stream.write_all(&[1]).unwrap();
        request(&mut stream).unwrap();
    });
    assert!(matches!(error, PmemError::Closed { operation: Operation::Write, done: 4096, .. }), "{error}");
    let error = fails(|mut stream| {
        request(&mut stream).unwrap();
        stream.write_all(&[3]).unwrap();
        linger(stream);
    });
    assert!(matches!(error, PmemError::OutOfStep { operation: Operation::Write, .. }), "{error}");
}

/// A server that acknowledges writes without fetching them: the socket fills up, and the time limit holds for sending too.
#[test]
fn a_full_socket_does_not_hang() {
    let server = Server::start(|mut stream| {
        let mut seen = 0;
        let mut buf = vec![0; 1 << 20];
        while let Ok(waiting) = recv(stream.as_raw_fd(), &mut buf, MsgFlags::MSG_PEEK) {
            if waiting == 0 {
                return;
            }
            if waiting > seen {
                seen = waiting;
                if stream.write_all(&[1]).is_err() {
                    return;
                }
            }
            if stream_closed(&stream) {
                return;
            }
            thread::sleep(Duration::from_micros(100));
        }
    });
    let pmem = server.connect(SHORT);
    let error = pmem.write(at(0), &vec![0; 8 << 20]).unwrap_err();
    // An acknowledgement would have come: it was the sending that could not end.
    assert!(matches!(error, PmemError::TimedOut { operation: Operation::Write, done: 1.., .. }), "{error}");
    drop(pmem);
    server.ended();
}

fn stream_closed(stream: &UnixStream) -> bool {
    let mut poll = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    nix::poll::poll(&mut poll, PollTimeout::ZERO).unwrap();
    poll[0].revents().unwrap().contains(PollFlags::POLLHUP)
}

#[test]
fn connecting_fails_clearly() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let begin = Instant::now();
    let error = PmemAccess::connect(&missing, SHORT).unwrap_err();
    assert!(matches!(error, PmemError::Connect { .. }) && error.to_string().contains("nobody listens"), "{error}");
    assert!(begin.elapsed() >= SHORT && begin.elapsed() < SHORT + SLACK);
    let error = PmemAccess::connect(directory.path(), SHORT).unwrap_err();
    assert!(matches!(error, PmemError::Connect { .. }), "{error}");
    let error = PmemAccess::connect("/".repeat(200), SHORT).unwrap_err();
    assert!(matches!(error, PmemError::Connect { .. }), "{error}");
    // A server that does not take another client: its queue fills up, and the next one is told instead of waiting for ever.
    let path = directory.path().join("busy");
    let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let first = PmemAccess::connect(&path, SHORT).unwrap();
    let error = PmemAccess::connect(&path, SHORT).unwrap_err();
    assert!(matches!(error, PmemError::Busy { .. }), "{error}");
    let error = first.read(at(0), &mut [0; 4]).unwrap_err();
    assert!(matches!(error, PmemError::TimedOut { received: 0, .. }) && error.to_string().contains("another client"), "{error}");
}

/// The patches up to 1.6 answer the command before they listen.
#[test]
fn a_socket_that_opens_late_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("late");
    let late = path.clone();
    let server = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        let (stream, _) = UnixListener::bind(late).unwrap().accept().unwrap();
        serve(stream, &Mutex::new(Memory::flat(4096)), Refusal::Byte(0), Pace::AtOnce);
    });
    let pmem = PmemAccess::connect(&path, PATIENT).unwrap();
    pmem.read(at(0), &mut [0; 8]).unwrap();
    drop(pmem);
    server.join().unwrap();
}

#[test]
fn ranges_at_the_end_of_the_address_range() {
    let (server, _memory) = conforming(Memory(vec![(u64::MAX - 4095, vec![5; 4096])]), Refusal::Byte(0), Pace::AtOnce);
    let pmem = server.connect(PATIENT);
    let mut buf = [0; 4096];
    pmem.read(at(u64::MAX - 4095), &mut buf).unwrap();
    assert_eq!(buf, [5; 4096]);
    pmem.write(at(u64::MAX - 9), &[6; 10]).unwrap();
    assert!(matches!(pmem.read(at(u64::MAX - 9), &mut buf), Err(PmemError::OutOfRange { len: 4096, .. })));
    assert!(matches!(pmem.write(at(u64::MAX), &[0; 2]), Err(PmemError::OutOfRange { .. })));
    pmem.read(at(u64::MAX), &mut [0]).unwrap();
}

#[test]
fn many_threads_share_a_connection() {
    let (server, memory) = conforming(Memory::flat(1 << 20), Refusal::Byte(9), Pace::AtOnce);
    let pmem = server.connect(PATIENT);
    let expected = memory.lock().unwrap().0[0].1.clone();
    thread::scope(|scope| {
        for thread in 0..4 {
            let (pmem, expected) = (&pmem, &expected);
            scope.spawn(move || {
                for round in 0..100 {
                    let from = (thread * 77_777 + round * 1_234) % (1 << 19);
                    let mut buf = vec![0; 5000];
                    pmem.read(at(from as u64), &mut buf).unwrap();
                    assert_eq!(buf, expected[from..][..5000]);
                    if round % 20 == 0 {
                        assert!(matches!(pmem.read(at(1 << 21), &mut buf), Err(PmemError::Refused { .. })));
                    }
                }
            });
        }
    });
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    // Two pieces of memory with a hole between, and lengths around the page and the fence.
    let address = prop_oneof![0_u64..0x9000, 0xf0_0000_0000_u64..0xf0_0000_4000];
    let len = prop_oneof![0_usize..140, 4000_usize..4200, 0_usize..20_000];
    prop_oneof![
        (address.clone(), len.clone()).prop_map(|(at, len)| Step::Read(at, len)),
        (address, len, any::<u8>())
            .prop_map(|(at, len, seed)| Step::Write(at, (0..len).map(|at| seed.wrapping_add(at as u8)).collect())),
    ]
}

/// How many of `len` bytes at `at` a machine of pages has before the first page that it has not.
fn present(memory: &mut Memory, at: u64, len: usize) -> usize {
    (0..len).take_while(|offset| memory.range(at + *offset as u64, 1).is_some()).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_reads_and_writes_equal_a_model(steps in prop::collection::vec(step(), 1..40), junk in any::<u8>(), whole in any::<bool>()) {
        let start = Memory(vec![
            (0, (0..0x4000).map(|at| (at % 253) as u8).collect()),
            (0x4000, vec![0; 0x2000]),
            (0xf0_0000_0000, vec![1; 0x3000]),
        ]);
        let refusal = if whole { Refusal::Whole } else { Refusal::Byte(junk) };
        let (server, _) = conforming(start.clone(), refusal, Pace::AtOnce);
        let pmem = server.connect(PATIENT);
        let mut model = start;
        for step in steps {
            match step {
                Step::Read(from, len) => {
                    let mut buf = vec![0xaa; len];
                    let result = pmem.read(at(from), &mut buf);
                    let there = present(&mut model, from, len);
                    match result {
                        Ok(()) => prop_assert_eq!(there, len),
                        Err(PmemError::Refused { done, at, .. }) => {
                            prop_assert_eq!(done, there);
                            prop_assert_eq!(at.get(), from + there as u64);
                        }
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                    for (offset, byte) in buf[..there].iter().enumerate() {
                        prop_assert_eq!(*byte, model.range(from + offset as u64, 1).unwrap()[0]);
                    }
                }
                Step::Write(to, data) => {
                    let result = pmem.write(at(to), &data);
                    let there = present(&mut model, to, data.len());
                    match result {
                        Ok(()) => prop_assert_eq!(there, data.len()),
                        Err(PmemError::Refused { done, .. }) => prop_assert_eq!(done, there),
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                    for (offset, byte) in data[..there].iter().enumerate() {
                        model.range(to + offset as u64, 1).unwrap()[0] = *byte;
                    }
                }
            }
        }
        drop(pmem);
        server.ended();
    }
}
