//! Ours, a peer and the bare limit, on one image, in one run: `cargo bench`.
//!
//! All contenders of a row are measured in turn, several rounds of them, by the CPU time of the thread; a figure is the median
//! of the rounds. Absolute figures move with the machine, so the ratios to the limit are what counts.
//!
//! `VMI_BENCH_IMAGE` names a raw image of an x86-64 Linux guest of at least 256 MiB (1 GiB is what the promises are about). Without it
//! the demo image is used, made 1 GiB long with noise behind the guest's memory.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, missing_docs)]

mod image;
mod limit;
mod peer;
mod random;
mod table;
mod timing;

use std::hint::black_box;

use table::Table;
use timing::{Contender, measure};
use vmi::prelude::*;
use vmi::x86::PagingMode;
use vmi::{AddressSpace, AnyDriver, PhysAddr, VirtAddr, Vmi};

fn main() {
    let image = image::open(image::Rest::Noise);
    let vmi = vmi::open(image.path.as_path()).unwrap();
    let mapped = limit::MappedImage::open(&image.path);
    let mut memflow = peer::Memflow::open(&image.path);
    let linux = vmi::linux::Linux::attach(&vmi).unwrap();
    let kernel = linux.kernel();
    println!("image: {} ({} MiB), {}", image.path.display(), mapped.len() >> 20, linux.version());
    println!("figures: median CPU time of {} rounds; the ratio is to the limit\n", timing::ROUNDS);

    let mut table = Table::new();
    physical(&mut table, &vmi, &mapped, &mut memflow);
    let space = vmi.address_space(kernel.root, kernel.mode);
    virtual_memory(&mut table, &vmi, &space, kernel.root, kernel.mode, linux.symbols(), &mapped, &mut memflow);
    sequential(&mut table, &vmi, &mapped, &mut memflow);
    processes(&mut table, &image.path, &vmi);
    table.print();
}

fn physical(table: &mut Table, vmi: &Vmi<AnyDriver>, mapped: &limit::MappedImage, memflow: &mut peer::Memflow) {
    let at = 0x10_0040u64;
    let row = measure(&mut [
        Contender::new("ours", 4096, || u64::from(vmi.read::<u32>(PhysAddr::new(black_box(at))).unwrap())),
        Contender::new("limit", 4096, || u64::from(mapped.read_u32(black_box(at)).unwrap())),
        Contender::new("memflow", 4096, || u64::from(memflow.read_u32(black_box(at)))),
    ]);
    table.row("4-byte physical read, hot", "guarded volatile load", &row);

    let mut buf = vec![0u8; 7504];
    let mut theirs = vec![0u8; 7504];
    let mut bare = vec![0u8; 7504];
    let many = measure(&mut [
        Contender::new("ours", 8, || {
            let at = black_box(at);
            (0..1875u64).map(|i| u64::from(vmi.read::<u32>(PhysAddr::new(at + 4 * i)).unwrap())).fold(0, u64::wrapping_add)
        }),
        Contender::new("limit", 8, || {
            let at = black_box(at);
            (0..1875u64).map(|i| u64::from(mapped.read_u32(at + 4 * i).unwrap())).fold(0, u64::wrapping_add)
        }),
        Contender::new("memflow", 8, || {
            let at = black_box(at);
            (0..1875u64).map(|i| u64::from(memflow.read_u32(at + 4 * i))).fold(0, u64::wrapping_add)
        }),
    ]);
    table.row("1875 reads of 4 bytes", "guarded volatile loads", &many);
    let one = measure(&mut [
        Contender::new("ours", 1024, || {
            vmi.read_into(PhysAddr::new(black_box(at)), &mut buf[..7500]).unwrap();
            u64::from(black_box(&buf)[0])
        }),
        Contender::new("limit", 1024, || {
            mapped.copy(black_box(at), &mut bare[..7500]);
            u64::from(black_box(&bare)[0])
        }),
        Contender::new("memflow", 1024, || {
            memflow.read_into(black_box(at), &mut theirs[..7500]);
            u64::from(black_box(&theirs)[0])
        }),
    ]);
    table.row("1 read of 7500 bytes", "memcpy", &one);
    table.ratio("1875 x 4 bytes against 1 x 7500 bytes", &many, &one);

    let addresses = random::addresses(1 << 17, 0..mapped.len() as u64, 8);
    let row = measure(&mut [
        Contender::new("ours", 1, || {
            addresses.iter().fold(0u64, |sum, &at| sum.wrapping_add(vmi.read(PhysAddr::new(at)).unwrap()))
        })
        .each(addresses.len()),
        Contender::new("limit", 1, || addresses.iter().fold(0u64, |sum, &at| sum.wrapping_add(mapped.load_u64(at))))
            .each(addresses.len()),
        Contender::new("memflow", 1, || addresses.iter().fold(0u64, |sum, &at| sum.wrapping_add(memflow.read_u64(at))))
            .each(addresses.len()),
    ]);
    table.row("8-byte read, random over the image", "raw volatile load", &row);
}

#[allow(clippy::too_many_arguments)]
fn virtual_memory(
    table: &mut Table,
    vmi: &Vmi<AnyDriver>,
    space: &AddressSpace<'_, AnyDriver>,
    root: PhysAddr,
    mode: PagingMode,
    symbols: &vmi::Symbols,
    mapped: &limit::MappedImage,
    memflow: &mut peer::Memflow,
) {
    let at = symbols.address("init_task").unwrap();
    memflow.use_root(root.get());
    let row = measure(&mut [
        Contender::new("ours", 4096, || space.translate(black_box(at)).unwrap().at.get()),
        Contender::new("limit", 4096, || mapped.walk(root.get(), black_box(at).get())),
        Contender::new("memflow", 4096, || memflow.translate(black_box(at).get())),
    ]);
    table.row("translation of a hot address", "unguarded 4-level walk", &row);

    // Pages of the kernel's image, one every 4 KiB: every walk goes through the mode's own code, no cache.
    let pages: Vec<VirtAddr> =
        (0..4096u64).map(|i| at.wrapping_add(i * 4096)).filter(|&at| space.translate(at).is_ok()).take(256).collect();
    let row = measure(&mut [
        Contender::new("ours", 64, || {
            pages.iter().fold(0u64, |sum, &at| sum.wrapping_add(vmi::Paging::translate(mode, vmi, root, at).unwrap().at.get()))
        })
        .each(pages.len()),
        Contender::new("limit", 64, || pages.iter().fold(0u64, |sum, &at| sum.wrapping_add(mapped.walk(root.get(), at.get()))))
            .each(pages.len()),
        Contender::new("memflow", 64, || pages.iter().fold(0u64, |sum, &at| sum.wrapping_add(memflow.translate(at.get()))))
            .each(pages.len()),
    ]);
    table.row("full page walk", "unguarded 4-level walk", &row);

    let row = measure(&mut [
        Contender::new("ours", 4096, || space.read::<u64>(black_box(at)).unwrap()),
        Contender::new("limit", 4096, || mapped.load_u64(mapped.walk(root.get(), black_box(at).get()))),
        Contender::new("memflow", 4096, || memflow.read_virtual_u64(black_box(at).get())),
    ]);
    table.row("8-byte virtual read, hot", "unguarded walk and load", &row);
}

fn sequential(table: &mut Table, vmi: &Vmi<AnyDriver>, mapped: &limit::MappedImage, memflow: &mut peer::Memflow) {
    const CHUNK: usize = 1 << 20;
    let total = mapped.len() as u64 / CHUNK as u64 * CHUNK as u64;
    // The destination's offset within a page decides whether `memcpy` is fast or tens of times slower: all of them are shown.
    for offset in [0usize, 16, 3] {
        let mut buffers: Vec<Vec<u8>> = (0..3).map(|_| vec![0u8; CHUNK + 8192]).collect();
        let mut targets: Vec<&mut [u8]> = buffers
            .iter_mut()
            .map(|buffer| {
                let start = buffer.as_ptr().align_offset(4096) + offset;
                &mut buffer[start..start + CHUNK]
            })
            .collect();
        let [ours, bare, theirs] = &mut targets[..] else { unreachable!() };
        let row = measure(&mut [
            Contender::new("ours", 1, || {
                for at in (0..total).step_by(CHUNK) {
                    vmi.read_into(PhysAddr::new(at), ours).unwrap();
                }
                u64::from(ours[0])
            })
            .bytes(total),
            Contender::new("limit", 1, || {
                for at in (0..total).step_by(CHUNK) {
                    mapped.copy(at, bare);
                }
                u64::from(bare[0])
            })
            .bytes(total),
            Contender::new("memflow", 1, || {
                for at in (0..total).step_by(CHUNK) {
                    memflow.read_into(at, theirs);
                }
                u64::from(theirs[0])
            })
            .bytes(total),
        ]);
        table.row(&format!("sequential read of everything, destination at page+{offset}"), "memcpy", &row);
    }
}

fn processes(table: &mut Table, path: &std::path::Path, vmi: &Vmi<AnyDriver>) {
    let cold = measure(&mut [Contender::new("ours", 1, || {
        let vmi = vmi::open(path).unwrap();
        let linux = vmi::linux::Linux::attach(&vmi).unwrap();
        linux.processes().map(|task| u64::from(task.unwrap().pid().unwrap())).sum()
    })
    .whole_process()]);
    table.row("open, attach and list processes, nothing known", "", &cold);

    let linux = vmi::linux::Linux::attach(vmi).unwrap();
    let count = linux.processes().count();
    let list = measure(&mut [Contender::new("ours", 64, || {
        let mut sum = 0u64;
        for task in linux.processes() {
            let task = task.unwrap();
            sum = sum.wrapping_add(u64::from(task.pid().unwrap())).wrapping_add(task.name().unwrap().len() as u64);
        }
        sum
    })]);
    table.row(&format!("process list again ({count} processes: pid and name)"), "", &list);
}
