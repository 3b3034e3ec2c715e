//! What tests/bench.py does from Python, in Rust: nanoseconds of a physical read of 4 KiB, of a read of 8 bytes and of a process list, the best of many.

use std::hint::black_box;
use std::time::Instant;

use vmi::{Guest, Memory as _, PhysAddr};

/// Nanoseconds of one call of `work`: the best of `rounds` rounds of `calls` calls.
fn best<T>(rounds: u32, calls: u32, mut work: impl FnMut() -> T) -> f64 {
    let mut least = f64::INFINITY;
    for _ in 0..rounds {
        let began = Instant::now();
        for _ in 0..calls {
            black_box(work());
        }
        least = least.min(began.elapsed().as_nanos() as f64 / f64::from(calls));
    }
    least
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let image = std::env::args().nth(1).ok_or("the path of an image is missing")?;
    let vmi = vmi::open(image.as_str())?;
    let linux = vmi::linux::Linux::attach(&vmi)?;
    let at = black_box(PhysAddr::new(0x0020_0000));
    let mut buf = vec![0u8; 4096];
    vmi.read_into(at, &mut buf)?;
    let page = best(50, 2000, || vmi.read_into(at, &mut buf).is_ok());
    let vec = best(50, 2000, || vmi.read_vec(at, 4096).map(|bytes| bytes.len()).unwrap_or(0));
    let word = best(50, 20000, || vmi.read::<u64>(at).unwrap_or(0));
    let processes = best(30, 5, || Guest::processes(&linux).filter_map(Result::ok).count());
    println!("{{\"read_into_4k\": {page}, \"read_4k\": {vec}, \"read_u64\": {word}, \"processes\": {processes}}}");
    Ok(())
}
