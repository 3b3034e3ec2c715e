//! The reader's own memory stays below 200 MiB, whatever the size of the image: the kernel refuses it more.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use builder::kdump::{Dump, PAGE, Packing, page};
use nix::sys::resource::{Resource, setrlimit};
use vmi_core::{Memory, PhysAddr, Vmi};
use vmi_driver_file::ImageDriver;

/// The machine of all images here.
const MEMORY: u64 = 64 << 30;
/// What the reader may take: heap, caches and stacks (`RLIMIT_DATA` counts all private memory that can be written).
const BOUND: u64 = 200 << 20;
/// Names the image for [`reading_within_the_bound`].
const IMAGE: &str = "VMI_BOUNDED_IMAGE";

/// Memory of zeros with something in its last page.
fn raw(path: &Path) {
    let mut file = File::create(path).unwrap();
    file.set_len(MEMORY).unwrap();
    file.seek(SeekFrom::End(-8)).unwrap();
    file.write_all(b"the end!").unwrap();
}

/// The worst that a map of memory can be: every second page is missing.
fn kdump(path: &Path) {
    let pages = MEMORY / PAGE as u64;
    // Headers as of a small dump, with the number of pages of the large one.
    let head = Dump { max_page: pages, ..Dump::new([]) }.bytes();
    let bitmap = vec![0x55u8; pages as usize / 8];
    let packed = builder::kdump::pack(&page(7), Packing::Zstd);
    let table_at = 2 * PAGE + 2 * bitmap.len();
    let data_at = table_at + pages as usize / 2 * 24;
    let descriptor = [&(data_at as u64).to_le_bytes()[..], &(packed.len() as u32).to_le_bytes(), &0x20u32.to_le_bytes(), &[0; 8]];
    let descriptors = descriptor.concat().repeat(1 << 16);
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(&head[..2 * PAGE + bitmap.len()]).unwrap();
    file.write_all(&bitmap).unwrap();
    (0..pages >> 17).for_each(|_| file.write_all(&descriptors).unwrap());
    file.write_all(&packed).unwrap();
    file.into_inner().unwrap();
}

/// Frames of 1 MiB that tell their size.
fn zstd(path: &Path) {
    let frame = zstd::bulk::compress(&vec![0; 1 << 20], 1).unwrap();
    std::fs::write(path, frame.repeat((MEMORY >> 20) as usize)).unwrap();
}

#[test]
fn whatever_the_size() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    for (name, write) in [("raw", raw as fn(&Path)), ("kdump, every second page missing", kdump), ("zstd", zstd)] {
        write(&image);
        let test = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "reading_within_the_bound", "--ignored", "--nocapture"])
            .env(IMAGE, &image)
            .env("RAYON_NUM_THREADS", "4")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&test.stdout);
        assert!(test.status.success(), "{name}: {said}{}", String::from_utf8_lossy(&test.stderr));
        print!(
            "{}",
            said.lines().filter(|line| line.starts_with("    ")).map(|line| format!("{name}:{line}\n")).collect::<String>()
        );
    }
}

/// What [`whatever_the_size`] runs in a process of its own.
#[test]
#[ignore = "run by the test `whatever_the_size`"]
fn reading_within_the_bound() {
    setrlimit(Resource::RLIMIT_DATA, BOUND, BOUND).unwrap();
    let image = std::env::var_os(IMAGE).unwrap();
    let vmi = Vmi::new(ImageDriver::open(image).unwrap());
    let regions = vmi.machine().memory.regions();
    // All over the machine, then one after another, in as many threads as want to.
    let mut buf = vec![0; 1 << 20];
    for number in 0..2000usize {
        let region = regions[number * 7919 * 104_729 % regions.len()];
        let offset = ((number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % region.len()) & !0xfff;
        vmi.read_into(region.start().checked_add(offset).unwrap(), &mut buf[..PAGE]).unwrap();
    }
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let vmi = &vmi;
            scope.spawn(move || {
                let mut buf = vec![0; 1 << 20];
                for step in 0..200u64 {
                    _ = vmi.read_lossy(PhysAddr::new((thread << 34) + (step << 20)), &mut buf).unwrap();
                }
            });
        }
    });
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let data = status.lines().find(|line| line.starts_with("RssAnon")).unwrap_or_default();
    println!("    {} regions, {}", regions.len(), data.split_whitespace().collect::<Vec<_>>().join(" "));
}
