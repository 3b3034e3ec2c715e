//! Where the members of the kernel's structures are, and what they are: facts of real builds, read from the tables that the reader's crate ships.
//!
//! The tables are the one thing that this crate and the readers share. What is in them is explained at their top.

use std::collections::BTreeMap;

use serde_json::Value;

const OFFSETS: &str = include_str!("../../../crates/vmi-os-windows/src/builtin/offsets.txt");
const MEMBERS: &str = include_str!("../../../crates/vmi-os-windows/src/builtin/members.txt");

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not known: at least one byte.
    Any,
    /// A number of so many bytes without a sign.
    Unsigned(u64),
    /// A number of so many bytes with a sign.
    Signed(u64),
    /// A pointer.
    Pointer,
    /// Bits of a number; the lowest is counted from the start of the structure.
    Bits {
        /// The lowest bit.
        lowest: u64,
        /// How many.
        width: u64,
    },
    /// A structure.
    Struct(String),
    /// An array.
    Array(Box<Kind>, u64),
}

/// One structure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Struct {
    /// Bytes; 0 if the table does not tell.
    pub size: u64,
    /// Offset of each member, in bytes.
    pub members: BTreeMap<String, u64>,
    /// What the members are, as far as it is known.
    pub kinds: BTreeMap<String, Kind>,
}

/// The structures of one build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// By name.
    pub structs: BTreeMap<String, Struct>,
    /// Those that are not known for this build and were taken from a neighbour, so that a machine can be built at all. They are in no symbol file.
    pub borrowed: Vec<String>,
}

/// A kernel of the table.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Its name there.
    pub name: String,
    /// Whether it is a 64-bit one.
    pub is_64_bit: bool,
    /// The build number.
    pub number: u32,
    /// Name and key of the program database, where the table has exactly one kernel's facts.
    pub pdb: Option<(String, String)>,
    /// Where the facts come from.
    pub source: String,
    /// Its structures.
    pub layout: Layout,
}

/// All kernels of the table.
pub fn entries() -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for line in OFFSETS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let first = words.next().expect("a line that is not empty");
        if let Some(name) = first.strip_prefix('@') {
            let mut entry = Entry { name: name.to_owned(), ..Entry::default() };
            let (facts, source) = line.split_once("source=").expect("every kernel has a source");
            source.clone_into(&mut entry.source);
            for (key, value) in facts.split_whitespace().filter_map(|word| word.split_once('=')) {
                match key {
                    "arch" => entry.is_64_bit = value == "x64",
                    "build" => entry.number = number(value) as u32,
                    "pdb" => entry.pdb = value.split_once('/').map(|(name, key)| (name.to_owned(), key.to_owned())),
                    "like" => {
                        entry.layout = entries.iter().find(|other| other.name == value).expect("stands before").layout.clone()
                    }
                    _ => {}
                }
            }
            entries.push(entry);
            continue;
        }
        let entry = entries.last_mut().expect("a kernel's line comes first");
        match first {
            "!" => {}
            "-" => drop(entry.layout.structs.remove(words.next().expect("a structure"))),
            _ => {
                let mut of = Struct::default();
                for (member, offset) in words.filter_map(|word| word.split_once('=')) {
                    if member == "size" {
                        of.size = number(offset);
                    } else {
                        of.members.insert(member.to_owned(), number(offset));
                    }
                }
                entry.layout.structs.insert(first.to_owned(), of);
            }
        }
    }
    for entry in &mut entries {
        entry.layout.add_kinds(entry.is_64_bit);
    }
    entries
}

fn number(text: &str) -> u64 {
    text.strip_prefix("0x")
        .map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16))
        .unwrap_or_else(|_| panic!("no number: {text}"))
}

/// The side for one width: `32|64`.
fn side(text: &str, is_64_bit: bool) -> &str {
    text.split_once('|').map_or(text, |(narrow, wide)| if is_64_bit { wide } else { narrow })
}

fn kind(text: &str, is_64_bit: bool) -> Kind {
    if let Some((of, count)) = text.strip_suffix(']').and_then(|text| text.rsplit_once('[')) {
        return Kind::Array(Box::new(kind(of, is_64_bit)), number(count));
    }
    match text {
        "any" => Kind::Any,
        "pointer" => Kind::Pointer,
        "word" => Kind::Unsigned(if is_64_bit { 8 } else { 4 }),
        "u8" => Kind::Unsigned(1),
        "u16" => Kind::Unsigned(2),
        "u32" => Kind::Unsigned(4),
        "u64" => Kind::Unsigned(8),
        "i32" => Kind::Signed(4),
        _ => match text.strip_prefix("bits:").and_then(|bits| bits.split_once('+')) {
            Some((lowest, width)) => Kind::Bits { lowest: number(lowest), width: number(width) },
            None => Kind::Struct(text.to_owned()),
        },
    }
}

impl Layout {
    /// What the table of members says about the structures that are here, and those that are the same in all releases.
    fn add_kinds(&mut self, is_64_bit: bool) {
        for line in MEMBERS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut words = line.split_whitespace();
            let first = words.next().expect("a line that is not empty");
            if first != "=" {
                let Some(of) = self.structs.get_mut(first) else { continue };
                for (member, text) in words.filter_map(|word| word.split_once('=')) {
                    if of.members.contains_key(member) {
                        of.kinds.insert(member.to_owned(), kind(side(text, is_64_bit), is_64_bit));
                    }
                }
                continue;
            }
            let name = words.next().expect("a structure");
            let of = self.structs.entry(name.to_owned()).or_default();
            for (member, text) in words.filter_map(|word| word.split_once('=')) {
                let text = side(text, is_64_bit);
                if member == "size" {
                    of.size = number(text);
                } else {
                    let (offset, what) = text.split_once(':').expect("OFFSET:KIND");
                    of.members.insert(member.to_owned(), number(offset));
                    of.kinds.insert(member.to_owned(), kind(what, is_64_bit));
                }
            }
        }
    }

    /// Adds a structure, or members to one, that the table does not have: `("_CMHIVE", 0x12f8, &[("Hive", 0, Kind::Struct("_HHIVE".into()))])`.
    pub fn add(&mut self, name: &str, size: u64, members: &[(&str, u64, Kind)]) {
        let of = self.structs.entry(name.to_owned()).or_default();
        if size != 0 {
            of.size = size;
        }
        for (member, offset, kind) in members {
            of.members.insert((*member).to_owned(), *offset);
            of.kinds.insert((*member).to_owned(), kind.clone());
        }
    }

    /// The types of a Volatility 3 symbol file.
    pub fn from_isf(isf: &Value) -> Self {
        let mut layout = Self::default();
        for (name, of) in isf["user_types"].as_object().into_iter().flatten() {
            let members = of["fields"].as_object().into_iter().flatten();
            let members = members.filter_map(|(member, field)| Some((member.clone(), field["offset"].as_u64()?))).collect();
            let size = of["size"].as_u64().unwrap_or(0);
            layout.structs.insert(name.clone(), Struct { size, members, kinds: BTreeMap::new() });
        }
        layout
    }

    /// Takes the structures that are missing here from another build.
    pub fn borrow_missing(&mut self, neighbour: &Self) {
        for (name, of) in &neighbour.structs {
            if !self.structs.contains_key(name) {
                self.structs.insert(name.clone(), of.clone());
                self.borrowed.push(name.clone());
            }
        }
    }

    /// The offset of a member, `None` if this build has none such.
    pub fn offset(&self, of: &str, member: &str) -> Option<u64> {
        self.structs.get(of)?.members.get(member).copied()
    }

    /// The offset of the first of these members that the build has.
    pub fn offset_of_any(&self, of: &str, members: &[&str]) -> Option<u64> {
        members.iter().find_map(|member| self.offset(of, member))
    }

    /// The bytes of a structure: the table's, or as many as its last known member needs.
    pub fn size(&self, of: &str) -> u64 {
        let Some(of) = self.structs.get(of) else { return 0 };
        if of.size != 0 { of.size } else { of.members.values().max().map_or(0, |last| (last + 0x100).next_multiple_of(16)) }
    }

    /// The bytes of a member; 1 if that is not known.
    pub fn kind_size(&self, kind: &Kind, is_64_bit: bool) -> u64 {
        match kind {
            Kind::Any => 1,
            Kind::Unsigned(size) | Kind::Signed(size) => *size,
            Kind::Pointer => {
                if is_64_bit {
                    8
                } else {
                    4
                }
            }
            Kind::Bits { width, .. } => width.div_ceil(8).next_power_of_two(),
            Kind::Struct(name) => self.size(name).max(1),
            Kind::Array(of, count) => self.kind_size(of, is_64_bit) * count,
        }
    }
}
