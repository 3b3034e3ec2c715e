//! What libvirt writes of a suspended domain: `virsh snapshot-create-as` into its qcow2 disk, `virsh save` and `virsh dump` in each packing, and
//! `virsh dump --memory-only` in each format.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use serde::Deserialize;

use crate::harness::{Server, ram_of};
use crate::truth::{Process, Truth, process, same_processes};

/// Packings of `save_image_format`. One without its program, or which this libvirt does not have, is said.
const PACKINGS: &[&str] = &["lzop", "gzip", "bzip2", "xz", "zstd"];

/// What `libvirt_host.py images` says.
#[derive(Debug, Deserialize)]
struct Served {
    images: Vec<Written>,
    memory: PathBuf,
    tree: String,
    registers: String,
    processes: String,
}

#[derive(Debug, Deserialize)]
struct Written {
    what: String,
    path: PathBuf,
    error: Option<String>,
}

#[test]
fn libvirt_images() {
    let (_server, served): (Server, Served) = match Server::start("libvirt_host.py", &[&["images"], PACKINGS].concat()) {
        Ok(started) => started,
        Err(skip) => return println!("{skip}"),
    };
    let all = std::fs::read(&served.memory).unwrap();
    let part = |start: u64, len: u64| all[start as usize..][..len as usize].to_vec();
    let memory = ram_of(&served.tree).into_iter().map(|range| (range.start, part(range.start, range.length))).collect();
    let truth = Truth { memory, registers: served.registers };
    let told: BTreeSet<Process> = served.processes.lines().filter_map(process).collect();
    for image in &served.images {
        if let Some(why) = &image.error {
            println!("skipped: libvirt, {}: {why}", image.what);
            continue;
        }
        let began = Instant::now();
        let listed = truth.check(&image.path, &image.what, true);
        same_processes(&told, &listed);
        let bytes = image.path.metadata().unwrap().len();
        println!("  {}: {bytes} bytes, checked in {:.2} s", image.what, began.elapsed().as_secs_f64());
    }
}
