//! What VirtualBox writes of a Linux guest (`VBoxManage debugvm dumpvmcore`): against a second reader of the format, which is written here on its own, and against
//! what the guest said just before.
//!
//! `VMI_LAB_VIRTUALBOX` names the directory; `cargo xtask virtualbox` makes it in some minutes, and `cargo xtask test` reads it where it was made.

use std::collections::BTreeSet;
use std::path::PathBuf;

use vmi::linux::Linux;
use vmi::{Driver, ErrorKind, Memory, PhysAddr, VcpuId, VirtAddr};

use crate::truth::{Process, same_processes, task_name};

/// The core, by elf(5): `e_phoff` at 32, `e_phentsize` at 54, `e_phnum` at 56.
struct Core(Vec<u8>);

/// A program header.
struct Segment {
    kind: u32,
    offset: usize,
    at: u64,
    stored: usize,
    memory: u64,
}

impl Core {
    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    fn segments(&self) -> impl Iterator<Item = Segment> {
        let half = |at: usize| usize::from(u16::from_le_bytes(self.0[at..at + 2].try_into().unwrap()));
        (0..half(56)).map(move |index| self.word(32) as usize + index * half(54)).map(|at| Segment {
            kind: u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap()),
            offset: self.word(at + 8) as usize,
            at: self.word(at + 24),
            stored: self.word(at + 32) as usize,
            memory: self.word(at + 40),
        })
    }
}

#[test]
fn virtualbox_core() {
    let directory = std::env::var_os("VMI_LAB_VIRTUALBOX").map(PathBuf::from);
    let Some(directory) = directory.filter(|directory| directory.join("stamp").is_file()) else {
        return println!("skipped: no core of VirtualBox: cargo xtask virtualbox has it written");
    };
    let path = directory.join("guest.core");
    let core = Core(std::fs::read(&path).unwrap());
    let said = std::fs::read_to_string(directory.join("guest.said")).unwrap();
    let vmi = vmi::open(path.as_path()).unwrap();

    // All memory, and none where a device is.
    let (mut total, mut devices) = (0, 0);
    let mut read = vec![0; 4096];
    for segment in core.segments().filter(|segment| segment.kind == 1) {
        if segment.stored == 0 {
            let error = vmi.read_into(PhysAddr::new(segment.at), &mut read).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Hole { .. }), "{error}");
            devices += 1;
            continue;
        }
        assert_eq!(segment.memory, segment.stored as u64);
        let stored = &core.0[segment.offset..][..segment.stored];
        for (at, page) in (segment.at..).step_by(4096).zip(stored.chunks(4096)) {
            vmi.read_into(PhysAddr::new(at), &mut read).unwrap_or_else(|error| panic!("{error}"));
            assert!(read == page, "the page at {at:#x} differs");
        }
        total += segment.memory;
    }
    assert_eq!(vmi.machine().memory.total(), total);
    assert!(total > 192 << 20 && devices > 0, "{total:#x} {devices}");

    let linux = Linux::attach(&vmi).unwrap_or_else(|error| panic!("{error}"));
    let told: BTreeSet<Process> = said.lines().filter_map(process).collect();
    let listed = linux.processes().map(|task| {
        let task = task.unwrap();
        (task.pid().unwrap(), task.parent_pid().unwrap(), task.name().unwrap())
    });
    same_processes(&told, &listed.collect());

    // The guest sleeps: its processor is in the kernel, on tables that map it, and the registers of system calls lead there.
    let registers = vmi.driver().vcpus().unwrap().registers(VcpuId(0)).unwrap();
    let symbol = |name: &str| linux.symbols().address(name).unwrap().get();
    assert!((symbol("_text")..symbol("_end")).contains(&registers.rip), "{:#x}", registers.rip);
    assert_eq!(registers.lstar, Some(symbol("entry_SYSCALL_64")));
    assert_eq!(
        registers.segments.gs.unwrap().base,
        linux.kernel_space().read::<u64>(VirtAddr::new(symbol("__per_cpu_offset"))).unwrap()
    );

    // What a process has in memory of its own, by its own page tables.
    let (witness, ..) = told.iter().find(|process| process.2 == "witness").unwrap();
    let space = linux.process(*witness).unwrap().address_space().unwrap().unwrap();
    let pages: Vec<u64> = said.lines().filter_map(|line| hex(line.strip_prefix("fact page present rw ")?)).collect();
    assert_eq!(pages.len(), 1);
    for page in pages {
        let bytes = space.read_vec(VirtAddr::new(page), 4096).unwrap();
        for (word, at) in bytes.chunks_exact(4).zip((page..).step_by(4)) {
            assert_eq!(u32::from_le_bytes(word.try_into().unwrap()), at as u32 ^ 0x5a5a_5a5a, "{at:#x}");
        }
    }

    let mut symbols = 0;
    for line in said.lines().filter_map(|line| line.strip_prefix("symbol ")) {
        let (address, name) = line.split_once(' ').unwrap();
        let found: Vec<u64> = linux.symbols().all(name).map(|symbol| symbol.address.get()).collect();
        assert!(found.contains(&hex(address).unwrap()), "{line}: {found:x?}");
        symbols += 1;
    }
    assert!(symbols > 100, "{symbols}");
    println!("  {} MiB, {devices} places of devices, {} processes, {symbols} symbols", total >> 20, told.len());
}

/// A line `ps PID PARENT NAME`, but for those that did the listing.
fn process(line: &str) -> Option<Process> {
    let words: Vec<&str> = line.strip_prefix("ps ")?.splitn(3, ' ').collect();
    (words[2] != "awk").then(|| (words[0].parse().unwrap(), words[1].parse().unwrap(), task_name(words[2])))
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}
