//! Images of all kinds against raw ones and against the bare codec, on one guest, in one run: `cargo bench -p vmi-bench --bench images`.
//!
//! `VMI_BENCH_IMAGE` names a raw image as for the other benchmarks. From it, images of the other formats are written beside each other into `VMI_BENCH_DIR`, by default
//! the directory for temporary files; they need about three times its size. Pages that zstd does not make smaller stand in a kdump as they are, and are left out of the rows
//! that are about unpacking.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, missing_docs)]

mod cold;
#[path = "../side_by_side/image.rs"]
mod image;
#[path = "../../crates/vmi-driver-file/tests/builder/qemu.rs"]
mod qemu;
#[path = "../side_by_side/table.rs"]
#[allow(dead_code)]
mod table;
#[path = "../side_by_side/timing.rs"]
#[allow(dead_code)]
mod timing;
#[path = "../live/wall.rs"]
#[allow(dead_code)]
mod wall;

use std::fs;
use std::hint::black_box;
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
    let image = image::open();
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
    fs::write(&stream, mapped_ram(&raw)).unwrap();
    mapped(&mut table, "QEMU mapped-ram", &raw, &stream);
    fs::remove_file(&stream).unwrap();

    for (name, packing) in [("kdump-zstd", write::PagePacking::Zstd), ("kdump-zlib", write::PagePacking::Zlib)] {
        let path = directory.path().join(name);
        write::Options::new().packing(packing).image(&raw, &path, Format::Kdump, |_, _| ()).unwrap();
        if packing == write::PagePacking::Zstd {
            let pages = Packed::new(&raw);
            random(&mut table, &path, &pages);
            sequential(&path, &pages);
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

fn random_addresses(count: usize, below: u64, alignment: u64) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % (below / alignment) * alignment
        })
        .collect()
}

/// Random reads of what is mapped, against the raw image; both through the library.
fn mapped(table: &mut Table, what: &str, raw: &Vmi<AnyDriver>, path: &Path) {
    let other = vmi::open(path).unwrap();
    // Below 640 KiB lies the BIOS's hole on some machines; what both have is compared.
    let below = raw.machine().memory.end().get().min(other.machine().memory.regions().last().unwrap().end().get());
    let there = |&at: &u64| other.read::<u64>(PhysAddr::new(at)).is_ok() && raw.read::<u64>(PhysAddr::new(at)).is_ok();
    let addresses: Vec<u64> = random_addresses(1 << 17, below, 8).into_iter().filter(there).collect();
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

/// Pages that zstd makes smaller, each packed by itself as in a kdump.
struct Packed(Vec<(u64, Vec<u8>)>);

impl Packed {
    fn new(raw: &Vmi<AnyDriver>) -> Self {
        let regions = raw.machine().memory.regions();
        let pages = regions.iter().flat_map(|region| (region.start().get()..region.end().get()).step_by(PAGE));
        let pages: Vec<u64> = pages.collect();
        let pack = |&at: &u64| {
            let bytes = raw.read_vec(PhysAddr::new(at), PAGE).ok()?;
            let packed = zstd::bulk::compress(&bytes, 1).unwrap();
            (packed.len() < PAGE && bytes.iter().any(|&byte| byte != 0)).then_some((at, packed))
        };
        Self(pages.par_iter().filter_map(pack).collect())
    }
}

fn random(table: &mut Table, path: &Path, pages: &Packed) {
    let vmi = vmi::open(path).unwrap();
    // More pages than the page cache has, and none twice in a row of its size.
    let order: Vec<usize> = random_addresses(1 << 14, pages.0.len() as u64, 1).into_iter().map(|at| at as usize).collect();
    let (mut ours, mut bare) = (vec![0u8; PAGE], vec![0u8; PAGE]);
    let mut unpack = zstd::bulk::Decompressor::new().unwrap();
    let row = measure(&mut [
        Contender::new("ours", 1, || {
            for &index in &order {
                vmi.read_into(PhysAddr::new(pages.0[index].0), &mut ours).unwrap();
                black_box(&ours);
            }
            0
        })
        .each(order.len()),
        Contender::new("limit", 1, || {
            for &index in &order {
                unpack.decompress_to_buffer(&pages.0[index].1, &mut bare[..]).unwrap();
                black_box(&bare);
            }
            0
        })
        .each(order.len()),
    ]);
    println!("{} pages are packed; {} of them are read in random order", pages.0.len(), order.len());
    table.row("kdump-zstd: random page", "bare zstd", &row);
}

/// All pages that are packed, in the order of addresses, on all processors.
fn sequential(path: &Path, pages: &Packed) {
    const CHUNK: usize = 16 << 20;
    let bytes = (pages.0.len() * PAGE) as u64;
    // Runs of packed pages, so that both do the same work.
    let mut runs: Vec<(u64, usize)> = Vec::new();
    for &(at, _) in &pages.0 {
        match runs.last_mut() {
            Some((start, len)) if *start + *len as u64 == at && *len < CHUNK => *len += PAGE,
            _ => runs.push((at, PAGE)),
        }
    }
    let mut buf = vec![0u8; CHUNK];
    let mut ours = || {
        // A fresh handle: nothing is cached.
        let vmi = vmi::open(path).unwrap();
        let began = Instant::now();
        for &(at, len) in &runs {
            vmi.read_into(PhysAddr::new(at), &mut buf[..len]).unwrap();
        }
        began.elapsed()
    };
    let mut bare = || {
        let began = Instant::now();
        pages.0.par_chunks(256).for_each(|chunk| {
            let (mut unpack, mut page) = (zstd::bulk::Decompressor::new().unwrap(), vec![0u8; PAGE]);
            for (_, packed) in chunk {
                unpack.decompress_to_buffer(packed, &mut page[..]).unwrap();
                black_box(&page);
            }
        });
        began.elapsed()
    };
    wall::rates(
        &format!("kdump-zstd: {} MiB of packed pages in order, in {} runs", bytes >> 20, runs.len()),
        7,
        bytes,
        &mut [("bare zstd, on all processors", &mut bare), ("ours", &mut ours)],
    );
}
