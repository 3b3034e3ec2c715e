//! How long a guest stands still for a copy of its gibibyte, by the ways that there are of making one.
//!
//! Each way but ours is only the copying that would have to be done between pause and resume: what it does before is in the second figure.

use std::fs::File;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut, MmapOptions};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vmi::kvm::QemuDriver;
use vmi::prelude::*;

use crate::guest::{FREE, SIZE};

const ROUNDS: usize = 5;
const CHUNK: usize = 256 << 10;

/// Guest standing still, and everything.
type Times = (Duration, Duration);

/// What the library does, and the other ways.
pub fn run(what: &str, live: &Vmi<QemuDriver>) {
    ours(what, live);
    others(live);
}

fn row(name: &str, round: &mut dyn FnMut() -> Times) {
    let mut times: Vec<Times> = (0..ROUNDS).map(|_| round()).collect();
    times.sort();
    let (still, all) = times[ROUNDS / 2];
    println!("  {name:<76} {:>8.1} ms {:>9.1} ms", still.as_secs_f64() * 1e3, all.as_secs_f64() * 1e3);
}

/// What the library does.
pub fn ours(what: &str, live: &Vmi<QemuDriver>) {
    println!("\nsnapshot of 1 GiB, {what}: median wall time of {ROUNDS} rounds   guest stands still   everything");
    row("ours: memory set aside while running, copied while paused", &mut || {
        let started = Instant::now();
        let snapshot = live.snapshot().unwrap();
        (snapshot.driver().report().stood_still, started.elapsed())
    });
    let mut previous = Some(live.snapshot().unwrap());
    row("ours, again: in the memory of the snapshot before", &mut || {
        let started = Instant::now();
        let snapshot = live.snapshot_again(previous.take().unwrap()).unwrap();
        let times = (snapshot.driver().report().stood_still, started.elapsed());
        previous = Some(snapshot);
        times
    });
    let resident = previous.map_or(0, |snapshot| snapshot.driver().report().resident);
    println!("  the snapshot takes {} MiB of memory", resident >> 20);
}

fn others(live: &Vmi<QemuDriver>) {
    row("the same with a copy while running, compared by page while paused", &mut || compared(live));
    row("pwrite from a buffer into an empty memfd", &mut || {
        let file = memfd();
        let started = Instant::now();
        let ends = parallel(live, |at, buffer| std::os::unix::fs::FileExt::write_all_at(&file, buffer, at).unwrap());
        (ends, started.elapsed())
    });
    row("copy into an empty memfd, mapped", &mut || into(live, || map(&memfd()), None));
    row("copy into a memfd, mapped, its pages populated before the pause", &mut || {
        into(live, || map(&memfd()), Some(Advice::PopulateWrite))
    });
    row("copy into a memfd with fallocate before the pause", &mut || {
        into(
            live,
            || {
                let file = memfd();
                nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, SIZE as i64).unwrap();
                map(&file)
            },
            None,
        )
    });
    row("copy into anonymous memory with huge pages", &mut || into(live, anonymous, None));
    row("copy into anonymous memory with huge pages, populated before the pause", &mut || {
        into(live, anonymous, Some(Advice::PopulateWrite))
    });
}

fn memfd() -> File {
    let file = File::from(memfd_create("bench", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(SIZE).unwrap();
    file
}

fn map(file: &File) -> MmapMut {
    // SAFETY: the memfd is this process' own, and nobody else writes it while it is mapped.
    unsafe { MmapOptions::new().len(SIZE as usize).map_mut(file).unwrap() }
}

fn anonymous() -> MmapMut {
    let map = MmapMut::map_anon(SIZE as usize).unwrap();
    map.advise(Advice::HugePage).unwrap();
    map
}

/// Makes room, pauses, copies straight into it.
fn into(live: &Vmi<QemuDriver>, room: impl FnOnce() -> MmapMut, advice: Option<Advice>) -> Times {
    let started = Instant::now();
    let mut room = room();
    if let Some(advice) = advice {
        room.advise(advice).unwrap();
    }
    let halted = Instant::now();
    {
        let _paused = live.pause().unwrap();
        let chunks = Mutex::new(room.chunks_mut(CHUNK).enumerate().map(|(i, chunk)| ((i * CHUNK) as u64, chunk)));
        std::thread::scope(|scope| {
            for _ in 0..threads() {
                scope.spawn(|| {
                    loop {
                        let Some((at, chunk)) = chunks.lock().unwrap().next() else { break };
                        if FREE.contains(&at) {
                            live.read_into(PhysAddr::new(at), chunk).unwrap();
                        }
                    }
                });
            }
        });
    }
    (halted.elapsed(), started.elapsed())
}

/// Copies, pauses, reads again and writes only pages that differ.
fn compared(live: &Vmi<QemuDriver>) -> Times {
    const AT_ONCE: usize = 128 << 10;
    let started = Instant::now();
    let mut room = anonymous();
    let mut pass = || {
        let chunks = Mutex::new(room.chunks_mut(CHUNK).enumerate().map(|(i, chunk)| ((i * CHUNK) as u64, chunk)));
        std::thread::scope(|scope| {
            for _ in 0..threads() {
                scope.spawn(|| {
                    let mut buffer = vec![0u8; AT_ONCE];
                    loop {
                        let Some((at, chunk)) = chunks.lock().unwrap().next() else { break };
                        for (i, old) in chunk.chunks_mut(AT_ONCE).enumerate().filter(|_| FREE.contains(&at)) {
                            live.read_into(PhysAddr::new(at + (i * AT_ONCE) as u64), &mut buffer).unwrap();
                            for (new, old) in buffer.chunks(4096).zip(old.chunks_mut(4096)).filter(|(new, old)| new != old) {
                                old.copy_from_slice(new);
                            }
                        }
                    }
                });
            }
        });
    };
    pass();
    let halted = Instant::now();
    {
        let _paused = live.pause().unwrap();
        pass();
    }
    (halted.elapsed(), started.elapsed())
}

/// Pauses, reads into a buffer and gives that away.
fn parallel(live: &Vmi<QemuDriver>, give: impl Fn(u64, &[u8]) + Sync) -> Duration {
    let halted = Instant::now();
    {
        let _paused = live.pause().unwrap();
        let chunks = Mutex::new(FREE.step_by(CHUNK));
        std::thread::scope(|scope| {
            for _ in 0..threads() {
                scope.spawn(|| {
                    let mut buffer = vec![0u8; CHUNK];
                    loop {
                        let Some(at) = chunks.lock().unwrap().next() else { break };
                        live.read_into(PhysAddr::new(at), &mut buffer).unwrap();
                        give(at, &buffer);
                    }
                });
            }
        });
    }
    halted.elapsed()
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(8))
}
