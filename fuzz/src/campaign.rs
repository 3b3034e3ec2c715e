//! One target for a while: the corpus, then mutations of it.

use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
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
    slowest: Duration,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replayed, mutated, slowest } = self;
        write!(f, "ok: {replayed} inputs replayed, {mutated} mutated, slowest {} ms", slowest.as_millis())
    }
}

/// Runs `target` on every file below `corpus` and then on mutations of them for `time`.
///
/// The error says where the failing input was kept.
pub fn run(target: &Target, corpus: &Path, time: Duration, seed: u64) -> Result<Done, String> {
    let mut inputs = read_corpus(corpus)?;
    if inputs.is_empty() {
        inputs.push(Vec::new());
    }
    let replayed = inputs.len();
    let watch = Watch::start(target);
    let mut slowest = Duration::ZERO;
    for input in &inputs {
        slowest = slowest.max(run_one(target, input, &watch)?);
    }
    let end = Instant::now() + time;
    let mut mutator = Mutator::new(seed);
    let mut mutated = 0;
    while Instant::now() < end {
        let input = mutator.mutate(&inputs);
        slowest = slowest.max(run_one(target, &input, &watch)?);
        mutated += 1;
    }
    Ok(Done { replayed, mutated, slowest })
}

fn read_corpus(corpus: &Path) -> Result<Vec<Vec<u8>>, String> {
    let entries = match fs::read_dir(corpus) {
        Ok(entries) => entries,
        Err(error) => return Err(format!("no corpus: {}: {error}", corpus.display())),
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()))).collect()
}

fn run_one(target: &Target, input: &[u8], watch: &Watch) -> Result<Duration, String> {
    let started = Instant::now();
    watch.begin(input);
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    watch.end();
    match outcome {
        Ok(()) => Ok(started.elapsed()),
        Err(_) => Err(format!("panic on {}", keep(target, input).display())),
    }
}

/// Writes a failing input where it can be found again.
fn keep(target: &Target, input: &[u8]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("artifacts").join(target.name);
    let path = directory.join(format!("{:016x}", hasher.finish()));
    if let Err(error) = fs::create_dir_all(&directory).and_then(|()| fs::write(&path, input)) {
        eprintln!("{}: {error}", path.display());
    }
    path
}

/// Ends the process if one input takes too long: a thread that never returns cannot be stopped otherwise.
struct Watch(Arc<Mutex<Option<(Instant, Vec<u8>)>>>);

impl Watch {
    fn start(target: &Target) -> Self {
        let current: Arc<Mutex<Option<(Instant, Vec<u8>)>>> = Arc::default();
        let (weak, target) = (Arc::downgrade(&current), *target);
        std::thread::spawn(move || {
            while let Some(current) = weak.upgrade() {
                if let Some((started, input)) = &*current.lock().unwrap_or_else(PoisonError::into_inner)
                    && started.elapsed() > SLOW
                {
                    eprintln!("{}: FAILED: more than {} s on {}", target.name, SLOW.as_secs(), keep(&target, input).display());
                    std::process::exit(1);
                }
                drop(current);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Self(current)
    }

    fn begin(&self, input: &[u8]) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), input.to_vec()));
    }

    fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
