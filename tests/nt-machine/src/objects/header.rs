//! Objects of the object manager: headers with their optional parts, types, names.
//!
//! Structures: `_OBJECT_HEADER` and its optional headers in the public symbols. What is in front of a header: `ObpInfoMaskToOffset`, described by Uday
//! Shankar (codemachine.com, "Object Headers in Windows 7") and by the documentation of `!object`; before Windows 7 three bytes in the header itself.

use std::collections::BTreeMap;

use super::ground::{Ground, Writing, utf16};

/// A type of objects.
#[derive(Clone, Debug)]
pub struct ObjectType {
    /// As in `\ObjectTypes`.
    pub name: &'static str,
    /// In `ObTypeIndexTable`. Before Windows 7 only the type's own number.
    pub index: u8,
    /// Its `_OBJECT_TYPE`.
    pub address: u64,
    /// The pool tag of its objects.
    pub tag: [u8; 4],
}

/// The object manager of a machine.
#[derive(Clone, Debug)]
pub struct ObjectManager {
    /// The types, by name.
    pub types: BTreeMap<&'static str, ObjectType>,
    /// `ObHeaderCookie`: since Windows 10 type indexes are stored encoded with it and a byte of the header's address.
    pub cookie: Option<u8>,
    /// The directories, by path: `\`, `\Device`.
    pub directories: BTreeMap<String, u64>,
    /// File objects and their sections, by path.
    pub(super) files: BTreeMap<String, super::vad::MappedFile>,
    /// Devices, by path.
    pub devices: BTreeMap<String, u64>,
    /// Named objects by type and path, but for directories, drivers, devices, links and types.
    pub(super) named: BTreeMap<(String, String), u64>,
    /// `_MM_SESSION_SPACE` of each session.
    pub sessions: BTreeMap<u32, u64>,
}

/// Types in the order of their indexes, with the pool tags of their objects. Index 0 and 1 are never used.
const TYPES: [(&str, &[u8; 4]); 20] = [
    ("Type", b"ObjT"),
    ("Directory", b"Dire"),
    ("SymbolicLink", b"Symb"),
    ("Token", b"Toke"),
    ("Job", b"Job "),
    ("Process", b"Proc"),
    ("Thread", b"Thre"),
    ("DebugObject", b"DbgO"),
    ("Event", b"Even"),
    ("Mutant", b"Muta"),
    ("Semaphore", b"Sema"),
    ("Timer", b"Time"),
    ("Section", b"Sect"),
    ("Key", b"Key "),
    ("File", b"File"),
    ("Driver", b"Driv"),
    ("Device", b"Devi"),
    ("WindowStation", b"Wind"),
    ("Desktop", b"Desk"),
    ("ALPC Port", b"ALPC"),
];
const FIRST_INDEX: u8 = 2;
/// The tags of types that are protected against `ExFreePool` by anyone: their last byte has its high bit set before Windows 8.
const PROTECTED: [&str; 9] = ["Process", "Thread", "Token", "File", "Driver", "Device", "Mutant", "SymbolicLink", "Directory"];

/// Optional headers, the one that is nearest to the header first: bit of `InfoMask`, structure, bytes on x86 and on x64 where the symbols do not tell.
const OPTIONAL: [(u8, &str, u64, u64); 6] = [
    (0x01, "_OBJECT_HEADER_CREATOR_INFO", 0x10, 0x20),
    (0x02, "_OBJECT_HEADER_NAME_INFO", 0x10, 0x20),
    (0x04, "_OBJECT_HEADER_HANDLE_INFO", 0x8, 0x10),
    (0x08, "_OBJECT_HEADER_QUOTA_INFO", 0x10, 0x20),
    (0x10, "_OBJECT_HEADER_PROCESS_INFO", 0x8, 0x10),
    (0x20, "_OBJECT_HEADER_AUDIT_INFO", 0x8, 0x10),
];
const CREATOR: u8 = 0x01;
const NAME: u8 = 0x02;
const HANDLES: u8 = 0x04;
const QUOTA: u8 = 0x08;

/// What a new object is to have.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewObject<'a> {
    /// Its type.
    pub kind: &'a str,
    /// Bytes of its body.
    pub size: u64,
    /// Its name, and the directory object that has it; 0 if none has.
    pub name: Option<(&'a str, u64)>,
    /// With a creator's header.
    pub creator: bool,
    /// With a header that counts handles.
    pub handles: bool,
    /// With a header for quotas.
    pub quota: bool,
}

impl ObjectManager {
    /// The types and the directories `\` and `\ObjectTypes`.
    pub fn new(ground: &mut impl Ground, cookie: u8) -> Self {
        let by_index = has_type_index(ground);
        let cookie = ground.variable("ObHeaderCookie", 4).filter(|_| ground.build_number() >= 10000).map(|address| {
            ground.put(address, u64::from(cookie), 1);
            cookie
        });
        let (types, directories, files) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut manager = Self {
            types,
            cookie,
            directories,
            files,
            devices: BTreeMap::new(),
            named: BTreeMap::new(),
            sessions: BTreeMap::new(),
        };
        // The types are objects of a type that does not exist yet: their bodies come first, their headers when all are there.
        let pointer = ground.pointer();
        let table = ground.variable(if by_index { "ObTypeIndexTable" } else { "ObpObjectTypes" }, 0x100 * pointer);
        for (nth, (name, tag)) in TYPES.iter().enumerate() {
            let index = FIRST_INDEX + nth as u8;
            let mut tag = **tag;
            if PROTECTED.contains(name) && ground.build_number() < 9200 {
                tag[3] |= 0x80;
            }
            manager.types.insert(name, ObjectType { name, index, address: 0, tag });
        }
        if by_index {
            manager.write_mask_table(ground);
        }
        let size = ground.size_of("_OBJECT_TYPE");
        for (nth, (name, _)) in TYPES.iter().enumerate() {
            let new = NewObject { kind: "Type", size, name: Some((name, 0)), creator: true, ..NewObject::default() };
            let address = manager.create(ground, &new);
            manager.types.get_mut(name).expect("it was put there").address = address;
            let index = FIRST_INDEX + nth as u8;
            let name_at = address + ground.at("_OBJECT_TYPE", "Name");
            ground.put_string(name_at, name);
            // Before Windows 7 the index counts from 1 and is not in any header.
            ground.fill(
                "_OBJECT_TYPE",
                "Index",
                address,
                u64::from(if by_index { index } else { index - 1 }),
                if by_index { 1 } else { 4 },
            );
            let key = u32::from_le_bytes(*TYPES[nth].1);
            ground.fill("_OBJECT_TYPE", "Key", address, u64::from(key), 4);
            if let Some(list) = ground.find("_OBJECT_TYPE", "TypeList") {
                ground.list_head(address + list);
            }
            if let Some(table) = table {
                let slot = if by_index { u64::from(index) } else { nth as u64 };
                ground.put_pointer(table + slot * pointer, address);
            }
        }
        if let (true, Some(table)) = (by_index, table) {
            ground.put_pointer(table + pointer, 0xBAD0_B0B0);
        }
        let types: Vec<(u64, &str)> = manager.types.values().map(|kind| (kind.address, kind.name)).collect();
        for (address, _) in &types {
            manager.write_type(ground, *address, "Type");
        }
        for (variable, kind) in [
            ("PsProcessType", "Process"),
            ("PsThreadType", "Thread"),
            ("IoFileObjectType", "File"),
            ("SeTokenObjectType", "Token"),
            ("MmSectionObjectType", "Section"),
            ("CmKeyObjectType", "Key"),
            ("ObpTypeObjectType", "Type"),
            ("ObpDirectoryObjectType", "Directory"),
            ("ObpSymbolicLinkObjectType", "SymbolicLink"),
            ("ExEventObjectType", "Event"),
            ("IoDriverObjectType", "Driver"),
            ("IoDeviceObjectType", "Device"),
        ] {
            if let Some(address) = ground.variable(variable, pointer) {
                ground.put_pointer(address, manager.types[kind].address);
            }
        }
        let root = manager.create_directory(ground, "\\");
        if let Some(address) = ground.variable("ObpRootDirectoryObject", pointer) {
            ground.put_pointer(address, root);
        }
        let directory = manager.create_directory(ground, "\\ObjectTypes");
        if let Some(address) = ground.variable("ObpTypeDirectoryObject", pointer) {
            ground.put_pointer(address, directory);
        }
        for (address, name) in types {
            manager.insert(ground, "\\ObjectTypes", name, address);
        }
        manager
    }

    /// Types and paths of the named objects that are not directories, drivers, devices, links or types, and their addresses.
    pub fn named_paths(&self) -> Vec<(String, String, u64)> {
        self.named.iter().map(|((kind, path), address)| (kind.clone(), path.clone(), *address)).collect()
    }

    fn write_mask_table(&self, ground: &mut impl Ground) {
        let Some(table) = ground.variable("ObpInfoMaskToOffset", 0x100) else { return };
        let mut offsets = [0; 0x100];
        for (mask, offset) in (0..=255).zip(&mut offsets) {
            *offset = optional_size(ground, mask) as u8;
        }
        ground.write(table, &offsets);
    }

    /// Makes an object and returns the address of its body.
    pub fn create(&self, ground: &mut impl Ground, new: &NewObject<'_>) -> u64 {
        let mut mask = 0;
        mask |= if new.creator { CREATOR } else { 0 };
        mask |= if new.name.is_some() { NAME } else { 0 };
        mask |= if new.handles { HANDLES } else { 0 };
        mask |= if new.quota { QUOTA } else { 0 };
        let kind = &self.types[new.kind];
        let body = ground.at("_OBJECT_HEADER", "Body");
        let front = optional_size(ground, mask);
        let start = ground.allocate(&kind.tag, front + body + new.size);
        let header = start + front;
        self.write_header(ground, header, new.kind, mask);
        if let Some((name, directory)) = new.name {
            let at = header - optional_size(ground, mask & (NAME | (NAME - 1)));
            ground.fill_pointer("_OBJECT_HEADER_NAME_INFO", "Directory", at, directory);
            let string = at + ground.at("_OBJECT_HEADER_NAME_INFO", "Name");
            ground.put_string(string, name);
            ground.fill("_OBJECT_HEADER_NAME_INFO", "ReferenceCount", at, 1, 4);
        }
        if new.creator {
            let at = header - optional_size(ground, CREATOR);
            ground.list_head(at);
            ground.put_pointer(at + 2 * ground.pointer(), 4);
        }
        header + body
    }

    /// Writes the header of an object whose memory is there already.
    pub fn write_header(&self, ground: &mut impl Ground, header: u64, kind: &str, mask: u8) {
        ground.fill_pointer("_OBJECT_HEADER", "PointerCount", header, 3);
        ground.fill_pointer("_OBJECT_HEADER", "HandleCount", header, 1);
        if has_type_index(ground) {
            ground.fill("_OBJECT_HEADER", "InfoMask", header, u64::from(mask), 1);
        } else {
            // NameInfoOffset, HandleInfoOffset, QuotaInfoOffset: bytes from the optional header to the header. A flag tells of the creator's.
            let first = ground.at("_OBJECT_HEADER", "NameInfoOffset");
            for (nth, bit) in [(0, NAME), (1, HANDLES), (2, QUOTA)] {
                let offset = if mask & bit == 0 { 0 } else { optional_size(ground, mask & (bit | (bit - 1))) };
                ground.put(header + first + nth, offset, 1);
            }
            ground.put(header + first + 3, if mask & CREATOR == 0 { 0 } else { 4 }, 1);
        }
        let body = ground.at("_OBJECT_HEADER", "Body");
        self.write_type(ground, header + body, kind);
    }

    /// The encoded index of a type in the header at this address.
    pub fn type_index(&self, header: u64, kind: &str) -> u8 {
        let index = self.types[kind].index;
        self.cookie.map_or(index, |cookie| index ^ cookie ^ (header >> 8) as u8)
    }

    fn write_type(&self, ground: &mut impl Ground, object: u64, kind: &str) {
        let header = object - ground.at("_OBJECT_HEADER", "Body");
        if has_type_index(ground) {
            let index = self.type_index(header, kind);
            ground.fill("_OBJECT_HEADER", "TypeIndex", header, u64::from(index), 1);
        } else {
            ground.fill_pointer("_OBJECT_HEADER", "Type", header, self.types[kind].address);
        }
    }

    /// A named object in a directory, which must exist.
    pub fn create_named(&mut self, ground: &mut impl Ground, kind: &str, directory: &str, name: &str, size: u64) -> u64 {
        let parent = self.directories[directory];
        let object =
            self.create(ground, &NewObject { kind, size, name: Some((name, parent)), quota: true, ..NewObject::default() });
        self.insert(ground, directory, name, object);
        object
    }

    /// A file object with this name on a device.
    pub fn create_file(&mut self, ground: &mut impl Ground, device: u64, path: &str) -> u64 {
        let size = ground.size_of("_FILE_OBJECT");
        let file = self.create(ground, &NewObject { kind: "File", size, handles: true, ..NewObject::default() });
        // Type and size, in the same places in all versions.
        ground.put(file, 5 | size << 16, 4);
        ground.fill_pointer("_FILE_OBJECT", "DeviceObject", file, device);
        ground.fill("_FILE_OBJECT", "Flags", file, 0x0004_4042, 4);
        for access in ["ReadAccess", "SharedRead"] {
            ground.fill("_FILE_OBJECT", access, file, 1, 1);
        }
        let name = file + ground.at("_FILE_OBJECT", "FileName");
        let bytes = utf16(path);
        let buffer = ground.allocate(b"FMfn", bytes.len() as u64 + 2);
        ground.write(buffer, &bytes);
        ground.put_string_at(name, &bytes, buffer);
        file
    }
}

/// Whether headers have an index of the type (since Windows 7) and not a pointer to it.
pub fn has_type_index(ground: &impl Ground) -> bool {
    ground.own_offset("_OBJECT_HEADER", "TypeIndex").is_some()
}

/// Bytes that the optional headers of this mask take.
fn optional_size(ground: &impl Ground, mask: u8) -> u64 {
    let size = |(bit, structure, x86, x64): &(u8, &str, u64, u64)| {
        if mask & bit == 0 { 0 } else { ground.size(structure).unwrap_or(if ground.is_64_bit() { *x64 } else { *x86 }) }
    };
    OPTIONAL.iter().map(size).sum()
}
