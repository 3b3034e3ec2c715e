//! The tree of object directories, with devices, drivers and symbolic links in it.
//!
//! Structures: `_OBJECT_DIRECTORY`, `_OBJECT_DIRECTORY_ENTRY`, `_OBJECT_SYMBOLIC_LINK` in the public symbols: 37 chains, chosen by a hash of the name.

use super::ground::{Ground, Writing};
use super::header::{NewObject, ObjectManager};

const BUCKETS: u64 = 37;

impl ObjectManager {
    /// Makes a directory; its parent must exist.
    pub fn create_directory(&mut self, ground: &mut impl Ground, path: &str) -> u64 {
        let size = ground.size_of("_OBJECT_DIRECTORY");
        let (parent, name) = match path {
            "\\" => (None, "\\"),
            path => {
                let (parent, name) = path.rsplit_once('\\').expect("a path begins with a backslash");
                (Some(if parent.is_empty() { "\\" } else { parent }), name)
            }
        };
        let holder = parent.map_or(0, |parent| self.directories[parent]);
        let new = NewObject { kind: "Directory", size, name: Some((name, holder)), ..NewObject::default() };
        let directory = self.create(ground, &new);
        self.directories.insert(path.to_owned(), directory);
        if let Some(parent) = parent {
            self.insert(ground, parent, name, directory);
        }
        directory
    }

    /// Enters an object into a directory.
    pub fn insert(&mut self, ground: &mut impl Ground, directory: &str, name: &str, object: u64) {
        let directory = self.directories[directory];
        let hash = name.encode_utf16().fold(0u32, |hash, unit| {
            let unit = char::from_u32(u32::from(unit)).map_or(u32::from(unit), |unit| unit.to_ascii_uppercase() as u32);
            hash.wrapping_add(hash << 1).wrapping_add(hash >> 1).wrapping_add(unit)
        });
        let bucket = directory + ground.at("_OBJECT_DIRECTORY", "HashBuckets") + u64::from(hash) % BUCKETS * ground.pointer();
        let size = ground.size_of("_OBJECT_DIRECTORY_ENTRY");
        let entry = ground.allocate(b"ObDi", size);
        let next = ground.get_pointer(bucket);
        ground.fill_pointer("_OBJECT_DIRECTORY_ENTRY", "ChainLink", entry, next);
        ground.fill_pointer("_OBJECT_DIRECTORY_ENTRY", "Object", entry, object);
        ground.fill("_OBJECT_DIRECTORY_ENTRY", "HashValue", entry, u64::from(hash), 4);
        ground.put_pointer(bucket, entry);
    }

    /// A symbolic link.
    pub fn create_link(&mut self, ground: &mut impl Ground, directory: &str, name: &str, target: &str) -> u64 {
        let size = ground.size_of("_OBJECT_SYMBOLIC_LINK");
        let link = self.create_named(ground, "SymbolicLink", directory, name, size);
        let at = link + ground.at("_OBJECT_SYMBOLIC_LINK", "LinkTarget");
        ground.put_string(at, target);
        link
    }

    /// A driver's object, and a device of it if `device` names one.
    pub fn create_driver(&mut self, ground: &mut impl Ground, name: &str, base: u64, size: u64, device: Option<&str>) -> u64 {
        let bytes = ground.size_of("_DRIVER_OBJECT");
        let driver = self.create_named(ground, "Driver", "\\Driver", name, bytes);
        // Type and size, in the same places in all versions, here and below.
        ground.put(driver, 4 | bytes << 16, 4);
        ground.fill_pointer("_DRIVER_OBJECT", "DriverStart", driver, base);
        ground.fill("_DRIVER_OBJECT", "DriverSize", driver, size, 4);
        let at = driver + ground.at("_DRIVER_OBJECT", "DriverName");
        ground.put_string(at, &format!("\\Driver\\{name}"));
        let major = driver + ground.at("_DRIVER_OBJECT", "MajorFunction");
        for nth in 0..28 {
            ground.put_pointer(major + nth * ground.pointer(), base + 0x1000 + nth * 0x40);
        }
        if let Some(device) = device {
            let bytes = ground.size_of("_DEVICE_OBJECT");
            let object = self.create_named(ground, "Device", "\\Device", device, bytes);
            ground.put(object, 3 | bytes << 16, 4);
            ground.fill("_DEVICE_OBJECT", "ReferenceCount", object, 1, 4);
            ground.fill_pointer("_DEVICE_OBJECT", "DriverObject", object, driver);
            ground.fill_pointer("_DRIVER_OBJECT", "DeviceObject", driver, object);
            self.devices.insert(format!("\\Device\\{device}"), object);
        }
        driver
    }
}
