//! AVML images of version 2, alone and mixed with version 1.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;
#[path = "builder/avml.rs"]
mod layout;

use std::fs::File;
use std::io::Seek;
use std::path::Path;

use builder::{exercise, lime, open, open_with};
use layout::{around, chunk_of, range, range_in_chunks};
use proptest::prelude::*;
use vmi_core::{ErrorKind, Memory, PhysAddr, Region, Vmi};
use vmi_driver_file::{Format, FormatError, ImageDriver, OpenError, OpenOptions};

fn region(start: u64, len: u64) -> Region {
    Region::new(PhysAddr::new(start), len).unwrap()
}

/// Bytes of which a half can be packed.
fn memory(seed: u8, len: usize) -> Vec<u8> {
    let mut state = u64::from(seed);
    let mut random = || {
        // xorshift64: the bytes need not be good, only without a pattern.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let mut bytes: Vec<u8> = (0..len).map(|_| random()).collect();
    bytes.chunks_mut(50_000).step_by(2).for_each(|chunk| chunk.fill(seed));
    bytes
}

fn assert_holds(vmi: &Vmi<ImageDriver>, at: u64, bytes: &[u8]) {
    let at = PhysAddr::new(at);
    assert!(vmi.read_vec(at, bytes.len()).unwrap() == bytes, "{at}");
    for skip in [1, 70_000, 65_536, 131_071] {
        if skip < bytes.len() {
            let at = at.checked_add(skip as u64).unwrap();
            assert_eq!(vmi.read_vec(at, (bytes.len() - skip).min(5)).unwrap(), bytes[skip..][..(bytes.len() - skip).min(5)]);
        }
    }
}

#[test]
fn ranges_and_holes() {
    let (low, middle, high) = (memory(3, 300_000), memory(5, 1), memory(7, 3 << 20));
    let image = [range(0x1_0000_0000, &high), range(0x1000, &low), range(0x10_0000, &middle)].concat();
    let vmi = open(&image).unwrap();
    assert_eq!(vmi.driver().format(), Format::Avml);
    assert_eq!(vmi.machine().memory.regions(), [region(0x1000, 300_000), region(0x10_0000, 1), region(0x1_0000_0000, 3 << 20)]);
    for (at, bytes) in [(0x1000, &low), (0x10_0000, &middle), (0x1_0000_0000, &high)] {
        assert_holds(&vmi, at, bytes);
    }
    assert!(vmi.read::<u8>(PhysAddr::new(0xfff)).unwrap_err().is_absent());
    assert!(vmi.read::<u16>(PhysAddr::new(0x10_0000)).unwrap_err().is_absent());
    // What block-wise copies leave behind makes the index from the end impossible, not the image.
    assert_holds(&open(&[&image[..], &[0; 700]].concat()).unwrap(), 0x1000, &low);
}

#[test]
fn both_versions_in_a_file() {
    let (first, second, third) = (memory(3, 200_000), memory(5, 200_000), memory(7, 200_000));
    for (image, format) in [
        ([lime(0, &first), range(0x10_0000, &second), lime(0x20_0000, &third)].concat(), Format::Lime),
        ([range(0, &first), lime(0x10_0000, &second), range(0x20_0000, &third)].concat(), Format::Avml),
    ] {
        let vmi = open(&image).unwrap();
        assert_eq!(vmi.driver().format(), format);
        for (at, bytes) in [(0, &first), (0x10_0000, &second), (0x20_0000, &third)] {
            assert_holds(&vmi, at, bytes);
        }
    }
}

#[test]
fn chunks_of_any_size_and_kind() {
    let bytes = memory(9, 200_000);
    assert_holds(&open(&range_in_chunks(0, &bytes, 5000)).unwrap(), 0, &bytes);
    // Padding, a reserved chunk that may be skipped, the identifier once more, an empty chunk.
    let extra = [&b"\xfe\x03\0\0abc\x80\0\0\0\xff\x06\0\0sNaPpY"[..], &chunk_of(1, b"", b"")].concat();
    let stream = [&b"\xff\x06\0\0sNaPpY"[..], &chunk_of(1, &bytes[..100], &bytes[..100]), &extra].concat();
    let stream = [stream, chunk_of(1, &bytes[100..300], &bytes[100..300])].concat();
    assert_holds(&open(&around(0, 300, &stream)).unwrap(), 0, &bytes[..300]);
}

#[test]
fn the_first_range_speaks() {
    let (first, second) = (memory(3, 100_000), memory(5, 300_000));
    let vmi = open(&[range(0x1_0000, &first), range(0, &second)].concat()).unwrap();
    assert_eq!(vmi.machine().memory.regions(), [region(0, 300_000)]);
    let mut expected = second.clone();
    expected[0x1_0000..][..100_000].copy_from_slice(&first);
    assert_holds(&vmi, 0, &expected);
    // So does a plain range in the midst of a packed one, and a packed one in the midst of a plain one.
    let plain_first = open(&[lime(0x1_0000, &first), range(0, &second)].concat()).unwrap();
    assert_holds(&plain_first, 0, &expected);
    let packed_first = open(&[range(0x1_0000, &first), lime(0, &second)].concat()).unwrap();
    assert_holds(&packed_first, 0, &expected);
}

/// What a sparse file stores lies over a packed base, in the midst of a chunk too.
#[test]
fn a_difference_lies_over_a_packed_base() {
    use std::os::unix::fs::FileExt;

    let bytes = memory(5, 300_000);
    let directory = tempfile::tempdir().unwrap();
    let (base, upper) = (directory.path().join("base"), directory.path().join("upper"));
    std::fs::write(&base, range(0, &bytes)).unwrap();
    let file = std::fs::File::create(&upper).unwrap();
    file.set_len(300_000).unwrap();
    file.write_all_at(&[0xdd; 4096], 0x2000).unwrap();
    let vmi = Vmi::new(OpenOptions::new().base(&base).open(&upper).unwrap());
    let mut expected = bytes;
    expected[0x2000..0x3000].fill(0xdd);
    assert_holds(&vmi, 0, &expected);
}

#[test]
fn damage_is_told_where_it_is_read() {
    let bytes = memory(3, 300_000);
    let image = range(0, &bytes);
    // The last chunk is stored: only its checksum can tell.
    let mut flipped = image.clone();
    let at = image.len() - 20;
    flipped[at] ^= 1;
    let vmi = open(&flipped).unwrap();
    assert_eq!(vmi.read_vec(PhysAddr::ZERO, 1000).unwrap(), bytes[..1000]);
    let error = vmi.read::<u8>(PhysAddr::new(299_999)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Driver { .. }), "{error}");
    // A chunk of an unknown kind breaks the chain: nothing behind it is found.
    flipped.clone_from(&image);
    flipped[32 + 10] = 0x40;
    let vmi = open(&flipped).unwrap();
    let error = vmi.read::<u8>(PhysAddr::ZERO).unwrap_err();
    assert!(format!("{:?}", error.kind()).contains("0x40"), "{error:?}");
}

#[test]
fn cut_anywhere() {
    let (first, second) = (memory(3, 150_000), memory(5, 70_000));
    let whole = [range(0, &first), range(0x10_0000, &second)].concat();
    let behind_first = range(0, &first).len();
    let cuts = (1..40).chain([200, 20_000, behind_first - 8, behind_first - 1]);
    let both = cuts.clone().chain(cuts.map(|cut| behind_first + cut)).chain((1..30).map(|cut| whole.len() - cut));
    for len in both.filter(|&len| len < whole.len()) {
        let (image, range_number) = (&whole[..len], usize::from(len > behind_first));
        let options = || OpenOptions::new().format(Format::Avml);
        let error = open_with(image, options()).unwrap_err();
        let OpenError::Image { source: FormatError::Truncated { what, missing }, .. } = &error else { panic!("{len}: {error}") };
        assert!(what.contains(&format!("range {range_number}")) && *missing > 0, "{len}: {error}");
        match open_with(image, options().allow_truncated(true)) {
            Err(OpenError::Image { source: FormatError::NoMemory, .. }) => assert!(len < 40_000),
            Err(error) => panic!("{len}: {error}"),
            Ok(vmi) => {
                for region in vmi.machine().memory.regions() {
                    let (base, bytes) = if region.start() == PhysAddr::ZERO { (0, &first) } else { (0x10_0000, &second) };
                    assert_eq!(region.start().get(), base);
                    assert_holds(&vmi, base, &bytes[..region.len() as usize]);
                }
                assert!(range_number == 0 || vmi.machine().memory.regions()[0] == region(0, 150_000));
            }
        }
    }
}

#[test]
fn hostile_headers() {
    let image = range(0, &memory(3, 1000));
    // Petabytes in a stream that has 1000 bytes; an end below the start; all of the address space.
    for (start, last) in [(0u64, (1u64 << 50) - 1), (0x2000, 0x1000), (0, u64::MAX)] {
        let mut bytes = image.clone();
        bytes[8..16].copy_from_slice(&start.to_le_bytes());
        bytes[16..24].copy_from_slice(&last.to_le_bytes());
        let error = open(&bytes).unwrap_err();
        assert!(matches!(&error, OpenError::Image { source: FormatError::Malformed { .. }, .. }), "{error}");
    }
    // A length that leads nowhere.
    for len in [0, 1, u64::MAX, image.len() as u64] {
        let mut bytes = image.clone();
        let at = bytes.len() - 8;
        bytes[at..].copy_from_slice(&len.to_le_bytes());
        assert!(matches!(open(&bytes), Err(OpenError::Image { source: FormatError::Malformed { .. }, .. })), "{len}");
    }
    // More than the header says; chunks of one byte each.
    let bytes = memory(3, 100_000);
    let stream = &range(0, &bytes)[32..];
    assert!(open(&around(0, 90_000, &stream[..stream.len() - 8])).unwrap().read::<u8>(PhysAddr::ZERO).is_err());
    assert!(open(&range_in_chunks(0, &bytes[..9000], 1)).unwrap().read::<u8>(PhysAddr::ZERO).is_err());
    assert!(matches!(open(b"AVML\x03\0\0\0"), Err(OpenError::NotSupported { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changed_anywhere(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut: bool) {
        let mut image = [range(0, &memory(3, 3000)), lime(0x8000, &memory(5, 50)), range(0x1000, &memory(7, 3000))].concat();
        for (at, value) in changes {
            let at = at.index(image.len());
            image[at] = value;
        }
        exercise(&image, Some(Format::Avml), cut);
    }
}

/// AVML's own conversion, as its program `avml convert` does it.
fn convert(from: &Path, to: (avml::Format, &Path)) {
    let len = from.metadata().unwrap().len();
    let mut image = avml::image::Image::<File, File>::new(to.0, from, to.1).unwrap();
    while image.src.stream_position().unwrap() < len {
        image.convert_block().unwrap();
    }
}

/// Compares all memory that `expected` has; what `vmi` lacks must be zero.
fn assert_same(expected: &Vmi<ImageDriver>, vmi: &Vmi<ImageDriver>) {
    const STEP: u64 = 1 << 20;
    for region in expected.machine().memory.regions() {
        let mut at = region.start();
        while at < region.end() {
            let len = (region.end().get() - at.get()).min(STEP) as usize;
            let (mut left, mut right) = (vec![0; len], vec![0; len]);
            assert!(expected.read_lossy(at, &mut left).unwrap().is_empty());
            vmi.read_lossy(at, &mut right).unwrap();
            assert!(left == right, "at {at}");
            at = at.checked_add(len as u64).unwrap();
        }
    }
}

/// What AVML makes of an image with this memory is read; what is written of it, AVML reads.
fn both_ways(lime: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let expected = Vmi::new(ImageDriver::open(lime).unwrap());
    let theirs = directory.path().join("theirs.avml");
    convert(lime, (avml::Format::AvmlCompressed, &theirs));
    let vmi = Vmi::new(ImageDriver::open(&theirs).unwrap());
    assert_eq!(vmi.driver().format(), Format::Avml);
    assert_same(&expected, &vmi);

    let (ours, back) = (directory.path().join("ours.avml"), directory.path().join("back.lime"));
    vmi_driver_file::write::Options::new().verify(true).image(&expected, &ours, Format::Avml, |_, _| ()).unwrap();
    convert(&ours, (avml::Format::Lime, &back));
    assert_same(&expected, &Vmi::new(ImageDriver::open(&back).unwrap()));
    assert_same(&Vmi::new(ImageDriver::open(&back).unwrap()), &expected);
}

#[test]
fn avml_agrees_on_built_memory() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("built.lime");
    // More than one of AVML's blocks of 16 MiB, zeros among them, and ranges beyond a hole.
    let mut ranges = vec![memory(3, (33 << 20) + 0x3000), memory(5, 0x5000), memory(7, 0x1000)];
    ranges[0][17 << 20..][..0x10_0000].fill(0);
    let starts = [0, 0x1_0000_0000, 0x1_0000_8000];
    let headed = |(&start, range): (&u64, &Vec<u8>)| {
        let mut bytes = lime(start, range);
        // AVML refuses a header whose reserved field is not zero.
        bytes[24..32].fill(0);
        bytes
    };
    std::fs::write(&image, starts.iter().zip(&ranges).flat_map(headed).collect::<Vec<u8>>()).unwrap();
    both_ways(&image);
}

#[test]
fn avml_agrees_on_real_memory() {
    let Some(images) = std::env::var_os("VMI_LAB_IMAGES") else {
        return eprintln!("skipped: VMI_LAB_IMAGES is not set");
    };
    for guest in ["x64-6.1", "x64-6.1-hole"] {
        both_ways(&Path::new(&images).join(guest).join("memory.lime"));
    }
}
