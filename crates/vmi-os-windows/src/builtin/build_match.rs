//! The kernels of a build number, which does not identify one.

use rustc_hash::FxHashMap;

use super::table::{self, Entry};
use super::{BuiltIn, Places, Types};

/// Builds that are an update package for another one's kernel: 20H2 to 22H2 of Windows 10 run the kernel of 2004, 1909 that of 1903, 23H2 of Windows 11 that of 22H2
/// (Microsoft's release notes: "enablement package").
const SAME_KERNEL: [(u32, u32); 6] =
    [(18363, 18362), (19042, 19041), (19043, 19041), (19044, 19041), (19045, 19041), (22631, 22621)];

/// The kernels of one build number: which of them the guest's is, or whether it is one of them at all, the number does not tell.
#[derive(Debug)]
pub struct BuildMatch {
    build: u32,
    entries: Vec<Entry>,
}

/// A member that has different places in kernels of one build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// The structure.
    pub structure: &'static str,
    /// The member; empty for the size of the structure.
    pub member: &'static str,
    /// Its offset in each kernel; `None` where it does not exist.
    pub offsets: Vec<(&'static str, Option<u64>)>,
}

impl BuildMatch {
    pub(super) fn new(build: u32, is_64_bit: bool) -> Option<Self> {
        let same = SAME_KERNEL.iter().find(|(other, _)| *other == build).map_or(build, |(_, same)| *same);
        let entries: Vec<_> = table::entries().filter(|entry| entry.build == same && entry.is_64_bit == is_64_bit).collect();
        if entries.is_empty() { None } else { Some(Self { build, entries }) }
    }

    /// The kernels, each on its own: oldest first as far as their servicing level is known.
    pub fn candidates(&self) -> impl Iterator<Item = BuiltIn> {
        self.entries.iter().copied().map(BuiltIn::new)
    }

    /// Keeps those candidates that fit the guest. If none does, all stay and `false` is returned: the guest's kernel is then one that
    /// the table does not have.
    pub fn retain(&mut self, mut fits: impl FnMut(&BuiltIn) -> bool) -> bool {
        let kept: Vec<_> = self.entries.iter().copied().filter(|entry| fits(&BuiltIn::new(*entry))).collect();
        let any = !kept.is_empty();
        if any {
            self.entries = kept;
        }
        any
    }

    /// The members on which all candidates agree, as one description.
    ///
    /// A member that one of them places elsewhere or does not have is left out. A structure that only some describe is taken from
    /// those; its size is the smallest.
    pub fn agreed(&self) -> BuiltIn {
        let mut structures: FxHashMap<&'static str, Places> = FxHashMap::default();
        for entry in &self.entries {
            for (name, places) in entry.structures() {
                structures.entry(name).and_modify(|agreed| agree(agreed, &places)).or_insert(places);
            }
        }
        let first = self.entries.first();
        let (is_64_bit, build) = first.map_or((true, self.build), |entry| (entry.is_64_bit, entry.build));
        BuiltIn {
            names: self.entries.iter().map(|entry| entry.name).collect(),
            build,
            revision: None,
            sources: self.entries.iter().map(|entry| entry.source).collect(),
            pdb: None,
            symbols: Vec::new(),
            types: Types::new(is_64_bit, build, structures),
        }
    }

    /// The members on which the candidates do not agree.
    pub fn disagreements(&self) -> Vec<Disagreement> {
        let all: Vec<_> = self.entries.iter().map(|entry| (entry.name, entry.structures())).collect();
        let mut keys: Vec<(&'static str, &'static str)> = Vec::new();
        for (structure, places) in all.iter().flat_map(|(_, structures)| structures) {
            keys.push((structure, ""));
            keys.extend(places.members.iter().map(|(member, _)| (*structure, *member)));
        }
        keys.sort_unstable();
        keys.dedup();
        let disagreement = |(structure, member): (&'static str, &'static str)| {
            let described = all.iter().filter_map(|(name, structures)| Some((*name, structures.get(structure)?)));
            let offset = |places: &Places| match member {
                "" => places.size,
                _ => places.members.iter().find(|(other, _)| *other == member).map(|(_, offset)| *offset),
            };
            let offsets: Vec<_> = described.map(|(name, places)| (name, offset(places))).collect();
            let differ = offsets.iter().zip(offsets.iter().skip(1)).any(|((_, one), (_, next))| one != next);
            differ.then_some(Disagreement { structure, member, offsets })
        };
        keys.into_iter().filter_map(disagreement).collect()
    }

    /// What a user must know of types that were chosen by a build number.
    pub fn remarks(&self) -> Vec<String> {
        let names: Vec<_> = self.entries.iter().map(|entry| entry.name).collect();
        let mut remarks = vec![format!(
            "structures are those of build {} in the built-in table ({}): updates of a build move members, a symbol file of the very kernel would be exact",
            self.build,
            names.join(", "),
        )];
        let left_out: Vec<_> = self
            .disagreements()
            .iter()
            .filter(|it| !it.member.is_empty())
            .map(|it| format!("{}.{}", it.structure, it.member))
            .collect();
        if !left_out.is_empty() {
            remarks.push(format!("left out, as they differ between updates of the build: {}", left_out.join(", ")));
        }
        remarks
    }
}

fn agree(agreed: &mut Places, other: &Places) {
    agreed.members.retain(|member| other.members.contains(member));
    agreed.size = match (agreed.size, other.size) {
        (Some(one), Some(two)) => Some(one.min(two)),
        (one, two) => one.or(two),
    };
}
