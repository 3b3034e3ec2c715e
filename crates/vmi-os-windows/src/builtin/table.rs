//! The text of the table: which kernels it has, and the structures of one.

use rustc_hash::FxHashMap;

use crate::PdbIdentity;

/// See the head of the file for its form, and `generate.py` for where it comes from.
const OFFSETS: &str = include_str!("offsets.txt");

const MEMBERS: &str = include_str!("members.txt");

/// `like` of `like` of ...: longer chains than this are not in the file.
const CHAIN: usize = 32;

/// A kernel that the table describes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) name: &'static str,
    pub(super) is_64_bit: bool,
    pub(super) build: u32,
    pub(super) revision: Option<u32>,
    /// Name and key of its program database, if exactly one kernel is meant.
    pub(super) pdb: Option<(&'static str, &'static str)>,
    like: Option<&'static str>,
    pub(super) source: &'static str,
    /// The lines up to the next kernel.
    body: &'static str,
}

/// Places of a structure's members as one line of the table has them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    pub(crate) size: Option<u64>,
    pub(crate) members: Vec<(&'static str, u64)>,
}

/// All kernels in the order of the file.
pub(super) fn entries() -> impl Iterator<Item = Entry> {
    OFFSETS.split("\n@").skip(1).filter_map(|text| {
        let (head, body) = text.split_once('\n')?;
        let (head, source) = head.split_once(" source=")?;
        let mut words = head.split(' ');
        let name = words.next()?;
        let value = |key: &str| words.clone().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        Some(Entry {
            name,
            is_64_bit: value("arch")? == "x64",
            build: value("build")?.parse().ok()?,
            revision: value("revision").and_then(|text| text.parse().ok()),
            pdb: value("pdb").and_then(|text| text.split_once('/')),
            like: value("like"),
            source,
            body,
        })
    })
}

impl Entry {
    pub(super) fn identifies(&self, identity: &PdbIdentity) -> bool {
        // The key alone identifies a build; names differ only by how the file was renamed (ntkrnlmp.pdb, ntoskrnl.pdb).
        self.pdb.is_some_and(|(_, key)| key == identity.key())
    }

    /// Its structures, those included that it has from the kernels it is like.
    pub(super) fn structures(&self) -> FxHashMap<&'static str, Places> {
        let all: Vec<Entry> = entries().collect();
        let mut chain = vec![*self];
        let mut like = self.like;
        while let Some(name) = like.take().filter(|_| chain.len() < CHAIN) {
            if let Some(entry) = all.iter().find(|entry| entry.name == name) {
                chain.push(*entry);
                like = entry.like;
            }
        }
        let mut structures = FxHashMap::default();
        for line in chain.iter().rev().flat_map(|entry| entry.body.lines()) {
            if let Some(gone) = line.strip_prefix("- ") {
                structures.remove(gone);
            } else if !line.starts_with('!')
                && let Some((name, members)) = line.split_once(' ')
            {
                structures.insert(name, places(members));
            }
        }
        structures
    }

    /// Symbols as offsets from the start of its image; none unless the kernel is exactly known.
    pub(super) fn symbols(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.body.lines().filter_map(|line| line.strip_prefix("! ")).flat_map(pairs)
    }
}

fn places(text: &'static str) -> Places {
    let mut places = Places::default();
    for (name, value) in pairs(text) {
        match name {
            "size" => places.size = Some(value),
            _ => places.members.push((name, value)),
        }
    }
    places
}

fn pairs(text: &'static str) -> impl Iterator<Item = (&'static str, u64)> {
    text.split(' ').filter_map(|word| word.split_once('=')).filter_map(|(name, value)| Some((name, number(value)?)))
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// What is said of the members' types: by structure and member the kind for this width.
pub(super) fn kinds(is_64_bit: bool) -> FxHashMap<(&'static str, &'static str), &'static str> {
    let lines = MEMBERS.lines().filter(|line| !line.starts_with(['#', '=']));
    let words = lines.filter_map(|line| line.split_once(' ')).flat_map(|(structure, members)| {
        members.split(' ').filter_map(|word| word.split_once('=')).map(move |(member, kind)| ((structure, member), kind))
    });
    words.map(|(key, kind)| (key, of_width(kind, is_64_bit))).collect()
}

/// A member of a structure that is the same in all releases.
pub(super) struct FixedMember {
    pub(super) name: &'static str,
    pub(super) offset: u64,
    pub(super) kind: &'static str,
}

/// The structures that are the same in all releases: name, size, members.
pub(super) fn fixed(is_64_bit: bool) -> impl Iterator<Item = (&'static str, u64, Vec<FixedMember>)> {
    MEMBERS.lines().filter_map(|line| line.strip_prefix("= ")).filter_map(move |line| {
        let mut words = line.split(' ');
        let name = words.next()?;
        let size = number(of_width(words.next()?.strip_prefix("size=")?, is_64_bit))?;
        let members = words.filter_map(|word| {
            let (name, place) = word.split_once('=')?;
            let (offset, kind) = of_width(place, is_64_bit).split_once(':')?;
            Some(FixedMember { name, offset: number(offset)?, kind })
        });
        Some((name, size, members.collect()))
    })
}

fn of_width(text: &'static str, is_64_bit: bool) -> &'static str {
    match text.split_once('|') {
        Some((narrow, wide)) => {
            if is_64_bit {
                wide
            } else {
                narrow
            }
        }
        None => text,
    }
}
