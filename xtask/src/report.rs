//! Counts of what passed, failed and was skipped.

use std::fmt;

/// How many checks passed, failed and were skipped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Counts {
    /// One check that passed or failed.
    pub(crate) fn one(passed: bool) -> Self {
        Self { passed: usize::from(passed), failed: usize::from(!passed), skipped: 0 }
    }

    /// One check that could not be made here.
    pub(crate) fn skip() -> Self {
        Self { skipped: 1, ..Self::default() }
    }

    /// Add the counts of other checks.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed = self.passed.saturating_add(other.passed);
        self.failed = self.failed.saturating_add(other.failed);
        self.skipped = self.skipped.saturating_add(other.skipped);
    }

    /// The counts of a line as [`Counts`] is displayed, wherever in the line: `lab: 16 passed, 0 failed, 0 skipped`.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        Some(Self { passed: before(line, " passed")?, failed: before(line, " failed")?, skipped: before(line, " skipped")? })
    }
}

/// The number that stands before a word.
pub(crate) fn before(line: &str, word: &str) -> Option<usize> {
    line.split_once(word)?.0.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let counts = Counts { passed: 16, failed: 1, skipped: 203 };
        assert_eq!(Counts::parse(&format!("lab: {counts}")), Some(counts));
        assert_eq!(Counts::parse("16 images are there already"), None);
    }
}
