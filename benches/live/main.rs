//! Running guests: ours and the bare limit, on one guest, in one run: `cargo bench -p vmi-bench --bench live`.
//!
//! It starts QEMU under TCG with a gibibyte of RAM, once shared and once private, and needs about 4 GiB of memory. `VMI_QEMU` names another
//! QEMU than the one in the path. Then it boots Linux in a guest of the same size, if the lab's kernel is there (`cargo xtask lab`). Figures of
//! the table are CPU time as in the benchmark of images; all others are wall time.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, missing_docs)]

mod dump;
mod gdb;
mod guest;
#[path = "../side_by_side/limit.rs"]
#[allow(dead_code)]
mod limit;
mod linux;
#[path = "../side_by_side/random.rs"]
mod random;
mod stand_still;
#[path = "../side_by_side/table.rs"]
#[allow(dead_code)]
mod table;
#[path = "../side_by_side/timing.rs"]
#[allow(dead_code)]
mod timing;
mod wall;

use std::hint::black_box;
use std::io::IoSliceMut;

use guest::{FREE, Guest, SIZE};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use table::Table;
use timing::{Contender, measure};
use vmi::kvm::QemuDriver;
use vmi::prelude::*;
use vmi::{AnyDriver, ReadOp};

fn main() {
    let Some(guest) = Guest::start(true) else {
        println!("skipped: no qemu-system-x86_64, and VMI_QEMU names none");
        return;
    };
    let load = || std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load of this host at the start: {}", load().trim());
    println!("figures of the table at the end: median CPU time of {} rounds; the ratio is to the limit", timing::ROUNDS);
    let mut table = Table::new();
    {
        let live = guest.open();
        guest.fill(&live);
        let copy = guest.directory().join("image.raw");
        std::fs::copy(guest.file(), &copy).unwrap();
        let image = vmi::open(copy.as_path()).unwrap();
        mapped(&mut table, &live, &image);
        copied(&mut table, "shared RAM", &live, &limit::MappedImage::open(&guest.file()));
        drop(image);
        std::fs::remove_file(copy).unwrap();
        dump::run("shared RAM", &live, guest.directory());
        stand_still::run("shared RAM", &live);
    }
    drop(guest);

    let guest = Guest::start(false).unwrap();
    let live = guest.open();
    guest.fill(&live);
    process(&mut table, &live, guest.pid(), guest.host());
    dump::run("process memory", &live, guest.directory());
    stand_still::run("process memory", &live);
    drop(live);
    gdb::run(&guest);
    drop(guest);

    for (memory, what) in [("memfd", "shared RAM"), ("private", "process memory")] {
        linux::run(memory, what);
    }
    table.print();
    println!("\nload of this host at the end: {}", load().trim());
}

/// Mapped RAM of a running guest against the same bytes in an image file, both through the library.
fn mapped(table: &mut Table, live: &Vmi<QemuDriver>, image: &Vmi<AnyDriver>) {
    let at = FREE.start + 0x40;
    let row = measure(&mut [
        Contender::new("ours", 4096, || u64::from(live.read::<u32>(PhysAddr::new(black_box(at))).unwrap())),
        Contender::new("limit", 4096, || u64::from(image.read::<u32>(PhysAddr::new(black_box(at))).unwrap())),
    ]);
    table.row("live mapped RAM: 4-byte read, hot", "image file", &row);

    let addresses = random::addresses(1 << 17, FREE, 8);
    let row = measure(&mut [
        Contender::new("ours", 1, || {
            addresses.iter().fold(0u64, |sum, &at| sum.wrapping_add(live.read(PhysAddr::new(at)).unwrap()))
        })
        .each(addresses.len()),
        Contender::new("limit", 1, || {
            addresses.iter().fold(0u64, |sum, &at| sum.wrapping_add(image.read(PhysAddr::new(at)).unwrap()))
        })
        .each(addresses.len()),
    ]);
    table.row("live mapped RAM: 8-byte read, random", "image file", &row);

    let (mut ours, mut bare) = (vec![0u8; 7500], vec![0u8; 7500]);
    let row = measure(&mut [
        Contender::new("ours", 1024, || {
            live.read_into(PhysAddr::new(black_box(at)), &mut ours).unwrap();
            u64::from(black_box(&ours)[0])
        }),
        Contender::new("limit", 1024, || {
            image.read_into(PhysAddr::new(black_box(at)), &mut bare).unwrap();
            u64::from(black_box(&bare)[0])
        }),
    ]);
    table.row("live mapped RAM: 1 read of 7500 bytes", "image file", &row);
}

/// All of the guest's free RAM, a mebibyte at a time, against `memcpy`.
fn copied(table: &mut Table, what: &str, live: &Vmi<QemuDriver>, mapped: &limit::MappedImage) {
    const CHUNK: usize = 1 << 20;
    assert_eq!(mapped.len() as u64, SIZE);
    let (mut ours, mut bare) = (vec![0u8; CHUNK], vec![0u8; CHUNK]);
    let row = measure(&mut [
        Contender::new("ours", 1, || {
            for at in FREE.step_by(CHUNK) {
                live.read_into(PhysAddr::new(at), &mut ours).unwrap();
            }
            u64::from(ours[0])
        })
        .bytes(FREE.end - FREE.start),
        Contender::new("limit", 1, || {
            for at in FREE.step_by(CHUNK) {
                mapped.copy(at, &mut bare);
            }
            u64::from(bare[0])
        })
        .bytes(FREE.end - FREE.start),
    ]);
    table.row(&format!("{what}: dump"), "memcpy", &row);
}

/// The road of `process_vm_readv` against that system call by itself.
fn process(table: &mut Table, live: &Vmi<QemuDriver>, pid: u32, host: u64) {
    let pid = Pid::from_raw(pid.cast_signed());
    let bare = |at: u64, buf: &mut [u8]| {
        let remote = [RemoteIoVec { base: (host + at) as usize, len: buf.len() }];
        assert_eq!(process_vm_readv(pid, &mut [IoSliceMut::new(buf)], &remote).unwrap(), remote[0].len);
    };
    let at = FREE.start + 0x40;
    let row = measure(&mut [
        Contender::new("ours", 512, || live.read::<u64>(PhysAddr::new(black_box(at))).unwrap()),
        Contender::new("limit", 512, || {
            let mut word = [0; 8];
            bare(black_box(at), &mut word);
            u64::from_ne_bytes(word)
        }),
    ]);
    table.row("process memory: 8-byte read, hot", "process_vm_readv", &row);

    let pages = random::addresses(4096, FREE, 4096);
    let (mut ours, mut theirs) = (vec![0u8; 4096], vec![0u8; 4096]);
    let row = measure(&mut [
        Contender::new("ours", 1, || {
            for &at in &pages {
                live.read_into(PhysAddr::new(at), &mut ours).unwrap();
            }
            u64::from(ours[0])
        })
        .each(pages.len()),
        Contender::new("limit", 1, || {
            for &at in &pages {
                bare(at, &mut theirs);
            }
            u64::from(theirs[0])
        })
        .each(pages.len()),
    ]);
    table.row("process memory: 4 KiB read, random", "process_vm_readv", &row);

    const BATCH: usize = 512;
    let words = random::addresses(BATCH * 16, FREE, 8);
    let row = measure(&mut [
        Contender::new("ours", 1, || {
            let mut sum = 0u64;
            for words in words.chunks(BATCH) {
                let mut bytes = [[0u8; 8]; BATCH];
                let mut ops: Vec<_> =
                    words.iter().zip(&mut bytes).map(|(&at, word)| ReadOp::new(PhysAddr::new(at), word)).collect();
                live.read_batch(&mut ops);
                assert!(ops.iter().all(|op| op.result.is_ok()));
                drop(ops);
                sum = bytes.iter().fold(sum, |sum, word| sum.wrapping_add(u64::from_ne_bytes(*word)));
            }
            sum
        })
        .each(words.len()),
        Contender::new("limit", 1, || {
            let mut sum = 0u64;
            for words in words.chunks(BATCH) {
                let mut bytes = [[0u8; 8]; BATCH];
                let remote: Vec<_> = words.iter().map(|&at| RemoteIoVec { base: (host + at) as usize, len: 8 }).collect();
                let mut local: Vec<_> = bytes.iter_mut().map(|word| IoSliceMut::new(word)).collect();
                assert_eq!(process_vm_readv(pid, &mut local, &remote).unwrap(), 8 * BATCH);
                drop(local);
                sum = bytes.iter().fold(sum, |sum, word| sum.wrapping_add(u64::from_ne_bytes(*word)));
            }
            sum
        })
        .each(words.len()),
    ]);
    table.row("process memory: 512 reads of 8 bytes in a batch", "process_vm_readv, 512 parts", &row);

    const CHUNK: usize = 1 << 20;
    let (mut ours, mut theirs) = (vec![0u8; CHUNK], vec![0u8; CHUNK]);
    let row = measure(&mut [
        Contender::new("ours", 1, || {
            for at in FREE.step_by(CHUNK) {
                live.read_into(PhysAddr::new(at), &mut ours).unwrap();
            }
            u64::from(ours[0])
        })
        .bytes(FREE.end - FREE.start),
        Contender::new("limit", 1, || {
            for at in FREE.step_by(CHUNK) {
                bare(at, &mut theirs);
            }
            u64::from(theirs[0])
        })
        .bytes(FREE.end - FREE.start),
    ]);
    table.row("process memory: dump", "process_vm_readv", &row);
}
