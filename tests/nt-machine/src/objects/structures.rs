//! Where members of structures are, of all that the objects write: the build's own table first, then the facts in `structures.txt`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

/// Position of a member in bits: lowest bit, number of bits.
pub type Bits = (u32, u32);

/// A member of a structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Bytes from the start of the structure.
    pub offset: u64,
    /// The type as the table has it.
    pub kind: String,
    /// For a bit field, where its bits are.
    pub bits: Option<Bits>,
}

/// A structure or union.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Structure {
    /// Whether it is a union.
    pub union: bool,
    /// Bytes.
    pub size: u64,
    /// By name.
    pub members: BTreeMap<String, Member>,
}

/// The structures of one section of the table.
pub type Section = BTreeMap<String, Structure>;

const TABLE: &str = include_str!("structures.txt");

fn number(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("a hexadecimal number")
}

fn parse(table: &str) -> BTreeMap<String, Section> {
    let mut sections: BTreeMap<String, Section> = BTreeMap::new();
    let (mut section, mut structure) = (String::new(), String::new());
    for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(head) = line.strip_prefix('[') {
            let head = head.trim_end_matches(']');
            let (name, base) = head.split_once(" < ").unwrap_or((head, ""));
            let base = sections.get(base).cloned().unwrap_or_default();
            section = name.to_owned();
            sections.insert(section.clone(), base);
            continue;
        }
        let known = sections.get_mut(&section).expect("a section comes first");
        if let Some(member) = line.strip_prefix(' ') {
            let mut words = member.splitn(3, ' ');
            let (name, offset, kind) = (words.next(), words.next(), words.next().unwrap_or_default());
            let bits = kind.rsplit_once(':').map(|(_, bits)| {
                let (position, length) = bits.split_once('+').expect("position and length");
                (position.parse().expect("a position"), length.parse().expect("a length"))
            });
            let member = Member { offset: number(offset.expect("an offset")), kind: kind.to_owned(), bits };
            let of = known.get_mut(&structure).expect("a structure comes first");
            of.members.insert(name.expect("a name").to_owned(), member);
        } else {
            let words: Vec<&str> = line.rsplitn(3, ' ').collect();
            structure = words[2].to_owned();
            match words[1] {
                "none" => drop(known.remove(&structure)),
                kind => {
                    let new = Structure { union: kind == "union", size: number(words[0]), members: BTreeMap::new() };
                    known.insert(structure.clone(), new);
                }
            }
        }
    }
    sections
}

fn sections() -> &'static BTreeMap<String, Section> {
    static SECTIONS: OnceLock<BTreeMap<String, Section>> = OnceLock::new();
    SECTIONS.get_or_init(|| parse(TABLE))
}

/// The facts about a build: those of the newest section that is not newer.
pub fn section(is_64_bit: bool, build: u32) -> &'static Section {
    let width = if is_64_bit { "x64" } else { "x86" };
    let number = |name: &str| name.rsplit('.').next().and_then(|last| last.parse::<u32>().ok()).unwrap_or(0);
    let fitting = sections().iter().filter(|(name, _)| name.starts_with(width));
    let not_newer = fitting.clone().filter(|(name, _)| number(name) <= build).max_by_key(|(name, _)| number(name));
    not_newer
        .or_else(|| fitting.min_by_key(|(name, _)| number(name)))
        .map(|(_, section)| section)
        .expect("the table has both widths")
}

/// Whether the table has a section of this very build.
pub fn is_exact(is_64_bit: bool, build: u32) -> bool {
    let (start, end) = (if is_64_bit { "x64" } else { "x86" }, format!(".{build}"));
    sections().keys().any(|name| name.starts_with(start) && name.ends_with(&end))
}

/// Adds what the table knows of a build to the types of a symbol file, in Volatility 3's format. What is there already stays, unless the table is of the very
/// same build and says more.
pub(crate) fn add_to_symbol_file(types: &mut Map<String, Value>, is_64_bit: bool, build: u32) {
    let section = section(is_64_bit, build);
    let exact = is_exact(is_64_bit, build);
    for (name, structure) in section.iter().filter(|(name, _)| exact || !types.contains_key(*name)).collect::<Vec<_>>() {
        let kind = if structure.union { "union" } else { "struct" };
        let known = types.entry(name.clone()).or_insert_with(|| json!({"kind": kind, "size": structure.size, "fields": {}}));
        let Some(fields) = known["fields"].as_object_mut() else { continue };
        for (member, facts) in &structure.members {
            let vague = |field: &Value| field["offset"] == json!(facts.offset) && field["type"]["name"] == "unsigned char";
            if fields.get(member).is_none_or(vague) {
                fields.insert(member.clone(), json!({"offset": facts.offset, "type": symbol_file_type(section, &facts.kind)}));
            }
        }
    }
}

fn symbol_file_type(section: &Section, kind: &str) -> Value {
    if let Some((holder, bits)) = kind.rsplit_once(':') {
        let (position, length) = bits.split_once('+').expect("position and length");
        let number = |text: &str| text.parse::<u64>().expect("a number");
        let holder = symbol_file_type(section, holder);
        return json!({"kind": "bitfield", "bit_position": number(position), "bit_length": number(length), "type": holder});
    }
    if let Some(target) = kind.strip_prefix('*') {
        return json!({"kind": "pointer", "subtype": symbol_file_type(section, target)});
    }
    if let Some((count, of)) = kind.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let count: u64 = count.parse().expect("a count");
        return json!({"kind": "array", "count": count, "subtype": symbol_file_type(section, of)});
    }
    match section.get(kind) {
        Some(structure) if structure.union => json!({"kind": "union", "name": kind}),
        Some(_) => json!({"kind": "struct", "name": kind}),
        None if kind == "function" => json!({"kind": "function"}),
        None if kind.starts_with('_') => json!({"kind": "struct", "name": kind}),
        None => json!({"kind": "base", "name": kind}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_with_its_inheritance() {
        let old = section(true, 14393);
        let new = section(true, 19041);
        assert_eq!(old["_MMVAD_FLAGS"].members["Protection"].bits, Some((3, 5)));
        assert_eq!(new["_MMVAD_FLAGS"].members["Protection"].bits, Some((7, 5)));
        assert_eq!(new["_OBJECT_DIRECTORY_ENTRY"], old["_OBJECT_DIRECTORY_ENTRY"]);
        assert_eq!(section(false, 2600)["_MMVAD_FLAGS"].members["ImageMap"].bits, Some((20, 1)));
        assert!(!section(false, 2600).contains_key("_MM_AVL_TABLE"));
        assert_eq!(section(true, 26100)["_EX_FAST_REF"].size, 8);
    }
}
