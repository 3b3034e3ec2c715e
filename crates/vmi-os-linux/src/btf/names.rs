//! Numbers of types by name.

use core::hash::Hasher;

use rustc_hash::FxHasher;

/// Numbers of types, sorted by a hash of their names; the names themselves stay in the BTF.
#[derive(Debug, Default)]
pub(crate) struct Names(Vec<(u32, u32)>);

impl Names {
    pub(crate) fn push(&mut self, name: &[u8], id: u32) {
        self.0.push((hash(name), id));
    }

    pub(crate) fn finish(&mut self) {
        self.0.sort_unstable();
    }

    /// The numbers of types that may have this name, ascending.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = u32> {
        let hash = hash(name.as_bytes());
        let first = self.0.partition_point(|&(other, _)| other < hash);
        let entries = self.0.get(first..).unwrap_or_default();
        entries.iter().take_while(move |&&(other, _)| other == hash).map(|&(_, id)| id)
    }

    /// All numbers, in no particular order.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|&(_, id)| id)
    }
}

fn hash(name: &[u8]) -> u32 {
    let mut hasher = FxHasher::default();
    hasher.write(name);
    (hasher.finish() >> 32) as u32
}
