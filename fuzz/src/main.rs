//! Runs the fuzz targets on a stable toolchain: replays the corpus, then mutates it.
//!
//! For coverage-guided fuzzing by libFuzzer see `fuzz/libfuzzer`.

mod campaign;
mod mutate;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nix::sys::resource::{Resource, setrlimit};
use vmi_fuzz::TARGETS;

/// Bytes of memory that this process may take in all, mapped files aside. An allocation beyond ends it.
const MEMORY: u64 = 512 << 20;

/// Replays and mutates the corpus of a fuzz target.
#[derive(Parser)]
#[command(after_help = "Examples:
  vmi-fuzz all --seconds 5            every target for five seconds
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
    if let Err(error) = setrlimit(Resource::RLIMIT_DATA, MEMORY, MEMORY) {
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
    let mut failed = false;
    for target in chosen {
        match campaign::run(target, &corpus.join(target.name), Duration::from_secs(arguments.seconds), arguments.seed) {
            Ok(done) => println!("{:<16} {done}", target.name),
            Err(error) => {
                eprintln!("{:<16} FAILED: {error}", target.name);
                failed = true;
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
