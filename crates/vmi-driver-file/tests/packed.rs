//! Images packed with zstd, gzip, xz, lz4 and bzip2: unpacked once, or block by block where the container allows that.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;

use std::io::Write;
use std::process::Command;
use std::sync::{Arc, Mutex};

use builder::{Elf, lime, load, open, open_with, pattern};
use flate2::write::GzEncoder;
use proptest::prelude::*;
use vmi_core::{Driver, ErrorKind, Memory, PhysAddr};
use vmi_driver_file::{Compression, Format, OpenError, OpenOptions};

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let info = lz4_flex::frame::FrameInfo::new().content_checksum(true).block_checksums(true);
    let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An xz stream by the layout of `xz-file-format.txt`: LZMA2 chunks of plain bytes, `block` bytes a block, CRC32 for all checks.
fn xz(bytes: &[u8], block: usize) -> Vec<u8> {
    let crc = |bytes: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum().to_le_bytes()
    };
    let number = |mut number: usize| {
        let mut bytes = Vec::new();
        while number > 0x7f {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    };
    let mut out = [b"\xfd7zXZ\0\0\x01", &crc(&[0, 1])[..]].concat();
    let mut records = Vec::new();
    for content in bytes.chunks(block) {
        // Header: 12 bytes, one filter (LZMA2 is 0x21), one byte of properties (a dictionary of 8 MiB).
        let header = [2, 0, 0x21, 1, 22, 0, 0, 0];
        let mut packed = [&header[..], &crc(&header)].concat();
        for (index, chunk) in content.chunks(1 << 16).enumerate() {
            packed.push(if index == 0 { 1 } else { 2 });
            packed.extend((chunk.len() as u16).wrapping_sub(1).to_be_bytes());
            packed.extend(chunk);
        }
        packed.push(0);
        let unpadded = packed.len() + 4;
        packed.resize(packed.len().next_multiple_of(4), 0);
        packed.extend(crc(content));
        records.extend([number(unpadded), number(content.len())].concat());
        out.extend(packed);
    }
    let mut index = [vec![0], number(bytes.len().div_ceil(block)), records].concat();
    index.resize(index.len().next_multiple_of(4), 0);
    index.extend(crc(&index));
    let footer = [&(index.len() as u32 / 4 - 1).to_le_bytes()[..], &[0, 1]].concat();
    [&out[..], &index, &crc(&footer), &footer, b"YZ"].concat()
}

/// Every packing, all of it in one piece.
fn packings(bytes: &[u8]) -> [(Compression, Vec<u8>); 5] {
    [
        (Compression::Zstd, zstd(bytes)),
        (Compression::Gzip, gzip(bytes)),
        (Compression::Xz, xz(bytes, 1 << 30)),
        (Compression::Lz4, lz4(bytes)),
        (Compression::Bzip2, bzip2(bytes)),
    ]
}

fn skippable(magic: u32, content: &[u8]) -> Vec<u8> {
    [&magic.to_le_bytes()[..], &(content.len() as u32).to_le_bytes(), content].concat()
}

/// Frames of `block` bytes each, with a seek table as in `zstd_seekable_compression_format.md`.
fn zstd_seekable(bytes: &[u8], block: usize) -> Vec<u8> {
    let (mut out, mut table) = (Vec::new(), Vec::new());
    for content in bytes.chunks(block) {
        let frame = zstd(content);
        table.extend((frame.len() as u32).to_le_bytes());
        table.extend((content.len() as u32).to_le_bytes());
        out.extend(frame);
    }
    table.extend((bytes.len().div_ceil(block) as u32).to_le_bytes());
    table.push(0);
    table.extend(0x8f92_eab1_u32.to_le_bytes());
    [out, skippable(0x184d_2a5e, &table)].concat()
}

/// Frames that tell the size of their content, with skippable ones between.
fn zstd_sized(bytes: &[u8], block: usize) -> Vec<u8> {
    let frame = |content: &[u8]| {
        let mut compressor = zstd::bulk::Compressor::new(1).unwrap();
        compressor.include_checksum(true).unwrap();
        let frame = compressor.compress(content).unwrap();
        [skippable(0x184d_2a50, &(frame.len() as u32).to_le_bytes()), frame].concat()
    };
    bytes.chunks(block).flat_map(frame).collect()
}

/// Members as bgzip writes them, with the empty one at the end.
fn bgzf(bytes: &[u8]) -> Vec<u8> {
    let member = |content: &[u8]| {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        let packed = encoder.finish().unwrap();
        let mut crc = flate2::Crc::new();
        crc.update(content);
        let head = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 10, 0, b'X', b'Y', 0, 0, b'B', b'C', 2, 0];
        let len = head.len() + 2 + packed.len() + 8;
        let tail = [crc.sum().to_le_bytes(), (content.len() as u32).to_le_bytes()].concat();
        [&head[..], &(len as u16 - 1).to_le_bytes(), &packed, &tail].concat()
    };
    bytes.chunks(60_000).chain([&[][..]]).flat_map(member).collect()
}

/// Every packing that can be read block by block.
fn in_blocks(bytes: &[u8]) -> [(Compression, Vec<u8>); 5] {
    let two_streams = bytes.split_at(bytes.len() / 3);
    let two_streams = [xz(two_streams.0, 100_000), vec![0; 8], xz(two_streams.1, 70_001), vec![0; 4]].concat();
    [
        (Compression::Zstd, zstd_seekable(bytes, 100_000)),
        (Compression::Zstd, zstd_sized(bytes, 100_001)),
        (Compression::Gzip, bgzf(bytes)),
        (Compression::Xz, xz(bytes, 100_002)),
        (Compression::Xz, two_streams),
    ]
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
        let blocks = [(Compression::Xz, xz(&bytes, 3000)), (Compression::Zstd, zstd_seekable(&bytes, 3001))];
        for (compression, packed) in packings(&bytes).into_iter().chain(blocks) {
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
    let skippable = |len| skippable(0x184d_2a53, &vec![9; len]);
    let images = [
        [skippable(20), zstd(front), skippable(0), zstd(back), skippable(7)].concat(),
        [lz4(front), skippable(20), skippable(0), lz4(back), skippable(7)].concat(),
        [gzip(front), gzip(back)].concat(),
        [bzip2(front), bzip2(back)].concat(),
        [xz(front, 1 << 30), vec![0; 8], xz(back, 1 << 30)].concat(),
    ];
    for packed in images {
        let vmi = open(&packed).unwrap();
        assert_eq!(vmi.machine().memory.total(), bytes.len() as u64);
        assert!(vmi.read_vec(PhysAddr::ZERO, bytes.len()).unwrap() == bytes);
    }
}

#[test]
fn damage_is_an_error() {
    let bytes = raw();
    for (compression, packed) in packings(&bytes) {
        // What bzip2 can be told by is longer.
        let least = if compression == Compression::Bzip2 { 10 } else { 6 };
        for len in [packed.len() - 1, packed.len() - 5, packed.len() / 2, 20, least] {
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
    for packed in [zstd(&bytes), gzip(&bytes), lz4(&bytes), bzip2(&bytes), zstd_seekable(&bytes, 1 << 20), bgzf(&bytes)] {
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

#[test]
fn blocks_are_unpacked_when_they_are_read() {
    let bytes = raw();
    let directory = tempfile::tempdir().unwrap();
    for (compression, packed) in in_blocks(&bytes) {
        // Nothing is written anywhere, so that directory is not missed.
        let vmi = open_with(&packed, OpenOptions::new().temp_dir(directory.path().join("missing"))).unwrap();
        assert_eq!((vmi.driver().format(), vmi.driver().compression()), (Format::Raw, Some(compression)));
        assert!(vmi.driver().mapping().is_none());
        assert_eq!(vmi.machine().memory.total(), bytes.len() as u64);
        assert!(vmi.read_vec(PhysAddr::ZERO, bytes.len()).unwrap() == bytes, "{compression}");
        for at in [0, 99_999, 100_000, 99_990, 1_234_567, bytes.len() - 20] {
            assert_eq!(vmi.read_vec(PhysAddr::new(at as u64), 20).unwrap(), bytes[at..at + 20], "{compression} at {at}");
        }
        let middle = 50_000..2_345_678;
        assert!(vmi.read_vec(PhysAddr::new(50_000), middle.len()).unwrap() == bytes[middle]);
        assert!(vmi.read::<u8>(PhysAddr::new(bytes.len() as u64)).unwrap_err().is_absent());
    }
}

#[test]
fn a_damaged_block_is_told_when_it_is_read() {
    let bytes = raw();
    for (compression, packed) in in_blocks(&bytes) {
        let mut flipped = packed.clone();
        let at = packed.len() / 4;
        flipped[at] ^= 1;
        let vmi = open(&flipped).unwrap();
        let error = vmi.read_vec(PhysAddr::ZERO, bytes.len()).map(|_| compression).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Driver { .. }), "{error}");
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(cause.contains(&compression.to_string()) && cause.contains("offset 0x"), "{error}: {cause}");
        assert_eq!(vmi.read_vec(PhysAddr::ZERO, 20_000).unwrap(), bytes[..20_000]);
        // In the first block, where the format is found out.
        flipped.clone_from(&packed);
        flipped[packed.len() / 200] ^= 1;
        assert!(matches!(open(&flipped), Err(OpenError::Unpack { .. })), "{compression}");
        // Cut short, the index is gone or says more than there is.
        for len in [packed.len() - 1, packed.len() / 2, 20] {
            assert!(matches!(open(&packed[..len]), Err(OpenError::Unpack { .. })), "{compression}: {len}");
        }
    }
}

#[test]
fn an_index_that_lies() {
    let bytes = raw();
    let mut packed = zstd_seekable(&bytes, 100_000);
    // The content of the second frame, told too large and too small.
    let entry = packed.len() - 9 - (bytes.len().div_ceil(100_000) - 1) * 8;
    for content in [100_001u32, 99_999, 16 << 20] {
        packed[entry + 4..entry + 8].copy_from_slice(&content.to_le_bytes());
        let vmi = open(&packed).unwrap();
        assert_eq!(vmi.read_vec(PhysAddr::ZERO, 1000).unwrap(), bytes[..1000]);
        assert!(vmi.read::<u8>(PhysAddr::new(150_000)).is_err(), "{content}");
    }
    // A block that is too large for random access: unpacked as a whole, by the frames alone.
    packed[entry + 4..entry + 8].copy_from_slice(&u32::MAX.to_le_bytes());
    let vmi = open(&packed).unwrap();
    assert!(vmi.driver().mapping().is_some() && vmi.read_vec(PhysAddr::ZERO, bytes.len()).unwrap() == bytes);
}

/// What the programs themselves write, if they are there.
#[test]
fn what_the_programs_write() {
    let bytes = raw();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, &bytes).unwrap();
    let programs: [(&str, &[&str], bool); 12] = [
        ("zstd", &["-c", "-19"], false),
        ("zstd", &["-c", "--long=27", "-T2"], false),
        ("pzstd", &["-c", "-p", "2", "-1"], false),
        ("gzip", &["-c"], false),
        ("bgzip", &["-c"], true),
        ("xz", &["-c", "-1", "-T1"], false),
        ("xz", &["-c", "-9", "-T2", "--block-size=1MiB"], true),
        ("xz", &["-c", "-0", "--check=sha256", "--block-size=1MiB"], true),
        ("xz", &["-c", "-0", "--x86", "--lzma2=dict=1MiB", "--check=none"], false),
        ("lz4", &["-c"], false),
        ("lz4", &["-c", "-9", "-BD", "-B4", "--content-size"], false),
        ("bzip2", &["-c"], false),
    ];
    for (program, arguments, in_blocks) in programs {
        let output = match Command::new(program).args(arguments).arg(&path).output() {
            Ok(output) => output,
            Err(error) => {
                eprintln!("skipped: {program}: {error}");
                continue;
            }
        };
        assert!(output.status.success(), "{output:?}");
        let vmi = open(&output.stdout).unwrap_or_else(|error| panic!("{program} {arguments:?}: {error}"));
        assert!(vmi.read_vec(PhysAddr::ZERO, bytes.len()).unwrap() == bytes, "{program} {arguments:?}");
        assert_eq!(vmi.driver().mapping().is_none(), in_blocks, "{program} {arguments:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Damage anywhere is an error or goes unnoticed where it is in what the formats do not protect (gzip's name and time); no panic,
    /// and never other content.
    #[test]
    fn changed_anywhere(packing in 0..10usize, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = [pattern(1, 3000), vec![0; 5000], pattern(1, 3000), b"repeat ".repeat(500)].concat();
        bytes[0] = 0;
        let mut packed = match packing {
            0 => zstd(&bytes),
            1 => gzip(&bytes),
            2 => xz(&bytes, 1 << 30),
            3 => lz4(&bytes),
            4 => bzip2(&bytes),
            5 => zstd_seekable(&bytes, 3000),
            6 => zstd_sized(&bytes, 3000),
            7 => [bgzf(&bytes[..5000]), bgzf(&bytes[5000..])].concat(),
            8 => xz(&bytes, 3000),
            _ => [xz(&bytes[..5000], 3000), xz(&bytes[5000..], 4000)].concat(),
        };
        for (at, value) in changes {
            let at = at.index(packed.len());
            packed[at] = value;
        }
        if let Ok(vmi) = open_with(&packed, OpenOptions::new().format(Format::Raw).max_unpacked(1 << 20))
            && vmi.driver().compression().is_some()
        {
            match vmi.read_vec(PhysAddr::ZERO, bytes.len()) {
                Ok(read) => prop_assert!(read == bytes),
                // Blocks are unpacked when they are read; without them the index may have promised anything.
                Err(error) => prop_assert!(vmi.driver().mapping().is_none(), "{error}"),
            }
        }
    }
}
