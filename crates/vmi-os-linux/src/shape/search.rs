//! One pass over all memory for a byte string.

use memchr::memmem::Finder;
use rayon::prelude::*;
use vmi_core::{Driver, GuestMapping, Memory, PhysAddr, Vmi};

/// Bytes that one thread searches at a time.
const CHUNK: u64 = 4 << 20;

/// Where `needle` is in physical memory, ascending, at most `limit` places, and whether there are more.
///
/// What cannot be read is passed over: a needle there cannot be used either.
pub(super) fn find_all<D: Driver>(vmi: &Vmi<D>, needle: &[u8], limit: usize) -> (Vec<PhysAddr>, bool) {
    let finder = Finder::new(needle);
    // Where memory is mapped, only that: the rest reads as zeros, of which a lying file may claim any amount.
    let memory = vmi.driver().mapping().map_or_else(|| vmi.machine().memory.clone(), GuestMapping::memory_map);
    let chunks: Vec<(PhysAddr, u64)> = memory
        .regions()
        .iter()
        .flat_map(|region| {
            let region = *region;
            (0..region.len().div_ceil(CHUNK)).map(move |index| {
                let offset = index.saturating_mul(CHUNK);
                // Chunks overlap, so that a needle across their border is found: by the chunk in which it starts.
                let len = region.len().saturating_sub(offset).min(CHUNK.saturating_add(needle.len() as u64));
                (region.start().wrapping_add(offset), len)
            })
        })
        .collect();
    let mut found: Vec<PhysAddr> = chunks
        .par_iter()
        .flat_map_iter(|&(start, len)| {
            let len = usize::try_from(len).unwrap_or(0);
            let mut copy = Vec::new();
            let bytes = match vmi.slice(start, len) {
                Some(bytes) => bytes,
                None => {
                    copy.resize(len, 0);
                    match vmi.read_lossy(start, &mut copy) {
                        Ok(_) => copy.as_slice(),
                        Err(_) => &[],
                    }
                }
            };
            let hits = finder.find_iter(bytes).map(|offset| offset as u64).filter(|&offset| offset < CHUNK);
            hits.take(limit.saturating_add(1)).map(|offset| start.wrapping_add(offset)).collect::<Vec<_>>()
        })
        .collect();
    found.sort();
    let more = found.len() > limit;
    found.truncate(limit);
    (found, more)
}
