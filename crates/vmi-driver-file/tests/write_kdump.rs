//! kdump files that are written here.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;

use std::io::{self, Write};

use builder::{Elf, load, note, notes, open, pattern};
use vmi_core::{Memory, Note, PhysAddr, Vmi};
use vmi_driver_file::write::{self, PagePacking, WriteError};
use vmi_driver_file::{Format, ImageDriver};

const TEXT: &[u8] = b"OSRELEASE=6.1.0-test\nNUMBER(phys_base)=-4096\n";

/// Memory with zeros, pages that cannot be packed, a hole, something above 4 GiB and something far beyond; and a last page that is not whole.
fn machine() -> Vmi<ImageDriver> {
    let mut random = vec![0u8; 300 << 10];
    let mut state = 1u64;
    for byte in &mut random {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    let low = [vec![0; 5 * 4096], random, b"repeat ".repeat(3000), vec![0; 40_000]].concat();
    let segments = vec![
        notes(note(b"VMCOREINFO\0", 0, TEXT)),
        load(0x1000, low),
        // Two parts of one page, and one over the end of it.
        load(0x20_0100, pattern(1, 100)),
        load(0x20_0800, pattern(2, 0x1000)),
        load(0x1_0000_0000, pattern(3, 3 << 20)),
        load(0x1_0060_0000, vec![0; 4096]),
        load(0x40_0000_0000, pattern(4, 5000)),
    ];
    open(&Elf::new(segments).bytes()).unwrap()
}

/// All memory of `expected` is in `copy`, whose regions are those, rounded to pages; what came to it is zero.
fn check(expected: &Vmi<ImageDriver>, copy: &Vmi<ImageDriver>) {
    assert_eq!(copy.driver().format(), Format::Kdump);
    assert_eq!(copy.machine().notes, [Note::VmCoreInfo(TEXT.to_vec())]);
    for region in expected.machine().memory.regions() {
        let len = region.len() as usize;
        assert!(copy.read_vec(region.start(), len).unwrap() == expected.read_vec(region.start(), len).unwrap(), "{region:?}");
    }
    for region in copy.machine().memory.regions() {
        assert!(region.start().get() % 4096 == 0 && region.len() % 4096 == 0);
        let (got, mut rest) = (copy.read_vec(region.start(), region.len() as usize).unwrap(), Vec::new());
        rest.resize(got.len(), 0);
        expected.read_lossy(region.start(), &mut rest).unwrap();
        assert!(got == rest, "{region:?}");
    }
}

#[test]
fn what_is_written_is_read_again() {
    let vmi = machine();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("dump");
    let mut lens = Vec::new();
    for packing in [PagePacking::Zlib, PagePacking::Zstd] {
        let mut calls = Vec::new();
        let summary = write::Options::new()
            .packing(packing)
            .image(&vmi, &path, Format::Kdump, |done, total| calls.push((done, total)))
            .unwrap();
        let total = vmi.machine().memory.total();
        assert!(summary.memory == total && summary.unreadable.is_empty() && calls.is_sorted());
        assert_eq!((calls[0], *calls.last().unwrap()), ((0, total), (total, total)));
        // The bitmaps of 256 GiB are holes: 16 MiB.
        assert!(summary.stored < 2 << 20, "{summary:?}");
        let copy = Vmi::new(ImageDriver::open(&path).unwrap());
        check(&vmi, &copy);
        lens.push(summary.stored);

        // What was read can be written again: by way of a pipe, byte for byte the same file.
        let mut flat = Vec::new();
        write::Options::new().packing(packing).stream(&copy, &mut flat, Format::Kdump, |_, _| ()).unwrap();
        let again = open(&flat).unwrap();
        check(&vmi, &again);
        let second = directory.path().join("second");
        write::Options::new().packing(packing).image(&again, &second, Format::Kdump, |_, _| ()).unwrap();
        assert!(std::fs::read(&second).unwrap() == std::fs::read(&path).unwrap());
    }
    assert_ne!(lens[0], lens[1]);
    // The plain way, with the default.
    let summary = write::image(&vmi, &path, Format::Kdump, |_, _| ()).unwrap();
    assert_eq!(summary.stored, lens[0]);
    let names: Vec<_> = directory.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

/// Header fields at the places that the format gives them.
#[test]
fn the_headers_say_what_readers_want() {
    let vmi = machine();
    let mut flat = Vec::new();
    write::Options::new().packing(PagePacking::Zlib).stream(&vmi, &mut flat, Format::Kdump, |_, _| ()).unwrap();
    assert!(flat.starts_with(b"makedumpfile\0\0\0\0"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("dump");
    write::Options::new().packing(PagePacking::Zlib).image(&vmi, &path, Format::Kdump, |_, _| ()).unwrap();
    let mut head = vec![0; 3 * 4096];
    io::Read::read_exact(&mut std::fs::File::open(&path).unwrap(), &mut head).unwrap();
    let u32_at = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
    assert!(head.starts_with(b"KDUMP   \x06\0\0\0Linux\0"));
    assert_eq!(&head[12 + 2 * 65..][..13], b"6.1.0-test\0\0\0");
    assert_eq!(&head[12 + 4 * 65..][..7], b"x86_64\0");
    let max = 0x40_0000_2000u64 / 4096;
    let bitmap_blocks = max.div_ceil(8 * 4096) * 2;
    assert_eq!([424, 428, 432, 436, 440, 460].map(u32_at), [1, 4096, 1, bitmap_blocks as u32, max as u32, 1]);
    assert_eq!(u64_at(4096), -4096i64 as u64);
    assert_eq!(u64_at(4096 + 96), max);
    let (at, len) = (u64_at(4096 + 32) as usize, u64_at(4096 + 40) as usize);
    assert_eq!(&head[at..at + len], TEXT);
    let at = u64_at(4096 + 48) as usize;
    assert!(head[at + 12..].starts_with(b"VMCOREINFO\0"));
}

#[test]
fn a_full_pipe_is_an_error_and_nothing_is_left_of_a_file() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(buf.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let vmi = machine();
    for room in [0, 4096, 10_000, 400_000] {
        let error =
            write::Options::new().packing(PagePacking::Zstd).stream(&vmi, &mut Full(room), Format::Kdump, |_, _| ()).unwrap_err();
        assert!(matches!(&error, WriteError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull), "{error}");
    }
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("nowhere/dump");
    assert!(write::Options::new().packing(PagePacking::Zlib).image(&vmi, missing, Format::Kdump, |_, _| ()).is_err());
    assert_eq!(directory.path().read_dir().unwrap().count(), 0);
    assert_eq!(vmi.read::<u8>(PhysAddr::new(0x1000)).unwrap(), 0);
}
