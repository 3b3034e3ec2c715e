//! Hives of the registry in memory, the list of hives, and key objects.
//!
//! Structures: `_CMHIVE`, `_HHIVE`, `_DUAL`, `_HMAP_DIRECTORY`, `_HMAP_TABLE`, `_HMAP_ENTRY`, `_CM_KEY_BODY`, `_CM_KEY_CONTROL_BLOCK`, `_CM_NAME_CONTROL_BLOCK` in
//! the public symbols. An index of a cell is, from the top: one bit storage, ten bits directory, nine bits table, twelve bits offset; hives of up to 2 MiB
//! have no directory, `Map` leads to their only table's pointer (Dolan-Gavitt, "Forensic analysis of the Windows registry in memory", 2008). Since Windows 10
//! 1803 the permanent bins of most hives are mapped in the user space of the process Registry.

use serde_json::{Value, json};

use super::ground::{Ground, Writing};
use super::header::{NewObject, ObjectManager};
use super::hive_cells::{BLOCK, Cells, Key, List};
use crate::{NtMachine, ProcessId};

/// A hive.
#[derive(Clone, Debug)]
pub struct Hive {
    /// Where its root is: `\REGISTRY\MACHINE\SYSTEM`.
    pub path: String,
    /// Its file; empty for a hive that has none.
    pub file: String,
    /// Address of its `_CMHIVE`.
    pub address: u64,
    /// The root key with everything below it.
    pub root: Key,
    /// The cells.
    pub cells: Cells,
    /// Where the permanent bins are: in user space of Registry or in the kernel.
    pub bins: u64,
    /// Key objects for handles: path and address.
    pub key_objects: Vec<(String, u64)>,
}

impl Hive {
    /// As JSON.
    pub fn to_json(&self) -> Value {
        json!({"path": self.path, "file": self.file, "address": self.address, "bins": self.bins, "root_cell": self.cells.root,
            "permanent": self.cells.storage[0].bytes.len(), "volatile": self.cells.storage[1].bytes.len(), "root": self.root.to_json(),
            "key_objects": self.key_objects})
    }

    /// The hive as a file.
    pub fn file_bytes(&self) -> Vec<u8> {
        self.cells.file(&self.file, self.root.written)
    }
}

/// `HHIVE.Signature`.
const SIGNATURE: u64 = 0xBEE0_BEE0;
/// Where bins are in the process Registry.
const REGISTRY_SPACE: u64 = 0x1A0_0000_0000;

/// The hives of a typical machine, as far as the build's registry structures are known: x64 since 8.1.
pub fn typical(machine: &mut NtMachine, objects: &mut ObjectManager, ids: &[ProcessId]) -> Vec<Hive> {
    if machine.find("_CMHIVE", "HiveList").is_none()
        || machine.find("_HMAP_TABLE", "Table").is_none()
        || !machine.build().layout.borrowed.is_empty()
    {
        return Vec::new();
    }
    let registry = ids.iter().find(|id| machine.process(**id).name == "Registry");
    let registry = registry.map(|id| machine.process(*id).dtb);
    let user = "\\REGISTRY\\USER\\S-1-5-21-1111111111-2222222222-3333333333-1001";
    let wanted = [
        ("\\REGISTRY\\MACHINE\\SYSTEM", "\\SystemRoot\\System32\\Config\\SYSTEM", system_hive()),
        ("\\REGISTRY\\MACHINE\\HARDWARE", "", hardware_hive()),
        (user, "\\??\\C:\\Users\\ada\\ntuser.dat", user_hive()),
    ];
    let mut hives: Vec<Hive> = wanted
        .into_iter()
        .zip(0..)
        .map(|((path, file, root), nth)| {
            let place = registry.filter(|_| !file.is_empty()).map(|root| (root, REGISTRY_SPACE + nth * 0x100_0000));
            write_hive(machine, path, file, root, place)
        })
        .collect();
    for (hive, keys) in
        hives.iter_mut().zip([vec!["", "ControlSet001\\Services\\Tcpip\\Parameters"], vec!["DESCRIPTION"], vec!["Software"]])
    {
        write_key_objects(machine, objects, hive, &keys);
    }
    hives
}

fn write_hive(machine: &mut NtMachine, path: &str, file: &str, mut root: Key, place: Option<(u64, u64)>) -> Hive {
    let cells = Cells::new(&mut root);
    let size = machine.size_of("_CMHIVE").max(machine.at("_CMHIVE", "HiveList") + 0x200);
    let address = machine.allocate(b"CM10", size);
    let hhive = address + machine.at("_CMHIVE", "Hive");
    machine.fill("_HHIVE", "Signature", hhive, SIGNATURE, 4);
    let block = machine.allocate(b"CM25", BLOCK as u64);
    machine.write(block, &cells.base_block(file, root.written));
    machine.fill_pointer("_HHIVE", "BaseBlock", hhive, block);
    machine.fill("_HHIVE", "Cluster", hhive, 1, 4);
    machine.fill("_HHIVE", "StorageTypeCount", hhive, 2, 4);
    machine.fill("_HHIVE", "Version", hhive, 5, 4);
    let mut bins = 0;
    for (nth, storage) in (0..).zip(&cells.storage) {
        let dual = hhive + machine.at("_HHIVE", "Storage") + nth * machine.size_of("_DUAL");
        machine.fill("_DUAL", "Length", dual, storage.bytes.len() as u64, 4);
        if storage.bytes.is_empty() {
            continue;
        }
        // A table for 512 blocks of 4 KiB, and no directory: the map is where the table's pointer is.
        assert!(storage.bytes.len() <= 512 * BLOCK, "a hive of more than 2 MiB");
        let entry_size = machine.size_of("_HMAP_ENTRY");
        let table = machine.allocate(b"CM31", 512 * entry_size);
        let small = dual + machine.at("_DUAL", "SmallDir");
        machine.put_pointer(small, table);
        machine.fill_pointer("_DUAL", "Map", dual, small);
        for (start, len) in &storage.bins {
            let bytes = &storage.bytes[*start..start + len];
            let bin = match place.filter(|_| nth == 0) {
                Some((root, base)) => {
                    machine.write_user_space(root, base + *start as u64, bytes);
                    base + *start as u64
                }
                None => {
                    let bin = machine.allocate(b"CM10", *len as u64);
                    machine.write(bin, bytes);
                    bin
                }
            };
            if nth == 0 && *start == 0 {
                bins = bin;
            }
            for block in (0..*len).step_by(BLOCK) {
                let entry = table + ((start + block) / BLOCK) as u64 * entry_size;
                // The low bits of the bin's address are flags; bit 0: the bin begins here.
                let flags = if block == 0 { 1 } else { 0 };
                if machine.find("_HMAP_ENTRY", "PermanentBinAddress").is_some() {
                    machine.fill_pointer("_HMAP_ENTRY", "BlockOffset", entry, block as u64);
                    machine.fill_pointer("_HMAP_ENTRY", "PermanentBinAddress", entry, bin | flags);
                } else {
                    machine.fill_pointer("_HMAP_ENTRY", "BlockAddress", entry, bin + block as u64);
                    machine.fill_pointer("_HMAP_ENTRY", "BinAddress", entry, bin | flags);
                }
                machine.fill("_HMAP_ENTRY", "MemAlloc", entry, if block == 0 { *len as u64 } else { 0 }, 4);
            }
        }
    }
    for (member, text) in [("FileFullPath", file), ("FileUserName", file), ("HiveRootPath", path)] {
        if let Some(offset) = machine.find("_CMHIVE", member).filter(|_| !text.is_empty()) {
            Writing::put_string(machine, address + offset, text);
        }
    }
    if let Some(head) = machine.variable("CmpHiveListHead", 2 * machine.pointer()) {
        let link = address + machine.at("_CMHIVE", "HiveList");
        Writing::list_append(machine, head, link);
    }
    Hive { path: path.to_owned(), file: file.to_owned(), address, root, cells, bins, key_objects: Vec::new() }
}

impl NtMachine {
    /// Writes memory of the space with this root, which is mapped where it is not.
    fn write_user_space(&mut self, root: u64, address: u64, bytes: &[u8]) {
        Writing::write_user(self, root, address, bytes);
    }
}

/// Key objects with control blocks up to `\REGISTRY`.
fn write_key_objects(machine: &mut NtMachine, objects: &mut ObjectManager, hive: &mut Hive, keys: &[&str]) {
    for key in keys {
        let path = if key.is_empty() { hive.path.clone() } else { format!("{}\\{key}", hive.path) };
        let depth = hive.path.split('\\').count() - 1;
        let mut parent = 0;
        for (nth, part) in path.split('\\').skip(1).enumerate() {
            // Above the hive's root the keys are those of the master hive, which is not there.
            let inside = (nth + 1).checked_sub(depth).and_then(|below| {
                let parts: Vec<&str> = key.split('\\').take(below).collect();
                hive.root.find(&parts.join("\\"))
            });
            parent = write_control_block(machine, part, parent, inside.map(|key| (hive.address, key)));
        }
        let size = machine.size_of("_CM_KEY_BODY");
        let body = objects.create(machine, &NewObject { kind: "Key", size, ..NewObject::default() });
        machine.fill("_CM_KEY_BODY", "Type", body, 0x6B79_3032, 4);
        machine.fill_pointer("_CM_KEY_BODY", "KeyControlBlock", body, parent);
        hive.key_objects.push((path, body));
    }
}

fn write_control_block(machine: &mut NtMachine, name: &str, parent: u64, key: Option<(u64, &Key)>) -> u64 {
    let size = machine.size_of("_CM_KEY_CONTROL_BLOCK");
    let block = machine.allocate(b"CM31", size);
    machine.fill("_CM_KEY_CONTROL_BLOCK", "RefCount", block, 1, 4);
    machine.fill_pointer("_CM_KEY_CONTROL_BLOCK", "ParentKcb", block, parent);
    if let Some((hive, key)) = key {
        let hhive = hive + machine.at("_CMHIVE", "Hive");
        machine.fill_pointer("_CM_KEY_CONTROL_BLOCK", "KeyHive", block, hhive);
        machine.fill("_CM_KEY_CONTROL_BLOCK", "KeyCell", block, key.cell.into(), 4);
        machine.fill("_CM_KEY_CONTROL_BLOCK", "KcbLastWriteTime", block, key.written, 8);
    }
    let text = machine.at("_CM_NAME_CONTROL_BLOCK", "Name");
    let names = machine.allocate(b"CM31", text + name.len() as u64);
    // Compressed, and one reference.
    machine.fill("_CM_NAME_CONTROL_BLOCK", "Compressed", names, 1 | 1 << 1, 4);
    machine.fill("_CM_NAME_CONTROL_BLOCK", "NameLength", names, name.len() as u64, 2);
    machine.write(names + text, name.as_bytes());
    machine.fill_pointer("_CM_KEY_CONTROL_BLOCK", "NameBlock", block, names);
    block
}

fn system_hive() -> Key {
    let service = |name: &str, start: u32| {
        Key::new(name).number("Start", start).number("Type", 1).text("ImagePath", &format!("System32\\drivers\\{name}.sys"))
    };
    let parameters =
        Key::new("Parameters").text("Hostname", "ADA-PC").text("Domain", "").value("DhcpNameServer", 3, &[192, 168, 1, 1]);
    let tcpip = service("Tcpip", 0).keys(List::Lf, vec![parameters, Key::new("Linkage")]);
    let mut services = vec![tcpip, service("ACPI", 0), service("Null", 1), service("volmgr", 0)];
    // More than one block holds, in lists of lists.
    services.extend((0..60).map(|nth| service(&format!("drv{nth:03}"), 3)));
    let big: Vec<u8> = (0..40_000u32).map(|nth| (nth % 251) as u8).collect();
    let control = Key::new("Control")
        .number("CurrentUser", 0)
        .value("Big", 3, &big)
        .value("", 1, b"d\0e\0f\0\0\0")
        .value("Empty", 3, &[])
        .value("Quad", 11, &0x1122_3344_5566_7788u64.to_le_bytes())
        .keys(
            List::Li,
            vec![Key::new("Session Manager").text("SystemRoot", "C:\\Windows"), Key::new("Größe Ω").number("日本", 7)],
        );
    let set = Key::new("ControlSet001").keys(List::Lf, vec![control, Key::new("Services").keys(List::Ri(20), services)]);
    let current = Key::new("CurrentControlSet")
        .value("SymbolicLinkValue", 6, &super::ground::utf16("\\Registry\\Machine\\System\\ControlSet001"))
        .volatile();
    Key::new("ROOT").keys(List::Lh, vec![set, Key::new("Select").number("Current", 1).number("Default", 1), current])
}

fn hardware_hive() -> Key {
    let processor = Key::new("0").text("ProcessorNameString", "Virtual CPU").number("~MHz", 2400);
    let description = Key::new("DESCRIPTION").keys(
        List::Lh,
        vec![Key::new("System").keys(List::Lf, vec![Key::new("CentralProcessor").keys(List::Lh, vec![processor])])],
    );
    Key::new("HARDWARE").keys(List::Lh, vec![description, Key::new("RESOURCEMAP")]).volatile()
}

fn user_hive() -> Key {
    let run = Key::new("Run").text("updater", "C:\\Users\\ada\\AppData\\Local\\updater.exe");
    let version = Key::new("CurrentVersion").keys(List::Lh, vec![run, Key::new("Explorer")]);
    let windows = Key::new("Microsoft").keys(List::Lh, vec![Key::new("Windows").keys(List::Lf, vec![version])]);
    let environment = Key::new("Environment").value("TEMP", 2, &super::ground::utf16("%USERPROFILE%\\Temp\0"));
    let session = Key::new("Volatile Environment").text("USERNAME", "ada").volatile();
    Key::new("S-1-5-21-1111111111-2222222222-3333333333-1001_Root")
        .keys(List::Lh, vec![environment, Key::new("Software").keys(List::Lf, vec![windows]), session])
}
