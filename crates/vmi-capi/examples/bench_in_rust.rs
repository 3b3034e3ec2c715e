//! The reads of `tests/c/bench.c` in Rust: the best of 50 rounds, in nanoseconds.
#![allow(missing_docs)]

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use vmi::{Memory as _, PhysAddr};

const ROUNDS: u32 = 50;
const READS: u32 = 2000;

fn main() -> Result<(), Box<dyn Error>> {
    let image = std::env::args().nth(1).ok_or("usage: bench_in_rust IMAGE")?;
    let vmi = vmi::open(image.as_str())?;
    let mut buffer = [0; 4096];
    for (name, length) in [("page", 4096), ("word", 8)] {
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            let began = Instant::now();
            for read in 0..READS {
                let at = PhysAddr::new(u64::from(read % 64).wrapping_add(16) << 12);
                vmi.read_into(black_box(at), black_box(buffer.get_mut(..length).unwrap_or_default()))?;
            }
            best = best.min(began.elapsed().as_secs_f64() * 1e9 / f64::from(READS));
        }
        println!("{name} {best:.1}");
    }
    Ok(())
}
