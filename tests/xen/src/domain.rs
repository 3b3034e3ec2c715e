//! A domain of the lab: commands to its process 1, and what the tool stack says of it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// How long a command inside may take unless it is said.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a domain may take to start: some seconds, or some tens on a busy machine.
const READY: Duration = Duration::from_secs(150);

/// Set for the process of one check.
pub(crate) const ONE: &str = "XEN_CHECKS_ONE";

/// The consoles of domains, by their names.
static TTY: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// A domain of the lab. Commands go to the shell that is its process 1 (tests/lab/xen/domu-init.sh), one after another.
#[derive(Clone, Debug)]
pub(crate) struct Domain {
    name: String,
}

/// A command inside the domain that runs while the check does something else.
#[derive(Debug)]
pub(crate) struct Running {
    domain: Domain,
    number: u64,
    /// Where in the log to look for it.
    from: u64,
    what: String,
}

impl Domain {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its number, which is another one after [`Domain::recreate`].
    pub(crate) fn id(&self) -> Result<u32> {
        xl(&["domid", &self.name])?.trim().parse().with_context(|| format!("the number of {}", self.name))
    }

    /// Executes a command inside and returns what it printed.
    ///
    /// # Errors
    /// If it fails, or takes longer than a minute.
    pub(crate) fn run(&self, command: &str) -> Result<String> {
        self.start(command)?.finish(PATIENCE)
    }

    /// Gives a command to the domain. Its output up to now can be read, and its end be waited for.
    pub(crate) fn start(&self, command: &str) -> Result<Running> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = u64::from(std::process::id()) * 10_000 + u64::from(COUNTER.fetch_add(1, Ordering::Relaxed));
        let from = std::fs::metadata(self.log_path())?.len();
        let tty = self.tty()?;
        ensure!(!command.contains('\n') && command.len() < 3000, "one line of at most 3000 bytes: {command}");
        let mut tty = OpenOptions::new().write(true).open(tty.trim()).with_context(|| format!("the console of {}", self.name))?;
        writeln!(tty, "{number} {command}")?;
        Ok(Running { domain: self.clone(), number, from, what: command.to_owned() })
    }

    /// Whether it runs and process 1 answers in that time.
    pub(crate) fn answers(&self, patience: Duration) -> Result<()> {
        self.start("true")?.finish(patience).map(drop)
    }

    /// Destroys it and makes it again, as it was configured. One that does not come up is made once more: an emulated processor loses its way now and then.
    pub(crate) fn recreate(&self) -> Result<()> {
        self.made().or_else(|error| {
            println!("{error:#}; it is made once more");
            self.made()
        })
    }

    /// Makes it, in place of the one that is there.
    fn made(&self) -> Result<()> {
        let _ = xl(&["destroy", &self.name]); // it may be gone already
        TTY.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
        let from = std::fs::metadata(self.log_path()).map_or(0, |log| log.len());
        xl(&["create", "-q", &format!("/etc/xen/{}.cfg", self.name)])?;
        let began = Instant::now();
        loop {
            let log = self.log_since(from)?;
            if log.contains("DOMU_READY") {
                return Ok(());
            }
            let last: Vec<_> = log.lines().rev().take(5).collect();
            ensure!(
                began.elapsed() < READY,
                "{} is not ready after {READY:?}; the last lines of its console: {last:?}",
                self.name
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Its console, which a check asks for once unless it makes the domain again itself.
    fn tty(&self) -> Result<String> {
        let mut known = TTY.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tty) = known.get(&self.name) {
            return Ok(tty.clone());
        }
        let tty = xenstore(&format!("/local/domain/{}/console/tty", self.id()?))?;
        if std::env::var_os(ONE).is_some() {
            known.insert(self.name.clone(), tty.clone());
        }
        Ok(tty)
    }

    fn log_path(&self) -> PathBuf {
        format!("/var/log/xen/console/guest-{}.log", self.name).into()
    }

    fn log_since(&self, from: u64) -> Result<String> {
        let mut file = File::open(self.log_path())?;
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
    }
}

impl Running {
    /// What it has printed until now.
    pub(crate) fn output(&self) -> Result<String> {
        Ok(self.state()?.0)
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> Result<bool> {
        Ok(self.state()?.1.is_some())
    }

    /// Waits for its end and returns what it printed.
    ///
    /// # Errors
    /// If its status is not 0, or it has not ended in that time.
    pub(crate) fn finish(self, patience: Duration) -> Result<String> {
        let began = Instant::now();
        loop {
            let (output, status) = self.state()?;
            match status.as_deref() {
                Some("0") => return Ok(output),
                Some(status) => bail!("{} in {}: status {status}: {output}", self.what, self.domain.name),
                None => {}
            }
            let waited = began.elapsed();
            ensure!(
                waited < patience,
                "{} in {}: no end after {:.1} s: {output}",
                self.what,
                self.domain.name,
                waited.as_secs_f64()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The output, and the status if it has ended.
    fn state(&self) -> Result<(String, Option<String>)> {
        let log = self.domain.log_since(self.from)?;
        let Some((_, rest)) = log.split_once(&format!("BEGIN {}\n", self.number)) else { return Ok((String::new(), None)) };
        Ok(match rest.split_once(&format!("END {} ", self.number)) {
            Some((output, end)) => (output.to_owned(), end.split_once('\n').map(|(status, _)| status.to_owned())),
            None => (rest.to_owned(), None),
        })
    }
}

/// Runs `xl` and returns what it printed.
pub(crate) fn xl(arguments: &[&str]) -> Result<String> {
    output("xl", arguments)
}

/// Reads a key of xenstore.
pub(crate) fn xenstore(key: &str) -> Result<String> {
    Ok(output("xenstore-read", &[key])?.trim_end().to_owned())
}

/// Runs a program of dom0 and returns what it printed.
///
/// # Errors
/// If it fails: with what it said.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}: {text}{errors}", arguments.join(" "), output.status);
    Ok(text)
}
