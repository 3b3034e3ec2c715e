//! A machine as one finds it: a dozen processes with everything that the other modules can write.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::drivers::{self, Service, Unloaded};
use super::ground::{Ground, Writing};
use super::handles;
use super::header::ObjectManager;
use super::hive::{self, Hive};
use super::spec::{Contents, Handle, InLists, Module, Page, PageState, Region, Thread, Token};
use super::vad;
use crate::{Build, FIRST_TIME, NtMachine, Options, ProcessId, ProcessSpec};

/// What a typical machine has besides its lists of processes and modules.
#[derive(Clone, Debug)]
pub struct System {
    /// Contents of the processes, by process id.
    pub processes: BTreeMap<u64, Contents>,
    /// The object manager with its types and directories.
    pub objects: ObjectManager,
    /// Objects in `PspCidTable`, by id.
    pub ids: BTreeMap<u32, u64>,
    /// Unloaded drivers, the oldest first.
    pub unloaded: Vec<Unloaded>,
    /// Functions that are told of new processes: `PspCreateProcessNotifyRoutine`.
    pub callbacks: Vec<u64>,
    /// The table of system services.
    pub services: Vec<Service>,
    /// Symbolic links: path and target.
    pub links: Vec<(String, String)>,
    /// Hives of the registry; none for builds whose registry structures are not known.
    pub hives: Vec<Hive>,
}

impl System {
    /// As JSON.
    pub fn to_json(&self) -> Value {
        let unloaded = self.unloaded.iter().map(|d| json!({"name": d.name, "start": d.start, "end": d.end, "time": d.time}));
        let services = self.services.iter().map(|s| json!({"number": s.number, "function": s.function, "hooked": s.hooked}));
        let types =
            self.objects.types.values().map(|kind| json!({"name": kind.name, "index": kind.index, "address": kind.address}));
        json!({
            "processes": self.processes.values().map(Contents::to_json).collect::<Vec<_>>(),
            "ids": self.ids, "directories": self.objects.directories, "devices": self.objects.devices, "named": self.objects.named_paths(),
            "links": self.links, "cookie": self.objects.cookie, "types": types.collect::<Vec<_>>(),
            "unloaded": unloaded.collect::<Vec<_>>(), "callbacks": self.callbacks, "services": services.collect::<Vec<_>>(),
            "hives": self.hives.iter().map(Hive::to_json).collect::<Vec<_>>(),
        })
    }
}

/// The volume that all files are on.
pub const VOLUME: &str = "\\Device\\HarddiskVolume2";

/// Where things are in user space.
#[derive(Clone, Copy)]
struct Space {
    executable: u64,
    libraries: u64,
    stacks: u64,
    extra: u64,
}

fn space(machine: &NtMachine) -> Space {
    match (machine.is_64_bit(), machine.build_number()) {
        (true, ..9200) => Space { executable: 0x1_3F50_0000, libraries: 0x7800_0000, stacks: 0x200_0000, extra: 0x7FE_FD00_0000 },
        (true, _) => {
            Space { executable: 0x7FF6_1A20_0000, libraries: 0x7FFB_1A20_0000, stacks: 0xA0_0000_0000, extra: 0x1F2_3C00_0000 }
        }
        (false, _) => Space { executable: 0x0100_0000, libraries: 0x7600_0000, stacks: 0x200_0000, extra: 0x0800_0000 },
    }
}

struct Who<'a> {
    name: &'a str,
    pid: u64,
    parent: u64,
    session: Option<u32>,
    token: Token,
    command_line: &'a str,
    protection: u8,
    threads: u64,
}

impl NtMachine {
    /// A machine of this build with a dozen processes and all objects that the build's structures are known for.
    pub fn typical(build: Build) -> (Self, System) {
        Self::typical_with(build, Options::default().with_memory(128 << 20))
    }

    /// The same with options.
    pub fn typical_with(build: Build, options: Options) -> (Self, System) {
        let mut machine = Self::new(build, options);
        let mut objects = ObjectManager::new(&mut machine, 0xA7);
        let links = populate_directories(&mut machine, &mut objects);
        vad::write_protections(&mut machine);
        let told: Vec<u64> = machine.truth().modules.iter().rev().take(2).map(|module| module.base + 0x1480).collect();
        let callbacks = drivers::write_callbacks(&mut machine, "PspCreateProcessNotifyRoutine", &told);
        let unloaded = unloaded(&mut machine);
        let hook = machine.kernel_base() + 0x200_0000;
        machine.map_kernel_page(hook, crate::paging::KERNEL_CODE);
        let services = drivers::write_services(&mut machine, 280, 55, hook + 0x240);
        let mut system = System {
            processes: BTreeMap::new(),
            objects,
            ids: BTreeMap::new(),
            unloaded,
            callbacks,
            services,
            links,
            hives: Vec::new(),
        };
        let ids = make_processes(&mut machine);
        system.hives = hive::typical(&mut machine, &mut system.objects, &ids);
        let people = people(&machine);
        for (who, id) in people.iter().zip(&ids) {
            let contents = contents_of(&mut machine, &mut system, who, *id, &ids);
            let placed = system.objects.furnish(&mut machine, *id, contents);
            system.processes.insert(who.pid, placed);
        }
        for id in &ids {
            let process = machine.process(*id).clone();
            system.ids.insert(process.pid as u32, process.eprocess);
            system.ids.extend(process.threads.iter().map(|(ethread, tid)| (*tid as u32, *ethread)));
        }
        handles::write_cid_table(&mut machine, &system.ids);
        (machine, system)
    }
}

fn populate_directories(machine: &mut NtMachine, objects: &mut ObjectManager) -> Vec<(String, String)> {
    for path in [
        "\\Device",
        "\\Driver",
        "\\FileSystem",
        "\\BaseNamedObjects",
        "\\GLOBAL??",
        "\\KnownDlls",
        "\\Callback",
        "\\Sessions",
        "\\Sessions\\1",
        "\\Sessions\\1\\BaseNamedObjects",
    ] {
        objects.create_directory(machine, path);
    }
    for (file, driver, device) in [
        ("volmgr.sys", "volmgr", Some("HarddiskVolume2")),
        ("Null.SYS", "Null", Some("Null")),
        ("Npfs.SYS", "Npfs", Some("NamedPipe")),
        ("tcpip.sys", "Tcpip", Some("Tcp")),
        ("ACPI.sys", "ACPI", None),
    ] {
        let size = 0x5000;
        machine.add_module(file, &format!("\\SystemRoot\\System32\\drivers\\{file}"), size);
        let base = machine.truth().modules.last().map_or(0, |module| module.base);
        objects.create_driver(machine, driver, base, size, device);
    }
    let links = [
        ("\\GLOBAL??", "C:", VOLUME),
        ("\\GLOBAL??", "NUL", "\\Device\\Null"),
        ("\\", "SystemRoot", "\\Device\\HarddiskVolume2\\Windows"),
    ];
    links
        .iter()
        .map(|(directory, name, target)| {
            objects.create_link(machine, directory, name, target);
            (format!("{}\\{name}", directory.trim_end_matches('\\')), (*target).to_owned())
        })
        .collect()
}

fn unloaded(machine: &mut NtMachine) -> Vec<Unloaded> {
    let base = machine.kernel_base() & !0xFFF_FFFF;
    let drivers: Vec<Unloaded> = ["dump_storport.sys", "WdBoot.sys", "kprocesshacker.sys"]
        .iter()
        .zip(1..)
        .map(|(name, nth)| {
            let start = base.wrapping_sub(if machine.is_64_bit() { 0x4000_0000 } else { 0 }) + 0xA00_0000 + nth * 0x10_0000;
            Unloaded { name: (*name).to_owned(), start, end: start + 0x1_2000, time: FIRST_TIME + nth * 600_000_000 }
        })
        .collect();
    drivers::write_unloaded(machine, &drivers);
    drivers
}

/// The processes, System first. Ids are multiples of four, as they are indexes of a handle table.
fn people(machine: &NtMachine) -> Vec<Who<'static>> {
    let who = |name, pid, parent, session, command_line| Who {
        name,
        pid,
        parent,
        session,
        token: Token::system(),
        command_line,
        protection: 0,
        threads: 2,
    };
    let protected = |protection, who: Who<'static>| if machine.build_number() >= 9600 { Who { protection, ..who } } else { who };
    let mut all = vec![protected(0x72, Who { threads: 5, ..who("System", 4, 0, None, "") })];
    if machine.build_number() >= 17134 {
        all.push(protected(0x72, who("Registry", 92, 4, None, "")));
    }
    all.extend([
        protected(0x61, who("smss.exe", 320, 4, None, "\\SystemRoot\\System32\\smss.exe")),
        protected(
            0x61,
            who(
                "csrss.exe",
                412,
                396,
                Some(0),
                "%SystemRoot%\\system32\\csrss.exe ObjectDirectory=\\Windows SharedSection=1024,20480,768",
            ),
        ),
        who("wininit.exe", 484, 396, Some(0), "wininit.exe"),
        protected(0x61, Who { threads: 4, ..who("services.exe", 620, 484, Some(0), "C:\\Windows\\system32\\services.exe") }),
        protected(0x41, who("lsass.exe", 640, 484, Some(0), "C:\\Windows\\system32\\lsass.exe")),
        Who { threads: 6, ..who("svchost.exe", 752, 620, Some(0), "C:\\Windows\\system32\\svchost.exe -k DcomLaunch -p") },
        protected(0x61, who("csrss.exe", 900, 888, Some(1), "%SystemRoot%\\system32\\csrss.exe ObjectDirectory=\\Windows")),
        Who { token: Token::user(1001), threads: 4, ..who("explorer.exe", 3120, 3000, Some(1), "C:\\Windows\\Explorer.EXE") },
        Who {
            token: Token::user(1001),
            ..who("notepad.exe", 4244, 3120, Some(1), "\"C:\\Windows\\System32\\notepad.exe\" C:\\Users\\ada\\über 100 €.txt")
        },
        Who {
            token: Token::user(1001),
            ..who("calc32.exe", 4500, 3120, Some(1), "\"C:\\Program Files (x86)\\Old\\calc32.exe\" /q")
        },
        Who { token: Token::user(1001), threads: 0, ..who("setup.exe", 4600, 3120, Some(1), "") },
        Who { threads: 3, ..who("rootkit.exe", 4700, 752, Some(0), "C:\\Windows\\Temp\\rootkit.exe") },
    ]);
    all
}

fn file_of(who: &Who<'_>) -> String {
    match who.name {
        "explorer.exe" => "\\Windows\\explorer.exe".into(),
        "calc32.exe" => "\\Program Files (x86)\\Old\\calc32.exe".into(),
        "rootkit.exe" => "\\Windows\\Temp\\rootkit.exe".into(),
        name => format!("\\Windows\\System32\\{name}"),
    }
}

fn make_processes(machine: &mut NtMachine) -> Vec<ProcessId> {
    let wide = machine.is_64_bit();
    let mut ids = vec![ProcessId::SYSTEM];
    for who in people(machine).iter().skip(1) {
        let mut spec = ProcessSpec { session: who.session, ..ProcessSpec::new(who.name, who.pid, who.parent) };
        spec.image_path = format!("{VOLUME}{}", file_of(who));
        match who.name {
            "Registry" => spec = ProcessSpec { user_space: false, image_path: "Registry".into(), ..spec },
            "calc32.exe" => spec.wow64 = wide,
            "setup.exe" => spec = spec.exited(),
            "rootkit.exe" => spec = spec.hidden(),
            _ => (),
        }
        ids.push(machine.add_process(spec));
    }
    ids
}

fn contents_of(machine: &mut NtMachine, system: &mut System, who: &Who<'_>, id: ProcessId, ids: &[ProcessId]) -> Contents {
    let process = machine.process(id).clone();
    let mut contents = Contents::new(who.pid, who.token.clone());
    contents.protection = who.protection;
    if process.exit_time != 0 {
        return contents;
    }
    add_handles(machine, system, who, ids, &mut contents);
    if process.peb == 0 {
        let kernel = machine.kernel_base();
        let first = process.threads.first().map(|(_, tid)| *tid);
        contents.threads = (0..who.threads)
            .map(|nth| {
                thread(first.filter(|_| nth == 0).unwrap_or(who.pid + 20 + nth * 4), kernel + 0x1_0000 + nth * 0x100, 0, nth)
            })
            .collect();
        // Even System has descriptors: ntdll and the page that all processes share. Registry has the bins of hives.
        let libraries = space(machine).libraries;
        contents.regions.push(Region { protection: 1, commit: 1, ..Region::private(0x7FFE_0000, 1) });
        if who.pid == 4 {
            contents.regions.push(Region::image(
                libraries + 0x80_0000,
                0x1F_5000,
                &format!("{VOLUME}\\Windows\\System32\\ntdll.dll"),
            ));
        } else {
            for hive in system.hives.iter().filter(|hive| hive.bins < 1 << 47 && hive.bins != 0) {
                contents.regions.push(Region::private(hive.bins, (hive.cells.storage[0].bytes.len() as u64).div_ceil(0x1000)));
            }
        }
        return contents;
    }
    let place = space(machine);
    let file = file_of(who);
    contents.image_path = if who.name == "smss.exe" { "\\SystemRoot\\System32\\smss.exe".into() } else { format!("C:{file}") };
    contents.command_line = who.command_line.to_owned();
    contents.environment = environment(who);
    let base = if process.wow64_peb != 0 { 0x40_0000 } else { place.executable + (who.pid << 16) % 0x40_0000 };
    let mut executable = Module::executable(&file, base, 0x2_4000);
    executable.wow64 = process.wow64_peb != 0;
    contents.modules.push(executable);
    contents.modules.push(Module::system("ntdll.dll", place.libraries + 0x80_0000, 0x1F_5000));
    if who.name != "smss.exe" {
        contents.modules.push(Module::system("KERNEL32.DLL", place.libraries + 0x40_0000, 0xBE_000));
        contents.modules.push(Module::system("KERNELBASE.dll", place.libraries, 0x2C_9000));
    }
    if process.wow64_peb != 0 {
        contents.modules.truncate(2);
        contents.modules.push(Module::system("wow64.dll", place.libraries + 0x40_0000, 0x5_9000));
        contents.modules.push(Module::system("wow64win.dll", place.libraries, 0x8_3000));
        contents.modules.push(Module::at("\\Windows\\SysWOW64\\ntdll.dll", 0x7D98_0000, 0x1A_3000).wow64());
        contents.modules.push(Module::at("\\Windows\\SysWOW64\\kernel32.dll", 0x7640_0000, 0xF_0000).wow64());
    }
    if who.name == "svchost.exe" {
        // In two of the three lists only, and in none: what a loader of a rootkit leaves.
        let partly = InLists { load: true, memory: false, initialization: true };
        contents.modules.push(Module::at("\\Windows\\Temp\\halfway.dll", place.libraries + 0xC0_0000, 0x1_0000).listed(partly));
        contents
            .modules
            .push(Module::at("\\Windows\\Temp\\ghost.dll", place.libraries + 0xC8_0000, 0x1_2000).listed(InLists::NONE));
    }
    contents.threads = (0..who.threads)
        .map(|nth| thread(who.pid + 20 + nth * 4, place.libraries + 0x80_0000 + 0x5_2000, base + 0x1400, nth))
        .collect();
    contents.regions = regions(machine, &process, &contents, place);
    if who.name == "notepad.exe" {
        contents.regions.extend(careful_regions(machine, place));
    }
    contents
}

/// Waiting for a request, but for one that runs.
fn thread(tid: u64, start: u64, win32_start: u64, nth: u64) -> Thread {
    let (state, wait_reason) = if nth == 1 { (2, 0) } else { (5, if nth == 0 { 6 } else { 15 }) };
    Thread {
        tid,
        start,
        win32_start,
        state,
        wait_reason,
        create_time: FIRST_TIME + tid * 10_000_000,
        exit_time: 0,
        ethread: 0,
        teb: 0,
    }
}

fn environment(who: &Who<'_>) -> Vec<(String, String)> {
    let user = if who.token.user == "S-1-5-18" { "SYSTEM" } else { "ada" };
    let mut all: Vec<(&str, String)> = vec![
        ("ComSpec", "C:\\Windows\\system32\\cmd.exe".into()),
        ("NUMBER_OF_PROCESSORS", "2".into()),
        ("OS", "Windows_NT".into()),
        ("Path", "C:\\Windows\\system32;C:\\Windows;C:\\Windows\\System32\\Wbem".into()),
        ("SystemDrive", "C:".into()),
        ("SystemRoot", "C:\\Windows".into()),
        ("USERNAME", user.into()),
        ("windir", "C:\\Windows".into()),
    ];
    if user == "ada" {
        all.insert(0, ("APPDATA", "C:\\Users\\ada\\AppData\\Roaming".into()));
    }
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn regions(machine: &NtMachine, process: &crate::ProcessTruth, contents: &Contents, place: Space) -> Vec<Region> {
    let mut all = vec![Region { protection: 1, commit: 1, ..Region::private(0x7FFE_0000, 1) }];
    // The process parameters, the PEB and the TEBs.
    all.push(Region::private(0x31_0000, 8));
    if process.wow64_peb != 0 {
        all.push(Region::private(0x71_0000, 8));
    }
    let tebs = contents.threads.len() as u64 * 2 + 4;
    if machine.build_number() < 9200 {
        let step = if machine.is_64_bit() { 2 } else { 1 };
        let lowest = if process.wow64_peb == 0 { process.peb } else { process.wow64_peb };
        for nth in 1..=contents.threads.len() as u64 {
            all.push(Region::private(lowest - nth * step * 0x1000, step));
        }
        all.push(Region::private(lowest, if process.wow64_peb == 0 { 1 } else { 2 }));
    } else {
        all.push(Region::private(process.peb & !0xFFF, tebs));
    }
    for (nth, _) in (0..).zip(&contents.threads) {
        all.push(Region::private(place.stacks + nth * 0x10_0000, 0x40));
    }
    all.extend(
        contents.modules.iter().map(|module| Region::image(module.base, module.size, &format!("{VOLUME}{}", module.file))),
    );
    all.push(Region::file(place.extra, 0xC6, &format!("{VOLUME}\\Windows\\System32\\locale.nls")));
    all.push(Region { protection: 4, ..Region::shared(place.extra + 0x10_0000, 4) });
    all
}

/// Regions with pages in all states, and one as code injection leaves it.
fn careful_regions(machine: &NtMachine, place: Space) -> Vec<Region> {
    let mut private = Region::private(place.extra + 0x20_0000, 16);
    let mut shared = Region { protection: 4, ..Region::shared(place.extra + 0x30_0000, 16) };
    let page = |region: &Region, nth: u64, state| Page {
        address: region.start + nth * 0x1000,
        state,
        marker: 0x5041_4745_0000_0000 | region.start >> 12 << 8 & 0xFFFF_FF00 | nth,
    };
    private.pages = [
        PageState::Present,
        PageState::Transition,
        PageState::DemandZero,
        PageState::PageFile { file: 0, page: 0x1234 },
        PageState::PageFile { file: 2, page: 0x77 },
        PageState::Nothing,
    ]
    .into_iter()
    .zip(0..)
    .map(|(state, nth)| page(&private, nth, state))
    .collect();
    let mut states = vec![PageState::PrototypeValid, PageState::PrototypeTransition];
    // The form in which an entry says "look at the descriptor" is not known for 32-bit tables without PAE.
    if !machine.is_legacy_paging() {
        states.push(PageState::VadPrototype);
    }
    shared.pages = states.into_iter().zip(0..).map(|(state, nth)| page(&shared, nth, state)).collect();
    let mut injected = Region { protection: 6, ..Region::private(place.extra + 0x40_0000, 2) };
    injected.pages = vec![Page { address: injected.start, state: PageState::Present, marker: 0xCC90_9090_E853_5657 }];
    vec![private, shared, injected]
}

fn add_handles(machine: &mut NtMachine, system: &mut System, who: &Who<'_>, ids: &[ProcessId], contents: &mut Contents) {
    let per_page = 0x1000 / (2 * machine.pointer()) as u32;
    let per_table = 0x1000 / machine.pointer() as u32;
    let mut value = 0;
    let mut add = |contents: &mut Contents, kind: &str, name: &str, access: u32, object: u64| {
        value += 4;
        // The first entry of each page is never a handle: the kernel keeps its own there.
        if value % (per_page * 4) == 0 {
            value += 4;
        }
        let attributes = (value / 4 % 8) as u8;
        contents.handles.push(Handle { value, kind: kind.into(), name: name.into(), access, attributes, object });
    };
    add(contents, "Event", "", 0x1F_0003, 0);
    add(contents, "Directory", "\\KnownDlls", 3, 0);
    add(contents, "File", &format!("{VOLUME}\\Windows\\System32"), 0x10_0020, 0);
    let objects = if who.session == Some(1) { "\\Sessions\\1\\BaseNamedObjects" } else { "\\BaseNamedObjects" };
    add(contents, "Mutant", &format!("{objects}\\SM0:{}:304:WilStaging_02", who.pid), 0x1F_0001, 0);
    add(contents, "Event", &format!("{objects}\\SharedEvent"), 0x10_0000, 0);
    add(contents, "Semaphore", "", 0x1F_0003, 0);
    add(contents, "File", "\\Device\\NamedPipe\\lsass", 0x12_019F, 0);
    add(contents, "Section", "", 0xF_0007, 0);
    let keys: Vec<(String, u64)> = system.hives.iter().flat_map(|hive| hive.key_objects.clone()).collect();
    for (path, object) in keys {
        add(contents, "Key", &path, 0x2_0019, object);
    }
    if who.name == "csrss.exe" || who.name == "lsass.exe" {
        for id in ids {
            let process = machine.process(*id).clone();
            if process.exit_time == 0 && process.pid != 4 {
                add(
                    contents,
                    "Process",
                    "",
                    0x1F_FFFF & if who.name == "lsass.exe" { 0x1478 } else { u32::MAX },
                    process.eprocess,
                );
            }
        }
    }
    if let Some((ethread, _)) = machine.process(ProcessId::SYSTEM).threads.first().filter(|_| who.name == "svchost.exe") {
        add(contents, "Thread", "", 0x1F_FFFF, *ethread);
    }
    match who.name {
        // Two pages of entries.
        "services.exe" => {
            for nth in 0..per_page + 40 {
                add(
                    contents,
                    "Event",
                    &if nth % 16 == 0 { format!("{objects}\\Service{nth}") } else { String::new() },
                    0x1F_0003,
                    0,
                );
            }
        }
        // Three levels.
        "lsass.exe" => {
            contents.handle_level = 2;
            let value = (per_page * per_table + 3) * 4;
            contents.handles.push(Handle {
                value,
                kind: "Event".into(),
                name: format!("{objects}\\FarAway"),
                access: 0x1F_0003,
                attributes: 0,
                object: 0,
            });
        }
        _ => (),
    }
}
