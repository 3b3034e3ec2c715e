//! Hibernation files of Windows 8 to 11, made by hand.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;

use builder::hiberfil::{PACKINGS, Packing, Page, file, huffman, lz77, set};
use builder::windows_dump::{put32, put64};
use builder::{exercise, open, open_with, pattern};
use proptest::prelude::*;
use vmi_core::{ErrorKind, Memory, PhysAddr, Vmi};
use vmi_driver_file::{Format, FormatError, ImageDriver, OpenError, OpenOptions};

fn format_error(result: Result<Vmi<ImageDriver>, OpenError>) -> FormatError {
    match result.unwrap_err() {
        OpenError::Image { source, .. } => source,
        other => panic!("{other}"),
    }
}

fn malformed(result: Result<Vmi<ImageDriver>, OpenError>) -> String {
    match format_error(result) {
        error @ FormatError::Malformed { .. } => error.to_string(),
        other => panic!("{other}"),
    }
}

/// A page of content that packs: text, zeros and noise; none of two numbers is the same.
fn page(number: u64) -> Page {
    let text = format!("page {number} of a machine that sleeps. ");
    let mut data =
        [text.repeat(20).into_bytes(), vec![0; 1500], pattern(number as u8, 300), text.repeat(9).into_bytes()].concat();
    data.resize(4096, 0);
    (number, data)
}

fn pages(numbers: impl IntoIterator<Item = u64>) -> Vec<Page> {
    numbers.into_iter().map(page).collect()
}

/// All pages, and the file: runs, single pages, memory above 4 GiB, and the shortest set.
fn sleeping(wide: bool, packing: Packing) -> (Vec<Page>, Vec<u8>) {
    let boot = vec![pages(1..10), pages([0x20, 0x21, 0x30])];
    let kernel = vec![
        pages(0x100..0x110),
        pages([0x50, 0x40, 0x45, 0x46, 0x47, 0x60]),
        vec![(0x700, vec![0; 4096])],
        pages(0x10_0000..0x10_0005),
        pages((0x20_0000..0x20_0020).step_by(2)),
    ];
    let len = if wide { 0x3e0 } else { 0x340 };
    let pack = |sets: &[Vec<Page>]| sets.iter().map(|pages| set(wide, packing, pages)).collect::<Vec<_>>();
    let count = |sets: &[Vec<Page>]| sets.iter().map(|pages| pages.len() as u64).sum();
    let bytes = file(len, &pack(&boot), count(&boot), &pack(&kernel), count(&kernel));
    ([boot, kernel].concat().concat(), bytes)
}

fn check(vmi: &Vmi<ImageDriver>, pages: &[Page]) {
    for (number, data) in pages {
        assert!(&vmi.read_vec(PhysAddr::new(number * 4096), 4096).unwrap() == data, "{number:#x}");
    }
}

#[test]
fn every_packing() {
    for packing in PACKINGS {
        for wide in [true, false] {
            let (all, bytes) = sleeping(wide, packing);
            let vmi = open(&bytes).unwrap();
            assert_eq!(vmi.driver().format(), Format::Hiberfil);
            assert_eq!(vmi.machine().memory.total(), all.len() as u64 * 4096);
            check(&vmi, &all);
            // A part of a page, and a read over several sets.
            assert!(vmi.read_vec(PhysAddr::new(0x4_5100), 100).unwrap() == page(0x45).1[0x100..0x164]);
            let run: Vec<u8> = (0x100..0x110).flat_map(|number| page(number).1).collect();
            assert!(vmi.read_vec(PhysAddr::new(0x10_0000), 0x10000).unwrap() == run);
            for hole in [0, 10, 0x22, 0x3f, 0x48, 0x110, 0x20_0001, 0x1000_0000] {
                let error = vmi.read::<u8>(PhysAddr::new(hole * 4096)).unwrap_err();
                assert!(matches!(error.kind(), ErrorKind::Hole { .. }), "{error}");
            }
        }
    }
}

#[test]
fn every_header() {
    for len in [0x360, 0x3b0, 0x3c8, 0x3d8, 0x3e0, 0x448, 0x4d8, 0x2c8, 0x310, 0x328, 0x338, 0x340] {
        let wide = len >= 0x360;
        let (boot, kernel) = (pages(5..9), pages(0x100..0x108));
        let sets = [&boot, &kernel].map(|pages| vec![set(wide, Packing::Lz77, pages)]);
        let mut bytes = file(len, &sets[0], 4, &sets[1], 8);
        for magic in [b"HIBR", b"RSTR", b"WAKE"] {
            bytes[..4].copy_from_slice(magic);
            check(&open(&bytes).unwrap(), &[boot.clone(), kernel.clone()].concat());
        }
    }
}

#[test]
fn the_set_that_is_restored_last_holds_a_page() {
    let (first, mut second) = (pages(0x10..0x20), pages(0x18..0x1a));
    second.iter_mut().for_each(|(_, data)| data.reverse());
    let boot = [set(true, Packing::Lz77, &first)];
    let kernel = [set(true, Packing::FlatCodes, &second)];
    let vmi = open(&file(0x448, &boot, 16, &kernel, 2)).unwrap();
    assert_eq!(vmi.machine().memory.total(), 16 * 4096);
    check(&vmi, &second);
    check(&vmi, &[&first[..8], &first[10..]].concat());
}

#[test]
fn other_versions_and_wiped_files_are_named() {
    let bytes = sleeping(true, Packing::Lz77).1;
    for magic in [b"hibr", b"wake", b"HIBR"] {
        let mut old = bytes.clone();
        old[..4].copy_from_slice(magic);
        put32(&mut old, 12, 0xa8);
        assert!(malformed(open(&old)).contains("Windows 7 and older"));
    }
    let mut wiped = bytes.clone();
    wiped[..4096].fill(0);
    wiped[..4].copy_from_slice(b"WAKE");
    assert!(malformed(open(&wiped)).contains("wiped"));
    wiped[..4].fill(0);
    assert!(malformed(open_with(&wiped, OpenOptions::new().format(Format::Hiberfil))).contains("wiped"));
    let mut large = bytes;
    put32(&mut large, 0x18, 0x4000);
    assert!(malformed(open(&large)).contains("0x4000"));
}

#[test]
fn cut_anywhere() {
    let (all, bytes) = sleeping(true, Packing::Lz77);
    let mut seen = 0;
    for len in (0..bytes.len()).rev().step_by(97) {
        let error = match open(&bytes[..len]) {
            Err(OpenError::Image { source, .. }) => source,
            // Less than a page is no file that anybody made.
            Err(OpenError::Empty { .. }) => continue,
            other => panic!("{len}: {other:?}"),
        };
        assert!(matches!(error, FormatError::Truncated { .. }), "{len}: {error}");
        if len < 0x1000 {
            continue;
        }
        let part = match open_with(&bytes[..len], OpenOptions::new().allow_truncated(true)) {
            Ok(part) => part,
            Err(OpenError::Image { source: FormatError::NoMemory, .. }) => continue,
            other => panic!("{len}: {other:?}"),
        };
        let there: Vec<Page> = all
            .iter()
            .filter(|(number, _)| part.machine().memory.region_at(PhysAddr::new(number * 4096)).is_some())
            .cloned()
            .collect();
        assert_eq!(there.len() as u64 * 4096, part.machine().memory.total());
        check(&part, &there);
        seen += 1;
    }
    assert!(seen > 100);
    let (what, missing) = match format_error(open(&bytes[..bytes.len() - 3])) {
        FormatError::Truncated { what, missing } => (what, missing),
        other => panic!("{other}"),
    };
    assert!(what.contains("the kernel's restore set, of which 16 pages are still to come") && missing == 3, "{what} {missing}");
}

#[test]
fn lying_files() {
    let good = sleeping(true, Packing::Lz77).1;
    let with = |at: usize, value: u64| {
        let mut bytes = good.clone();
        put64(&mut bytes, at, value);
        open(&bytes)
    };
    // More pages than there are sets: zeros follow the boot loader's, nothing the kernel's.
    assert!(malformed(with(0x58, u64::MAX)).contains("zeros in the boot loader's restore set"));
    assert!(matches!(format_error(with(0x230, u64::MAX)), FormatError::Truncated { .. }));
    assert!(malformed(with(0x68, u64::MAX)).contains("cannot start"));
    assert!(malformed(with(0x70, 0)).contains("cannot start"));
    assert!(matches!(format_error(with(0x70, 1 << 40)), FormatError::Truncated { .. }));
    // The first set of the boot loader: number of runs, length, page.
    let set = |word: u32, run: u64| {
        let mut bytes = good.clone();
        put32(&mut bytes, 0x3000, word);
        put64(&mut bytes, 0x3004, run);
        open(&bytes)
    };
    assert!(malformed(set(0x10000, 0)).contains("0 runs"));
    assert!(malformed(set(0x1_00ff, 0)).contains("255 runs"));
    assert!(malformed(set(0x0001, 0)).contains("in 0x0 bytes"));
    assert!(malformed(set(0xfffff01, 0)).contains("1 pages in 0xfffff bytes"));
    assert!(malformed(set(0x10001, u64::MAX)).contains("page of number"));
    assert!(malformed(set(0x10003, 15)).contains("pages"));
}

#[test]
fn damage_is_found_when_it_is_read() {
    for (packing, name) in [(Packing::Lz77, "Xpress"), (Packing::FlatCodes, "Xpress Huffman")] {
        let mut packed = set(true, packing, &pages(0x100..0x104));
        let vmi = |packed: &[u8]| open(&file(0x448, &[], 0, &[packed.to_vec()], 4)).unwrap();
        check(&vmi(&packed), &pages(0x100..0x104));
        // Half of the data.
        let half = (packed.len() as u32 - 12) / 2;
        let word = u32::from_le_bytes(packed[..4].try_into().unwrap());
        put32(&mut packed, 0, word & 0xf00_000ff | half << 8 | word & 0xc000_0000);
        let error = vmi(&packed).read::<u8>(PhysAddr::new(0x10_0000)).unwrap_err();
        let ErrorKind::Driver { source, action, .. } = error.kind() else { panic!("{error}") };
        assert!(source.to_string().contains(name) && action.contains("0x100000"), "{source} {action}");
    }
}

/// The last bits are all ends of the codes; a decoder must not stop at the last word that it takes.
#[test]
fn the_last_bits_count() {
    for tail in 0..40 {
        let mut data = vec![0; 4096];
        data[..3000].copy_from_slice(&pattern(5, 3000));
        for at in 0..tail {
            data[4095 - at] = if at % 3 == 0 { 0 } else { 1 + (at % 2) as u8 };
        }
        let pages = vec![(0x30, data)];
        let vmi = open(&file(0x448, &[], 0, &[set(true, Packing::SkewedCodes, &pages)], 1)).unwrap();
        check(&vmi, &pages);
    }
    // Nothing but the two words that are taken ahead.
    let mut lens = [10; 512];
    (lens[0], lens[1]) = (1, 9);
    let tiny = huffman(&[0, 0], &lens);
    assert_eq!(tiny.len(), 260);
    assert_eq!(xpress_huffman::decompress(&[&tiny[..], &[0; 4]].concat(), 2).unwrap(), [0, 0]);
}

/// [MS-XCA] 3.1 and 3.2: the examples of the specification.
#[test]
fn the_examples_of_the_specification() {
    let abc = [0x3f, 0, 0, 0].iter().copied().chain(b'a'..=b'z').collect::<Vec<u8>>();
    assert_eq!(lzxpress::data::decompress(&abc).unwrap(), (b'a'..=b'z').collect::<Vec<u8>>());
    assert_eq!(lz77(&(b'a'..=b'z').collect::<Vec<u8>>()), abc);
    let hundred = b"abc".repeat(100);
    assert_eq!(lz77(&hundred), [0xff, 0xff, 0xff, 0x1f, 0x61, 0x62, 0x63, 0x17, 0x00, 0x0f, 0xff, 0x26, 0x01]);
}

/// What our packing makes, others unpack: the crates rust-lzxpress and xpress-huffman.
#[test]
fn others_unpack_it_too() {
    let mut contents: Vec<Vec<u8>> = (1..40).map(|number| page(number).1).collect();
    contents.push(contents.concat());
    contents.push(vec![0; 65536]);
    contents.push(vec![7; 200_000]);
    contents.push(pattern(3, 65536));
    for data in contents {
        assert!(lzxpress::data::decompress(&lz77(&data)).unwrap() == data);
        if data.len() <= 65536 {
            let packed = [&huffman(&data, &[9; 512])[..], &[0; 4]].concat();
            assert!(xpress_huffman::decompress(&packed, data.len()).unwrap() == data);
        }
    }
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..200),
        (any::<u8>(), 1usize..3000).prop_map(|(byte, len)| vec![byte; len]),
        (prop::collection::vec(any::<u8>(), 1..9), 1usize..400).prop_map(|(bytes, times)| bytes.repeat(times)),
    ];
    prop::collection::vec(part, 1..20).prop_map(|parts| {
        let mut bytes = parts.concat();
        bytes.resize(bytes.len().next_multiple_of(4096).min(65536), 0);
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_content(data in content(), packing in prop::sample::select(&PACKINGS[..]), wide: bool) {
        let pages: Vec<Page> = data.chunks(4096).enumerate().map(|(at, page)| (at as u64 * 3 + 1, page.to_vec())).collect();
        let bytes = file(if wide { 0x4d8 } else { 0x2c8 }, &[], 0, &[set(wide, packing, &pages)], pages.len() as u64);
        let vmi = open(&bytes).unwrap();
        for (number, data) in pages {
            prop_assert!(vmi.read_vec(PhysAddr::new(number * 4096), 4096).unwrap() == data);
        }
    }

    #[test]
    fn changed_anywhere(
        wide: bool,
        packing in prop::sample::select(&PACKINGS[..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        len in any::<prop::sample::Index>(),
        truncated: bool,
    ) {
        let mut bytes = sleeping(wide, packing).1;
        for (at, value) in changes {
            // The header's fields, the start of either restore set, or anything.
            let near = [0x10, 0x40, 0x200, 0x3000];
            let place = at.index(bytes.len() + 4 * near.len());
            let place = if place < bytes.len() { place } else { near[(place - bytes.len()) / 4] + at.index(0x40) };
            bytes[place] = value;
        }
        if truncated {
            bytes.truncate(len.index(bytes.len()) + 1);
        }
        exercise(&bytes, Some(Format::Hiberfil), truncated);
    }
}
