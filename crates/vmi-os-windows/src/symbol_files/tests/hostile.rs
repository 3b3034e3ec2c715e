//! Damaged program databases: errors, soon, and never a panic. Those of `VMI_SHARED_DATA` are damaged in far more ways than bytes that a test makes up.

use std::time::Instant;

use proptest::prelude::*;

use super::super::{SymbolFile, exercise};
use super::real_files;

#[test]
fn three_thousand_damaged_copies_of_a_real_database() {
    let Some(directory) = real_files("pdb/ntdll.pdb") else { return };
    let good = std::fs::read(directory.join("pdb/ntdll.pdb")).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let start = Instant::now();
    let (mut accepted, mut slowest) = (0, 0);
    for round in 0..3000 {
        let mut bytes = good.clone();
        for _ in 0..1 + random() % 64 {
            // The head, the directory of streams at the end, types, anything.
            let at = match random() % 4 {
                0 => random() % 0x100,
                1 => bytes.len() as u64 - 1 - random() % 0x8000,
                2 => random() % 0x40000,
                _ => random() % bytes.len() as u64,
            };
            bytes[at as usize] = [0xff, 0, random() as u8][(random() % 3) as usize];
        }
        if round % 5 == 0 {
            bytes.truncate((random() % bytes.len() as u64) as usize);
        }
        let one = Instant::now();
        if let Ok(file) = SymbolFile::parse(&bytes) {
            accepted += 1;
            if round % 50 == 0 {
                exercise(&file);
            }
        }
        slowest = slowest.max(one.elapsed().as_millis());
    }
    println!("{accepted} of 3000 damaged copies could still be read; {:?} in all, the slowest {slowest} ms", start.elapsed());
    assert!(accepted > 0 && accepted < 3000);
}

proptest! {
    #[test]
    fn any_bytes_end_in_errors(bytes in prop::collection::vec(any::<u8>(), 0..4096), kind in 0..3) {
        let start: &[u8] = match kind {
            0 => b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0\0\x04\0\0\x01\0\0\0\x08\0\0\0\x40\0\0\0",
            1 => b"VMIWSYM\0\x01\0\0\0\x08\0\0\0",
            _ => b"{\"metadata\":{",
        };
        let mut all = start.to_vec();
        all.extend(bytes);
        if let Ok(file) = SymbolFile::parse(&all) {
            exercise(&file);
        }
    }
}
