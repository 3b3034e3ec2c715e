//! A running guest, synthetic NT layout: a kernel of our own in stock QEMU, whose processes begin and end all the time. It keeps an account of its list, which is what
//! the answers are compared with.

#![allow(clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects, reason = "a test")]

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use nt_machine::{Backing, Build, GuestTruth, LiveMachine, LiveOptions, Running};
use vmi_core::{ErrorKind, VcpuId, Vmi};
use vmi_driver_kvm::{Options, QemuDriver};
use vmi_os_windows::Windows;

struct Guest {
    live: LiveMachine,
    running: Running,
    _directory: tempfile::TempDir,
}

fn boot(build: &str, options: &LiveOptions) -> Option<Guest> {
    let directory = tempfile::tempdir().unwrap();
    let started = LiveMachine::new(Build::named(build).unwrap(), options)
        .and_then(|live| live.start(directory.path(), Backing::SharedFile, &[]).map(|running| (live, running)));
    match started {
        Ok((live, running)) => Some(Guest { live, running, _directory: directory }),
        Err(why) if why.contains("No such file") => {
            println!("skipped: {why}");
            None
        }
        Err(why) => panic!("{why}"),
    }
}

/// The rows of an account: address, pid, name.
fn rows(account: &GuestTruth) -> Vec<(u64, u32, String)> {
    account.processes.iter().map(|process| (process.eprocess, process.pid as u32, process.name.clone())).collect()
}

fn listed(windows: &Windows<'_, QemuDriver>) -> vmi_core::Result<Vec<(u64, u32, String)>> {
    windows
        .processes()
        .map(|process| {
            let process = process?;
            Ok((process.address().get(), process.pid()?, process.name()?))
        })
        .collect()
}

/// What a process' name says it is: the guest numbers its processes.
fn number(name: &str) -> Option<u64> {
    name.strip_prefix('w')?.strip_suffix(".exe")?.parse().ok()
}

fn check(build: &str, options: &LiveOptions) {
    let Some(mut guest) = boot(build, options) else { return };
    let truth = guest.live.machine.truth();
    let vmi = Vmi::new(QemuDriver::connect(guest.running.monitor(), &Options::default()).unwrap());
    let start = Instant::now();
    // The guest runs.
    let windows = Windows::attach(&vmi).unwrap();
    println!("{build}: attached in {:?}; {:?}", start.elapsed(), windows.kernel().remarks);
    assert_eq!(windows.kernel().base.get(), truth.kernel_base);
    assert_eq!(windows.kernel().pdb.as_ref().unwrap().key(), format!("{}{:X}", truth.pdb.guid, truth.pdb.age));
    assert_eq!(windows.build(), Some(truth.build_number));
    let shadows: Vec<u64> = guest.live.machine.processes().map(|(_, process)| process.user_dtb).collect();
    assert!(!shadows.contains(&windows.kernel().root.get()), "the kernel is read by a table of user mode");

    // Paused: exactly the account.
    for _ in 0..10 {
        let account = guest.running.pause().unwrap();
        assert_eq!(listed(&windows).unwrap(), rows(&account));
        let process = windows.process_on(VcpuId(0)).unwrap();
        assert!(rows(&account).iter().any(|row| row.0 == process.address().get()));
        guest.running.resume().unwrap();
        thread::sleep(Duration::from_millis(20));
    }

    // Running: those that stay are always there, once each and in order; all others are processes that there were, each whole.
    let stay: Vec<(u64, u32, String)> =
        rows(&guest.running.account().unwrap().unwrap()).into_iter().filter(|row| number(&row.2).is_none()).collect();
    let (mut seen, mut walks, mut gone) = (HashMap::new(), 0, 0);
    // Three seconds of walks; on a busy machine longer, until enough processes came and went.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(3) || (seen.len() <= 50 && begin.elapsed() < Duration::from_secs(120)) {
        let mut found: Vec<(u64, u32, String)> = Vec::new();
        for process in windows.processes() {
            let row = process.and_then(|process| Ok((process.address().get(), process.pid()?, process.name()?.to_string())));
            match row {
                Ok(row) => found.push(row),
                Err(error) if matches!(error.kind(), ErrorKind::Gone { .. }) => gone += 1,
                Err(error) => panic!("{error}"),
            }
        }
        walks += 1;
        let there: Vec<_> = found.iter().filter(|row| number(&row.2).is_none()).cloned().collect();
        assert_eq!(there, stay);
        for (at, pid, name) in found {
            if let Some(number) = number(&name) {
                let known = seen.entry(number).or_insert((at, pid));
                assert_eq!(*known, (at, pid), "{name} is torn");
            }
        }
    }
    println!(
        "{build}: {walks} walks of the running guest, {} processes that came and went, {gone} that were gone while they were read",
        seen.len()
    );
    assert!(seen.len() > 50, "{} processes came and went", seen.len());
}

#[test]
fn windows_10() {
    check("win10_x64_19041", &LiveOptions::default());
}

#[test]
fn windows_7() {
    check("win7_sp1_x64", &LiveOptions { changes_per_tick: 8, ..LiveOptions::default() });
}

#[test]
fn user_mode_with_shadow_tables() {
    check("win10_x64_17763", &LiveOptions { kva_shadow: true, user_one_in: 1, ..LiveOptions::default() });
}
