//! Files from an enemy: whatever the bytes, an answer or an error, never a panic, and reads keep to what the file has.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;

use builder::{Elf, exercise, lime, load, note, notes, pattern};
use proptest::prelude::*;
use vmi_core::Memory;
use vmi_driver_file::Format;

fn small_lime() -> Vec<u8> {
    [lime(0x1000, &pattern(1, 100)), lime(0x10_0000, &pattern(2, 400)), lime(0x5000, &pattern(3, 33))].concat()
}

fn small_elf(class64: bool) -> Elf {
    let all = [note(b"QEMU\0", 0, &[1; 440]), note(b"VMCOREINFO\0", 0, b"OSRELEASE=6\n"), note(b"CORE\0", 1, &[2; 144])].concat();
    let mut tail = load(0x2000, pattern(1, 300));
    tail.memory_len = Some(0x900);
    let segments = vec![notes(all), tail, load(0x10_0000, pattern(2, 400))];
    Elf { class64, machine: 3, ..Elf::new(segments) }
}

#[test]
fn cut_short_anywhere() {
    for (bytes, format) in
        [(small_lime(), Format::Lime), (small_elf(true).bytes(), Format::Elf), (small_elf(false).bytes(), Format::Elf)]
    {
        assert!(exercise(&bytes, None, false));
        // Whole ranges are a whole LiME image; nothing else is.
        let whole = |len: usize| format == Format::Lime && [132, 132 + 32 + 400].contains(&len);
        for len in 1..bytes.len() {
            assert_eq!(exercise(&bytes[..len], Some(format), false), whole(len), "{format} cut to {len} of {}", bytes.len());
            exercise(&bytes[..len], Some(format), true);
            assert!(exercise(&bytes[..len], Some(Format::Raw), false));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..3000), truncated: bool) {
        exercise(&bytes, None, truncated);
        for format in [Format::Lime, Format::Elf, Format::Raw] {
            exercise(&bytes, Some(format), truncated);
        }
    }

    #[test]
    fn changed_images(
        which in 0..3usize,
        changes in prop::collection::vec((0..260usize, prop_oneof![Just(0u8), Just(0xff), Just(0x7f), any::<u8>()]), 1..12),
        truncated: bool,
    ) {
        let mut bytes = [small_lime(), small_elf(true).bytes(), small_elf(false).bytes()][which].clone();
        for (at, value) in changes {
            bytes[at] = value;
        }
        exercise(&bytes, None, truncated);
    }

    #[test]
    fn packed_rubbish(tail in prop::collection::vec(any::<u8>(), 0..400)) {
        for magic in [&[0x28, 0xb5, 0x2f, 0xfd][..], &[0x50, 0x2a, 0x4d, 0x18], &[0x1f, 0x8b, 8]] {
            exercise(&[magic, &tail].concat(), None, false);
        }
    }

    /// ELF segments against a table with one entry a byte: the first segment in the file that stores a byte has it; then come zeros, which a
    /// kdump has left out.
    #[test]
    fn segments_against_an_oracle(segments in prop::collection::vec((0u64..200, 0usize..60, 0u64..60), 1..8), kdump: bool) {
        let mut oracle: Vec<Option<u8>> = vec![None; 400];
        let mut headers = Vec::from_iter(kdump.then(|| notes(note(b"VMCOREINFO\0", 0, b"OSRELEASE=6\n"))));
        for (index, &(at, stored, more)) in segments.iter().enumerate() {
            let mut segment = load(at, pattern(index as u8, stored));
            // Not from page zero, or it would be the core of a process.
            (segment.physical_address, segment.virtual_address) = (at + 1, at + 1);
            segment.memory_len = Some(stored as u64 + more);
            for (i, &byte) in segment.data.iter().enumerate() {
                oracle[at as usize + 1 + i].get_or_insert(byte);
            }
            headers.push(segment);
        }
        for &(at, stored, more) in segments.iter().filter(|_| !kdump) {
            let tail = oracle.iter_mut().skip(at as usize + 1 + stored).take(more as usize);
            tail.for_each(|byte| _ = byte.get_or_insert(0));
        }
        let image = builder::open(&Elf::new(headers).bytes());
        if oracle.iter().all(Option::is_none) {
            prop_assert!(image.is_err());
            return Ok(());
        }
        let vmi = image.unwrap();
        for (at, expected) in oracle.iter().enumerate() {
            prop_assert_eq!(vmi.read::<u8>(vmi_core::PhysAddr::new(at as u64)).ok(), *expected, "at {}", at);
        }
        // All at once, up to the first hole.
        let first = oracle.iter().position(Option::is_some).unwrap();
        let run: Vec<u8> = oracle[first..].iter().map_while(|byte| *byte).collect();
        prop_assert_eq!(vmi.read_vec(vmi_core::PhysAddr::new(first as u64), run.len()).unwrap(), run);
    }
}
