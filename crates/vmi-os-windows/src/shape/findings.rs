//! What inference has found out so far, and what it has not.

use core::fmt;

use rustc_hash::FxHashMap;

use crate::builtin::Places;

/// Why a member could not be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// No place in the object looks like it.
    None,
    /// So many places do.
    Several(usize),
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("nothing looks like it"),
            Self::Several(count) => write!(f, "{count} places look like it"),
        }
    }
}

/// The one of `places`, or why there is none.
pub(super) fn only(mut places: impl Iterator<Item = usize>) -> Result<usize, Doubt> {
    let first = places.next().ok_or(Doubt::None)?;
    match places.count() {
        0 => Ok(first),
        more => Err(Doubt::Several(more.saturating_add(1))),
    }
}

/// Collects members, and a sentence for each that was looked for in vain.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) structures: FxHashMap<&'static str, Places>,
    /// `structure.member` and why it was not accepted.
    missing: Vec<String>,
    remarks: Vec<String>,
}

impl Findings {
    /// A member that is known.
    pub(super) fn add(&mut self, structure: &'static str, member: &'static str, offset: u64) {
        let places = self.structures.entry(structure).or_default();
        places.members.retain(|(other, _)| *other != member);
        places.members.push((member, offset));
    }

    /// The size of a structure.
    pub(super) fn size(&mut self, structure: &'static str, size: u64) {
        self.structures.entry(structure).or_default().size = Some(size);
    }

    /// Where a member is, if it is known.
    pub(super) fn find(&self, structure: &str, member: &str) -> Option<u64> {
        let members = &self.structures.get(structure)?.members;
        members.iter().find(|(other, _)| *other == member).map(|(_, offset)| *offset)
    }

    /// A member that was looked for; its offset, if it was found.
    pub(super) fn record(&mut self, structure: &'static str, member: &'static str, found: Result<usize, Doubt>) -> Option<usize> {
        match found {
            Ok(offset) => self.add(structure, member, offset as u64),
            Err(doubt) => self.missing.push(format!("{structure}.{member} ({doubt})")),
        }
        found.ok()
    }

    /// A sentence for the user.
    pub(super) fn remark(&mut self, sentence: String) {
        self.remarks.push(sentence);
    }

    /// All that the user should know, one sentence each.
    pub(super) fn remarks(&self, processes: usize) -> Vec<String> {
        let how = format!(
            "neither a symbol file nor the built-in table has this kernel: its structures were inferred by shape from {processes} processes"
        );
        let missing = |missing: &&String| {
            // What the debugger data told in the end is not missing.
            let name = missing.split(' ').next().and_then(|name| name.split_once('.'));
            name.is_none_or(|(structure, member)| self.find(structure, member).is_none())
        };
        let missing: Vec<_> = self.missing.iter().filter(missing).map(String::as_str).collect();
        let missing = (!missing.is_empty()).then(|| format!("not inferred: {}", missing.join(", ")));
        core::iter::once(how).chain(self.remarks.iter().cloned()).chain(missing).collect()
    }
}
