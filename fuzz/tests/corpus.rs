//! The corpus must not rot: what is meant to be read still is.

use std::fs;
use std::path::Path;

use vmi_fuzz::{TARGETS, run};

/// All seeds but those whose names begin with `bad-` are accepted; none makes a target fail.
#[test]
fn valid_seeds_are_accepted() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut refused = Vec::new();
    for target in TARGETS {
        let seeds = fs::read_dir(corpus.join(target.name)).unwrap_or_else(|error| panic!("corpus of {}: {error}", target.name));
        for seed in seeds.map(|seed| seed.unwrap().path()) {
            let accepted = run(target.name, &fs::read(&seed).unwrap());
            if !accepted && !seed.file_name().unwrap().to_string_lossy().starts_with("bad-") {
                refused.push(seed);
            }
        }
    }
    assert!(refused.is_empty(), "{refused:#?}");
}

/// A target for each folder, and an entry point for cargo-fuzz for each target.
#[test]
fn every_target_has_a_corpus_and_an_entry_point() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = |folder: &str| {
        let mut names: Vec<_> = fs::read_dir(fuzz.join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names.iter().map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let mut targets: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    targets.sort_unstable();
    assert_eq!(names("corpus"), targets);
    assert_eq!(names("libfuzzer/fuzz_targets"), targets);
}
