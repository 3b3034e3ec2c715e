//! What all kernels of one width agree on.

use rustc_hash::FxHashMap;

use super::table::{self, Places};
use super::{BuiltIn, Types};

impl BuiltIn {
    /// The members that have the same place in all kernels of one width that the table has, from Windows XP to 11, and those of `more`.
    pub(crate) fn common(is_64_bit: bool, more: &FxHashMap<&'static str, Places>) -> Self {
        let mut structures: FxHashMap<&'static str, Places> = FxHashMap::default();
        for entry in table::entries().filter(|entry| entry.is_64_bit == is_64_bit) {
            for (name, places) in entry.structures() {
                structures.entry(name).and_modify(|agreed| agree(agreed, &places)).or_insert(places);
            }
        }
        for (name, places) in more {
            let all = structures.entry(name).or_default();
            all.size = places.size.or(all.size);
            all.members.retain(|(member, _)| !places.members.iter().any(|(other, _)| other == member));
            all.members.extend_from_slice(&places.members);
        }
        Self {
            names: Vec::new(),
            build: 0,
            revision: None,
            sources: Vec::new(),
            pdb: None,
            symbols: Vec::new(),
            types: Types::new(is_64_bit, 0, structures),
        }
    }
}

fn agree(agreed: &mut Places, other: &Places) {
    agreed.members.retain(|member| other.members.contains(member));
    // A size that differs is only known from below, by the last member.
    if agreed.size != other.size {
        agreed.size = None;
    }
}
