//! Offsets of members of the core structures, built in: for guests of which no symbol file is at hand.
//!
//! The table ([`BuiltIn`]) has 65 kernels from Windows XP SP2 to 11 24H2, each with the few hundred members that the readers of this crate use. `offsets.txt` is the
//! table, `generate.py` makes it and names the sources, `members.txt` says what the members are.
//!
//! # What identifies a kernel
//!
//! Its program database does, exactly ([`BuiltIn::for_pdb`]); the table knows those of 18 kernels. A build number does not: updates of one
//! build move members at the end of structures (14393 moved `_EPROCESS.ExitTime` from 0x688 to 0x690; 7601 `_ETHREAD.Cid` from 0x3b0 to 0x3b8). So
//! [`BuiltIn::for_build`] gives all kernels of the build. Whoever has the guest's memory drops those that do not fit it ([`BuildMatch::retain`]), and
//! [`BuildMatch::agreed`] holds the members on which the remaining ones agree: a member that is left out disables what needs it, a wrong one would
//! make it lie.

mod build_match;
mod common;
mod table;
#[cfg(test)]
mod tests;
mod types;

pub use build_match::{BuildMatch, Disagreement};

use crate::PdbIdentity;
use table::Entry;
pub(crate) use table::Places;
use types::Types;

/// The structures of a kernel in the built-in table, or those on which several kernels agree.
///
/// A structure whose size the table does not have is known up to the start of its last member: its size is a lower bound then. Members whose type
/// differs between releases have type `void`, size 0.
#[derive(Clone, Debug)]
pub struct BuiltIn {
    names: Vec<&'static str>,
    build: u32,
    revision: Option<u32>,
    sources: Vec<&'static str>,
    pdb: Option<PdbIdentity>,
    symbols: Vec<(&'static str, u64)>,
    types: Types,
}

impl BuiltIn {
    /// The names of all kernels in the table: `win7_sp1_x64`, `isf_x64_10.0.19041.804`.
    pub fn names() -> impl Iterator<Item = &'static str> {
        table::entries().map(|entry| entry.name)
    }

    /// The kernel of this name in the table.
    pub fn named(name: &str) -> Option<Self> {
        table::entries().find(|entry| entry.name == name).map(Self::new)
    }

    /// The kernel that was built with this program database: its structures exactly, and some of its symbols.
    pub fn for_pdb(identity: &PdbIdentity) -> Option<Self> {
        table::entries().find(|entry| entry.identifies(identity)).map(Self::new)
    }

    /// The kernels of this build (`NtBuildNumber`, low 16 bits); `None` if the table has none of that width.
    pub fn for_build(build: u32, is_64_bit: bool) -> Option<BuildMatch> {
        BuildMatch::new(build, is_64_bit)
    }

    fn new(entry: Entry) -> Self {
        Self {
            names: vec![entry.name],
            build: entry.build,
            revision: entry.revision,
            sources: vec![entry.source],
            pdb: entry.pdb.and_then(|(name, key)| PdbIdentity::from_key(name, key)),
            symbols: entry.symbols().collect(),
            types: Types::new(entry.is_64_bit, entry.build, entry.structures()),
        }
    }

    /// The name of the kernel in the table; of several kernels, the first one's.
    pub fn name(&self) -> &'static str {
        self.names.first().copied().unwrap_or_default()
    }

    /// The build number: 7601, 19041.
    pub fn build(&self) -> u32 {
        self.build
    }

    /// The servicing level where the source names it: 804 of 10.0.19041.804.
    pub fn revision(&self) -> Option<u32> {
        self.revision
    }

    /// Whether the kernel is a 64-bit one.
    pub fn is_64_bit(&self) -> bool {
        self.types.pointer_size == 8
    }

    /// Where the numbers come from.
    pub fn sources(&self) -> &[&'static str] {
        &self.sources
    }

    /// The program database of exactly this kernel, if the table knows it.
    pub fn pdb(&self) -> Option<&PdbIdentity> {
        self.pdb.as_ref()
    }

    /// Symbols of exactly this kernel, as offsets from the start of its image. They hold only for the kernel with [`BuiltIn::pdb`]; there are none without.
    pub fn symbols(&self) -> &[(&'static str, u64)] {
        &self.symbols
    }
}
