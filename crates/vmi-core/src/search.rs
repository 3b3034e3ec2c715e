//! Finding the kernel of a guest by several strategies, whatever the system: the layer of each system has its strategies and what they can miss; how one follows
//! the other, and how misses are kept and told, is here.
//!
//! ```
//! use vmi_core::search::{Miss, NoKernel, search};
//! use vmi_core::synthetic::SyntheticDriver;
//! use vmi_core::{Memory, PhysAddr, Vmi};
//!
//! #[derive(Clone, Debug, thiserror::Error)]
//! #[error("no magic number at {0}")]
//! struct NoMagic(PhysAddr);
//!
//! impl Miss for NoMagic {
//!     fn progress(&self) -> u8 {
//!         0
//!     }
//! }
//!
//! let vmi: Vmi<SyntheticDriver> = Vmi::new(SyntheticDriver::new([(PhysAddr::new(0x1000), b"kernel".to_vec())]));
//! let look = |at: u64| match vmi.read::<[u8; 6]>(PhysAddr::new(at)) {
//!     Ok(magic) if &magic == b"kernel" => Ok(at),
//!     _ => Err(NoMagic(PhysAddr::new(at))),
//! };
//! let found = search(&vmi, [0, 0x1000], look).unwrap();
//! assert_eq!((found.kernel, found.missed.len()), (0x1000, 1));
//! let error = search(&vmi, [0, 0x2000], look).unwrap_err().of("Example", "another memory");
//! assert!(error.to_string().starts_with("no Example kernel found in synthetic machine\n  - 0: no magic number"));
//! ```

use core::fmt;

use crate::{Driver, Liveness, Vmi};

/// What a strategy missed.
pub trait Miss: fmt::Display {
    /// How far the strategy got, for choosing the miss that tells most. Zero: it had nothing to begin with.
    fn progress(&self) -> u8;
}

/// What each strategy missed, in the order in which they were tried.
pub type Misses<S, M> = Vec<(S, M)>;

/// A kernel that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<S, K, M> {
    /// The kernel.
    pub kernel: K,
    /// By which strategy.
    pub strategy: S,
    /// What those before it missed.
    pub missed: Misses<S, M>,
}

impl<S: fmt::Display, K, M: Miss> Found<S, K, M> {
    /// What is remarkable: strategies before it that got as far as `progress`.
    pub fn remarks(&self, progress: u8) -> impl Iterator<Item = String> {
        let strategy = &self.strategy;
        let had_something = self.missed.iter().filter(move |(_, miss)| miss.progress() >= progress);
        had_something.map(move |(earlier, miss)| format!("found by {strategy}, as {earlier} failed: {miss}"))
    }
}

/// All strategies have missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllMissed<S, M> {
    machine: String,
    attempts: Misses<S, M>,
    live: bool,
}

impl<S, M> AllMissed<S, M> {
    /// As an error of the layer of `system`; `helps` says what the user can supply.
    pub fn of(self, system: &'static str, helps: &'static str) -> NoKernel<S, M> {
        let Self { machine, attempts, live } = self;
        NoKernel { system, machine, attempts, live, helps }
    }
}

/// Tries strategies one after the other, and says what the first that succeeds found, and what those before it missed.
///
/// The guest is held meanwhile if its back end does so for reading.
///
/// # Errors
/// What each strategy missed.
pub fn search<D, S, K, M>(
    vmi: &Vmi<D>,
    strategies: impl IntoIterator<Item = S>,
    mut attempt: impl FnMut(S) -> Result<K, M>,
) -> Result<Found<S, K, M>, AllMissed<S, M>>
where
    D: Driver,
    S: Copy + fmt::Display,
    M: Miss,
{
    // Where the guest cannot be held, reading says why.
    let _held = vmi.hold_for_reading().inspect_err(|error| tracing::debug!(%error, "not held"));
    let mut missed = Vec::new();
    for strategy in strategies {
        match attempt(strategy) {
            Ok(kernel) => {
                tracing::debug!(%strategy, "kernel found");
                return Ok(Found { kernel, strategy, missed });
            }
            Err(miss) => {
                tracing::debug!(%strategy, %miss, "no kernel");
                missed.push((strategy, miss));
            }
        }
    }
    let machine = vmi.machine();
    Err(AllMissed { machine: machine.name.clone(), attempts: missed, live: machine.liveness == Liveness::Live })
}

/// The first success, else the first of the misses that got furthest; `None` if there is nothing to try.
///
/// # Errors
/// That miss.
pub fn first_of<T, K, M: Miss>(
    items: impl IntoIterator<Item = T>,
    mut attempt: impl FnMut(T) -> Result<K, M>,
) -> Result<K, Option<M>> {
    let mut furthest: Option<M> = None;
    for item in items {
        match attempt(item) {
            Ok(kernel) => return Ok(kernel),
            Err(miss) if furthest.as_ref().is_none_or(|furthest| miss.progress() > furthest.progress()) => furthest = Some(miss),
            Err(_) => {}
        }
    }
    Err(furthest)
}

/// No kernel was found. Each strategy's reason is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoKernel<S, M> {
    /// The system whose kernel was looked for.
    pub system: &'static str,
    /// The source that was searched.
    pub machine: String,
    /// What each strategy missed, in the order in which they were tried.
    pub attempts: Misses<S, M>,
    /// Whether the guest may run: then it may be in its firmware, its boot loader or an early part of its start.
    pub live: bool,
    /// What the user can supply.
    pub helps: &'static str,
}

impl<S: fmt::Display, M: fmt::Display> fmt::Display for NoKernel<S, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {} kernel found in {}", self.system, self.machine)?;
        for (strategy, miss) in &self.attempts {
            write!(f, "\n  - {strategy}: {miss}")?;
        }
        if self.live {
            f.write_str("\n  A guest that is still in its firmware, its boot loader or the first moments of its kernel has no kernel to find yet: try again when it has booted")?;
        }
        write!(f, "\n  What helps: {}", self.helps)
    }
}

impl<S: fmt::Debug + fmt::Display, M: fmt::Debug + fmt::Display> std::error::Error for NoKernel<S, M> {}
