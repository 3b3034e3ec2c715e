//! Domains of a real libvirtd.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::Libvirt;

fn virsh(host: &Libvirt, arguments: &[&str]) -> String {
    let done = Command::new("virsh").args(["--quiet", "--connect", host.uri()]).args(arguments).output().unwrap();
    assert!(done.status.success(), "virsh {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// They are listed, their guests run, stop and go on, and their memory is where libvirt's monitor says.
#[test]
fn libvirt_domains() {
    let host = match Libvirt::start(&["memfd", "private"]) {
        Ok(host) => host,
        Err(skip) => return println!("{skip}"),
    };
    let mut listed: Vec<_> = virsh(&host, &["list", "--name"]).lines().map(str::to_owned).collect();
    listed.sort();
    assert_eq!(listed, ["vmi-memfd", "vmi-private"]);
    for domain in host.domains() {
        assert_eq!(virsh(&host, &["domname", domain.uuid()]), domain.name());
        assert!(domain.processes().iter().any(|process| process.pid == domain.actor().pid && process.name == "actor"));

        let (began, before) = (Instant::now(), domain.report());
        virsh(&host, &["suspend", domain.name()]);
        assert_eq!(virsh(&host, &["domstate", domain.name()]), "paused");
        std::thread::sleep(Duration::from_secs(1));
        virsh(&host, &["resume", domain.name()]);
        let (after, elapsed) = (domain.report(), began.elapsed());
        assert!(after.clock - before.clock < elapsed - Duration::from_millis(800), "{before:?} {after:?} {elapsed:?}");

        let line = format!("gpa2hva {:#x}", domain.actor().physical);
        let said = virsh(&host, &["qemu-monitor-command", domain.name(), "--hmp", &line]);
        let address = u64::from_str_radix(said.rsplit_once("is 0x").unwrap().1, 16).unwrap();
        let mut word = [0; 8];
        let memory = fs::File::open(format!("/proc/{}/mem", domain.pid())).unwrap();
        memory.read_exact_at(&mut word, address + 24).unwrap();
        assert_eq!(u64::from_le_bytes(word), (domain.actor().page + 24) ^ 0x5a5a_5a5a_5a5a_5a5a);
    }
}
