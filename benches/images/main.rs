//! Images of all kinds against raw ones and against the bare codec, on one guest, in one run: `cargo bench -p vmi-bench --bench images`.
//!
//! `VMI_BENCH_IMAGE` names a raw image as for the other benchmarks. From it, images of the other formats are written beside each other into `VMI_BENCH_DIR`, by default
//! the directory for temporary files; they need about three times its size.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, missing_docs)]

mod cold;
#[path = "../side_by_side/image.rs"]
mod image;
#[path = "../../crates/vmi-driver-file/tests/builder/qemu.rs"]
mod qemu;
#[path = "../side_by_side/random.rs"]
mod random;
#[path = "../side_by_side/table.rs"]
#[allow(dead_code)]
mod table;
#[path = "../side_by_side/timing.rs"]
#[allow(dead_code)]
mod timing;
#[path = "../live/wall.rs"]
#[allow(dead_code)]
mod wall;

use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;
use table::Table;
use timing::{Contender, measure};
use vmi::AnyDriver;
use vmi::file::{Format, write};
use vmi::prelude::*;

const PAGE: usize = 4096;

fn main() {
    let image = image::open(image::Rest::Copies);
    let directory = std::env::var_os("VMI_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(directory).unwrap();
    let raw = vmi::open(image.path.as_path()).unwrap();
    println!("image: {}, {} MiB", image.path.display(), raw.machine().memory.total() >> 20);
    println!("figures of the table: median CPU time of {} rounds; the ratio is to the limit", timing::ROUNDS);

    let mut table = Table::new();
    let elf = directory.path().join("elf");
    write::image(&raw, &elf, Format::Elf, |_, _| ()).unwrap();
    mapped(&mut table, "ELF", &raw, &elf);
    fs::remove_file(&elf).unwrap();
    let stream = directory.path().join("mapped-ram");
    write_sparse(&stream, &mapped_ram(&raw));
    mapped(&mut table, "QEMU mapped-ram", &raw, &stream);
    fs::remove_file(&stream).unwrap();

    for (name, packing) in [("kdump-zstd", write::PagePacking::Zstd), ("kdump-zlib", write::PagePacking::Zlib)] {
        let path = directory.path().join(name);
        write::Options::new().packing(packing).image(&raw, &path, Format::Kdump, |_, _| ()).unwrap();
        if packing == write::PagePacking::Zstd {
            let pages = Packed::new(&raw);
            random(&mut table, &path, &pages);
            sequential(&raw, &path, &pages);
        }
    }
    let path = directory.path().join("avml");
    write::image(&raw, &path, Format::Avml, |_, _| ()).unwrap();
    fs::copy(&image.path, directory.path().join("raw")).unwrap();
    cold::process_lists(directory.path(), &["raw", "kdump-zstd", "kdump-zlib", "avml"]);
    table.print();
}

/// A stream of QEMU with memory at fixed places, of the same memory.
fn mapped_ram(raw: &Vmi<AnyDriver>) -> Vec<u8> {
    let len = raw.machine().memory.end().get();
    let pages = (0..len / PAGE as u64).map(|page| {
        let mut content = vec![0; PAGE];
        raw.read_lossy(PhysAddr::new(page * PAGE as u64), &mut content).unwrap();
        ("pc.ram", page * PAGE as u64, content.iter().any(|&byte| byte != 0).then_some(content))
    });
    qemu::Stream::new("pc-i440fx-7.2", vec![("pc.ram", len)], vec![pages.collect()]).mapped(0)
}

/// As QEMU does, without pages of zeros.
fn write_sparse(path: &Path, bytes: &[u8]) {
    let file = File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (index, page) in bytes.chunks(PAGE).enumerate().filter(|(_, page)| page.iter().any(|&byte| byte != 0)) {
        file.write_all_at(page, (index * PAGE) as u64).unwrap();
    }
}

/// Random reads of what is mapped, against the raw image; both through the library.
fn mapped(table: &mut Table, what: &str, raw: &Vmi<AnyDriver>, path: &Path) {
    let other = vmi::open(path).unwrap();
    // Below 640 KiB lies the BIOS's hole on some machines; what both have is compared.
    let below = raw.machine().memory.end().get().min(other.machine().memory.regions().last().unwrap().end().get());
    let there = |&at: &u64| other.read::<u64>(PhysAddr::new(at)).is_ok() && raw.read::<u64>(PhysAddr::new(at)).is_ok();
    let addresses: Vec<u64> = random::addresses(1 << 17, 0..below, 8).into_iter().filter(there).collect();
    let sum = |vmi: &Vmi<AnyDriver>| {
        addresses.iter().fold(0u64, |sum, &at| sum.wrapping_add(vmi.read::<u64>(PhysAddr::new(at)).unwrap()))
    };
    assert_eq!(sum(raw), sum(&other));
    let row = measure(&mut [
        Contender::new("ours", 1, || sum(&other)).each(addresses.len()),
        Contender::new("limit", 1, || sum(raw)).each(addresses.len()),
    ]);
    table.row(&format!("{what}: 8-byte read, random"), "raw image", &row);
}

/// All pages, each packed by itself as in a kdump: those of zeros are empty, those that zstd does not make smaller as they are.
struct Packed(Vec<(u64, Vec<u8>)>);

impl Packed {
    fn new(raw: &Vmi<AnyDriver>) -> Self {
        let regions = raw.machine().memory.regions();
        let pages = regions.iter().flat_map(|region| (region.start().get()..region.end().get()).step_by(PAGE));
        let pages: Vec<u64> = pages.collect();
        let pack = |&at: &u64| {
            let bytes = raw.read_vec(PhysAddr::new(at), PAGE).unwrap();
            let packed = zstd::bulk::compress(&bytes, 1).unwrap();
            match bytes.iter().all(|&byte| byte == 0) {
                true => (at, Vec::new()),
                false if packed.len() < PAGE => (at, packed),
                false => (at, bytes),
            }
        };
        Self(pages.par_iter().map(pack).collect())
    }

    /// Those that must be unpacked.
    fn packed(&self) -> Vec<&(u64, Vec<u8>)> {
        self.0.iter().filter(|(_, bytes)| !bytes.is_empty() && bytes.len() < PAGE).collect()
    }
}

fn random(table: &mut Table, path: &Path, pages: &Packed) {
    let vmi = vmi::open(path).unwrap();
    let pages = pages.packed();
    // More pages than the page cache has, and none twice in a row of its size.
    let order: Vec<usize> = random::addresses(1 << 14, 0..pages.len() as u64, 1).into_iter().map(|at| at as usize).collect();
    let (mut ours, mut bare) = (vec![0u8; PAGE], vec![0u8; PAGE]);
    let mut unpack = zstd::bulk::Decompressor::new().unwrap();
    let row = measure(&mut [
        Contender::new("ours", 1, || {
            for &index in &order {
                vmi.read_into(PhysAddr::new(pages[index].0), &mut ours).unwrap();
                black_box(&ours);
            }
            0
        })
        .each(order.len()),
        Contender::new("limit", 1, || {
            for &index in &order {
                unpack.decompress_to_buffer(&pages[index].1, &mut bare[..]).unwrap();
                black_box(&bare);
            }
            0
        })
        .each(order.len()),
    ]);
    println!("{} pages are packed; {} of them are read in random order", pages.len(), order.len());
    table.row("kdump-zstd: random page", "bare zstd", &row);
}

/// All memory in the order of addresses, on all processors.
fn sequential(raw: &Vmi<AnyDriver>, path: &Path, pages: &Packed) {
    const CHUNK: usize = 16 << 20;
    let bytes = raw.machine().memory.total();
    let ours = |chunk: usize| {
        let mut buf = vec![0u8; chunk];
        move || {
            // A fresh handle: nothing is cached.
            let vmi = vmi::open(path).unwrap();
            let began = Instant::now();
            for region in raw.machine().memory.regions() {
                let mut at = region.start();
                while at < region.end() {
                    let len = chunk.min((region.end().get() - at.get()) as usize);
                    vmi.read_into(at, &mut buf[..len]).unwrap();
                    at = at.checked_add(len as u64).unwrap();
                }
            }
            began.elapsed()
        }
    };
    let (mut ours, mut by_page) = (ours(CHUNK), ours(PAGE));
    let mut all = vec![0u8; CHUNK];
    let mut bare = || {
        let began = Instant::now();
        for chunk in pages.0.chunks(CHUNK / PAGE) {
            all.par_chunks_mut(PAGE).zip(chunk).for_each_init(
                || zstd::bulk::Decompressor::new().unwrap(),
                |unpack, (page, (_, packed))| match packed.len() {
                    0 => page.fill(0),
                    PAGE => page.copy_from_slice(packed),
                    _ => assert_eq!(unpack.decompress_to_buffer(packed, page).unwrap(), PAGE),
                },
            );
            black_box(&all);
        }
        began.elapsed()
    };
    wall::rates(
        &format!("kdump-zstd: {} MiB in order, by {} MiB", bytes >> 20, CHUNK >> 20),
        7,
        bytes,
        &mut [("bare zstd, on all processors", &mut bare), ("ours", &mut ours), ("ours, page by page", &mut by_page)],
    );
}
