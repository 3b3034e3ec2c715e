//! What inference has found out so far, and what it has not.

use vmi_core::VirtAddr;

use super::sample::Doubt;
use super::types::{InferredTypes, Kind};

/// Collects members and symbols, and a sentence for each that was looked for in vain.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) types: InferredTypes,
    pub(super) symbols: Vec<(String, VirtAddr)>,
    /// `structure.member` and why it was not accepted.
    missing: Vec<String>,
    remarks: Vec<String>,
}

impl Findings {
    /// Nothing yet but the structures that are the same in every kernel.
    pub(super) fn new(width: usize) -> Self {
        let mut findings =
            Self { types: InferredTypes::new(width as u64), symbols: Vec::new(), missing: Vec::new(), remarks: Vec::new() };
        findings.add("list_head", "next", 0, Kind::Pointer);
        findings.add("list_head", "prev", width, Kind::Pointer);
        findings
    }

    /// A member that is known.
    pub(super) fn add(&mut self, structure: &'static str, member: &'static str, offset: usize, kind: Kind) {
        self.types.add(structure, member, offset as u64, kind);
    }

    /// A member that was looked for; its offset, if it was found.
    pub(super) fn record(
        &mut self,
        structure: &'static str,
        member: &'static str,
        found: Result<usize, Doubt>,
        kind: Kind,
    ) -> Option<usize> {
        match found {
            Ok(offset) => {
                self.add(structure, member, offset, kind);
                Some(offset)
            }
            Err(doubt) => {
                self.missing(structure, member, doubt);
                None
            }
        }
    }

    /// A member that was looked for in vain.
    pub(super) fn missing(&mut self, structure: &str, member: &str, doubt: Doubt) {
        self.missing.push(format!("{structure}.{member} ({doubt})"));
    }

    /// A symbol that is known.
    pub(super) fn symbol(&mut self, name: &str, at: VirtAddr) {
        self.symbols.push((name.to_owned(), at));
    }

    /// A sentence for the user.
    pub(super) fn remark(&mut self, sentence: &str) {
        self.remarks.push(sentence.to_owned());
    }

    /// All that the user should know, one sentence each.
    pub(super) fn remarks(&self, tasks: usize) -> Vec<String> {
        let how = format!(
            "the kernel does not describe itself: its tasks were found by content, its structures inferred by shape from {tasks} tasks"
        );
        let missing = (!self.missing.is_empty()).then(|| format!("not inferred: {}", self.missing.join(", ")));
        core::iter::once(how).chain(self.remarks.iter().cloned()).chain(missing).collect()
    }
}
