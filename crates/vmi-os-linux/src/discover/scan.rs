//! One pass over all memory, for everything that can only be found so.

use memchr::memmem::Finder;
use rayon::prelude::*;
use vmi_arch_x86::X86Driver;
use vmi_core::{GuestMapping, PhysAddr, Vmi};

use super::image;
use super::{kallsyms, vmcoreinfo};

/// Bytes that one thread searches at a time: they stay in the processor's cache while each pattern is looked for.
const CHUNK: u64 = 256 << 10;

/// Hits of one pattern in one chunk that are kept; more are a trap.
const MAX_HITS: usize = 64;

/// Texts and runs of digits that are kept: a running guest has a few.
const MAX_TEXTS: usize = 16;
const MAX_DIGITS: usize = 4096;

/// How the name of a kernel's first task begins; kernels for several processors add `/0` (kernel: init/init_task.c, INIT_TASK_COMM, and
/// kernel/sched/core.c, init_idle).
const FIRST_TASK: &[u8] = b"swapper";

/// Where things are in physical memory, ascending.
#[derive(Debug, Default)]
pub(super) struct Hits {
    /// VMCOREINFO texts.
    pub(super) vmcoreinfo: Vec<PhysAddr>,
    /// Digit tokens of symbol tables.
    pub(super) digits: Vec<PhysAddr>,
    /// Whether there is the name of a kernel's first task.
    pub(super) tasks: bool,
}

impl Hits {
    /// Scans all memory.
    pub(super) fn scan<D: X86Driver>(vmi: &Vmi<D>) -> Self {
        let finders = [vmcoreinfo::NEEDLE, kallsyms::DIGITS, FIRST_TASK].map(Finder::new);
        let longest = finders.iter().map(|finder| finder.needle().len()).max().unwrap_or_default() as u64;
        let mut hits: Vec<(usize, PhysAddr)> = chunks(vmi, longest)
            .into_par_iter()
            .flat_map_iter(|(at, len)| {
                let bytes = image::bytes(vmi, at, len);
                let mut hits = Vec::new();
                for (pattern, finder) in finders.iter().enumerate() {
                    // A hit belongs to the chunk that it starts in.
                    let here = finder.find_iter(&bytes).map(|offset| offset as u64).take_while(|&offset| offset < CHUNK);
                    hits.extend(here.take(MAX_HITS).map(|offset| (pattern, at.wrapping_add(offset))));
                }
                hits
            })
            .collect();
        hits.sort_unstable();
        let of = |wanted| hits.iter().filter(move |hit| hit.0 == wanted).map(|hit| hit.1);
        Self {
            vmcoreinfo: of(0).take(MAX_TEXTS).collect(),
            digits: of(1).take(MAX_DIGITS).collect(),
            tasks: of(2).next().is_some(),
        }
    }
}

/// The memory in chunks that overlap by the longest pattern, so that one across a border is found.
fn chunks<D: X86Driver>(vmi: &Vmi<D>, longest: u64) -> Vec<(PhysAddr, u64)> {
    // Where memory is mapped, only that: all else reads as zeros, of which a lying file may claim any amount.
    let memory = vmi.driver().mapping().map_or_else(|| vmi.machine().memory.clone(), GuestMapping::memory_map);
    let regions = memory.regions().iter().copied();
    regions
        .flat_map(|region| {
            (0..region.len().div_ceil(CHUNK)).map(move |index| {
                let offset = index.saturating_mul(CHUNK);
                let len = region.len().saturating_sub(offset).min(CHUNK.saturating_add(longest));
                (region.start().wrapping_add(offset), len)
            })
        })
        .collect()
}
