//! A guest's inside: the shell of its process 1, and the process that tests drive.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::shell::Shell;

/// How long a guest may take for a line of the shell.
const PATIENCE: Duration = Duration::from_secs(30);

/// The process `actor` in the guest (`tests/lab/actor.c`), and its page.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Actor {
    pub(crate) pid: u32,
    /// Where the page is for the process: three words of 8 bytes (ticks, inbox, ordered), then
    /// words that are their own address xor 0x5a5a5a5a5a5a5a5a.
    pub(crate) page: u64,
    /// Where it is in guest-physical memory; it does not move.
    pub(crate) physical: u64,
}

/// What the actor saw at its last tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// One more every 5 ms.
    pub(crate) ticks: u64,
    /// What is in the inbox.
    pub(crate) inbox: u64,
    /// How many ordered writes it made.
    pub(crate) ordered: u64,
    /// The guest's monotonic clock.
    pub(crate) clock: Duration,
}

/// A process as the guest's /proc shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Of a kernel worker, /proc shows also what it works on.
    pub(crate) name: String,
    pub(crate) parent: u32,
    pub(crate) kernel: bool,
}

/// How to reach it, as the lab says it.
#[derive(Debug, Deserialize)]
pub(crate) struct Reach {
    cmd: PathBuf,
    actor: Actor,
}

/// The inside of a guest that runs.
#[derive(Debug)]
pub(crate) struct Inside {
    shell: Mutex<Shell>,
    actor: Actor,
}

impl Inside {
    pub(crate) fn new(reach: &Reach) -> Self {
        Self { shell: Mutex::new(Shell::connect(&reach.cmd)), actor: reach.actor }
    }

    /// The guest's process that tests drive.
    pub(crate) fn actor(&self) -> Actor {
        self.actor
    }

    /// What process 1 prints when it runs a line of shell.
    ///
    /// # Panics
    /// If the guest does not answer.
    pub(crate) fn sh(&self, line: &str) -> String {
        self.sh_within(line, PATIENCE).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// As [`Self::sh`], with its own time limit, and an error where the guest does not answer.
    pub(crate) fn sh_within(&self, line: &str, patience: Duration) -> std::io::Result<String> {
        self.shell.lock().unwrap_or_else(PoisonError::into_inner).run(line, patience)
    }

    /// The processes of the guest's /proc, by process id. Process 1 lists them without a fork, so that listing changes nothing.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let lines = self.sh(r#"for f in /proc/[0-9]*/stat; do read -r l < $f && echo "$l"; done"#);
        let process = |line: &str| {
            let (pid, rest) = line.split_once(" (")?;
            let (name, rest) = rest.rsplit_once(") ")?;
            let mut fields = rest.split(' ');
            let (pid, name) = (pid.parse().ok()?, name.to_owned());
            let parent = fields.nth(1)?.parse().ok()?;
            let kernel = fields.nth(4)?.parse::<u32>().ok()? & 0x20_0000 != 0;
            Some(Process { pid, name, parent, kernel })
        };
        // A kernel worker may have ended since: the shell says so.
        let mut processes: Vec<_> = lines.lines().filter_map(process).collect();
        processes.sort_by_key(|process| process.pid);
        processes
    }

    /// What the actor saw at its last tick.
    pub(crate) fn report(&self) -> Report {
        let text = self.sh("actor report");
        let number = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{text}"))
        };
        let clock = Duration::from_nanos(number("clock"));
        Report { ticks: number("ticks"), inbox: number("inbox"), ordered: number("ordered"), clock }
    }

    /// Waits until the actor has seen that. It looks every 5 ms of the guest's time, and a guest may get little of the host's.
    ///
    /// # Panics
    /// If it never sees it.
    pub(crate) fn wait_for_report(&self, seen: impl Fn(&Report) -> bool) {
        let began = Instant::now();
        while let report = self.report()
            && !seen(&report)
        {
            assert!(began.elapsed() < PATIENCE, "{report:?}");
        }
    }
}
