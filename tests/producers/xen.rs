//! What `xl dump-core` writes of a PVH and a PV domain: all of it against a second reader of the format, which is written here on its own, and against
//! what the domains said just before they were paused.
//!
//! `VMI_LAB_XEN_CORES` names the directory; `cargo xtask xen --cores` makes it in five minutes, and `cargo xtask test` reads it where it was made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use vmi::linux::Linux;
use vmi::{Driver, Memory, PhysAddr, VirtAddr};

use crate::truth::{Process, same_processes, task_name};

/// A domain's core, and what it said.
struct Core {
    path: PathBuf,
    bytes: Vec<u8>,
    paravirtual: bool,
}

impl Core {
    /// The core of that domain, if there are cores.
    fn of(domain: &str) -> Option<Self> {
        let directory = std::env::var_os("VMI_LAB_XEN_CORES").map(PathBuf::from);
        let Some(directory) = directory.filter(|directory| directory.join("stamp").is_file()) else {
            println!("skipped: no cores of Xen domains: cargo xtask xen --cores has them written");
            return None;
        };
        let path = directory.join(domain).with_extension("core");
        Some(Self { bytes: std::fs::read(&path).unwrap(), path, paravirtual: domain == "pv" })
    }

    /// What the domain answered to an order of `cores-in-dom0.sh`.
    fn told(&self, what: &str) -> String {
        std::fs::read_to_string(self.path.with_extension(what)).unwrap()
    }

    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    fn half(&self, at: usize) -> usize {
        u16::from_le_bytes(self.bytes[at..at + 2].try_into().unwrap()).into()
    }

    /// Where a section is in the file, by elf(5): `sh_name` at 0, `sh_offset` at 24, `sh_size` at 32 of each header.
    fn section(&self, name: &str) -> std::ops::Range<usize> {
        let header = |index: usize| self.word(40) as usize + index * self.half(58);
        let names = self.word(header(self.half(62)) + 24) as usize;
        let is_it = |index: &usize| {
            let at = names + u32::from_le_bytes(self.bytes[header(*index)..][..4].try_into().unwrap()) as usize;
            self.bytes[at..].starts_with(format!("{name}\0").as_bytes())
        };
        let found = header((0..self.half(60)).find(is_it).unwrap_or_else(|| panic!("no section {name}")));
        let offset = self.word(found + 24) as usize;
        offset..offset + self.word(found + 32) as usize
    }

    /// The number of each page, in the order of the file: docs/misc/dump-core-format.txt of Xen. `.xen_p2m` has the machine frame behind it.
    fn numbers(&self) -> Vec<u64> {
        let (table, entry) = if self.paravirtual { (self.section(".xen_p2m"), 16) } else { (self.section(".xen_pfn"), 8) };
        table.step_by(entry).map(|at| self.word(at)).collect()
    }

    fn page(&self, index: usize) -> &[u8] {
        &self.bytes[self.section(".xen_pages").start + index * 4096..][..4096]
    }
}

fn check(domain: &str) {
    let Some(core) = Core::of(domain) else { return };
    let vmi = vmi::open(core.path.as_path()).unwrap();

    // All pages, and no other memory.
    let numbers = core.numbers();
    let mut index_of = BTreeMap::new();
    for (index, &number) in numbers.iter().enumerate().filter(|(_, number)| **number != u64::MAX) {
        index_of.entry(number).or_insert(index);
    }
    let mut read = vec![0; 4096];
    for (&number, &index) in &index_of {
        vmi.read_into(PhysAddr::new(number * 4096), &mut read).unwrap_or_else(|error| panic!("page {number:#x}: {error}"));
        assert!(read == core.page(index), "page {number:#x} differs");
    }
    assert_eq!(vmi.machine().memory.total(), index_of.len() as u64 * 4096);
    assert!(index_of.len() as u64 * 4096 > 120 << 20, "{}", index_of.len());

    // What a process wrote into pages of which the kernel told the numbers.
    let held = core.told("held");
    let frames: Vec<u64> = held.lines().filter_map(|line| hex(line.strip_prefix("pfn ")?.split_once(' ')?.1)).collect();
    assert_eq!(frames.len(), 16);
    for (page, frame) in frames.iter().enumerate() {
        vmi.read_into(PhysAddr::new(frame * 4096), &mut read).unwrap();
        for word in 0..511 {
            let at = 0x4000_0000 + page as u64 * 4096 + word * 8;
            let found = u64::from_le_bytes(read[word as usize * 8..][..8].try_into().unwrap());
            assert_eq!(found, at ^ 0x5a5a_5a5a_5a5a_5a5a, "{at:#x}");
        }
    }

    let registers = vmi.driver().vcpus().unwrap().registers(vmi::VcpuId(0)).unwrap();
    assert!(registers.rip >> 47 == 0x1ffff, "an idle domain is in its kernel: {:#x}", registers.rip);

    let linux = Linux::attach(&vmi).unwrap_or_else(|error| panic!("{error}"));
    let told: BTreeSet<Process> = core.told("ps").lines().filter_map(process).collect();
    let listed = linux.processes().map(|task| {
        let task = task.unwrap();
        (task.pid().unwrap(), task.parent_pid().unwrap(), task.name().unwrap())
    });
    let listed = listed.collect();
    same_processes(&told, &listed);

    // What a process has in memory of its own, by its own page tables.
    let (witness, ..) = told.iter().find(|process| process.2 == "witness").unwrap();
    let space = linux.process(*witness).unwrap().address_space().unwrap().unwrap();
    let pages = core.told("facts");
    let mut pages: Vec<u64> = pages.lines().filter_map(|line| hex(line.strip_prefix("page present rw ")?)).collect();
    pages.extend(core.told("facts").lines().filter_map(|line| hex(line.strip_prefix("page huge rw ")?)));
    assert_eq!(pages.len(), 2);
    for page in pages {
        let bytes = space.read_vec(VirtAddr::new(page), 4096).unwrap();
        for (word, at) in bytes.chunks_exact(4).zip((page..).step_by(4)) {
            assert_eq!(u32::from_le_bytes(word.try_into().unwrap()), at as u32 ^ 0x5a5a_5a5a, "{at:#x}");
        }
    }

    let told: BTreeSet<(String, u64)> = core.told("modules").lines().filter_map(module).collect();
    let listed: BTreeSet<(String, u64)> = linux
        .modules()
        .map(|module| {
            let module = module.unwrap();
            (module.name().unwrap(), module.place().unwrap().0.get())
        })
        .collect();
    assert!(told.len() == 4 && told == listed, "{told:x?} {listed:x?}");

    let mut symbols = 0;
    for line in core.told("symbols").lines().filter(|line| !line.contains('[')) {
        let words: Vec<&str> = line.split(' ').collect();
        let found: Vec<u64> = linux.symbols().all(words[2]).map(|symbol| symbol.address.get()).collect();
        assert!(found.contains(&hex(words[0]).unwrap()), "{line}: {found:x?}");
        symbols += 1;
    }
    assert!(symbols > 200, "{symbols}");
    println!("  {domain}: {} pages, {symbols} symbols", index_of.len());
}

#[test]
fn xen_core_of_a_pvh_domain() {
    check("pvh");
}

#[test]
fn xen_core_of_a_pv_domain() {
    check("pv");
}

/// A line of `domu ps` without itself: `ps PID PARENT STATE UID THREADS NAME`.
fn process(line: &str) -> Option<Process> {
    let words: Vec<&str> = line.strip_prefix("ps ")?.splitn(6, ' ').collect();
    let lists = words[5] == "domu" && words[2] == "R";
    (!lists).then(|| (words[0].parse().unwrap(), words[1].parse().unwrap(), task_name(words[5])))
}

/// A line of /proc/modules: name, size, references, users, state, address.
fn module(line: &str) -> Option<(String, u64)> {
    let words: Vec<&str> = line.split(' ').collect();
    Some(((*words.first()?).to_owned(), hex(words.get(5)?)?))
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}
