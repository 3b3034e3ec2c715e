//! Processes and threads.

use crate::NtMachine;
use crate::memory::PAGE;
use crate::options::{BrokenList, KvaShadow};
use crate::paging::{KERNEL_CODE, USER_DATA};
use crate::pool::PoolKind;
use crate::truth::ProcessTruth;

/// `DISPATCHER_HEADER.WaitListHead` (wdm.h), which leads to itself as nobody waits.
const WAIT_LIST: u64 = 8;

/// What a process shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSpec {
    /// Name of the executable; the kernel keeps the first 14 bytes of it in `ImageFileName`.
    pub name: String,
    /// Process id.
    pub pid: u64,
    /// Process id of the parent.
    pub parent: u64,
    /// FILETIME of the start.
    pub create_time: u64,
    /// FILETIME of the end; the process has no address space contents then.
    pub exit_time: Option<u64>,
    /// Terminal session; none for System and its like.
    pub session: Option<u32>,
    /// Whether it is a 32-bit process of a 64-bit system.
    pub wow64: bool,
    /// Whether it has a user address space with a PEB. System and `Registry` have none.
    pub user_space: bool,
    /// Full path in NT's notation; empty for those without a file.
    pub image_path: String,
    /// Whether it is in the list of processes; false hides it.
    pub linked: bool,
}

impl ProcessSpec {
    /// A plain process of session 0.
    pub fn new(name: &str, pid: u64, parent: u64) -> Self {
        Self {
            name: name.to_owned(),
            pid,
            parent,
            create_time: FIRST_TIME + pid * 10_000_000,
            exit_time: None,
            session: Some(0),
            wow64: false,
            user_space: true,
            image_path: format!("\\Device\\HarddiskVolume2\\Windows\\System32\\{name}"),
            linked: true,
        }
    }

    /// Hidden: not in the list of processes.
    pub fn hidden(mut self) -> Self {
        self.linked = false;
        self
    }

    /// Ended, but still referenced by someone: in the list, without threads and handles.
    pub fn exited(mut self) -> Self {
        self.exit_time = Some(self.create_time + 50_000_000);
        self.user_space = false;
        self
    }

    /// 32-bit on a 64-bit system.
    pub fn wow64(mut self) -> Self {
        self.wow64 = true;
        self
    }
}

/// 2024-03-01 12:00:00 UTC as FILETIME: when the machine was started.
pub const FIRST_TIME: u64 = 133_537_680_000_000_000;

/// A process of the machine: its place in the order in which processes were made. [`ProcessId::SYSTEM`] is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId(pub usize);

impl ProcessId {
    /// Pid 4.
    pub const SYSTEM: Self = Self(0);
}

impl NtMachine {
    /// Makes a process: its object in the pool, its page tables, its PEB's page, and its place at the end of the list.
    pub fn add_process(&mut self, spec: ProcessSpec) -> ProcessId {
        let root = self.tables.new_root(&mut self.memory);
        self.add_process_with_root(spec, root)
    }

    pub(crate) fn add_process_with_root(&mut self, spec: ProcessSpec, root: u64) -> ProcessId {
        let id = ProcessId(self.processes.len());
        let size = self.build.layout.size("_EPROCESS");
        let eprocess = self.alloc_object(PoolKind::NonPaged, &self.protected_tag(b"Proc"), size);
        let mut process = ProcessTruth {
            eprocess,
            pid: spec.pid,
            parent: spec.parent,
            name: spec.name.chars().take(14).collect(),
            dtb: root,
            user_dtb: 0,
            peb: 0,
            wow64_peb: 0,
            create_time: spec.create_time,
            exit_time: spec.exit_time.unwrap_or(0),
            session: spec.session,
            linked: spec.linked,
            image_path: spec.image_path.clone(),
            threads: Vec::new(),
        };
        self.processes.push(process.clone());

        self.put("_KPROCESS", "Header", eprocess, 3);
        let header_size = self.build.layout.size("_KPROCESS") / 4;
        self.put_sized("_DISPATCHER_HEADER", "Size", eprocess, header_size, 1);
        self.list_init(eprocess + WAIT_LIST);
        self.put("_KPROCESS", "DirectoryTableBase", eprocess, root);
        if self.offset("_KPROCESS", "UserDirectoryTableBase").is_some() {
            if self.options.kva_shadow != KvaShadow::Off && id != ProcessId::SYSTEM {
                let shadow = self.tables.new_shadow(&mut self.memory, root);
                self.map_shadow_entry_code(shadow);
                process.user_dtb = shadow;
                self.put("_KPROCESS", "UserDirectoryTableBase", eprocess, shadow | 2);
                self.put_sized("_KPROCESS", "AddressPolicy", eprocess, 0, 1);
            } else {
                // Without a shadow of its own the field holds the value 1 (policy: none), as observed by memory forensics tools.
                self.put("_KPROCESS", "UserDirectoryTableBase", eprocess, 1);
            }
        }
        let thread_list = self.member("_KPROCESS", "ThreadListHead", eprocess);
        self.list_init(thread_list);
        let thread_list = self.member("_EPROCESS", "ThreadListHead", eprocess);
        self.list_init(thread_list);
        self.put("_EPROCESS", "UniqueProcessId", eprocess, spec.pid);
        self.put("_EPROCESS", "InheritedFromUniqueProcessId", eprocess, spec.parent);
        let name = self.member("_EPROCESS", "ImageFileName", eprocess);
        self.write_kernel(name, process.name.as_bytes());
        self.put_sized("_EPROCESS", "CreateTime", eprocess, spec.create_time, 8);
        self.put_sized("_EPROCESS", "ExitTime", eprocess, process.exit_time, 8);
        // STATUS_PENDING while it lives.
        self.put_sized("_EPROCESS", "ExitStatus", eprocess, if spec.exit_time.is_some() { 0 } else { 0x103 }, 4);
        if !spec.image_path.is_empty() {
            // OBJECT_NAME_INFORMATION: a UNICODE_STRING and its text behind it.
            let text: Vec<u8> = spec.image_path.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let string = self.build.pointer() * 2;
            let info = self.alloc_pool_of(PoolKind::Paged, b"SeOn", string + text.len() as u64 + 2);
            self.put_sized("_UNICODE_STRING", "Length", info, text.len() as u64, 2);
            self.put_sized("_UNICODE_STRING", "MaximumLength", info, text.len() as u64 + 2, 2);
            self.put("_UNICODE_STRING", "Buffer", info, info + string);
            self.write_kernel(info + string, &text);
            self.put("_EPROCESS", "SeAuditProcessCreationInfo", eprocess, info);
        }
        if spec.user_space {
            process.peb = self.peb_address(spec.wow64, spec.pid);
            let pages = self.build.layout.size("_PEB").div_ceil(PAGE);
            self.processes[id.0] = process.clone();
            self.alloc_user(id, process.peb, pages, USER_DATA);
            self.put("_EPROCESS", "Peb", eprocess, process.peb);
            let (major, minor) = self.build.version;
            for (member, value) in [("OSMajorVersion", major), ("OSMinorVersion", minor)] {
                self.put_user(id, "_PEB", member, process.peb, u64::from(value), 4);
            }
            self.put_user(id, "_PEB", "OSBuildNumber", process.peb, u64::from(self.build.number), 2);
            self.put_user(id, "_PEB", "SessionId", process.peb, u64::from(spec.session.unwrap_or(0)), 4);
            let image = if spec.wow64 || !self.build.is_64_bit { 0x40_0000 } else { 0x7FF6_1A20_0000 + spec.pid * 0x1_0000 };
            self.put_user(id, "_PEB", "ImageBaseAddress", process.peb, image, self.build.pointer() as usize);
            self.put("_EPROCESS", "SectionBaseAddress", eprocess, image);
            if spec.wow64 {
                // Windows 7 puts the 32-bit PEB below the other one, Windows 10 above.
                process.wow64_peb = if self.build.number < 9200 { process.peb - 0x1000 } else { process.peb + 0x1000 };
                self.alloc_user(id, process.wow64_peb, 1, USER_DATA);
                self.put_wow64(eprocess, process.wow64_peb);
            }
        }
        self.processes[id.0] = process;
        let links = self.member("_EPROCESS", "ActiveProcessLinks", eprocess);
        if spec.linked {
            let head = self.symbol_address("PsActiveProcessHead");
            self.list_append(head, links);
        } else {
            self.list_init(links);
        }
        id
    }

    /// Windows 10 keeps a small structure whose first member is the 32-bit PEB; older systems the address itself.
    fn put_wow64(&mut self, eprocess: u64, peb: u64) {
        let member = if self.offset("_EPROCESS", "WoW64Process").is_some() { "WoW64Process" } else { "Wow64Process" };
        if self.offset("_EPROCESS", member).is_none() {
            return;
        }
        let value = if self.build.layout.structs.contains_key("_EWOW64PROCESS") {
            let size = self.build.layout.size("_EWOW64PROCESS");
            let at = self.alloc_pool(b"Wow6", size);
            self.put("_EWOW64PROCESS", "Peb", at, peb);
            if self.offset("_EWOW64PROCESS", "Machine").is_some() {
                self.put_sized("_EWOW64PROCESS", "Machine", at, 0x14C, 2);
            }
            at
        } else {
            peb
        };
        self.put("_EPROCESS", member, eprocess, value);
    }

    /// The tag of a block that only its owner may free: until Windows 7 the highest bit of its last letter is set.
    fn protected_tag(&self, tag: &[u8; 4]) -> [u8; 4] {
        let [first, second, third, last] = *tag;
        [first, second, third, if self.build.number < 9200 { last | 0x80 } else { last }]
    }

    fn peb_address(&self, wow64: bool, pid: u64) -> u64 {
        let slide = pid % 64 * 0x1_0000;
        if !self.build.is_64_bit {
            0x7FFD_0000 - slide % 0x8_0000
        } else if self.build.number < 9200 && wow64 {
            0x7EFD_F000
        } else if self.build.number < 9200 {
            0x7FF_FFFD_0000 - slide % 0x8_0000
        } else if wow64 {
            0x20_0000 + slide
        } else {
            0x9A_4C20_0000 + slide * 16
        }
    }

    /// Makes a thread at the end of the process' lists, and gives the address of its `_ETHREAD`.
    pub fn add_thread(&mut self, process: ProcessId, tid: u64) -> u64 {
        let owner = self.processes[process.0].clone();
        let size = self.build.layout.size("_ETHREAD");
        let thread = self.alloc_object(PoolKind::NonPaged, &self.protected_tag(b"Thre"), size);
        self.put("_KTHREAD", "Header", thread, 6);
        self.list_init(thread + WAIT_LIST);
        let cid = self.member("_ETHREAD", "Cid", thread);
        self.put("_CLIENT_ID", "UniqueProcess", cid, owner.pid);
        self.put("_CLIENT_ID", "UniqueThread", cid, tid);
        self.put_sized("_ETHREAD", "CreateTime", thread, owner.create_time + tid, 8);
        let apc_state = self.member("_KTHREAD", "ApcState", thread);
        self.put("_KAPC_STATE", "Process", apc_state, owner.eprocess);
        for (structure, member) in [("_KTHREAD", "Process"), ("_ETHREAD", "ThreadsProcess")] {
            if self.offset(structure, member).is_some() {
                self.put(structure, member, thread, owner.eprocess);
            }
        }
        for (of_process, of_thread) in [("_EPROCESS", "_ETHREAD"), ("_KPROCESS", "_KTHREAD")] {
            let head = self.member(of_process, "ThreadListHead", owner.eprocess);
            let entry = self.member(of_thread, "ThreadListEntry", thread);
            self.list_append(head, entry);
        }
        self.processes[process.0].threads.push((thread, tid));
        let count = self.processes[process.0].threads.len() as u64;
        self.put_sized("_EPROCESS", "ActiveThreads", owner.eprocess, count, 4);
        thread
    }

    /// Breaks the list of processes, behind the processes that are there now.
    pub fn break_list(&mut self, how: BrokenList) {
        let linked: Vec<u64> = self.processes.iter().filter(|p| p.linked).map(|p| p.eprocess).collect();
        let links = |machine: &Self, at: usize| machine.member("_EPROCESS", "ActiveProcessLinks", linked[at]);
        let last = links(self, linked.len() - 1);
        let target = match how {
            BrokenList::Circle => links(self, 1),
            BrokenList::Hole => self.unmapped_kernel_address(),
            BrokenList::Itself => last,
        };
        self.put("_LIST_ENTRY", "Flink", last, target);
    }

    /// What the processor needs before it has loaded the kernel's own tables: the entry's code, the descriptor tables, and of the processor block the parts that
    /// the entry reads.
    fn map_shadow_entry_code(&mut self, shadow: u64) {
        let prcb = self.kpcr + self.offset("_KPCR", "Prcb").unwrap_or(0x180);
        let kernel_tables = prcb + self.offset("_KPRCB", "KernelDirectoryTableBase").unwrap_or(0);
        let entry = self.symbol_address("KiSystemCall64Shadow");
        let registers = self.registers();
        for at in [entry, self.kpcr, kernel_tables, registers.idt_base, registers.gdt_base] {
            self.share_with_shadow(shadow, at);
        }
    }

    /// Maps the page of the kernel at an address in a shadow too.
    pub fn share_with_shadow(&mut self, shadow: u64, va: u64) {
        let page = va & !(PAGE - 1);
        let pa = self.translate(self.system_root(), page).unwrap_or_else(|| panic!("{va:#x} is not mapped"));
        self.tables.map_shadow(&mut self.memory, shadow, page, pa & !(PAGE - 1), KERNEL_CODE);
    }
}
