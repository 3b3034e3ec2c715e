//! Images packed with zstd and gzip.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;

use std::io::Write;
use std::sync::{Arc, Mutex};

use builder::{Elf, lime, load, open, open_with, pattern};
use flate2::write::GzEncoder;
use proptest::prelude::*;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use vmi_core::{Driver, Memory, PhysAddr};
use vmi_driver_file::{Compression, Format, OpenError, OpenOptions};

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A raw image with zeros in the middle and at the end.
fn raw() -> Vec<u8> {
    let mut bytes = [vec![0; 4096], pattern(1, 3 << 20), vec![0; 2 << 20], pattern(2, 5000), vec![0; 9000]].concat();
    bytes[100] = 7;
    bytes
}

#[test]
fn every_format_in_every_packing() {
    let data = pattern(4, 20_000);
    let images = [
        (Format::Raw, 0, [&[0; 16][..], &data[16..]].concat()),
        (Format::Lime, 0x1000, lime(0x1000, &data)),
        (Format::Elf, 0x5000, Elf::new(vec![load(0x5000, data)]).bytes()),
    ];
    for (format, at, bytes) in images {
        let plain = open(&bytes).unwrap();
        for (compression, packed) in [(Compression::Zstd, zstd(&bytes)), (Compression::Gzip, gzip(&bytes))] {
            let vmi = open(&packed).unwrap();
            assert_eq!((vmi.driver().format(), vmi.driver().compression()), (format, Some(compression)));
            assert_eq!(vmi.machine().memory, plain.machine().memory);
            let at = PhysAddr::new(at);
            assert_eq!(vmi.read_vec(at, 20_000).unwrap(), plain.read_vec(at, 20_000).unwrap());
            assert!(vmi.machine().name.ends_with(&format!("({compression})")));
        }
    }
}

#[test]
fn many_frames_and_members() {
    let bytes = raw();
    let (front, back) = bytes.split_at(1_234_567);
    let skippable = |len: u32| [&0x184d_2a53_u32.to_le_bytes()[..], &len.to_le_bytes(), &vec![9; len as usize]].concat();
    let frames = [skippable(20), zstd(front), skippable(0), zstd(back), skippable(7)].concat();
    let members = [gzip(front), gzip(back)].concat();
    for packed in [frames, members] {
        let vmi = open(&packed).unwrap();
        assert_eq!(vmi.machine().memory.total(), bytes.len() as u64);
        assert!(vmi.read_vec(PhysAddr::ZERO, bytes.len()).unwrap() == bytes);
    }
}

#[test]
fn damage_is_an_error() {
    let bytes = raw();
    for packed in [zstd(&bytes), gzip(&bytes)] {
        for len in [packed.len() - 1, packed.len() - 5, packed.len() / 2, 20, 9, 5] {
            let error = open(&packed[..len]).unwrap_err();
            assert!(matches!(error, OpenError::Unpack { .. }), "{len}: {error}");
        }
        // Incompressible bytes are stored as they are: only the checksum can tell.
        let mut flipped = packed.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        assert!(matches!(open(&flipped), Err(OpenError::Unpack { .. })));
        assert!(matches!(open(&[&packed[..], b"garbage!"].concat()), Err(OpenError::Unpack { .. })));
        let twice = gzip(&packed);
        assert!(matches!(open(&twice), Err(OpenError::NotSupported { .. })));
    }
    assert!(matches!(open(&zstd(&[])), Err(OpenError::Empty { .. } | OpenError::Unpack { .. })));
}

#[test]
fn bombs_are_stopped() {
    let bytes = vec![0; 40 << 20];
    for packed in [zstd(&bytes), gzip(&bytes)] {
        assert!(packed.len() < 1 << 20);
        let error = open_with(&packed, OpenOptions::new().max_unpacked(10 << 20)).unwrap_err();
        assert!(matches!(error, OpenError::TooLarge { limit, .. } if limit == 10 << 20), "{error}");
        // Exactly as much as allowed is allowed.
        assert!(open_with(&packed, OpenOptions::new().max_unpacked(40 << 20)).is_ok());
    }
}

#[test]
fn a_window_beyond_the_limit_is_refused() {
    // Frame header: no single segment, window descriptor 2^31 (RFC 8878, 3.1.1.1.2), then a last raw block of one byte.
    let frame = [&0xfd2f_b528_u32.to_le_bytes()[..], &[0x00, 21 << 3], &[0x09, 0, 0, 7]].concat();
    let error = open(&frame).unwrap_err();
    assert!(matches!(&error, OpenError::Unpack { .. }), "{error}");
}

#[test]
fn progress_reaches_the_end_and_directories_are_obeyed() {
    let directory = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let packed = gzip(&raw());
    let log = seen.clone();
    let options =
        OpenOptions::new().temp_dir(directory.path()).progress(move |done, total| log.lock().unwrap().push((done, total)));
    let vmi = open_with(&packed, options).unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.is_sorted() && seen.len() > 2);
    assert_eq!(seen.last(), Some(&(packed.len() as u64, packed.len() as u64)));
    // The temporary file has no name.
    assert_eq!(directory.path().read_dir().unwrap().count(), 0);
    assert!(vmi.driver().mapping().is_some());
    let nowhere = OpenOptions::new().temp_dir(directory.path().join("missing"));
    let error = open_with(&packed, nowhere).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Damage anywhere is an error or goes unnoticed where it is in what the formats do not protect (gzip's name and time); no panic,
    /// and never other content.
    #[test]
    fn changed_anywhere(with_zstd: bool, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = [pattern(1, 3000), vec![0; 5000], pattern(1, 3000), b"repeat ".repeat(500)].concat();
        bytes[0] = 0;
        let mut packed = if with_zstd { zstd(&bytes) } else { gzip(&bytes) };
        for (at, value) in changes {
            let at = at.index(packed.len());
            packed[at] = value;
        }
        if let Ok(vmi) = open_with(&packed, OpenOptions::new().format(Format::Raw).max_unpacked(1 << 20))
            && vmi.driver().compression().is_some()
        {
            prop_assert!(vmi.read_vec(PhysAddr::ZERO, bytes.len()).ok() == Some(bytes));
        }
    }
}
