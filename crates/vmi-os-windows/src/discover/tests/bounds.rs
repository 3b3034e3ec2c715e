//! Memory without a kernel, and memory that was made to break the search: an error that tells all roads, and an end within a bound.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Strategy, *};

/// Far more than a search of these small machines takes in a build without optimisation on a busy processor.
const BOUND: Duration = Duration::from_secs(20);

fn fails(bytes: Vec<u8>) -> DiscoverError {
    let started = Instant::now();
    let error = find(&Vmi::new(SyntheticDriver::<X86>::with_arch([(PhysAddr::ZERO, bytes)]))).unwrap_err();
    assert!(started.elapsed() < BOUND, "{:?}", started.elapsed());
    error
}

#[test]
fn zeros_and_noise_hold_no_kernel() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let noise: Vec<u8> = (0..(32 << 20) / 8).flat_map(|_| noise()).collect();
    for bytes in [vec![0; 64 << 20], noise, vec![0xff; 16 << 20], Vec::new()] {
        let error = fails(bytes);
        let tried: Vec<_> = error.attempts.iter().map(|(strategy, _)| *strategy).collect();
        assert_eq!(tried, Strategy::ALL[1..]);
        let text = error.to_string();
        assert!(Strategy::ALL[1..].iter().all(|strategy| text.contains(&strategy.to_string())), "{text}");
    }
}

/// Pages that all look like top tables, and all refer to each other: the worst that a guest can do to a search through page tables.
#[test]
fn tables_that_lead_everywhere_end() {
    let pages = 2048u64;
    let mut bytes = Vec::new();
    for page in 0..pages {
        for slot in 0..512u64 {
            let to = if slot == 0x1ed { page } else { (page * 7 + slot) % pages };
            let used = (0x100..0x140).contains(&slot) || slot == 0x1ed || (0x1f0..0x1f8).contains(&slot);
            bytes.extend(if used { (to << 12 | 3).to_le_bytes() } else { [0; 8] });
        }
    }
    let error = fails(bytes);
    assert!(
        error.attempts.iter().any(|(_, failure)| matches!(failure, Failure::NoPageTables { looked_at, .. } if *looked_at > 0)),
        "{error}"
    );
}

/// What finding a kernel of a machine may give; it must end, and not panic.
fn exercise(bytes: Vec<u8>, vcpu: Option<Registers>) {
    let started = Instant::now();
    let memory = SyntheticDriver::<X86>::with_arch([(PhysAddr::ZERO, bytes)]);
    let _ = find(&Vmi::new(WithRegisters { memory, vcpus: vcpu.into_iter().collect() }));
    assert!(started.elapsed() < BOUND, "{:?}", started.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn mutated_machines_end_without_a_panic(
        name in prop::sample::select(vec!["win10_x64_19041", "win7_sp1_x64", "win7_sp1_x86", "xp_sp3_x86"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), 0u8..4), 1..200),
    ) {
        let machine = machine(&named(name), nt_machine::Options { ram: vec![0..32 << 20], ..nt_machine::Options::default() });
        let vcpu = registers(&machine);
        let pages: Vec<u64> = machine.physical().pages().map(|(at, _)| at).collect();
        let mut bytes = runs(&machine).next().unwrap().1;
        for (place, value, kind) in changes {
            // Where something is: zeros are plenty.
            let page = pages[place.index(pages.len())] as usize;
            let at = (page + (value >> 32) as usize % 4088).min(bytes.len() - 8);
            match kind {
                0 => bytes[at..at + 8].copy_from_slice(&value.to_le_bytes()),
                1 => bytes[at] ^= 1 << (value % 8),
                2 => bytes[page..page + 4096].fill(value as u8),
                // A word of elsewhere: pointers that lead to the wrong place.
                _ => {
                    let from = pages[(value as usize) % pages.len()] as usize;
                    bytes.copy_within(from..from + 512, page);
                }
            }
        }
        exercise(bytes, Some(vcpu));
    }

    #[test]
    fn any_bytes_are_no_debugger_data_or_parse(bytes in prop::collection::vec(any::<u8>(), 0..0x500), size in 0u32..0x500, keys in any::<[u64; 3]>()) {
        let mut tagged = bytes.clone();
        if tagged.len() >= 0x18 {
            tagged[0x10..0x14].copy_from_slice(b"KDBG");
            tagged[0x14..0x18].copy_from_slice(&size.to_le_bytes());
        }
        for bytes in [bytes, tagged] {
            if let Ok(data) = DebuggerData::parse(&bytes) {
                prop_assert!(data.size() <= bytes.len() as u64);
                prop_assert!(data.variables().count() + data.members().count() + data.sizes().count() < 100);
            }
            let _ = DebuggerData::decode(&bytes, VirtAddr::new(keys[0]), keys[1], keys[2]);
        }
    }

    /// Encoding as the kernel would do it is undone, whatever the keys.
    #[test]
    fn decoding_undoes_encoding(keys in any::<[u64; 3]>(), words in prop::collection::vec(any::<u64>(), 0x6c)) {
        let [at, never, always] = keys;
        let mut clear: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        clear[0x10..0x18].copy_from_slice(b"KDBG\x60\x03\0\0");
        let encode = |word: &[u8; 8]| {
            let turned = (u64::from_le_bytes(*word) ^ always).swap_bytes() ^ (at | 0xffff_0000_0000_0000);
            (turned.rotate_right((never & 0xff) as u32) ^ never).to_le_bytes()
        };
        let encoded: Vec<u8> = clear.as_chunks().0.iter().flat_map(encode).collect();
        prop_assert_eq!(DebuggerData::decode(&encoded, VirtAddr::new(at), never, always), DebuggerData::parse(&clear));
    }
}
