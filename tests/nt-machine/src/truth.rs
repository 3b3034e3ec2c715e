//! What the builder placed: the truth that readers are compared with.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::kernel_image::Pdb;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessTruth {
    /// Address of its `_EPROCESS`.
    pub eprocess: u64,
    /// Process id.
    pub pid: u64,
    /// Process id of the parent.
    pub parent: u64,
    /// `ImageFileName`: at most 14 bytes (15 since Windows 10's first releases hold a terminator too).
    pub name: String,
    /// Root of the page tables.
    pub dtb: u64,
    /// Root of the shadow, 0 without one.
    pub user_dtb: u64,
    /// Address of the PEB, 0 without one.
    pub peb: u64,
    /// Address of the 32-bit PEB, 0 without one.
    pub wow64_peb: u64,
    /// FILETIME of the start.
    pub create_time: u64,
    /// FILETIME of the end, 0 while it lives.
    pub exit_time: u64,
    /// Terminal session; `None` for processes outside of all.
    pub session: Option<u32>,
    /// Whether it is in the list of processes.
    pub linked: bool,
    /// Full path in NT's notation.
    pub image_path: String,
    /// Addresses of its threads' `_ETHREAD`, with their ids, in the order of the list.
    pub threads: Vec<(u64, u64)>,
}

/// A module of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleTruth {
    /// Address of its `_KLDR_DATA_TABLE_ENTRY`.
    pub entry: u64,
    /// First address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// File name.
    pub name: String,
    /// Full path.
    pub path: String,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truth {
    /// The build's name.
    pub build: String,
    /// The build number.
    pub build_number: u32,
    /// Whether it is a 64-bit kernel.
    pub is_64_bit: bool,
    /// Root of System's page tables.
    pub system_root: u64,
    /// The kernel's first address.
    pub kernel_base: u64,
    /// Bytes of the kernel's image.
    pub kernel_size: u64,
    /// Where the header's page is in physical memory.
    pub kernel_physical: u64,
    /// The kernel's program database.
    pub pdb: Pdb,
    /// Addresses of the kernel's symbols.
    pub symbols: BTreeMap<String, u64>,
    /// Names of the kernel's exports.
    pub exports: Vec<String>,
    /// Processes in the order of the list; those that are not in it come behind, in the order in which they were made.
    pub processes: Vec<ProcessTruth>,
    /// Modules of the kernel in the order of the list.
    pub modules: Vec<ModuleTruth>,
}

impl Truth {
    /// As JSON, numbers as numbers.
    pub fn to_json(&self) -> Value {
        let processes = self.processes.iter().map(|p| {
            json!({
                "eprocess": p.eprocess, "pid": p.pid, "parent": p.parent, "name": p.name, "dtb": p.dtb, "user_dtb": p.user_dtb, "peb": p.peb,
                "wow64_peb": p.wow64_peb, "create_time": p.create_time, "exit_time": p.exit_time, "session": p.session, "linked": p.linked,
                "image_path": p.image_path, "threads": p.threads.iter().map(|(at, id)| json!({"ethread": at, "tid": id})).collect::<Vec<_>>(),
            })
        });
        let modules = self
            .modules
            .iter()
            .map(|m| json!({"entry": m.entry, "base": m.base, "size": m.size, "name": m.name, "path": m.path}));
        json!({
            "build": self.build, "build_number": self.build_number, "is_64_bit": self.is_64_bit, "system_root": self.system_root,
            "kernel": {"base": self.kernel_base, "size": self.kernel_size, "physical": self.kernel_physical,
                "pdb": {"name": self.pdb.name, "guid": self.pdb.guid, "age": self.pdb.age}},
            "symbols": self.symbols, "exports": self.exports,
            "processes": processes.collect::<Vec<_>>(), "modules": modules.collect::<Vec<_>>(),
        })
    }
}
