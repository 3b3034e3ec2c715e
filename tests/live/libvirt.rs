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

#[cfg(feature = "libvirt")]
mod library {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    use vmi::kvm::{Options, Road};
    use vmi::linux::Linux;
    use vmi::{ErrorKind, Memory, PhysAddr, Trap};

    use super::virsh;
    use crate::harness::{Domain, Libvirt};
    use crate::roads::{list, same_processes};

    const PATIENCE: Duration = Duration::from_secs(60);
    const SOON: Duration = Duration::from_millis(200);
    /// Set where the test below only lists, in a process whose libvirt is that of the test.
    const LIST: &str = "VMI_LIVE_LIST";
    /// A target, in a process that holds its stub until it is killed.
    const DIE: &str = "VMI_LIVE_DIE";

    /// Domains are opened by name and by UUID, read, paused as libvirt sees it, trapped, and listed; then they are as before.
    #[test]
    fn libvirt_domains_are_open() {
        if let Ok(target) = std::env::var(DIE) {
            let vmi = vmi::open(target.as_str()).unwrap();
            let _events = vmi.events().unwrap();
            println!("\nholding");
            thread::sleep(PATIENCE);
            return;
        }
        if std::env::var_os(LIST).is_some() {
            for guest in vmi::targets() {
                println!(
                    "\n{} {:?} {:?} {guest:?}",
                    guest.target.as_ref().map_or_else(String::new, ToString::to_string),
                    guest.pid,
                    guest.roads
                );
            }
            return;
        }
        let host = match Libvirt::start(&["memfd", "private"]) {
            Ok(host) => host,
            Err(skip) => return println!("{skip}"),
        };
        for domain in host.domains() {
            let best = if domain.name() == "vmi-memfd" { Road::Shared } else { Road::Process };
            for (name, road) in [(domain.name(), None), (domain.uuid(), None), (domain.name(), Some(Road::Gdb))] {
                let target = format!("libvirt:{name}?uri={}", host.uri());
                let options = road.map_or_else(Options::new, |road| Options::new().road(road));
                let vmi = vmi::open_with(target.as_str(), options).unwrap_or_else(|error| panic!("{target}: {error}"));
                println!("  {target}: {:?}", road.unwrap_or(best));
                same_processes(domain, || list(&vmi));
                read(domain, &vmi);
                paused(&host, domain, &vmi);
                if road.is_none() {
                    assert_eq!(vmi::Driver::mapping(vmi.driver()).is_some(), best == Road::Shared);
                    events(&host, domain, &vmi);
                }
                drop(vmi);
                nothing_left(&host, domain);
            }
        }
        listed(&host);
        killed_with_a_stub(&host);
        let error = vmi::open(format!("libvirt:nobody?uri={}", host.uri()).as_str()).unwrap_err().to_string();
        assert!(error.contains("nobody") && error.contains("vmi-private"), "{error}");

        let domain = &host.domains()[1];
        let vmi = vmi::open(format!("libvirt:{}?uri={}", domain.name(), host.uri()).as_str()).unwrap();
        virsh(&host, &["destroy", domain.name()]);
        let began = Instant::now();
        for error in
            [vmi.pause().map(drop), vmi.driver_check(), vmi.read::<u64>(PhysAddr::new(domain.actor().physical)).map(drop)]
        {
            let error = error.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Ended { .. }), "{error:?}");
        }
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    trait Check {
        fn driver_check(&self) -> vmi::Result<()>;
    }

    impl Check for vmi::Vmi<vmi::AnyDriver> {
        fn driver_check(&self) -> vmi::Result<()> {
            vmi::Driver::check(self.driver())
        }
    }

    /// The actor's page is where it says, and what is written there is seen.
    fn read(domain: &Domain, vmi: &vmi::Vmi<vmi::AnyDriver>) {
        let actor = domain.actor();
        let page = vmi.read_vec(PhysAddr::new(actor.physical), 4096).unwrap();
        for (at, word) in (actor.page..).step_by(8).zip(page.chunks(8)).skip(3) {
            assert_eq!(u64::from_le_bytes(word.try_into().unwrap()), at ^ 0x5a5a_5a5a_5a5a_5a5a, "at {at:#x}");
        }
        let value = domain.report().inbox ^ 0x0102_0304_0506_0708;
        vmi.write(PhysAddr::new(actor.physical + 8), &value.to_le_bytes()).unwrap();
        domain.wait_for_report(|report| report.inbox == value);
    }

    /// libvirt knows that the domain is paused, and that it runs again.
    fn paused(host: &Libvirt, domain: &Domain, vmi: &vmi::Vmi<vmi::AnyDriver>) {
        let state = || virsh(host, &["domstate", domain.name()]);
        let ticks = || vmi.read::<u64>(PhysAddr::new(domain.actor().physical)).unwrap();
        let outer = vmi.pause().unwrap();
        let before = ticks();
        assert_eq!(state(), "paused");
        thread::sleep(Duration::from_millis(200));
        assert_eq!(ticks(), before);
        drop(outer);
        assert_eq!(state(), "running");
        domain.wait_for_report(|report| report.ticks > before);
    }

    /// A breakpoint fires for each call, by a stub that is opened through libvirt.
    fn events(host: &Libvirt, domain: &Domain, vmi: &vmi::Vmi<vmi::AnyDriver>) {
        let linux = Linux::attach(vmi).unwrap();
        let at = linux.symbols().address("__x64_sys_personality").unwrap();
        let mut events = vmi.events().unwrap_or_else(|error| panic!("{error}"));
        assert!(stub(host, domain).is_some());
        events.set(Trap::breakpoint(at)).unwrap();
        thread::scope(|scope| {
            let shell = scope.spawn(|| domain.sh_within("actor call personality 5", PATIENCE));
            let (mut hits, began) = (0, Instant::now());
            loop {
                match events.next(SOON).unwrap_or_else(|error| panic!("{error}")) {
                    Some(event) => hits += usize::from(event.registers().rip == at.get()),
                    None if shell.is_finished() => break,
                    None => assert!(began.elapsed() < PATIENCE, "{hits} events, and no end"),
                }
            }
            assert_eq!((hits, shell.join().unwrap().unwrap().as_str()), (5, "cpu -1 made 5"));
        });
    }

    /// What QEMU says of the stub that is open: `unix:PATH,server=on`, with `disconnected:` before it while nobody is connected.
    fn stub(host: &Libvirt, domain: &Domain) -> Option<String> {
        let said = virsh(host, &["qemu-monitor-command", domain.name(), r#"{"execute":"query-chardev"}"#]);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        let device = said["return"].as_array().unwrap().iter().find(|device| device["label"] == "gdb")?;
        Some(device["filename"].as_str().unwrap().to_owned())
    }

    /// No stub is open any more, and the guest runs.
    fn nothing_left(host: &Libvirt, domain: &Domain) {
        assert_eq!(stub(host, domain), None);
        assert_eq!(virsh(host, &["domstate", domain.name()]), "running");
        let before = domain.report().ticks;
        domain.wait_for_report(|report| report.ticks > before);
        let left = std::fs::read_dir(std::env::temp_dir()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("vmi-gdb-")).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// A process that is killed leaves a stub in QEMU, and a guest that runs; others can use events then, but not before.
    fn killed_with_a_stub(host: &Libvirt) {
        let domain = &host.domains()[0];
        let target = format!("libvirt:{}?uri={}", domain.name(), host.uri());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "libvirt::library::libvirt_domains_are_open", "--nocapture"]).env(DIE, &target);
        let mut holder = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "holding"));
        let vmi = vmi::open(target.as_str()).unwrap();
        let error = vmi.events().unwrap_err().to_string();
        assert!(error.contains("another process"), "{error}");
        holder.kill().unwrap();
        holder.wait().unwrap();
        // The guardian has the connection until it has said its last words.
        let began = Instant::now();
        while let stub = stub(host, domain).expect("a stub stays open")
            && !stub.starts_with("disconnected:")
        {
            assert!(began.elapsed() < PATIENCE, "{stub}");
        }
        assert_eq!(virsh(host, &["domstate", domain.name()]), "running");
        drop(vmi.events().unwrap_or_else(|error| panic!("{error}")));
        drop(vmi);
        nothing_left(host, domain);
    }

    /// The list of guests names the domains, by what opens them.
    fn listed(host: &Libvirt) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "libvirt::library::libvirt_domains_are_open", "--nocapture"]);
        let output = command.env(LIST, "1").env("LIBVIRT_DEFAULT_URI", host.uri()).stderr(Stdio::inherit()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        for domain in host.domains() {
            let roads = if domain.name() == "vmi-memfd" { "[Shared, Process, Gdb]" } else { "[Process, Gdb]" };
            let expected = format!("libvirt:{} Some({}) {roads} ", domain.name(), domain.pid());
            assert!(text.contains(&expected), "{expected}: {text}");
        }
    }
}
