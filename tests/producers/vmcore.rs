//! What a crashed kernel leaves: `/proc/vmcore`, written by its crash kernel, and what makedumpfile makes of that.
//!
//! The truth is the guest's RAM as the crash kernel left it, which runs in memory of its own, and what the guest said before.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use vmi::linux::Linux;
use vmi::{AnyDriver, Driver, ErrorKind, Memory, PhysAddr, VcpuId, VirtAddr, Vmi};

use crate::harness::Server;
use crate::truth::{Process, process, processes, same_processes};

/// What `vmcore.py serve KERNEL` says.
#[derive(Debug, Deserialize)]
struct Served {
    core: PathBuf,
    ram: PathBuf,
    /// Start and length in bytes of each range of physical memory, one after the other in the file.
    ranges: Vec<(u64, u64)>,
    iomem: String,
    processes: String,
    symbols: String,
    actor: Actor,
    release: String,
    qemu: String,
}

#[derive(Debug, Deserialize)]
struct Actor {
    pid: u32,
    page: u64,
    physical: u64,
}

/// A range of /proc/iomem: its first and last byte.
type Range = (u64, u64);

impl Served {
    /// Ranges of /proc/iomem with this name.
    fn iomem<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Range> + 'a {
        self.iomem.lines().filter_map(move |line| {
            let (range, told) = line.split_once(" : ")?;
            let (start, end) = range.trim().split_once('-')?;
            (told == name).then(|| (hex(start), hex(end)))
        })
    }

    /// The crashed kernel's memory. The first MiB belongs to both kernels, and is in no core.
    fn memory(&self) -> Vec<Range> {
        let (reserved, end) = self.iomem("Crash kernel").next().unwrap();
        let parts = self.iomem("System RAM").filter(|range| range.0 >= 1 << 20).flat_map(|(start, last)| {
            match (start..last).contains(&reserved) {
                true => vec![(start, reserved - 1), (end + 1, last)],
                false => vec![(start, last)],
            }
        });
        parts.filter(|(start, last)| start < last).collect()
    }

    /// What RAM has there.
    fn ram(&self, file: &File, at: u64, bytes: &mut [u8]) {
        let mut offset = 0;
        for &(start, len) in &self.ranges {
            if (start..start + len).contains(&at) {
                return file.read_exact_at(bytes, offset + (at - start)).unwrap();
            }
            offset += len;
        }
        panic!("{at:#x} is in no RAM");
    }

    /// Compares all pages, and counts those that are there. In an ELF core, makedumpfile leaves pages out as zeros where there are few in a row.
    fn same_memory(&self, vmi: &Vmi<AnyDriver>, zeros: bool, what: &str) -> u64 {
        let ram = File::open(&self.ram).unwrap();
        let (mut read, mut expected, mut present) = ([0; 4096], [0; 4096], 0);
        for (start, last) in self.memory() {
            for at in (start..last).step_by(4096) {
                match vmi.read_into(PhysAddr::new(at), &mut read) {
                    Ok(()) => {
                        self.ram(&ram, at, &mut expected);
                        let left_out = read != expected;
                        assert!(!left_out || zeros && read == [0; 4096], "{what}: the page at {at:#x} differs");
                        present += u64::from(!left_out);
                    }
                    Err(error) => assert!(matches!(error.kind(), ErrorKind::Hole { .. }), "{what}: {error}"),
                }
            }
        }
        present
    }

    /// What is in all images, however much they leave out.
    fn same_kernel(&self, vmi: &Vmi<AnyDriver>, what: &str) {
        let told: BTreeSet<Process> = self.processes.lines().filter_map(process).collect();
        same_processes(&told, &processes(vmi));
        let linux = Linux::attach(vmi).unwrap_or_else(|error| panic!("{what}: {error}"));
        let log: Vec<String> = linux.kernel_log().map(|record| record.unwrap().text).collect();
        assert!(log.iter().any(|text| text.contains("Trigger a crash")), "{what}: {log:?}");
        let mut symbols = 0;
        for line in self.symbols.lines().filter(|line| !line.contains('[')) {
            let (address, name) = (hex(line.split(' ').next().unwrap()), line.split(' ').nth(2).unwrap());
            assert!(linux.symbols().all(name).any(|symbol| symbol.address.get() == address), "{what}: {line}");
            symbols += 1;
        }
        assert!(symbols > 1000, "{symbols}");
        self.crashed(vmi, &linux, what);
    }

    /// One processor is where the kernel crashed; the other one may be in a process.
    fn crashed(&self, vmi: &Vmi<AnyDriver>, linux: &Linux<'_, AnyDriver>, what: &str) {
        let symbol = |name: &str| linux.symbols().address(name).unwrap().get();
        let (code, crash) = (symbol("_text")..symbol("_etext"), symbol("sysrq_handle_crash"));
        let vcpus = vmi.driver().vcpus().unwrap();
        assert_eq!(vcpus.vcpu_count(), 2, "{what}");
        let called = (0..2).filter(|&vcpu| {
            let registers = vcpus.registers(VcpuId(vcpu)).unwrap();
            let in_process = registers.rip < 1 << 47;
            assert!(in_process || code.contains(&registers.rip), "{what}: {:#x} of {vcpu}", registers.rip);
            let stack: Vec<u64> = (registers.rsp..)
                .step_by(8)
                .take(128)
                .map_while(|at| linux.kernel_space().read(VirtAddr::new(at)).ok())
                .collect();
            stack.iter().any(|word| (crash..crash + 64).contains(word))
        });
        assert_eq!(called.count(), 1, "{what}: return addresses into sysrq_handle_crash");
    }

    /// The page of a process, by its page tables.
    fn same_page(&self, vmi: &Vmi<AnyDriver>) {
        let linux = Linux::attach(vmi).unwrap_or_else(|error| panic!("{error}"));
        let space = linux.process(self.actor.pid).unwrap().address_space().unwrap().unwrap();
        for at in (self.actor.page + 24..self.actor.page + 4096).step_by(8) {
            assert_eq!(space.read::<u64>(VirtAddr::new(at)).unwrap(), at ^ 0x5a5a_5a5a_5a5a_5a5a);
        }
        let physical = PhysAddr::new(self.actor.physical + 24);
        assert_eq!(vmi.read::<u64>(physical).unwrap(), (self.actor.page + 24) ^ 0x5a5a_5a5a_5a5a_5a5a);
    }
}

macro_rules! rows {
    ($($test:ident: $kernel:literal;)*) => {$(
        #[test]
        fn $test() {
            crash_of($kernel);
        }
    )*};
}

rows! {
    crash_of_5_10: "x64-5.10";
    crash_of_6_1: "x64-6.1";
    crash_of_6_12: "x64-6.12";
}

fn crash_of(kernel: &str) {
    let (_server, served): (Server, Served) = match Server::start("vmcore.py", &["serve", kernel]) {
        Ok(started) => started,
        Err(skip) => return println!("{skip}"),
    };
    println!("{} under {}", served.release, served.qemu);
    let vmi = open(&served.core);
    let memory = served.memory();
    let pages: u64 = memory.iter().map(|(start, last)| (last + 1 - start) / 4096).sum();
    assert!(memory.len() == 3 && pages > 80_000, "{}", served.iomem);
    assert_eq!(served.same_memory(&vmi, false, "/proc/vmcore"), pages);
    let (reserved, _) = served.iomem("Crash kernel").next().unwrap();
    let error = vmi.read::<u64>(PhysAddr::new(reserved)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { .. }), "{error}");
    served.same_kernel(&vmi, "/proc/vmcore");
    served.same_page(&vmi);
    println!("  /proc/vmcore: {pages} pages");

    for program in ["makedumpfile".into(), std::env::var("VMI_MAKEDUMPFILE").unwrap_or_default()] {
        if Command::new(&program).arg("-v").output().is_err() {
            println!("skipped: no such program as {program:?} (VMI_MAKEDUMPFILE names the second one)");
            continue;
        }
        for (options, all) in [("-l -d 0", true), ("-c -d 31", false), ("-z -d 31", false), ("-E -d 31", false)] {
            match makedumpfile(&program, options, &served.core) {
                Ok(dump) => {
                    let (vmi, what) = (open(&dump), format!("{program} {options}"));
                    let present = served.same_memory(&vmi, options.starts_with("-E"), &what);
                    assert!(
                        if all { present == pages } else { present > 2000 && present < pages / 2 },
                        "{what}: {present} of {pages} pages"
                    );
                    served.same_kernel(&vmi, &what);
                    println!("  {what}: {present} pages, {} bytes", dump.metadata().unwrap().len());
                    std::fs::remove_file(dump).unwrap();
                }
                Err(why) => println!("skipped: {program} {options}: {why}"),
            }
        }
    }
}

fn open(path: &Path) -> Vmi<AnyDriver> {
    vmi::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What it makes of the core; or why not, if it was built without what the options ask for, or says of itself that it does not know the kernel well
/// enough to tell which pages to leave out.
fn makedumpfile(program: &str, options: &str, core: &Path) -> Result<PathBuf, String> {
    let dump = core.with_extension("dump");
    let output = Command::new(program).args(options.split(' ')).args([core, &dump]).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let chooses = !options.contains("-d 0");
    let is_lack = |line: &&str| line.contains("option is disabled") || chooses && line.contains("may be incomplete");
    if let Some(lack) = said.lines().find(is_lack) {
        let _ = std::fs::remove_file(&dump); // it goes on without packing, or leaves out too much
        return Err(lack.to_owned());
    }
    assert!(output.status.success(), "{program} {options}: {said}");
    Ok(dump)
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap()
}
