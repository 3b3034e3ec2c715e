//! Puts contents into processes that exist.

use super::ground::{Ground, Writing};
use super::header::{NewObject, ObjectManager};
use super::spec::{Contents, Handle, InLists, RegionKind};
use super::{handles, thread, token, user, vad};
use crate::{NtMachine, ProcessId};

/// Where the memory begins that a PEB leads to.
const HEAP: u64 = 0x1_0000 * 0x31;
const HEAP_32: u64 = 0x1_0000 * 0x71;

impl ObjectManager {
    /// Fills a process with everything that `contents` asks for and gives it back with all addresses. Handles whose object is 0 get one that is made now.
    pub fn furnish(&mut self, machine: &mut NtMachine, id: ProcessId, mut contents: Contents) -> Contents {
        let process = machine.process(id).clone();
        let header = process.eprocess - machine.at("_OBJECT_HEADER", "Body");
        self.write_header(machine, header, "Process", 0);
        contents.pid = process.pid;
        self.give_token(machine, process.eprocess, process.session, &mut contents);
        self.join_session(machine, process.eprocess, process.session);
        machine.fill("_EPROCESS", "Protection", process.eprocess, u64::from(contents.protection), 1);
        let root = process.dtb;
        if process.peb != 0 {
            let next = user::fill_peb(machine, root, process.peb, true, HEAP, &mut contents);
            assert!(next < HEAP_32, "the process parameters are too long");
            if process.wow64_peb != 0 {
                user::fill_peb(machine, root, process.wow64_peb, false, HEAP_32, &mut contents);
                point_to_wow64_peb(machine, process.eprocess, process.wow64_peb);
            }
            for module in &contents.modules {
                user::write_image_header(machine, root, module, machine.is_64_bit() && !module.wow64);
            }
        }
        for (nth, thread) in (1..).zip(&mut contents.threads) {
            let existing = process.threads.iter().find(|(_, tid)| *tid == thread.tid);
            thread.ethread = existing.map_or_else(|| machine.add_thread(id, thread.tid), |(ethread, _)| *ethread);
            if process.peb != 0 && thread.exit_time == 0 && thread.start < 1 << 47 {
                thread.teb = teb_address(machine, process.peb, process.wow64_peb, nth);
            }
            thread::fill_thread(machine, thread, process.pid, root, process.peb);
            let header = thread.ethread - machine.at("_OBJECT_HEADER", "Body");
            self.write_header(machine, header, "Thread", 0);
        }
        let running = contents.threads.iter().filter(|thread| thread.exit_time == 0).count() as u64;
        machine.fill("_EPROCESS", "ActiveThreads", process.eprocess, running, 4);
        contents.regions.sort_by_key(|region| region.start);
        vad::write_regions(machine, self, process.eprocess, root, &mut contents.regions);
        self.point_to_executable(machine, process.eprocess, &contents);
        for handle in &mut contents.handles {
            if handle.object == 0 {
                handle.object = self.object_of(machine, handle);
            }
        }
        contents.handles.sort_by_key(|handle| handle.value);
        if process.exit_time != 0 {
            // The object is signalled.
            machine.fill("_DISPATCHER_HEADER", "SignalState", process.eprocess, 1, 4);
        } else {
            let table =
                handles::write_handles(machine, &contents.handles, contents.handle_level, process.eprocess, process.pid as u32);
            machine.fill_pointer("_EPROCESS", "ObjectTable", process.eprocess, table);
        }
        contents
    }

    fn give_token(&mut self, machine: &mut NtMachine, eprocess: u64, session: Option<u32>, contents: &mut Contents) {
        let address = token::write_token(machine, self, &contents.token, session.unwrap_or(0), contents.pid);
        contents.token.address = address;
        // A fast reference: the low bits count.
        let count = if machine.is_64_bit() { 0xB } else { 5 };
        machine.fill_pointer("_EPROCESS", "Token", eprocess, address | count);
    }

    fn join_session(&mut self, machine: &mut NtMachine, eprocess: u64, session: Option<u32>) {
        let Some(session) = session else { return };
        let size = machine.at("_MM_SESSION_SPACE", "ProcessList") + 0x100;
        let known = self.sessions.get(&session).copied();
        let space = known.unwrap_or_else(|| {
            let space = machine.alloc_system(size, 0x1000);
            machine.fill("_MM_SESSION_SPACE", "ReferenceCount", space, 1, 4);
            machine.fill("_MM_SESSION_SPACE", "SessionId", space, u64::from(session), 4);
            Writing::list_head(machine, space + machine.at("_MM_SESSION_SPACE", "ProcessList"));
            space
        });
        self.sessions.insert(session, space);
        machine.fill_pointer("_EPROCESS", "Session", eprocess, space);
        if let Some(links) = machine.find("_EPROCESS", "SessionProcessLinks") {
            let head = space + machine.at("_MM_SESSION_SPACE", "ProcessList");
            Writing::list_append(machine, head, eprocess + links);
        }
    }

    /// `SectionObject`, `SectionBaseAddress` and `ImageFilePointer`.
    fn point_to_executable(&mut self, machine: &mut NtMachine, eprocess: u64, contents: &Contents) {
        let Some(executable) = contents.modules.iter().find(|module| module.lists == InLists::EXECUTABLE) else { return };
        machine.fill_pointer("_EPROCESS", "SectionBaseAddress", eprocess, executable.base);
        let region = contents.regions.iter().find(|region| region.start == executable.base);
        if let Some(RegionKind::Image(path)) = region.map(|region| &region.kind) {
            let pages = executable.size >> 12;
            let mapped = self.mapped_file(machine, path, true, pages);
            let section = self.section_object(machine, &mapped, pages);
            machine.fill_pointer("_EPROCESS", "SectionObject", eprocess, section);
            machine.fill_pointer("_EPROCESS", "ImageFilePointer", eprocess, mapped.file);
        }
    }

    /// The object that a handle's type and name ask for.
    fn object_of(&mut self, machine: &mut NtMachine, handle: &Handle) -> u64 {
        if handle.kind == "File" {
            let device = self
                .devices
                .keys()
                .filter(|device| handle.name.starts_with(device.as_str()))
                .max_by_key(|device| device.len())
                .cloned();
            let device = device.expect("a file is on a device");
            let address = self.devices[&device];
            return self.create_file(machine, address, &handle.name[device.len()..]);
        }
        if let Some(directory) = self.directories.get(&handle.name).filter(|_| handle.kind == "Directory") {
            return *directory;
        }
        let size = match handle.kind.as_str() {
            "Section" => machine.size("_SECTION").or_else(|| machine.size("_SECTION_OBJECT")).unwrap_or(0x40),
            _ => 0x38,
        };
        match handle.name.rsplit_once('\\') {
            Some((directory, name)) => {
                let path = (handle.kind.clone(), handle.name.clone());
                if let Some(known) = self.named.get(&path) {
                    return *known;
                }
                let object = self.create_named(machine, &handle.kind, directory, name, size);
                self.named.insert(path, object);
                object
            }
            None => self.create(machine, &NewObject { kind: &handle.kind, size, quota: true, ..NewObject::default() }),
        }
    }
}

/// Windows 10 leads to the 32-bit PEB by a structure, whose first member it is; older systems have its address in the process.
fn point_to_wow64_peb(machine: &mut NtMachine, eprocess: u64, peb: u64) {
    if machine.find("_EPROCESS", "WoW64Process").is_some() {
        let holder = machine.allocate(b"Wow6", 0x10);
        machine.put_pointer(holder, peb);
        if machine.find("_EWOW64PROCESS", "Machine").is_some() {
            machine.fill("_EWOW64PROCESS", "Machine", holder, 0x14C, 2);
        }
        machine.fill_pointer("_EPROCESS", "WoW64Process", eprocess, holder);
    } else {
        machine.fill_pointer("_EPROCESS", "Wow64Process", eprocess, peb);
    }
}

/// TEBs lie behind the PEB on systems since Windows 8, before it on older ones.
fn teb_address(machine: &NtMachine, peb: u64, wow64_peb: u64, nth: u64) -> u64 {
    let step = if machine.is_64_bit() { 0x2000 } else { 0x1000 };
    let lowest = if wow64_peb == 0 { peb } else { peb.min(wow64_peb) };
    if machine.build_number() < 9200 {
        (lowest & !0xFFF) - nth * step
    } else {
        (peb.max(wow64_peb) & !0xFFF) + 0x1000 + nth * step
    }
}
