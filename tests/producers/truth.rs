//! What QEMU and the guest say of the moment of which an image is.

use std::collections::BTreeSet;
use std::path::Path;

use vmi::linux::Linux;
use vmi::{AnyDriver, Driver, Memory, PhysAddr, VcpuId, Vmi};

/// A process: id, parent, name.
pub(crate) type Process = (u32, u32, String);

/// Memory and registers of a guest that stands still.
pub(crate) struct Truth {
    /// Start and bytes of each range of RAM.
    pub(crate) memory: Vec<(u64, Vec<u8>)>,
    /// What `info registers -a` prints.
    pub(crate) registers: String,
}

impl Truth {
    /// Opens the image and compares all that it has. Returns its processes.
    pub(crate) fn check(&self, path: &Path, what: &str, with_registers: bool) -> BTreeSet<Process> {
        let vmi = vmi::open(path).unwrap_or_else(|error| panic!("{what}: {error}"));
        self.same_memory(&vmi, what);
        match vmi.driver().vcpus() {
            Some(_) => self.same_registers(&vmi, what),
            None => assert!(!with_registers, "{what}: no registers"),
        }
        processes(&vmi)
    }

    fn same_memory(&self, vmi: &Vmi<AnyDriver>, what: &str) {
        const PART: usize = 3 << 20;
        let mut read = vec![0; PART];
        for (start, bytes) in &self.memory {
            for (index, part) in bytes.chunks(PART).enumerate() {
                let at = PhysAddr::new(start + (index * PART) as u64);
                let read = &mut read[..part.len()];
                vmi.read_into(at, read).unwrap_or_else(|error| panic!("{what}: {at}: {error}"));
                if read != part {
                    let pages = (0..part.len()).step_by(4096).filter(|&page| {
                        let end = part.len().min(page + 4096);
                        read[page..end] != part[page..end]
                    });
                    let pages: Vec<String> = pages.map(|page| format!("{:#x}", at.get() + page as u64)).collect();
                    panic!("{what}: {} pages differ: {:?}", pages.len(), &pages[..pages.len().min(8)]);
                }
            }
        }
        // No memory where QEMU has none, apart from device memory and ROM, which dumps may have.
        let told: u64 = self.memory.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let total = vmi.machine().memory.total();
        assert!(total >= told && total < told + (64 << 20), "{what}: {total:#x} bytes, QEMU has {told:#x}");
    }

    fn same_registers(&self, vmi: &Vmi<AnyDriver>, what: &str) {
        let vcpus = vmi.driver().vcpus().unwrap();
        let sections: Vec<&str> = self.registers.split("CPU#").skip(1).collect();
        assert_eq!(vcpus.vcpu_count() as usize, sections.len(), "{what}");
        for (vcpu, section) in (0..).zip(sections) {
            let registers = vcpus.registers(VcpuId(vcpu)).unwrap();
            let text = section.replace("= ", "=").replace(" =", "=");
            let value = |name: &str| {
                let rest = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
                u64::from_str_radix(rest.unwrap_or_else(|| panic!("{name}: {text}")), 16).unwrap()
            };
            let general = [
                ("RAX", registers.rax),
                ("RBX", registers.rbx),
                ("RCX", registers.rcx),
                ("RDX", registers.rdx),
                ("RSI", registers.rsi),
                ("RDI", registers.rdi),
                ("RBP", registers.rbp),
                ("RSP", registers.rsp),
                ("R8", registers.r8),
                ("R9", registers.r9),
                ("R10", registers.r10),
                ("R11", registers.r11),
                ("R12", registers.r12),
                ("R13", registers.r13),
                ("R14", registers.r14),
                ("R15", registers.r15),
                ("RIP", registers.rip),
                ("RFL", registers.rflags),
                ("CR0", registers.cr0.unwrap()),
                ("CR2", registers.cr2.unwrap()),
                ("CR3", registers.cr3.unwrap()),
                ("CR4", registers.cr4.unwrap()),
            ];
            for (name, told) in general {
                assert_eq!(told, value(name), "{what}: {name} of {vcpu}\n{section}");
            }
            if let Some(efer) = registers.efer {
                assert_eq!(efer, value("EFER"), "{what}: of {vcpu}");
            }
            let segments = registers.segments;
            let all = [
                ("ES", segments.es),
                ("CS", segments.cs),
                ("SS", segments.ss),
                ("DS", segments.ds),
                ("FS", segments.fs),
                ("GS", segments.gs),
                ("LDT", segments.ldt),
                ("TR", segments.tr),
            ];
            for (name, segment) in all {
                let segment = segment.unwrap();
                let expected = format!("{:04x} {:016x} {:08x}", segment.selector, segment.base, segment.limit);
                assert!(line(section, name).contains(&expected), "{what}: {name} {expected}\n{section}");
            }
            for (name, table) in [("GDT", registers.gdtr), ("IDT", registers.idtr)] {
                let table = table.unwrap();
                let expected = format!("{:016x} {:08x}", table.base.get(), table.limit);
                assert!(line(section, name).contains(&expected), "{what}: {name} {expected}\n{section}");
            }
        }
    }
}

/// The line of a segment.
fn line<'a>(section: &'a str, name: &str) -> &'a str {
    section.lines().find(|line| line.starts_with(name) && line[name.len()..].trim_start().starts_with('=')).unwrap_or_default()
}

/// What the library lists.
pub(crate) fn processes(vmi: &Vmi<AnyDriver>) -> BTreeSet<Process> {
    let linux = Linux::attach(vmi).unwrap_or_else(|error| panic!("{error}"));
    let row = |task: vmi::Result<vmi::linux::Task<'_, '_, AnyDriver>>| {
        let task = task?;
        Ok::<_, vmi::Error>((task.pid()?, task.parent_pid()?, task.name()?))
    };
    linux.processes().map(|task| row(task).unwrap_or_else(|error| panic!("{error}"))).collect()
}

/// Whether the list is what the guest said before: kernel workers come and go.
pub(crate) fn same_processes(guest: &BTreeSet<Process>, listed: &BTreeSet<Process>) {
    let is_worker = |process: &&Process| process.1 == 2 && process.2.starts_with("kworker/");
    let missing: Vec<_> = guest.difference(listed).filter(|process| !is_worker(process)).collect();
    let unknown: Vec<_> = listed.difference(guest).filter(|process| !is_worker(process)).collect();
    assert!(listed.len() > 20 && missing.is_empty() && unknown.is_empty(), "missing {missing:?}, unknown {unknown:?}");
}

/// A line of /proc/PID/stat.
pub(crate) fn process(line: &str) -> Option<Process> {
    let (pid, rest) = line.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    Some((pid.parse().ok()?, rest.split(' ').nth(1)?.parse().ok()?, task_name(name)))
}

/// The name of a process of /proc as the task has it: without what a worker works on, and not longer than 15 bytes.
pub(crate) fn task_name(name: &str) -> String {
    let name = name.split_once('-').filter(|_| name.starts_with("kworker/")).map_or(name, |(name, _)| name);
    name.chars().take(15).collect()
}
