//! What a process is to have, and, once it is placed, where it is: the same structures are wish and truth. Addresses are 0 until something is placed.

use serde_json::{Value, json};

/// In which of the loader's lists a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InLists {
    /// `InLoadOrderModuleList`.
    pub load: bool,
    /// `InMemoryOrderModuleList`.
    pub memory: bool,
    /// `InInitializationOrderModuleList`. The executable itself is never in it.
    pub initialization: bool,
}

impl InLists {
    /// A library as the loader enters it.
    pub const ALL: Self = Self { load: true, memory: true, initialization: true };
    /// The executable.
    pub const EXECUTABLE: Self = Self { load: true, memory: true, initialization: false };
    /// Hidden from all three.
    pub const NONE: Self = Self { load: false, memory: false, initialization: false };
}

/// A module of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// File name.
    pub name: String,
    /// Full path as the loader has it: `C:\Windows\System32\ntdll.dll`.
    pub path: String,
    /// First address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Address of the entry point.
    pub entry_point: u64,
    /// Where it is listed.
    pub lists: InLists,
    /// Whether its image and its list entry are 32-bit ones in a 64-bit process.
    pub wow64: bool,
    /// Whether its path has another spelling in the address descriptor's file: the path there, without the device.
    pub file: String,
    /// Address of its `_LDR_DATA_TABLE_ENTRY`.
    pub entry: u64,
    /// `TimeDateStamp` of its header.
    pub timestamp: u32,
}

impl Module {
    /// A library in `System32`.
    pub fn system(name: &str, base: u64, size: u64) -> Self {
        Self::at(&format!("\\Windows\\System32\\{name}"), base, size)
    }

    /// A library with this path on drive C.
    pub fn at(file: &str, base: u64, size: u64) -> Self {
        let name = file.rsplit('\\').next().unwrap_or_default().to_owned();
        let timestamp = 0x5000_0000 | (base >> 12) as u32 & 0x0FFF_FFFF;
        let path = format!("C:{file}");
        Self {
            name,
            path,
            base,
            size,
            entry_point: base + 0x1000,
            lists: InLists::ALL,
            wow64: false,
            file: file.to_owned(),
            entry: 0,
            timestamp,
        }
    }

    /// The executable.
    pub fn executable(file: &str, base: u64, size: u64) -> Self {
        Self { lists: InLists::EXECUTABLE, ..Self::at(file, base, size) }
    }

    /// In these lists only.
    pub fn listed(mut self, lists: InLists) -> Self {
        self.lists = lists;
        self
    }

    /// As a 32-bit image.
    pub fn wow64(mut self) -> Self {
        self.wow64 = true;
        self
    }
}

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Thread id.
    pub tid: u64,
    /// `StartAddress`.
    pub start: u64,
    /// `Win32StartAddress`.
    pub win32_start: u64,
    /// `KTHREAD_STATE`: 2 running, 4 terminated, 5 waiting.
    pub state: u8,
    /// `KWAIT_REASON`.
    pub wait_reason: u8,
    /// FILETIME of the start.
    pub create_time: u64,
    /// FILETIME of the end; 0 while it runs.
    pub exit_time: u64,
    /// Address of its `_ETHREAD`.
    pub ethread: u64,
    /// Address of its TEB; 0 if it has none.
    pub teb: u64,
}

/// What an address descriptor is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// Private memory.
    Private,
    /// Memory of a section backed by the page file.
    Shared,
    /// A mapped file.
    File(String),
    /// A mapped executable.
    Image(String),
}

/// What an entry of the page tables, or none, says of a page that is not present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// In memory.
    Present,
    /// In transition: taken from the working set but still in memory.
    Transition,
    /// The entry leads to a prototype entry, which is valid.
    PrototypeValid,
    /// The entry leads to a prototype entry, which is in transition.
    PrototypeTransition,
    /// The entry says that the address descriptor knows the prototype entry, which is valid.
    VadPrototype,
    /// Zeros when it will be touched.
    DemandZero,
    /// In a page file.
    PageFile {
        /// Which one.
        file: u8,
        /// Which page of it.
        page: u64,
    },
    /// Nothing at all in the page tables.
    Nothing,
}

/// A page of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its address.
    pub address: u64,
    /// Where its contents are.
    pub state: PageState,
    /// What its bytes begin with, in those states that have bytes; the rest is zeros.
    pub marker: u64,
}

/// An address descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Last address, inclusive: as `EndingVpn` counts.
    pub end: u64,
    /// What for.
    pub kind: RegionKind,
    /// The kernel's own number of the protection: 1 read only, 3 execute and read, 4 read and write, 6 all, 7 execute and copy on write.
    pub protection: u8,
    /// Pages that are committed.
    pub commit: u64,
    /// Pages that were placed with care.
    pub pages: Vec<Page>,
    /// Address of its `_MMVAD`.
    pub node: u64,
}

impl Region {
    /// Private memory, readable and writable.
    pub fn private(start: u64, pages: u64) -> Self {
        Self {
            start,
            end: start + pages * 0x1000 - 1,
            kind: RegionKind::Private,
            protection: 4,
            commit: pages,
            pages: Vec::new(),
            node: 0,
        }
    }

    /// A mapped file, read only.
    pub fn file(start: u64, pages: u64, path: &str) -> Self {
        Self { kind: RegionKind::File(path.to_owned()), protection: 1, commit: 0, ..Self::private(start, pages) }
    }

    /// A mapped executable.
    pub fn image(start: u64, bytes: u64, path: &str) -> Self {
        let pages = bytes.div_ceil(0x1000);
        Self { kind: RegionKind::Image(path.to_owned()), protection: 7, commit: 2, ..Self::private(start, pages) }
    }

    /// Memory shared with other processes, without a file.
    pub fn shared(start: u64, pages: u64) -> Self {
        Self { kind: RegionKind::Shared, commit: 0, ..Self::private(start, pages) }
    }
}

/// A handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle {
    /// Its value: a multiple of 4.
    pub value: u32,
    /// Type of its object.
    pub kind: String,
    /// What it is called: the object's path or, for keys, the path of the key; for files the path with its device; for processes and threads nothing.
    pub name: String,
    /// `GrantedAccess`.
    pub access: u32,
    /// `OBJ_PROTECT_CLOSE` is 1, `OBJ_INHERIT` 2, audit 4.
    pub attributes: u8,
    /// Address of the object's body.
    pub object: u64,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The user's SID in text.
    pub user: String,
    /// Groups, the integrity level last.
    pub groups: Vec<String>,
    /// Bits of `Privileges.Present` and `Privileges.Enabled`.
    pub privileges: (u64, u64),
    /// Logon session.
    pub logon: u64,
    /// Address of its `_TOKEN`.
    pub address: u64,
}

impl Token {
    /// LocalSystem.
    pub fn system() -> Self {
        let groups = ["S-1-5-32-544", "S-1-1-0", "S-1-5-11", "S-1-16-16384"].map(str::to_owned).to_vec();
        Self { user: "S-1-5-18".into(), groups, privileges: (0x1F_FFFF_FFF0, 0x0_E8B1_EC90), logon: 0x3E7, address: 0 }
    }

    /// A user of the machine.
    pub fn user(rid: u32) -> Self {
        let user = format!("S-1-5-21-1111111111-2222222222-3333333333-{rid}");
        let groups = ["S-1-5-21-1111111111-2222222222-3333333333-513", "S-1-1-0", "S-1-5-32-545", "S-1-5-4", "S-1-16-8192"]
            .map(str::to_owned)
            .to_vec();
        Self { user, groups, privileges: (0x6_0288_0000, 0x80_0000), logon: 0x2_9F31, address: 0 }
    }
}

/// All that is known of a process besides what the list of processes shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Process id.
    pub pid: u64,
    /// `ImagePathName`.
    pub image_path: String,
    /// `CommandLine`.
    pub command_line: String,
    /// `CurrentDirectory`.
    pub directory: String,
    /// `Environment`.
    pub environment: Vec<(String, String)>,
    /// Modules in load order.
    pub modules: Vec<Module>,
    /// Threads in the order of the list.
    pub threads: Vec<Thread>,
    /// Address descriptors by address.
    pub regions: Vec<Region>,
    /// Handles by value.
    pub handles: Vec<Handle>,
    /// Levels of the handle table, at least.
    pub handle_level: u8,
    /// The token.
    pub token: Token,
    /// `_PS_PROTECTION.Level`; 0 unprotected.
    pub protection: u8,
}

impl Contents {
    /// Nothing yet but the identity.
    pub fn new(pid: u64, token: Token) -> Self {
        Self {
            pid,
            image_path: String::new(),
            command_line: String::new(),
            directory: "C:\\Windows\\System32\\".into(),
            environment: Vec::new(),
            modules: Vec::new(),
            threads: Vec::new(),
            regions: Vec::new(),
            handles: Vec::new(),
            handle_level: 0,
            token,
            protection: 0,
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        let modules = self.modules.iter().map(|m| {
            json!({"name": m.name, "path": m.path, "base": m.base, "size": m.size, "entry_point": m.entry_point, "wow64": m.wow64,
                "load": m.lists.load, "memory": m.lists.memory, "initialization": m.lists.initialization, "file": m.file})
        });
        let threads = self.threads.iter().map(|t| {
            json!({"tid": t.tid, "start": t.start, "win32_start": t.win32_start, "state": t.state, "wait_reason": t.wait_reason,
                "create_time": t.create_time, "exit_time": t.exit_time, "ethread": t.ethread, "teb": t.teb})
        });
        let regions = self.regions.iter().map(|r| {
            let (kind, file) = match &r.kind {
                RegionKind::Private => ("private", ""),
                RegionKind::Shared => ("shared", ""),
                RegionKind::File(path) => ("file", path.as_str()),
                RegionKind::Image(path) => ("image", path.as_str()),
            };
            let pages = r.pages.iter().map(|page| json!({"address": page.address, "state": format!("{:?}", page.state), "marker": page.marker}));
            json!({"start": r.start, "end": r.end, "kind": kind, "file": file, "protection": r.protection, "commit": r.commit, "node": r.node,
                "pages": pages.collect::<Vec<_>>()})
        });
        let handles = self.handles.iter().map(|h| {
            json!({"value": h.value, "type": h.kind, "name": h.name, "access": h.access, "attributes": h.attributes, "object": h.object})
        });
        json!({
            "pid": self.pid, "image_path": self.image_path, "command_line": self.command_line, "directory": self.directory,
            "environment": self.environment, "modules": modules.collect::<Vec<_>>(), "threads": threads.collect::<Vec<_>>(),
            "regions": regions.collect::<Vec<_>>(), "handles": handles.collect::<Vec<_>>(), "handle_level": self.handle_level,
            "user": self.token.user, "groups": self.token.groups, "privileges": [self.token.privileges.0, self.token.privileges.1],
            "protection": self.protection,
        })
    }
}
