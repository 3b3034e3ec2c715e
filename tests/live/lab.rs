//! The guests are what tests take them for.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::harness::{LiveGuest, Qmp};

/// The shell of process 1 answers, in time or with an error.
pub(crate) fn shell(guest: &LiveGuest) {
    assert_eq!(guest.sh("uname -r"), guest.release());
    assert_eq!(guest.sh("printf 'a\\n\\nb\\n'; echo error >&2"), "a\n\nb\nerror");
    assert_eq!(guest.sh("sleep 1000 &"), "");
    let late = guest.sh_within("sleep 0.5; echo late", Duration::from_millis(50)).unwrap_err();
    assert_eq!(late.kind(), std::io::ErrorKind::TimedOut);
    // The late answer is not taken for that of the next line.
    assert_eq!(guest.sh("echo next"), "next");
    guest.sh("kill $!; wait 2>/dev/null $!");
}

/// The list of /proc: process 1, kernel threads, children.
pub(crate) fn processes(guest: &LiveGuest) {
    let processes = guest.processes();
    let of = |pid| processes.iter().find(|process| process.pid == pid).unwrap_or_else(|| panic!("no {pid} in {processes:?}"));
    let (init, kthreadd, actor) = (of(1), of(2), of(guest.actor().pid));
    assert_eq!((init.name.as_str(), init.parent, init.kernel), ("init", 0, false));
    assert_eq!((kthreadd.name.as_str(), kthreadd.parent, kthreadd.kernel), ("kthreadd", 0, true));
    assert_eq!((actor.name.as_str(), actor.parent, actor.kernel), ("actor", 1, false));
    assert!(processes.iter().any(|process| process.name == "witness"), "{processes:?}");
    assert!(processes.is_sorted_by(|left, right| left.pid < right.pid), "{processes:?}");
}

/// The guest's clock and actor stand still while the monitor has stopped the vCPUs, and go on after that.
pub(crate) fn pause(guest: &LiveGuest) {
    const PAUSE: Duration = Duration::from_secs(1);
    let (began, before) = (Instant::now(), guest.report());
    guest.qmp2().while_paused(|_| std::thread::sleep(PAUSE));
    let (after, elapsed) = (guest.report(), began.elapsed());
    let guest_elapsed = after.clock - before.clock;
    assert!(guest_elapsed + PAUSE < elapsed + Duration::from_millis(200), "{guest_elapsed:?} of {elapsed:?}");
    guest.wait_for_report(|report| report.ticks > after.ticks);
}

/// The actor makes as many calls as it is told, on each vCPU.
pub(crate) fn calls(guest: &LiveGuest) {
    assert_eq!(guest.sh("actor call personality 1000"), "cpu -1 made 1000");
    assert_eq!(guest.sh("actor call sync 1 0"), "cpu 0 made 1");
    if guest.sh("grep -c ^processor /proc/cpuinfo") == "2" {
        assert_eq!(guest.sh("actor call personality 500 0 1"), "cpu 0 made 500\ncpu 1 made 500");
    }
    assert!(guest.sh("actor call nothing 1; echo $?").ends_with('2'));
}

/// The actor writes as often as it is told.
pub(crate) fn ordered_writes(guest: &LiveGuest) {
    let before = guest.report().ordered;
    guest.sh("actor write 7");
    assert_eq!(guest.report().ordered, before + 7);
}

/// The sockets that the library is to use are free, and the guest runs on after each.
pub(crate) fn sockets(guest: &LiveGuest) {
    assert!(Qmp::connect(guest.qmp_path()).is_running());
    // The stub stops the guest when somebody connects, and lets it run on when they detach.
    let mut gdb = UnixStream::connect(guest.gdb_path()).unwrap();
    gdb.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    gdb.write_all(b"$D#44").unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"$OK#9a") {
        let mut byte = [0];
        gdb.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&got)));
        got.extend(byte);
    }
    drop(gdb);
    assert!(guest.qmp2().is_running());
}
