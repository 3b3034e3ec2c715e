#![allow(unsafe_code)]

use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use super::*;

/// Tells a copy of this program what to be.
const ROLE: &str = "VMI_GUARDIAN_TEST";

/// A guardian that writes `x` when it undoes, and who reads that.
fn guardian() -> (Guardian, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (writing(ours.as_fd()), theirs)
}

fn writing(to: BorrowedFd<'_>) -> Guardian {
    let fd = to.as_raw_fd();
    // SAFETY: one system call, on a constant.
    unsafe { Guardian::new(&[to], move || _ = libc::write(fd, c"x".as_ptr().cast(), 1)).unwrap() }
}

/// Ends the guardian's socket as the death of its parent would.
fn die(guardian: Guardian) {
    let pid = guardian.pid;
    let mut guardian = std::mem::ManuallyDrop::new(guardian);
    // SAFETY: the value is not used or dropped after this.
    unsafe { std::ptr::drop_in_place(&raw mut guardian.life) };
    waitpid(pid, None).unwrap();
}

fn said(mut theirs: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    theirs.read_to_end(&mut bytes).unwrap();
    bytes
}

/// A copy of this program that runs `test` in a role, and the first line that it prints of itself.
fn copy(test: &str, role: &str) -> (Child, BufReader<std::process::ChildStdout>, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(ROLE, role).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("ready") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "it ended before it was ready");
    }
    (child, output, line)
}

#[test]
fn it_undoes_what_is_held() {
    for (states, expected) in [(&[true][..], &b"x"[..]), (&[true, false], b""), (&[], b""), (&[true, false, true], b"x")] {
        let (guardian, theirs) = guardian();
        states.iter().for_each(|held| guardian.held(*held));
        die(guardian);
        assert_eq!(said(theirs), expected, "{states:?}");
    }
}

#[test]
fn it_undoes_nothing_when_it_is_dropped() {
    let (guardian, theirs) = guardian();
    guardian.held(true);
    drop(guardian);
    assert!(said(theirs).is_empty());
}

/// By the signals that end a tool, `SIGKILL` among them. What the guardian writes goes to the standard output that it was told to keep.
#[test]
fn it_outlives_a_process_that_is_killed() {
    const TEST: &str = "tests::it_outlives_a_process_that_is_killed";
    match std::env::var(ROLE).as_deref() {
        Ok(role) => {
            let guardian = writing(std::io::stdout().as_fd());
            guardian.held(true);
            if role == "freed" {
                guardian.held(false);
            }
            println!("\nready");
            std::thread::sleep(Duration::from_secs(60));
        }
        Err(_) => {
            for (role, undone) in [("held", "x"), ("freed", "")] {
                for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT] {
                    let (mut child, mut output, _) = copy(TEST, role);
                    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
                    // Whoever started this may have had SIGINT ignored, which children inherit.
                    if signal == Signal::SIGINT {
                        child.kill().unwrap();
                    }
                    assert!(child.wait().unwrap().signal().is_some());
                    let mut rest = String::new();
                    output.read_to_string(&mut rest).unwrap();
                    assert_eq!(rest, undone, "{role}, {signal}");
                }
            }
        }
    }
}

/// A program that has not ignored SIGPIPE, as those in C have not, lives on when somebody has killed its guardian.
#[test]
fn its_own_end_does_no_harm() {
    const TEST: &str = "tests::its_own_end_does_no_harm";
    if std::env::var_os(ROLE).is_some() {
        // SAFETY: nothing else of this process uses signals.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let (guardian, _theirs) = guardian();
        kill(guardian.pid, Signal::SIGKILL).unwrap();
        // Until its end of the socket is closed.
        let mut byte = [0u8];
        assert_eq!(nix::unistd::read(&guardian.life, &mut byte), Ok(0));
        guardian.held(true);
        drop(guardian);
        println!("\nready and alive");
        return;
    }
    let (mut child, _output, line) = copy(TEST, "harmed");
    assert!(line.contains("alive"));
    assert!(child.wait().unwrap().success());
}

#[test]
fn it_keeps_nothing_else_open() {
    let (other, mut reader) = UnixStream::pair().unwrap();
    reader.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (guardian, _theirs) = guardian();
    drop(other);
    assert_eq!(reader.read(&mut [0; 4]).unwrap(), 0);
    drop(guardian);
}

/// A panic ends the guardian alone: it does not go on as a second tool.
#[test]
fn a_panic_does_not_come_back() {
    const TEST: &str = "tests::a_panic_does_not_come_back";
    if std::env::var_os(ROLE).is_none() {
        let (mut child, mut output, line) = copy(TEST, "panics");
        assert_eq!(line.trim(), "ready: it ended with 1");
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert!(!rest.contains("ready"), "{rest}");
        assert!(child.wait().unwrap().success());
        return;
    }
    let stdout = std::io::stdout();
    // SAFETY: this is not async-signal-safe, but the one other thread of this process waits for this one.
    let guardian = unsafe { Guardian::new(&[stdout.as_fd()], || std::panic::resume_unwind(Box::new(()))).unwrap() };
    guardian.held(true);
    let pid = guardian.pid;
    let mut guardian = std::mem::ManuallyDrop::new(guardian);
    // SAFETY: the value is not used or dropped after this.
    unsafe { std::ptr::drop_in_place(&raw mut guardian.life) };
    match waitpid(pid, None).unwrap() {
        nix::sys::wait::WaitStatus::Exited(_, status) => println!("\nready: it ended with {status}"),
        other => panic!("{other:?}"),
    }
}
