//! Runs the fuzz targets on a stable toolchain: replays the corpus, then mutates it.
//!
//! For coverage-guided fuzzing by libFuzzer see `fuzz/libfuzzer`.

mod campaign;
mod mutate;

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use clap::Parser;
use nix::sys::resource::{Resource, setrlimit};
use vmi_fuzz::TARGETS;

/// Bytes of memory that this process may take for each target that runs, mapped files aside. An allocation beyond ends it.
const MEMORY: u64 = 512 << 20;

/// Replays and mutates the corpus of a fuzz target.
#[derive(Parser)]
#[command(after_help = "Examples:
  vmi-fuzz all --seconds 5            every target for five seconds
  vmi-fuzz all --seconds 5 --jobs 4   the same, four of them at a time
  vmi-fuzz kallsyms --seconds 3600    one target for an hour
  vmi-fuzz elf --input crash.bin      one input, to see it fail

An input that makes a target panic, take more than 10 seconds or take more than 512 MiB of memory is kept in fuzz/artifacts/TARGET: under a
name of its own if it panics, else as `current`.")]
struct Arguments {
    /// A target, or `all`; without one the targets are listed.
    target: Option<String>,
    /// Seconds of mutation for each target, after the corpus.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Targets that run at the same time.
    #[arg(long, default_value = "1")]
    jobs: NonZero<u16>,
    /// Seed of the mutations; the same seed gives the same inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs this input only.
    #[arg(long)]
    input: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Some(name) = arguments.target else {
        TARGETS.iter().for_each(|target| println!("{:<16} {}", target.name, target.about));
        return ExitCode::SUCCESS;
    };
    let chosen: Vec<_> = TARGETS.iter().filter(|target| name == "all" || target.name == name).collect();
    if chosen.is_empty() {
        eprintln!("no fuzz target `{name}`; run without arguments for a list");
        return ExitCode::from(2);
    }
    let jobs = usize::from(arguments.jobs.get()).min(chosen.len());
    let memory = MEMORY.saturating_mul(jobs as u64);
    if let Err(error) = setrlimit(Resource::RLIMIT_DATA, memory, memory) {
        eprintln!("memory cannot be limited: {error}");
        return ExitCode::from(2);
    }
    if let Some(input) = arguments.input {
        let bytes = match std::fs::read(&input) {
            Ok(bytes) => bytes,
            Err(error) => {
                eprintln!("{}: {error}", input.display());
                return ExitCode::from(2);
            }
        };
        for target in chosen {
            println!("{:<16} {}", target.name, if (target.run)(&bytes) { "accepted" } else { "refused" });
        }
        return ExitCode::SUCCESS;
    }
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        while let Some(target) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            match campaign::run(target, &corpus.join(target.name), Duration::from_secs(arguments.seconds), arguments.seed) {
                Ok(done) => println!("{:<16} {done}", target.name),
                Err(error) => {
                    eprintln!("{:<16} FAILED: {error}", target.name);
                    failed.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| (0..jobs).for_each(|_| drop(scope.spawn(work))));
    if failed.into_inner() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
