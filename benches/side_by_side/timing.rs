//! Measures contenders in turn by CPU time.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Rounds of a row; a figure is their median.
pub const ROUNDS: usize = 9;

/// One contender of a row.
pub struct Contender<'a> {
    pub name: &'static str,
    /// Calls per round.
    calls: usize,
    /// Operations per call.
    each: usize,
    pub bytes: Option<u64>,
    clock: ClockId,
    run: Box<dyn FnMut(usize) -> u64 + 'a>,
}

impl<'a> Contender<'a> {
    /// `run` is called `calls` times a round, in a loop that is compiled with it.
    pub fn new(name: &'static str, calls: usize, mut run: impl FnMut() -> u64 + 'a) -> Self {
        let run = Box::new(move |calls: usize| (0..calls).fold(0u64, |sum, _| sum.wrapping_add(run())));
        Self { name, calls, each: 1, bytes: None, clock: ClockId::CLOCK_THREAD_CPUTIME_ID, run }
    }

    /// A call does so many operations; the figure is per operation.
    pub fn each(mut self, operations: usize) -> Self {
        self.each = operations;
        self
    }

    /// A call moves so many bytes; the figure is a rate.
    pub fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// Counts the CPU time of all threads.
    pub fn whole_process(mut self) -> Self {
        self.clock = ClockId::CLOCK_PROCESS_CPUTIME_ID;
        self
    }

    fn time(&mut self) -> Duration {
        let before = clock_gettime(self.clock).unwrap();
        std::hint::black_box((self.run)(self.calls));
        let after = clock_gettime(self.clock).unwrap();
        Duration::from(after) - Duration::from(before)
    }
}

/// A measured contender.
#[derive(Clone, Debug)]
pub struct Figure {
    pub name: &'static str,
    pub bytes: Option<u64>,
    /// Nanoseconds per operation.
    pub nanoseconds: f64,
}

/// Runs all contenders, round after round, after one round that does not count.
pub fn measure(contenders: &mut [Contender<'_>]) -> Vec<Figure> {
    let mut times = vec![Vec::new(); contenders.len()];
    for round in 0..=ROUNDS {
        for (contender, times) in contenders.iter_mut().zip(&mut times) {
            let time = contender.time();
            if round > 0 {
                times.push(time.as_secs_f64() * 1e9 / (contender.calls * contender.each) as f64);
            }
        }
    }
    contenders
        .iter()
        .zip(times)
        .map(|(contender, mut times)| {
            times.sort_by(f64::total_cmp);
            Figure { name: contender.name, bytes: contender.bytes, nanoseconds: times[times.len() / 2] }
        })
        .collect()
}
