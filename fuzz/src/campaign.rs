//! One target for a while: the corpus, then mutations of it.

use std::fmt;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmi_fuzz::Target;

use crate::mutate::Mutator;

/// An input that takes longer counts as a failure: nothing that a guest controls may hold its reader up.
const SLOW: Duration = Duration::from_secs(10);

/// What a campaign did.
pub struct Done {
    replayed: usize,
    mutated: u64,
    accepted: u64,
    slowest: Duration,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replayed, mutated, accepted, slowest } = self;
        let slowest = slowest.as_millis();
        write!(f, "ok: {replayed} inputs replayed, {mutated} mutated ({accepted} accepted), slowest {slowest} ms")
    }
}

/// Runs `target` on every file below `corpus` and then on mutations of them for `time`.
///
/// The error says where the failing input was kept.
pub fn run(target: &Target, corpus: &Path, time: Duration, seed: u64) -> Result<Done, String> {
    let inputs = read_corpus(corpus).map_err(|error| format!("the corpus {}: {error}", corpus.display()))?;
    let runner = Runner::new(target).map_err(|error| format!("the current input cannot be kept: {error}"))?;
    let mut done = Done { replayed: inputs.len(), mutated: 0, accepted: 0, slowest: Duration::ZERO };
    for input in &inputs {
        done.slowest = done.slowest.max(runner.run(input)?.1);
    }
    let end = Instant::now() + time;
    let mut mutator = Mutator::new(seed);
    while Instant::now() < end {
        let (accepted, took) = runner.run(&mutator.mutate(&inputs))?;
        done.mutated += 1;
        done.accepted += u64::from(accepted);
        done.slowest = done.slowest.max(took);
    }
    runner.finish();
    Ok(done)
}

fn read_corpus(corpus: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut paths = fs::read_dir(corpus)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    paths.iter().map(fs::read).collect()
}

/// Runs one input after the other, and ends the process if one takes too long: a thread that never returns cannot be stopped otherwise.
struct Runner<'t> {
    target: &'t Target,
    /// Holds the input that runs now, for the case that the process ends with it.
    current: File,
    path: PathBuf,
    started: Arc<Mutex<Option<Instant>>>,
}

impl<'t> Runner<'t> {
    fn new(target: &'t Target) -> io::Result<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("artifacts").join(target.name);
        fs::create_dir_all(&directory)?;
        let path = directory.join("current");
        let current = File::create(&path)?;
        let started = Arc::default();
        watch(target.name, &started, path.clone());
        Ok(Self { target, current, path, started })
    }

    /// Whether the input was accepted, and how long it took.
    fn run(&self, input: &[u8]) -> Result<(bool, Duration), String> {
        let keep = self.current.set_len(input.len() as u64).and_then(|()| self.current.write_all_at(input, 0));
        keep.map_err(|error| format!("{}: {error}", self.path.display()))?;
        let started = Instant::now();
        self.set(Some(started));
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.target.run)(input)));
        self.set(None);
        match outcome {
            Ok(accepted) => Ok((accepted, started.elapsed())),
            Err(_) => Err(format!("panic on {}", keep_as(&self.path, input).display())),
        }
    }

    fn set(&self, started: Option<Instant>) {
        *self.started.lock().unwrap_or_else(PoisonError::into_inner) = started;
    }

    fn finish(self) {
        // What is left of an earlier failure stays.
        let _ = fs::remove_file(&self.path);
        let _ = self.path.parent().map(fs::remove_dir);
    }
}

/// Writes a failing input beside `current`, where it can be found again.
fn keep_as(current: &Path, input: &[u8]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let path = current.with_file_name(format!("{:016x}", hasher.finish()));
    if let Err(error) = fs::write(&path, input) {
        eprintln!("{}: {error}", path.display());
    }
    path
}

fn watch(name: &'static str, started: &Arc<Mutex<Option<Instant>>>, path: PathBuf) {
    let started = Arc::downgrade(started);
    std::thread::spawn(move || {
        while let Some(started) = started.upgrade() {
            let begun = *started.lock().unwrap_or_else(PoisonError::into_inner);
            if begun.is_some_and(|begun| begun.elapsed() > SLOW) {
                eprintln!("{name:<16} FAILED: more than {} s on {}", SLOW.as_secs(), path.display());
                std::process::exit(1);
            }
            drop(started);
            std::thread::sleep(Duration::from_millis(200));
        }
    });
}
