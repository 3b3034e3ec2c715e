//! Fuzz targets: one for every parser of bytes that a guest or a file controls.
//!
//! A target takes any bytes and must return: no panic, no long run, no large allocation. `cargo run -p vmi-fuzz --release -- all` replays
//! and mutates the corpus on a stable toolchain. `fuzz/libfuzzer` has the same targets for cargo-fuzz, which follows coverage:
//!
//! ```sh
//! mkdir -p fuzz/libfuzzer/corpus/kallsyms # what it finds
//! cargo +nightly fuzz run -s none --fuzz-dir fuzz/libfuzzer kallsyms fuzz/libfuzzer/corpus/kallsyms fuzz/corpus/kallsyms
//! ```
//!
//! `fuzz/corpus.py` writes the seeds in `fuzz/corpus`. An input that made a target fail stays there too, once mended.

mod targets;

pub use targets::TARGETS;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name, also of its folder in the corpus.
    pub name: &'static str,
    /// What it feeds.
    pub about: &'static str,
    /// Runs it on an input. Tells whether the parser accepted that.
    pub run: fn(&[u8]) -> bool,
}

/// Runs the target of this name. Tells whether the parser accepted the input.
///
/// # Panics
/// If there is no such target, or if it found a defect.
pub fn run(name: &str, data: &[u8]) -> bool {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    (target.run)(data)
}
