//! Reads the output of `cargo test -- --show-output`.

use crate::report::{Counts, before};
use crate::step::Output;

/// Lines of a failed test's output that are kept, the last ones.
const LINES: usize = 60;

/// Counts tests from the lines of libtest's output.
///
/// A test that lacks something prints a line `skipped: why`. Libtest calls it passed all the same; here each
/// such line counts as skipped, and a test with such a line does not count as passed.
#[derive(Debug, Default)]
pub(crate) struct TestOutput {
    counts: Counts,
    /// Inside the section of a passed test that has not printed `skipped:` yet.
    unskipped: bool,
    /// Between `successes:` and the result line.
    successes: bool,
    /// Tests libtest counts as passed that were skipped, of the binary at hand.
    not_passed: usize,
    /// The lines of the failed test whose section this is.
    failed: Vec<String>,
    failures: Vec<String>,
}

impl Output for TestOutput {
    fn line(&mut self, line: &str) {
        let begins = line.starts_with("---- ") && line.ends_with(" stdout ----");
        if begins || line == "failures:" || line.starts_with("test result: ") {
            self.end_of_section();
        }
        if (begins && !self.successes) || !self.failed.is_empty() {
            self.failed.push(line.to_owned());
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            let count = |word| before(result, word).unwrap_or(0);
            self.counts.add(Counts {
                passed: count(" passed").saturating_sub(self.not_passed),
                failed: count(" failed"),
                skipped: count(" ignored"),
            });
            (self.successes, self.unskipped, self.not_passed) = (false, false, 0);
        } else if line == "successes:" || line == "failures:" {
            self.successes = line == "successes:";
        } else if begins {
            self.unskipped = self.successes;
        } else if line.starts_with("skipped: ") {
            self.counts.add(Counts::skip());
            self.not_passed = self.not_passed.saturating_add(usize::from(self.unskipped));
            self.unskipped = false;
        }
    }

    /// The counts of all binaries so far.
    fn counts(&self) -> Counts {
        self.counts
    }

    fn failures(&self) -> &[String] {
        &self.failures
    }
}

impl TestOutput {
    fn end_of_section(&mut self) {
        let lines = std::mem::take(&mut self.failed);
        if let Some((first, rest)) = lines.split_first() {
            let rest = rest.get(rest.len().saturating_sub(LINES)..).unwrap_or_default();
            self.failures.push(format!("{first}\n{}", rest.join("\n")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let mut output = TestOutput::default();
        let text = "\
running 5 tests
test a ... ok

successes:

---- a stdout ----
skipped: no image x64-6.1
skipped: no image x64-6.12

---- b stdout ----
nothing to say

successes:
    a
    b

failures:

---- c stdout ----
skipped: half of it

test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s

running 1 test
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        text.lines().for_each(|line| output.line(line));
        assert_eq!(output.counts(), Counts { passed: 3, failed: 1, skipped: 4 });
        assert_eq!(output.failures(), ["---- c stdout ----\nskipped: half of it\n"]);
    }
}
