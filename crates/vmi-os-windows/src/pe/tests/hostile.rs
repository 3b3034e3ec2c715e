//! Images that lie: every question ends in an answer or an error, soon.

use proptest::prelude::*;
use vmi_core::ErrorKind;

use super::TestMemory;
use super::built::{DIRECTORY, Image, PE, SIZE};
use crate::pe::{PeImage, exercise};

fn victim() -> Image {
    let mut image = Image::new(true);
    image.put(DIRECTORY + 0x40, b"HAL.KeGetCurrentIrql\0");
    image.exports(&[0x4000, 0x4010, 0, 0x4020, (DIRECTORY + 0x40) as u32], &[("Alias", 1), ("KeIrql", 4), ("NtBuildNumber", 0)]);
    image
}

#[test]
fn counts_of_4_billion_are_refused() {
    for count_at in [20, 24] {
        let mut image = victim();
        image.put32(DIRECTORY + count_at, u32::MAX);
        let memory = image.memory();
        let image = PeImage::new(&memory, memory.at()).unwrap();
        assert!(matches!(image.exports().unwrap_err().kind(), ErrorKind::Limit { limit: 65_536, .. }));
    }
}

#[test]
fn tables_that_leave_the_image_are_refused() {
    for table in [28, 32, 36] {
        for to in [u32::MAX - 2, SIZE as u32 - 2] {
            let mut image = victim();
            image.put32(DIRECTORY + table, to);
            let memory = image.memory();
            let image = PeImage::new(&memory, memory.at()).unwrap();
            assert!(matches!(image.exports().unwrap_err().kind(), ErrorKind::Corrupt { .. }));
        }
    }
}

/// All tables are the directory itself, and all of the image is the directory: names, addresses and forwarders are its own bytes.
#[test]
fn a_directory_that_points_at_itself_ends() {
    let mut image = victim();
    for table in [12, 28, 32, 36] {
        image.put32(DIRECTORY + table, DIRECTORY as u32);
    }
    image.directory(0, DIRECTORY, SIZE - DIRECTORY);
    image.put32(DIRECTORY + 20, 1000);
    image.put32(DIRECTORY + 24, 1000);
    let memory = image.memory();
    assert!(exercise(&memory, memory.at()) >= 1000);
}

#[test]
fn names_in_a_wrong_order_are_found_all_the_same() {
    let mut image = Image::new(true);
    image.exports(&[0x4000, 0x4010, 0x4020], &[("Zzz", 0), ("Mmm", 1), ("Aaa", 2)]);
    let memory = image.memory();
    let image = PeImage::new(&memory, memory.at()).unwrap();
    let exports = image.exports().unwrap().unwrap();
    for (name, ordinal) in [("Zzz", 5), ("Mmm", 6), ("Aaa", 7)] {
        assert_eq!(exports.find(name).unwrap().ordinal, ordinal);
    }
}

#[test]
fn an_ordinal_beyond_the_table_and_an_address_beyond_the_image_are_told() {
    let mut image = Image::new(true);
    image.exports(&[0x4000, SIZE as u32 + 1], &[("Beyond", 1), ("Wild", 700)]);
    let memory = image.memory();
    let image = PeImage::new(&memory, memory.at()).unwrap();
    let exports = image.exports().unwrap().unwrap();
    for name in ["Beyond", "Wild"] {
        assert!(matches!(exports.find(name).unwrap_err().kind(), ErrorKind::Corrupt { .. }), "{name}");
    }
    assert_eq!(exports.iter().filter(Result::is_err).count(), 2);
}

#[test]
fn a_header_far_away_is_refused() {
    let mut image = victim();
    image.put32(0x3c, 0x4000_0000);
    let memory = image.memory();
    assert!(matches!(PeImage::new(&memory, memory.at()).unwrap_err().kind(), ErrorKind::Corrupt { .. }));
    let mut image = victim();
    image.put(PE + 6, &u16::MAX.to_le_bytes());
    let memory = image.memory();
    assert!(matches!(PeImage::new(&memory, memory.at()).unwrap_err().kind(), ErrorKind::Corrupt { .. }));
}

proptest! {
    /// Bytes of the headers and of all tables are changed at random, pages are taken away.
    #[test]
    fn damaged_images_end_in_errors(
        changes in prop::collection::vec((prop_oneof![0usize..0x400, DIRECTORY..DIRECTORY + 0x80, 0x2000usize..0x2820], any::<u8>()), 0..24),
        hole in prop::option::of(0u64..8),
        base in prop_oneof![Just(0xffff_f804_7ba0_0000u64), Just(u64::MAX - 0x2fff)],
    ) {
        let mut image = victim();
        for (at, byte) in changes {
            image.put(at, &[byte]);
        }
        let mut memory = TestMemory::new(base, image.bytes);
        memory.holes.extend(hole.map(|page| base.saturating_add(page * 0x1000)..base.saturating_add((page + 1) * 0x1000)));
        exercise(&memory, memory.at());
    }

    #[test]
    fn random_bytes_end_in_errors(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let mut bytes = bytes;
        bytes.splice(..bytes.len().min(2), *b"MZ");
        let memory = TestMemory::new(0x40_0000, bytes);
        exercise(&memory, memory.at());
    }
}
