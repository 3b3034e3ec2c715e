//! The process list of an image of which nothing is in memory.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use vmi::linux::Linux;

/// Bytes that this process had the storage read, as far as the kernel counts that.
fn read_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("read_bytes: ")).unwrap();
    line.parse().unwrap()
}

/// Opens each image of `directory`, lists its processes, and prints what that took.
pub fn process_lists(directory: &Path, names: &[&str]) {
    println!("\nopen, attach and list processes, nothing of the image in memory:");
    for name in names {
        let path = directory.join(name);
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        let (before, began) = (read_bytes(), Instant::now());
        let vmi = vmi::open(path.as_path()).unwrap();
        let linux = Linux::attach(&vmi).unwrap();
        let tasks = linux.processes().map(|task| task.and_then(|task| task.name())).collect::<Result<Vec<_>, _>>().unwrap();
        let took = began.elapsed();
        println!(
            "  {name:<12} {:>7.1} MiB of {:>7.1} MiB read, {:>7.1} ms, {} processes",
            (read_bytes() - before) as f64 / f64::from(1 << 20),
            file.metadata().unwrap().len() as f64 / f64::from(1 << 20),
            took.as_secs_f64() * 1e3,
            tasks.len()
        );
    }
}
