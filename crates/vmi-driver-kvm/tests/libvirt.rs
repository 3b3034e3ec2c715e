//! The libvirt road against a real libvirtd, which the test starts in a mount namespace of its own: nothing of the host's libvirt is
//! touched. Needs root, libvirtd and qemu-system-x86_64.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

#[cfg(not(feature = "libvirt"))]
#[test]
fn libvirt() {
    println!("skipped: built without the feature `libvirt`");
}

#[cfg(feature = "libvirt")]
mod with_libvirt {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::{Pid, geteuid};
    use serde_json::json;
    use tempfile::TempDir;
    use vmi_driver_kvm::libvirt::{LibvirtDomain, LibvirtError, LibvirtTarget, domains};
    use vmi_driver_kvm::qmp::{Monitor, MonitorError};

    const LIMIT: Duration = Duration::from_secs(30);
    const NAME: &str = "odd name? 100%";
    const UUID: &str = "3f0b8a52-52c1-4b5e-9df1-cf5d1fd6a111";
    const OTHER_UUID: &str = "3f0b8a52-52c1-4b5e-9df1-cf5d1fd6a222";

    /// A libvirtd whose configuration, state and sockets lie in a temporary directory.
    struct Libvirtd {
        daemon: Child,
        directory: TempDir,
        made_run: bool,
    }

    impl Libvirtd {
        /// `Err` says what is missing.
        fn start() -> Result<Self, String> {
            if !geteuid().is_root() {
                return Err("a libvirtd in a mount namespace of its own needs root".to_owned());
            }
            for program in ["libvirtd", "virsh", "qemu-system-x86_64", "unshare"] {
                let found =
                    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|folder| Path::new(folder).join(program).exists());
                if !found {
                    return Err(format!("no {program} (Debian: libvirt-daemon-system, libvirt-clients, qemu-system-x86)"));
                }
            }
            let directory = tempfile::tempdir().unwrap();
            let place = directory.path();
            // The configuration is empty: defaults, and no network that starts by itself.
            for folder in ["etc/qemu", "lib", "run", "log", "cache"] {
                fs::create_dir_all(place.join(folder)).unwrap();
            }
            let settings = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\ncgroup_controllers = [ ]\nnamespaces = [ ]\nstdio_handler = \"file\"\n";
            fs::write(place.join("etc/qemu.conf"), settings).unwrap();
            fs::write(place.join("etc/libvirtd.conf"), "auth_unix_rw = \"none\"\n").unwrap();
            // Mount points; what is made here is hidden by the mounts, and removed at the end if it was not there before.
            let made_run = fs::create_dir("/run/libvirt").is_ok();
            let script = "set -e; mount --make-rprivate /
                mount --bind \"$0/etc\" /etc/libvirt; mount --bind \"$0/lib\" /var/lib/libvirt; mount --bind \"$0/run\" /run/libvirt
                mount --bind \"$0/log\" /var/log/libvirt; mount --bind \"$0/cache\" /var/cache/libvirt
                exec libvirtd -t 60 -p \"$0/libvirtd.pid\"";
            let log = fs::File::create(place.join("daemon.log")).unwrap();
            let daemon = Command::new("unshare")
                .args(["-m", "sh", "-c", script])
                .arg(place)
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap();
            let mut libvirtd = Self { daemon, directory, made_run };
            let begin = Instant::now();
            while !libvirtd.virsh(&["version"]).0 {
                if let Some(status) = libvirtd.daemon.try_wait().unwrap() {
                    let log = fs::read_to_string(libvirtd.directory.path().join("daemon.log")).unwrap();
                    return Err(format!("libvirtd does not start here ({status}): {log}"));
                }
                assert!(begin.elapsed() < LIMIT, "libvirtd does not answer");
                thread::sleep(Duration::from_millis(100));
            }
            Ok(libvirtd)
        }

        fn uri(&self) -> String {
            format!("qemu+unix:///system?socket={}", self.directory.path().join("run/libvirt-sock").display())
        }

        fn virsh(&self, arguments: &[&str]) -> (bool, String) {
            let output = Command::new("virsh").args(["-q", "-c", &self.uri()]).args(arguments).output().unwrap();
            let text = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
        }

        /// A domain of 64 MiB with firmware alone, and two vCPUs.
        fn description(&self, name: &str, uuid: &str) -> PathBuf {
            let path = self.directory.path().join(format!("{uuid}.xml"));
            let text = format!(
                "<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory><vcpu>2</vcpu>
                 <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
                 <devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices></domain>"
            );
            fs::write(&path, text).unwrap();
            path
        }

        fn target(&self, name: &str) -> LibvirtTarget {
            LibvirtTarget { name: name.to_owned(), uri: Some(self.uri()) }
        }

        fn open(&self, name: &str) -> Result<LibvirtDomain, LibvirtError> {
            LibvirtDomain::open(&self.target(name), LIMIT)
        }

        fn signal(&self, signal: Signal) {
            kill(Pid::from_raw(i32::try_from(self.daemon.id()).unwrap()), signal).unwrap();
        }
    }

    impl Drop for Libvirtd {
        fn drop(&mut self) {
            self.signal(Signal::SIGCONT);
            self.virsh(&["destroy", NAME]);
            self.signal(Signal::SIGTERM);
            let begin = Instant::now();
            while self.daemon.try_wait().unwrap().is_none() {
                if begin.elapsed() > LIMIT {
                    self.daemon.kill().unwrap();
                }
                thread::sleep(Duration::from_millis(20));
            }
            if self.made_run {
                // Fails if someone else uses it by now.
                let _ = fs::remove_dir("/run/libvirt");
            }
        }
    }

    /// Descriptors and threads of this process.
    fn held() -> (usize, usize) {
        let count = |folder: &str| fs::read_dir(folder).unwrap().count();
        (count("/proc/self/fd"), count("/proc/self/task"))
    }

    /// One test, since one daemon serves all of it.
    #[test]
    fn libvirt() {
        let libvirtd = match Libvirtd::start() {
            Ok(libvirtd) => libvirtd,
            Err(why) => {
                println!("skipped: {why}");
                return;
            }
        };
        assert!(domains(Some(&libvirtd.uri()), LIMIT).unwrap().is_empty());
        let (created, said) = libvirtd.virsh(&["create", libvirtd.description(NAME, UUID).to_str().unwrap()]);
        assert!(created, "{said}");
        let (defined, said) = libvirtd.virsh(&["define", libvirtd.description("sleeper", OTHER_UUID).to_str().unwrap()]);
        assert!(defined, "{said}");

        found_by_name_and_uuid(&libvirtd);
        its_monitor_answers(&libvirtd);
        paused_and_resumed(&libvirtd);
        listed(&libvirtd);
        what_is_not_there(&libvirtd);
        nothing_is_left_behind(&libvirtd);
        a_daemon_that_hangs(&libvirtd);
        a_domain_that_ends(&libvirtd);
    }

    fn found_by_name_and_uuid(libvirtd: &Libvirtd) {
        let pid_file = libvirtd.directory.path().join(format!("run/qemu/{NAME}.pid"));
        let pid: i32 = fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
        let text = format!("libvirt:odd name%3F 100%25?uri={}", libvirtd.uri());
        let by_text = LibvirtDomain::open(&text.parse().unwrap(), LIMIT).unwrap();
        for domain in [by_text, libvirtd.open(UUID).unwrap(), libvirtd.open(&UUID.replace('-', "")).unwrap()] {
            assert_eq!((domain.name(), domain.uuid()), (NAME, UUID));
            assert_eq!(domain.process().unwrap().as_raw(), pid);
        }
    }

    fn its_monitor_answers(libvirtd: &Libvirtd) {
        let domain = libvirtd.open(NAME).unwrap();
        let tree = domain.human("info mtree -f").unwrap();
        // How far the firmware has come shows in how many parts the RAM is.
        let whole = tree.contains("Root memory region: system\n") && tree.contains("(prio 0, ram): pc.ram");
        assert!(whole && !tree.contains('\r'), "{tree}");
        assert_eq!(domain.execute("query-memory-size-summary", json!({})).unwrap()["base-memory"], 64 << 20);
        match domain.execute("nonsense", json!({})) {
            Err(MonitorError::Refused { class, command, .. }) => {
                assert_eq!((class.as_str(), command.as_str()), ("CommandNotFound", "nonsense"))
            }
            other => panic!("{other:?}"),
        }
        // Any text is one argument, and stays one.
        let strange = "\"}, \"execute\": \"quit\" \u{1F600}\n%s";
        assert!(matches!(domain.execute("qom-list", json!({ "path": strange })), Err(MonitorError::Refused { .. })));
        assert!(domain.status().unwrap().running);
    }

    fn paused_and_resumed(libvirtd: &Libvirtd) {
        let domain = libvirtd.open(NAME).unwrap();
        let state = || libvirtd.virsh(&["domstate", NAME]).1;
        for _ in 0..2 {
            domain.stop().unwrap();
            assert!(domain.is_paused().unwrap() && !domain.status().unwrap().running);
            assert_eq!(state(), "paused");
        }
        for _ in 0..2 {
            domain.cont().unwrap();
            assert!(!domain.is_paused().unwrap() && domain.status().unwrap().running);
            assert_eq!(state(), "running");
        }
    }

    fn listed(libvirtd: &Libvirtd) {
        let rows = domains(Some(&libvirtd.uri()), LIMIT).unwrap();
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((row.name.as_str(), row.uuid.as_str(), row.paused), (NAME, UUID, false));
        let domain = LibvirtDomain::open(&row.target.to_string().parse().unwrap(), LIMIT).unwrap();
        assert_eq!(domain.process().unwrap(), *row.process.as_ref().unwrap());
    }

    fn what_is_not_there(libvirtd: &Libvirtd) {
        let error = libvirtd.open("web1").unwrap_err();
        assert!(matches!(&error, LibvirtError::NoDomain { running, .. } if running == &[NAME]), "{error}");
        assert!(matches!(libvirtd.open(&UUID.replace('1', "4")), Err(LibvirtError::NoDomain { .. })));
        let error = libvirtd.open("sleeper").unwrap_err();
        assert!(matches!(&error, LibvirtError::NotRunning { .. }) && error.to_string().contains("virsh start"), "{error}");
        // libvirt's own mock hypervisor needs no daemon.
        let error = LibvirtDomain::open(&"libvirt:test?uri=test:///default".parse().unwrap(), LIMIT).unwrap_err();
        assert!(matches!(error, LibvirtError::NotQemu { .. }), "{error}");
        let nowhere = "qemu+unix:///system?socket=/nonexistent/libvirt-sock";
        let error = domains(Some(nowhere), LIMIT).unwrap_err();
        assert!(matches!(&error, LibvirtError::Connect { uri, .. } if uri == nowhere), "{error}");
        assert!(libvirtd.open("a\0b").is_err());
    }

    fn nothing_is_left_behind(libvirtd: &Libvirtd) {
        let round = || {
            let domain = libvirtd.open(NAME).unwrap();
            domain.status().unwrap();
        };
        round();
        let before = held();
        for _ in 0..50 {
            round();
        }
        // libvirt's thread for events may still be ending.
        let begin = Instant::now();
        while held() > before && begin.elapsed() < LIMIT {
            thread::sleep(Duration::from_millis(20));
        }
        assert!(held() <= before, "{before:?} before, {:?} after", held());
    }

    fn a_daemon_that_hangs(libvirtd: &Libvirtd) {
        let limit = Duration::from_millis(500);
        let domain = LibvirtDomain::open(&libvirtd.target(NAME), limit).unwrap();
        libvirtd.signal(Signal::SIGSTOP);
        let begin = Instant::now();
        assert!(matches!(domain.status(), Err(MonitorError::TimedOut { .. })));
        assert!(matches!(domain.is_paused(), Err(LibvirtError::TimedOut { .. })));
        assert!(matches!(LibvirtDomain::open(&libvirtd.target(NAME), limit), Err(LibvirtError::TimedOut { .. })));
        drop(domain);
        let passed = begin.elapsed();
        libvirtd.signal(Signal::SIGCONT);
        assert!(passed < Duration::from_secs(10), "{passed:?}");
        assert!(libvirtd.open(NAME).unwrap().status().unwrap().running);
    }

    fn a_domain_that_ends(libvirtd: &Libvirtd) {
        let domain = libvirtd.open(NAME).unwrap();
        kill(domain.process().unwrap(), Signal::SIGKILL).unwrap();
        let begin = Instant::now();
        let error = loop {
            match domain.status() {
                Ok(_) => assert!(begin.elapsed() < LIMIT, "the guest lives on"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, MonitorError::Closed { .. }), "{error}");
        assert!(matches!(domain.stop(), Err(MonitorError::Closed { .. })));
        assert!(matches!(libvirtd.open(NAME), Err(LibvirtError::NoDomain { .. })));
    }
}
