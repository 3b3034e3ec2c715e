//! Reads through a window against reads of a bare mapping of the same memory: `cargo bench -p vmi-core --bench window`.
//!
//! The memory is a file in memory in place of another domain's, so this needs no Xen: a page table makes no difference between the two. Contenders take turns, and the best turn counts.
#![allow(
    unsafe_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic
)]

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::hint::black_box;
    use std::os::fd::AsRawFd;
    use std::sync::Arc;
    use std::time::Instant;

    use nix::libc;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use vmi_core::synthetic::Unpaged;
    use vmi_core::{
        Driver, GuestMapping, LivePiece, Liveness, MachineInfo, Memory, MemoryMap, PhysAddr, Region, Result, SharedRam, Vmi,
        Window,
    };

    const LEN: usize = 256 << 20;
    const TURNS: usize = 40;

    struct Machine {
        info: MachineInfo,
        mapping: GuestMapping,
    }

    impl Driver for Machine {
        type Arch = Unpaged;

        fn machine(&self) -> &MachineInfo {
            &self.info
        }

        fn mapping(&self) -> Option<&GuestMapping> {
            Some(&self.mapping)
        }

        fn read(&self, at: PhysAddr, _: &mut [u8]) -> Result<()> {
            panic!("all memory is mapped, but {at} was asked for");
        }
    }

    fn machine(mapping: GuestMapping) -> Vmi<Machine> {
        let memory = mapping.memory_map();
        Vmi::new(Machine {
            info: MachineInfo { name: "bench".into(), memory, liveness: Liveness::Live, notes: Vec::new() },
            mapping,
        })
    }

    /// What one writes by hand: a bounds check and a load, or a copy.
    struct Bare {
        base: *const u8,
        len: u64,
    }

    /// What words are read from.
    trait Words {
        fn word(&self, at: u64) -> u64;
    }

    impl Words for Bare {
        #[inline(always)]
        fn word(&self, at: u64) -> u64 {
            assert!(at & 7 == 0);
            assert!(at < self.len);
            // SAFETY: aligned and within the mapping.
            unsafe { self.base.add(at as usize).cast::<u64>().read_volatile() }
        }
    }

    impl<M: Memory<Addr = PhysAddr>> Words for M {
        #[inline(always)]
        fn word(&self, at: u64) -> u64 {
            self.read(PhysAddr::new(at)).unwrap()
        }
    }

    impl Bare {
        #[inline(always)]
        fn run(&self, at: u64, buf: &mut [u8]) {
            assert!(at < self.len && self.len - at >= buf.len() as u64);
            // SAFETY: within the mapping, to which nobody writes.
            unsafe { self.base.add(at as usize).copy_to_nonoverlapping(buf.as_mut_ptr(), buf.len()) };
        }
    }

    fn map(file: &File, place: *mut u8, flags: libc::c_int) -> *const u8 {
        // SAFETY: a place of the window's own, or one that the kernel chooses.
        let got = unsafe {
            libc::mmap(place.cast(), LEN, libc::PROT_READ, libc::MAP_SHARED | libc::MAP_POPULATE | flags, file.as_raw_fd(), 0)
        };
        assert!(got != libc::MAP_FAILED);
        got.cast()
    }

    /// Nanoseconds of one call, by the best turn of each contender.
    fn race<const N: usize>(calls: usize, mut contenders: [&mut dyn FnMut(); N]) -> [f64; N] {
        let mut best = [f64::MAX; N];
        for _ in 0..TURNS {
            for (best, contender) in best.iter_mut().zip(&mut contenders) {
                let began = Instant::now();
                contender();
                *best = best.min(began.elapsed().as_secs_f64() * 1e9 / calls as f64);
            }
        }
        best
    }

    /// Reads a word at each place and adds them up. Each contender has a loop of its own, in which its read is inlined.
    #[inline(never)]
    fn sum(memory: &impl Words, places: &[u64]) -> u64 {
        places.iter().fold(0u64, |sum, at| sum.wrapping_add(memory.word(*at)))
    }

    /// Adds the words up, some times.
    fn each(memory: &impl Words, places: &[u64], rounds: usize) -> impl FnMut() {
        move || (0..rounds).for_each(|_| _ = black_box(sum(memory, places)))
    }

    /// Reads words of which each holds the address of the next.
    #[inline(never)]
    fn last(memory: &impl Words, start: u64, steps: usize) -> u64 {
        (0..steps).fold(start, |at, _| memory.word(at))
    }

    fn chase(memory: &impl Words, start: u64, steps: usize) -> impl FnMut() {
        move || _ = black_box(last(memory, start, steps))
    }

    fn row(what: &str, [bare, range, mapped, window]: [f64; 4]) {
        print!("{what:34} {bare:9.2}");
        [range, mapped, window].iter().for_each(|time| print!(" {time:9.2} ({:4.2}x)", time / bare));
        println!();
    }

    pub(crate) fn main() {
        let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(LEN as u64).unwrap();
        // In the first half each word holds the address of another one, so that reads can depend on each other.
        let mut order: Vec<u64> = (0..LEN as u64 / 4096).map(|page| page * 4096 + page % 500 * 8).collect();
        let mut random = 1u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        for index in (1..order.len()).rev() {
            order.swap(index, (next() % (index as u64 + 1)) as usize);
        }
        for (from, to) in order.iter().zip(order.iter().cycle().skip(1)) {
            nix::sys::uio::pwrite(&file, &to.to_ne_bytes(), *from as i64).unwrap();
        }
        // And a short circle of sixteen words.
        let circle: Vec<u64> = (0..16).map(|index| 0x2f_0000 + index * 7 % 16 * 264 + 4000).collect();
        for (from, to) in circle.iter().zip(circle.iter().cycle().skip(1)) {
            nix::sys::uio::pwrite(&file, &to.to_ne_bytes(), *from as i64).unwrap();
        }

        let bare = Bare { base: map(&file, std::ptr::null_mut(), 0), len: LEN as u64 };
        let region = Region::new(PhysAddr::ZERO, LEN as u64).unwrap();
        let ram = Arc::new(SharedRam::map(&file, 0, LEN as u64, false).unwrap());
        let mapped = machine(GuestMapping::live(&[LivePiece { region, ram, offset: 0 }]).unwrap());
        let window = Window::reserve(LEN as u64).unwrap();
        let pages = window.pages();
        map(&file, window.place(&(0..pages)).unwrap().as_ptr(), libc::MAP_FIXED);
        // SAFETY: all of it has just been mapped, and stays so.
        unsafe { window.show(0, (0..pages).map(|_| true)) };
        let shown = machine(GuestMapping::window(window, MemoryMap::new([region])));
        // A thread has a flag from its first long read on.
        shown.read_into(PhysAddr::new(1), &mut [0; 16]).unwrap();
        let range = mapped.map_range(region).unwrap();
        let (bare, range, mapped, shown) = (black_box(&bare), black_box(&range), black_box(&mapped), black_box(&shown));

        println!("{:34} {:>9} {:>17} {:>17} {:>17}", "nanoseconds a read", "bare", "range", "all mapped", "window");
        let words: Vec<u64> = (0..1000).map(|_| 0x5008).collect();
        let scattered: Vec<u64> = (0..100_000).map(|_| (next() % LEN as u64) & !7).collect();
        for (what, places, rounds) in [("8 bytes, hot", &words, 300), ("8 bytes, random in 256 MiB", &scattered, 1)] {
            let (mut by_hand, mut by_range) = (each(bare, places, rounds), each(range, places, rounds));
            let (mut by_mapping, mut by_window) = (each(mapped, places, rounds), each(shown, places, rounds));
            row(what, race(rounds * places.len(), [&mut by_hand, &mut by_range, &mut by_mapping, &mut by_window]));
        }
        for (what, start, steps) in
            [("8 bytes, each names the next, hot", circle[0], 200_000), ("8 bytes, each names the next", order[0], 50_000)]
        {
            let (mut by_hand, mut by_range) = (chase(bare, start, steps), chase(range, start, steps));
            let (mut by_mapping, mut by_window) = (chase(mapped, start, steps), chase(shown, start, steps));
            row(what, race(steps, [&mut by_hand, &mut by_range, &mut by_mapping, &mut by_window]));
        }
        let mut buffer = vec![0u8; (1 << 20) + 4096];
        let skip = buffer.as_ptr().align_offset(4096);
        let hot: Vec<u64> = (0..64).map(|_| 0x9000).collect();
        let pages: Vec<u64> = (0..4096).map(|_| next() % (LEN as u64 / 4096) * 4096).collect();
        let all: Vec<u64> = (0..LEN as u64 >> 20).map(|index| index << 20).collect();
        for (what, places, len, rounds) in [
            ("4 KiB, hot", &hot, 4096, 100),
            ("4 KiB, random in 256 MiB", &pages, 4096, 1),
            ("1 MiB, all in order", &all, 1 << 20, 1),
        ] {
            let buffer = std::cell::RefCell::new(&mut buffer[skip..skip + len]);
            let each = |read: &dyn Fn(u64, &mut [u8])| {
                (0..rounds).for_each(|_| places.iter().for_each(|at| read(*at, black_box(&mut **buffer.borrow_mut()))));
            };
            row(
                what,
                race(
                    rounds * places.len(),
                    [
                        &mut || each(&|at, buf| bare.run(at, buf)),
                        &mut || each(&|at, buf| range.read_into(PhysAddr::new(at), buf).unwrap()),
                        &mut || each(&|at, buf| mapped.read_into(PhysAddr::new(at), buf).unwrap()),
                        &mut || each(&|at, buf| shown.read_into(PhysAddr::new(at), buf).unwrap()),
                    ],
                ),
            );
        }
    }
}

fn main() {
    #[cfg(target_os = "linux")]
    linux::main();
}
