//! Addresses to read in no order.

use std::ops::Range;

/// Multiples of `alignment` counted from the start of `within`, of a pseudo-random sequence, the same in every run.
pub fn addresses(count: usize, within: Range<u64>, alignment: u64) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            within.start + state % ((within.end - within.start) / alignment) * alignment
        })
        .collect()
}
