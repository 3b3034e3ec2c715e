//! The process list of a Windows image of which nothing is known, by us, by peers, and the bare cost of the symbol file: `cargo bench -p vmi-bench --bench windows`.
//!
//! The image is a synthetic machine of 1 GiB, Windows 10 19041. With `VMI_SHARED_DATA`, a directory that holds `windows/isf`, it is described by Microsoft's symbols of that kernel
//! as a Volatility symbol file of full size; else by the small one of the machine. `VMI_PEER_PYTHON` names an interpreter beside whose `vol` volatility3 runs; without it that row is
//! skipped, and says so.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nt_machine::{Build, NtMachine, Options};
use vmi::windows::discover;
use vmi::windows::{SymbolCache, SymbolStore, Windows};

const ROUNDS: usize = 7;
/// The kernel whose symbol file fits the machine.
const REAL: &str = "windows/isf/5278AFF86C341677D7D7835C85B7B844-1.json.xz";

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let (image, symbols, file) = machine(directory.path());
    println!(
        "image: synthetic Windows 10 19041, {} MiB; symbol file: {} KiB",
        fs::metadata(&image).unwrap().len() >> 20,
        fs::metadata(&file).unwrap().len() >> 10
    );
    println!("figures: median CPU time, all threads, of {ROUNDS} rounds; open, attach and list the processes\n");

    let cache = directory.path().join("cache");
    let list = |store: SymbolStore| {
        let vmi = vmi::open(image.as_path()).unwrap();
        let options = discover::Options { store, ..discover::Options::default() };
        let windows = Windows::with_kernel(&vmi, discover::find_with(&vmi, &options).unwrap()).unwrap();
        let names: Vec<String> = windows.processes().map(|process| process.unwrap().name().unwrap()).collect();
        assert!(names.contains(&"System".to_owned()));
    };
    let store = || SymbolStore::parse("").with_directory(&symbols);
    row("ours, symbol file read for the first time", UsageWho::RUSAGE_SELF, || {
        let _ = fs::remove_dir_all(&cache);
        list(store().with_cache(SymbolCache::new(&cache)));
    });
    row("limit: that file unpacked and its JSON scanned", UsageWho::RUSAGE_SELF, || {
        let packed = fs::read(&file).unwrap();
        let mut text = Vec::new();
        match packed.starts_with(b"\xfd7zXZ") {
            true => _ = std::io::Read::read_to_end(&mut lzma_rust2::XzReader::new(&packed[..], false), &mut text).unwrap(),
            false => text = packed,
        }
        serde_json::from_slice::<serde::de::IgnoredAny>(&text).unwrap();
    });
    row("ours, symbol file read before", UsageWho::RUSAGE_SELF, || list(store().with_cache(SymbolCache::new(&cache))));
    row("limit: what is kept of it, read", UsageWho::RUSAGE_SELF, || {
        for kept in fs::read_dir(&cache).unwrap() {
            std::hint::black_box(fs::read(kept.unwrap().path()).unwrap());
        }
    });
    row("ours, no symbol file", UsageWho::RUSAGE_SELF, || list(SymbolStore::parse("")));

    let Some(python) = std::env::var_os("VMI_PEER_PYTHON") else {
        println!("volatility3 skipped: VMI_PEER_PYTHON names no interpreter");
        return;
    };
    let volatility = Path::new(&python).with_file_name("vol");
    row("volatility3 windows.pslist, its own cache warm", UsageWho::RUSAGE_CHILDREN, || {
        let mut command = Command::new(&volatility);
        command.args(["--offline", "-q", "-s"]).arg(&symbols).arg("-f").arg(&image).arg("windows.pslist");
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{command:?}");
    });
}

/// Writes the image and its symbols: the image, the directory with the symbol file, the file.
fn machine(directory: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let real = std::env::var_os("VMI_SHARED_DATA").map(|data| Path::new(&data).join(REAL)).filter(|path| path.exists());
    let mut build = Build::named("win10_x64_19041").unwrap();
    let packed = real.map(|path| fs::read(path).unwrap());
    if let Some(packed) = &packed {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut lzma_rust2::XzReader::new(&packed[..], false), &mut text).unwrap();
        build = build.with_isf(serde_json::from_slice(&text).unwrap());
    }
    let (machine, _) = NtMachine::typical_with(build, Options::default().with_memory(1 << 30));
    let truth = machine.truth();
    let symbols = directory.join("symbols");
    let place = symbols.join("windows").join(&truth.pdb.name);
    fs::create_dir_all(&place).unwrap();
    let name = format!("{}-{}.json", truth.pdb.guid, truth.pdb.age);
    let (file, bytes) = match packed {
        Some(packed) => (place.join(name + ".xz"), packed),
        None => (place.join(name), serde_json::to_vec(&machine.isf()).unwrap()),
    };
    fs::write(&file, bytes).unwrap();
    let image = directory.join("memory.raw");
    machine.write_raw(&image).unwrap();
    (image, symbols, file)
}

fn cpu(who: UsageWho) -> Duration {
    let usage = getrusage(who).unwrap();
    let time = |value: nix::sys::time::TimeVal| Duration::new(value.tv_sec() as u64, value.tv_usec() as u32 * 1000);
    time(usage.user_time()) + time(usage.system_time())
}

/// Prints the median CPU time of a work, after one round that does not count.
fn row(what: &str, who: UsageWho, mut work: impl FnMut()) {
    let mut times: Vec<Duration> = (0..=ROUNDS)
        .map(|_| {
            let before = cpu(who);
            work();
            cpu(who) - before
        })
        .skip(1)
        .collect();
    times.sort();
    println!("{what:<52} {:>8.1} ms", times[ROUNDS / 2].as_secs_f64() * 1e3);
}
