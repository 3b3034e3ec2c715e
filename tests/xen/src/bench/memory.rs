//! Reads through `Vmi` against reads of a bare foreign mapping of the same memory.

use std::cell::RefCell;
use std::hint::black_box;

use anyhow::{Context as _, Result, ensure};
use vmi::{Driver as _, Memory, PhysAddr, Region, Vmi};
use vmi_driver_xen::{DomainKind, Options, XenDriver};

use super::bare::BareMemory;
use super::race;
use crate::domain::{Domain, xl};

const PAGE: u64 = 4096;
const MIB: usize = 1 << 20;

/// The machine frames of a PV domain's first `pages` pages: what the driver says of each frame of the machine, turned round.
fn frames(vmi: &Vmi<XenDriver>, pages: u64) -> Result<Vec<u64>> {
    if vmi.driver().domain().info.kind == DomainKind::Hardware {
        return Ok((0..pages).collect());
    }
    let info = xl(&["info"])?;
    let total = info.lines().find_map(|line| line.strip_prefix("total_memory")?.split(':').nth(1)?.trim().parse::<u64>().ok());
    let mut frames = vec![u64::MAX; pages as usize];
    for machine in 0..(total.unwrap_or(1024) + 256) << 8 {
        let page = vmi.driver().resolve_frame(PhysAddr::new(machine * PAGE)).get() / PAGE;
        if let Some(frame) = frames.get_mut(page as usize) {
            *frame = machine;
        }
    }
    Ok(frames)
}

fn row(what: &str, [bare, range, all, window]: [f64; 4]) {
    print!("  {what:34} {bare:>10.1}");
    [range, all, window].iter().for_each(|time| print!(" {time:>10.1} ({:.2}x)", time / bare));
    println!();
}

/// What words are read from.
trait Words {
    fn word(&self, at: u64) -> u64;
}

impl Words for BareMemory {
    #[inline(always)]
    fn word(&self, at: u64) -> u64 {
        BareMemory::word(self, at)
    }
}

impl<M: Memory<Addr = PhysAddr>> Words for M {
    #[inline(always)]
    fn word(&self, at: u64) -> u64 {
        self.read(PhysAddr::new(at)).unwrap()
    }
}

/// Reads a word at each place and adds them up. Each contender has a loop of its own, in which its read is inlined.
#[inline(never)]
fn sum(memory: &impl Words, places: &[u64]) -> u64 {
    places.iter().fold(0u64, |sum, at| sum.wrapping_add(memory.word(*at)))
}

fn words(memory: &impl Words, places: &[u64]) -> impl FnMut() {
    move || _ = black_box(sum(memory, places))
}

/// Reads a word so many times, each at an address that depends on what was read before (and is the same).
#[inline(never)]
fn last(memory: &impl Words, at: u64, steps: usize, nothing: u64) -> u64 {
    (0..steps).fold(0, |value, _| memory.word(at.wrapping_add(value & nothing)))
}

fn chain(memory: &impl Words, at: u64, steps: usize) -> impl FnMut() {
    move || _ = black_box(last(memory, at, steps, black_box(0)))
}

pub(super) fn run(domain: &Domain) -> Result<()> {
    let open = |options: Options| XenDriver::open(domain.name(), &options).map(Vmi::new);
    let window = open(Options::new())?;
    let all = open(Options::new().map_whole(true))?;
    // The first region begins at zero and is nearly all memory.
    let region = window.machine().memory.regions()[0];
    ensure!(region.start() == PhysAddr::ZERO);
    let frames = frames(&window, region.len() / PAGE)?;
    let bare = BareMemory::map(window.driver().domain().info.id, &frames)?;
    let len = bare.len().min(region.len());
    ensure!(len >= 16 << 20, "{len:#x} bytes");
    // All three show the same, while it stands still.
    {
        let _paused = window.pause()?;
        let mut bytes = [vec![0; MIB], vec![0; MIB], vec![0; MIB]];
        for at in (0..len / MIB as u64 * MIB as u64).step_by(MIB) {
            bare.run(at, &mut bytes[0]);
            all.read_into(PhysAddr::new(at), &mut bytes[1])?;
            window.read_into(PhysAddr::new(at), &mut bytes[2])?;
            ensure!(bytes[0] == bytes[1] && bytes[0] == bytes[2], "different bytes below {:#x}", at + MIB as u64);
        }
    }
    let range = Region::new(PhysAddr::ZERO, len).context("no memory")?;
    let range = window.map_range(range)?;
    println!("  {:34} {:>10} {:>18} {:>18} {:>18}", "nanoseconds a read", "bare", "a range", "all mapped", "default");
    let mut random = 1u64;
    let mut below = |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % bound
    };
    let hot = vec![0x5008u64; 5000];
    let scattered: Vec<u64> = (0..20_000).map(|_| below(len) & !7).collect();
    for (what, places) in [("8 bytes, hot", &hot), ("8 bytes, random", &scattered)] {
        let (mut by_hand, mut by_range) = (words(&bare, places), words(&range, places));
        let (mut by_mapping, mut by_window) = (words(&all, places), words(&window, places));
        row(what, race(20, places.len(), [&mut by_hand, &mut by_range, &mut by_mapping, &mut by_window]));
    }
    const STEPS: usize = 5000;
    let (mut by_hand, mut by_range) = (chain(&bare, 0x5008, STEPS), chain(&range, 0x5008, STEPS));
    let (mut by_mapping, mut by_window) = (chain(&all, 0x5008, STEPS), chain(&window, 0x5008, STEPS));
    row("8 bytes, hot, each after the other", race(20, STEPS, [&mut by_hand, &mut by_range, &mut by_mapping, &mut by_window]));
    let mut buffer = vec![0u8; MIB + PAGE as usize];
    let skip = buffer.as_ptr().align_offset(PAGE as usize);
    let buffer = RefCell::new(&mut buffer[skip..skip + MIB]);
    let hot = vec![0x9000u64; 500];
    let scattered: Vec<u64> = (0..1000).map(|_| below(len / PAGE) * PAGE).collect();
    let whole: Vec<u64> = (0..len / MIB as u64).map(|index| index * MIB as u64).collect();
    for (what, places, len) in
        [("4 KiB, hot", &hot, PAGE as usize), ("4 KiB, random", &scattered, PAGE as usize), ("1 MiB, all in order", &whole, MIB)]
    {
        let each = |read: &dyn Fn(u64, &mut [u8])| {
            places.iter().for_each(|at| read(*at, black_box(&mut buffer.borrow_mut()[..len])));
        };
        let through = |vmi: &Vmi<XenDriver>| each(&|at, buffer| vmi.read_into(PhysAddr::new(at), buffer).unwrap());
        row(
            what,
            race(
                8,
                places.len(),
                [
                    &mut || each(&|at, buffer| bare.run(at, buffer)),
                    &mut || each(&|at, buffer| range.read_into(PhysAddr::new(at), buffer).unwrap()),
                    &mut || through(&all),
                    &mut || through(&window),
                ],
            ),
        );
    }
    // With the mapping: each reads all memory once, from nothing.
    let each = |read: &dyn Fn(u64, &mut [u8])| {
        whole.iter().for_each(|at| read(*at, black_box(&mut buffer.borrow_mut()[..])));
    };
    let id = window.driver().domain().info.id;
    let [by_hand, by_window] = race(
        3,
        whole.len(),
        [
            &mut || {
                let bare = BareMemory::map(id, &frames).unwrap();
                each(&|at, buffer| bare.run(at, buffer));
            },
            &mut || {
                window.driver().forget_mappings();
                each(&|at, buffer| window.read_into(PhysAddr::new(at), buffer).unwrap());
            },
        ],
    );
    println!(
        "  {:34} {by_hand:>10.1} {:>18} {:>18} {by_window:>10.1} ({:.2}x)",
        "1 MiB, all in order, and mapped",
        "",
        "",
        by_window / by_hand
    );
    println!("  {:?}", window.driver().mapping_counters());
    Ok(())
}
