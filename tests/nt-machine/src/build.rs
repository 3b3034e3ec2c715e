//! The builds of Windows whose structures the machines have.

use std::sync::OnceLock;

use serde_json::Value;

use crate::layout::{self, Entry, Layout};
use crate::paging::Paging;

/// A build of Windows.
#[derive(Clone, Debug)]
pub struct Build {
    /// How tests call it: `win10_x64_19041`.
    pub name: String,
    /// Whether it is a 64-bit one.
    pub is_64_bit: bool,
    /// The build number: 2600, 7601, 19041.
    pub number: u32,
    /// Major and minor version.
    pub version: (u32, u32),
    /// The page tables it uses if the options do not say otherwise.
    pub paging: Paging,
    /// The offsets of its structures.
    pub layout: Layout,
    /// Where the table has the offsets from.
    pub source: String,
    /// The file name of its program database.
    pub pdb_name: &'static str,
    /// A symbol file of the real build that the machine shall fit to: its types, its symbols at their places, its identity.
    pub isf: Option<Value>,
}

/// Name, name in the table, build number, version, page tables, program database.
struct Row<'a>(&'a str, &'a str, u32, (u32, u32), Paging, &'static str);

const FIXED: Paging = Paging::FourLevel { self_map: 0x1ED };
const ROWS: &[Row<'_>] = &[
    Row("xp_sp3_x86", "xp_sp3_x86", 2600, (5, 1), Paging::Legacy, "ntoskrnl.pdb"),
    Row("xp_sp3_x86_pae", "xp_sp3_x86", 2600, (5, 1), Paging::Pae, "ntkrnlpa.pdb"),
    Row("win7_sp1_x86", "win7_sp1_x86", 7601, (6, 1), Paging::Pae, "ntkrpamp.pdb"),
    Row("win7_sp1_x64", "win7_sp1_x64", 7601, (6, 1), FIXED, "ntkrnlmp.pdb"),
    Row("win81_x64", "win81_u1_x64", 9600, (6, 3), FIXED, "ntkrnlmp.pdb"),
    Row("win10_x64_10240", "win10_x64", 10240, (10, 0), FIXED, "ntkrnlmp.pdb"),
    Row("win10_x64_14393", "isf_x64_10.0.14393.6343", 14393, (10, 0), Paging::FourLevel { self_map: 0x11A }, "ntkrnlmp.pdb"),
    Row("win10_x64_17763", "isf_x64_10.0.17763.5933", 17763, (10, 0), Paging::FourLevel { self_map: 0x13B }, "ntkrnlmp.pdb"),
    Row("win10_x64_19041", "isf_x64_10.0.19041.804", 19041, (10, 0), Paging::FourLevel { self_map: 0x165 }, "ntkrnlmp.pdb"),
    Row("win10_x86_19041", "win10_x86_19041", 19041, (10, 0), Paging::Pae, "ntkrpamp.pdb"),
    Row("win11_x64_22000", "isf_x64_10.0.22000.2538", 22000, (10, 0), Paging::FourLevel { self_map: 0x1B7 }, "ntkrnlmp.pdb"),
    Row("win11_x64_26100", "win11_24H2_x64_26100", 26100, (10, 0), Paging::FourLevel { self_map: 0x1E2 }, "ntkrnlmp.pdb"),
];

impl Build {
    /// The builds that tests run on, the oldest first: one of each generation of structures.
    pub fn all() -> Vec<Self> {
        static ALL: OnceLock<Vec<Build>> = OnceLock::new();
        ALL.get_or_init(|| {
            let entries = layout::entries();
            ROWS.iter().map(|row| Self::from_row(row, &entries)).collect()
        })
        .clone()
    }

    /// The build of that name: one of [`Build::all`], or any other of the table by its name there (`vista_sp2_x64`, `isf_x64_10.0.19041.3570`).
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|build| build.name == name).or_else(|| {
            let entries = layout::entries();
            let entry = entries.iter().find(|entry| entry.name == name)?;
            let version = match entry.number {
                ..3790 => (5, 1),
                3790..6000 => (5, 2),
                6000..7600 => (6, 0),
                7600..9200 => (6, 1),
                9200..9600 => (6, 2),
                9600..10240 => (6, 3),
                _ => (10, 0),
            };
            let (paging, pdb) = match (entry.is_64_bit, entry.number) {
                (true, ..14393) => (FIXED, "ntkrnlmp.pdb"),
                (true, _) => (Paging::FourLevel { self_map: 0x165 }, "ntkrnlmp.pdb"),
                (false, ..6000) => (Paging::Legacy, "ntoskrnl.pdb"),
                (false, _) => (Paging::Pae, "ntkrpamp.pdb"),
            };
            // A few structures are not enough to build a machine from.
            let enough = entry.layout.structs.contains_key("_ETHREAD");
            enough.then(|| Self::from_row(&Row(&entry.name, &entry.name, entry.number, version, paging, pdb), &entries))
        })
    }

    fn from_row(row: &Row<'_>, entries: &[Entry]) -> Self {
        let Row(name, entry, number, version, paging, pdb_name) = *row;
        let find =
            |name: &str| entries.iter().find(|entry| entry.name == name).unwrap_or_else(|| panic!("the table has no {name}"));
        let entry = find(entry);
        let mut layout = entry.layout.clone();
        if !layout.structs.contains_key("_ETHREAD") {
            layout.borrow_missing(&find("isf_x64_10.0.22000.2538").layout);
        }
        let is_64_bit = entry.is_64_bit;
        Self {
            name: name.to_owned(),
            is_64_bit,
            number,
            version,
            paging,
            layout,
            source: entry.source.clone(),
            pdb_name,
            isf: None,
        }
    }

    /// The build with all that a symbol file of the real kernel tells: every structure, every symbol at its place, the identity of its program database.
    pub fn with_isf(mut self, isf: Value) -> Self {
        self.layout = Layout::from_isf(&isf);
        self.isf = Some(isf);
        self
    }

    /// Where its kernel lies, unless the options say otherwise.
    pub fn kernel_base(&self) -> u64 {
        match (self.is_64_bit, self.number) {
            (true, ..9200) => 0xFFFF_F800_01A5_D000,
            (true, ..14393) => 0xFFFF_F801_3A01_8000 & !0x1F_FFFF,
            (true, _) => 0xFFFF_F804_7BA0_0000,
            (false, ..6000) => 0x804D_7000,
            (false, ..9200) => 0x82A1_0000,
            (false, _) => 0x81C0_0000,
        }
    }

    /// Bytes of a pointer.
    pub fn pointer(&self) -> u64 {
        if self.is_64_bit { 8 } else { 4 }
    }
}
