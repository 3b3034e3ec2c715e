//! Wall time, for what other processes take part in.

use std::time::Duration;

/// Calls the contenders in turn, so that what else the host does meets all of them, after one round that does not count.
fn medians(rounds: usize, contenders: &mut [(&str, &mut dyn FnMut() -> Duration)]) -> Vec<Duration> {
    let mut times = vec![Vec::new(); contenders.len()];
    for round in 0..=rounds {
        for ((_, contender), times) in contenders.iter_mut().zip(&mut times) {
            let time = contender();
            if round > 0 {
                times.push(time);
            }
        }
    }
    times.into_iter().map(median).collect()
}

pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Prints how much each contender does in a second, and how many times as fast as the first one it is.
pub fn rates(title: &str, rounds: usize, bytes: u64, contenders: &mut [(&str, &mut dyn FnMut() -> Duration)]) {
    let times = medians(rounds, contenders);
    println!("\n{title}: median wall time of {rounds} rounds");
    for ((name, _), time) in contenders.iter().zip(&times) {
        let rate = bytes as f64 / time.as_secs_f64() / 1e9;
        let faster = times[0].as_secs_f64() / time.as_secs_f64();
        println!("  {name:<76} {:>8.1} ms {rate:>8.3} GB/s {faster:>6.1} x", time.as_secs_f64() * 1e3);
    }
}
