//! Runs commands one after another and keeps their results.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::report::Counts;

/// The workspace's root directory.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// A command that runs in the workspace's root.
pub(crate) fn command(program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    command
}

/// `cargo`, the one that runs this program.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), arguments)
}

/// Reads the output of a command that says how much passed.
pub(crate) trait Output: Default {
    /// Take one line of it.
    fn line(&mut self, line: &str);

    /// What it has said so far.
    fn counts(&self) -> Counts;

    /// What it said of each failure, to be said once more at the end of everything.
    fn failures(&self) -> &[String] {
        &[]
    }
}

/// The last line that has the form of [`Counts`] counts.
impl Output for Counts {
    fn line(&mut self, line: &str) {
        *self = Self::parse(line).unwrap_or(*self);
    }

    fn counts(&self) -> Counts {
        *self
    }
}

/// The last lines that a command has printed.
#[derive(Debug, Default)]
struct Tail(VecDeque<String>);

impl Tail {
    const LINES: usize = 40;

    fn line(&mut self, line: &str) {
        if self.0.len() == Self::LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    /// What is said once more of the step `name`, which failed; `None` if it printed nothing but errors.
    fn of(&self, name: &str) -> Option<String> {
        let lines: Vec<_> = self.0.iter().map(String::as_str).collect();
        (!lines.is_empty()).then(|| format!("---- {name}, its last lines ----\n{}", lines.join("\n")))
    }
}

/// A step that was taken.
#[derive(Debug)]
struct Done {
    name: String,
    took: Duration,
    /// Time of processors that its processes used, as far as they were waited for.
    processors: Duration,
    counts: Counts,
}

/// The steps of a task: what each one found, and how long it took.
#[derive(Debug)]
pub(crate) struct Steps {
    began: Instant,
    done: Vec<Done>,
    failures: Vec<String>,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), done: Vec::new(), failures: Vec::new() }
    }

    /// Run a command as one check, which passes if the command does.
    pub(crate) fn run(&mut self, name: &str, command: &mut Command) -> bool {
        let mut tail = Tail::default();
        let passed = self.step(name, command, |command| Counts::one(lines(command, |line| tail.line(line)).unwrap_or(false)));
        self.failures.extend((!passed).then(|| tail.of(name)).flatten());
        passed
    }

    /// Run a command whose output says how much passed.
    pub(crate) fn run_counted<O: Output>(&mut self, name: &str, command: &mut Command) -> bool {
        let (mut output, mut tail) = (O::default(), Tail::default());
        let passed = self.step(name, command, |command| {
            let both = |line: &str| {
                output.line(line);
                tail.line(line);
            };
            let success = lines(command, both).unwrap_or(false);
            let mut found = output.counts();
            if !success && found.failed == 0 {
                found.failed = 1; // it did not come as far as counting
            }
            found
        });
        if !passed && output.failures().is_empty() {
            self.failures.extend(tail.of(name));
        }
        self.failures.extend(output.failures().iter().cloned());
        passed
    }

    /// Note a check that could not be made here.
    pub(crate) fn skip(&mut self, name: &str, why: &str) {
        println!("\nskipped: {name}: {why}");
        self.done.push(Done { name: name.into(), took: Duration::ZERO, processors: Duration::ZERO, counts: Counts::skip() });
    }

    /// Note a check that failed before it could be made.
    pub(crate) fn fail(&mut self, name: &str, why: &str) {
        println!("\nFAILED: {name}: {why}");
        self.failures.push(format!("{name}: {why}"));
        self.done.push(Done { name: name.into(), took: Duration::ZERO, processors: Duration::ZERO, counts: Counts::one(false) });
    }

    fn step(&mut self, name: &str, command: &mut Command, run: impl FnOnce(&mut Command) -> Counts) -> bool {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        println!("\n==> {name}: {program} {} (after {})", words.join(" "), seconds(self.began.elapsed()));
        let (began, used) = (Instant::now(), processor_time());
        let counts = run(command);
        let (took, processors) = (began.elapsed(), processor_time().saturating_sub(used));
        self.done.push(Done { name: name.into(), took, processors, counts });
        counts.failed == 0
    }

    /// Print once more what failed, then what each step found, the sum, and the steps where something failed; true if nothing did.
    pub(crate) fn summary(&self) -> bool {
        let mut sum = Counts::default();
        self.failures.iter().for_each(|failure| println!("\n{}", failure.trim_end()));
        println!();
        for Done { name, took, processors, counts } in &self.done {
            println!("{name:<16} {:>8} {:>8} of processors  {counts}", seconds(*took), seconds(*processors));
            sum.add(*counts);
        }
        println!("{:<16} {:>8}", "all", seconds(self.began.elapsed()));
        println!("\n{sum}");
        let failed: Vec<_> = self.done.iter().filter(|done| done.counts.failed > 0).map(|done| done.name.as_str()).collect();
        if !failed.is_empty() {
            println!("FAILED: {}", failed.join(", "));
        }
        failed.is_empty()
    }
}

/// Run a command, pass its standard output on and show each line of it; true if the command succeeded.
fn lines(command: &mut Command, mut each: impl FnMut(&str)) -> std::io::Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    if let Some(output) = child.stdout.take() {
        let mut out = std::io::stdout().lock();
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            out.write_all(&line)?;
            out.write_all(b"\n")?;
            each(&String::from_utf8_lossy(&line));
        }
    }
    Ok(child.wait()?.success())
}

/// Time of processors that ended children of this program have used: fields 16 and 17 of `/proc/self/stat`, in hundredths of a second.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program, in parentheses, may have spaces.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let hundredths: u64 = fields.skip(13).take(2).filter_map(|field| field.parse::<u64>().ok()).fold(0, u64::saturating_add);
    Duration::from_millis(hundredths.saturating_mul(10))
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_said_again() {
        let mut steps = Steps::new();
        assert!(steps.run("good", &mut command("seq", &["3"])));
        assert!(!steps.run("bad", &mut command("sh", &["-c", "seq 100; exit 1"])));
        assert!(!steps.run("silent", &mut command("false", &[])));
        assert!(!steps.run_counted::<Counts>("counted", &mut command("echo", &["3 passed, 1 failed, 0 skipped"])));
        let last: Vec<_> = (61..=100).map(|number| number.to_string()).collect();
        let expected = [
            format!("---- bad, its last lines ----\n{}", last.join("\n")),
            "---- counted, its last lines ----\n3 passed, 1 failed, 0 skipped".to_owned(),
        ];
        assert_eq!(steps.failures, expected);
        assert!(!steps.summary());
    }
}
