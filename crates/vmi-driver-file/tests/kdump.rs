//! kdump's compressed format and makedumpfile's flattened form, from bytes made by hand.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;

use builder::kdump::{Dump, PAGE, Packing, Width, flatten, flattened, page};
use builder::{Elf, exercise, load, note, open, open_with, pattern};
use proptest::prelude::*;
use vmi_core::{Driver, ErrorKind, Memory, Note, PhysAddr, VcpuId, Vmi};
use vmi_driver_file::{Format, FormatError, ImageDriver, OpenError, OpenOptions};

const KINDS: [Packing; 5] = [Packing::Plain, Packing::Zlib, Packing::Lzo, Packing::Snappy, Packing::Zstd];

fn regions(vmi: &Vmi<ImageDriver>) -> Vec<(u64, u64)> {
    let page = |at: PhysAddr| at.get() / PAGE as u64;
    vmi.machine().memory.regions().iter().map(|region| (page(region.start()), page(region.end()))).collect()
}

fn at(page: u64) -> PhysAddr {
    PhysAddr::new(page * PAGE as u64)
}

fn format_error(result: Result<Vmi<ImageDriver>, OpenError>) -> FormatError {
    match result.unwrap_err() {
        OpenError::Image { source, format: Format::Kdump, .. } | OpenError::Flattened { source, .. } => source,
        other => panic!("{other}"),
    }
}

/// Pages of every packing, with holes, zeros, and some above 4 GiB.
fn sample() -> Dump {
    let numbers = (0..70).filter(|n| n % 7 != 3).chain(0x200..0x210).chain(0x10_0000..0x10_0009);
    Dump::new(numbers.map(|n| match n {
        20..30 => (n, vec![0; PAGE], Packing::Plain),
        40 => (n, pattern(9, PAGE), Packing::Plain),
        _ => (n, page(n), KINDS[n as usize % 5]),
    }))
}

fn check(dump: &Dump, vmi: &Vmi<ImageDriver>) {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &page in dump.pages.keys() {
        match runs.last_mut() {
            Some(run) if run.1 == page => run.1 += 1,
            _ => runs.push((page, page + 1)),
        }
    }
    assert_eq!(regions(vmi), runs);
    for (&number, (bytes, _)) in &dump.pages {
        assert!(vmi.read_vec(at(number), PAGE).unwrap() == *bytes, "page {number:#x}");
        // A part, from the cache.
        assert_eq!(vmi.read_vec(PhysAddr::new(at(number).get() + 100), 50).unwrap(), bytes[100..150]);
    }
    for (first, end) in runs {
        let whole: Vec<u8> = (first..end).flat_map(|page| dump.pages[&page].0.clone()).collect();
        assert!(vmi.read_vec(at(first), whole.len()).unwrap() == whole);
        let error = vmi.read_vec(at(first), whole.len() + 1).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Hole { at: hole } if *hole == at(end)) && error.done() == whole.len());
    }
}

#[test]
fn every_width_version_and_packing() {
    for signature in [b"KDUMP   ", b"DISKDUMP"] {
        for width in [Width::Wide, Width::Narrow, Width::NarrowPadded] {
            for version in 1..=6 {
                for one_bitmap in [false, true] {
                    let dump = Dump { signature, width, version, one_bitmap, ..sample() };
                    let vmi = open(&dump.bytes()).unwrap();
                    assert_eq!(vmi.driver().format(), Format::Kdump);
                    check(&dump, &vmi);
                    assert!(vmi.machine().notes.is_empty() && vmi.driver().vcpus().is_none());
                }
            }
        }
    }
}

#[test]
fn vmcoreinfo_and_registers() {
    let text = b"OSRELEASE=6.1.0\nPAGESIZE=4096\n".to_vec();
    let mut prstatus = vec![0; 336];
    prstatus[112 + 16 * 8..][..8].copy_from_slice(&0x1234_5678u64.to_le_bytes());
    let cpu = note(b"CORE\0", 1, &prstatus);
    let in_notes = [cpu.clone(), cpu.clone(), note(b"VMCOREINFO\0", 0, &text)].concat();
    for width in [Width::Wide, Width::Narrow, Width::NarrowPadded] {
        // Version 3 has the text alone, later ones both, and either may be missing.
        for (version, vmcoreinfo, notes, vcpus) in
            [(3, &text, &vec![], 0), (4, &text, &cpu, 1), (6, &vec![], &in_notes, 2), (5, &text, &in_notes, 2)]
        {
            let dump = Dump { width, version, vmcoreinfo: vmcoreinfo.clone(), notes: notes.clone(), ..sample() };
            let vmi = open(&dump.bytes()).unwrap();
            check(&dump, &vmi);
            assert_eq!(vmi.machine().notes, [Note::VmCoreInfo(text.clone())], "{width:?} {version}");
            assert_eq!(vmi.driver().vcpus().map_or(0, |vcpus| vcpus.vcpu_count()), vcpus);
            for vcpu in 0..vcpus {
                assert_eq!(vmi.registers(VcpuId(vcpu)).unwrap().rip, 0x1234_5678);
            }
        }
    }
}

#[test]
fn parts_of_a_split_dump() {
    let whole = sample();
    let ranges = [0..20u64, 20..20, 20..0x205, 0x205..whole.max_page];
    for (version, names) in [(6, ["dump.00", "dump.01", "dump.02", "dump.10"]), (2, ["d8-x", "d9-x", "d10-x", "d11-x"])] {
        let directory = tempfile::tempdir().unwrap();
        for (range, name) in ranges.iter().zip(names) {
            let part = Dump { range: Some(range.clone()), version, ..whole.clone() };
            std::fs::write(directory.path().join(name), part.bytes()).unwrap();
        }
        // What lies beside without belonging to it.
        std::fs::write(directory.path().join("dump.05"), b"something else").unwrap();
        let other = Dump { range: Some(0..20), status: 2, version, ..whole.clone() };
        std::fs::write(directory.path().join("d1-x"), Dump { max_page: 0x20_0000, ..other }.bytes()).unwrap();
        for name in names {
            let vmi = Vmi::new(ImageDriver::open(directory.path().join(name)).unwrap());
            check(&whole, &vmi);
        }
        std::fs::remove_file(directory.path().join(names[2])).unwrap();
        let error = ImageDriver::open(directory.path().join(names[0])).unwrap_err().to_string();
        assert!(error.contains("page 0x14") && error.contains("--reassemble"), "{error}");
        let rest = OpenOptions::new().allow_truncated(true).open(directory.path().join(names[0])).unwrap();
        let mut there = whole.clone();
        there.pages.retain(|page, _| *page < 20 || *page >= 0x205);
        check(&there, &Vmi::new(rest));
    }
    let alone = Dump { range: Some(5..30), ..whole };
    assert!(format_error(open(&alone.bytes())).to_string().contains("split"));
}

#[test]
fn cut_short_anywhere() {
    let dump = Dump { vmcoreinfo: b"OSRELEASE=1\n".to_vec(), ..sample() };
    let bytes = dump.bytes();
    let table =
        bytes.len() - dump.pages.values().map(|(page, packing)| builder::kdump::pack(page, *packing).len()).sum::<usize>();
    assert!(table > 0);
    for len in (8..bytes.len()).filter(|len| len % 61 == 0 || bytes.len() - len < 300 || *len < 600) {
        let part = &bytes[..len];
        let error = format_error(open_with(part, OpenOptions::new().format(Format::Kdump)));
        assert!(
            matches!(&error, FormatError::Truncated { missing, .. } if *missing <= (bytes.len() - len) as u64),
            "{len}: {error}"
        );
        let Ok(vmi) = open_with(part, OpenOptions::new().format(Format::Kdump).allow_truncated(true)) else { continue };
        // What is there is good, and in the order in which it was written.
        let there = vmi.machine().memory.total() / PAGE as u64;
        let mut left = dump.clone();
        left.pages.retain(|page, _| vmi.machine().memory.region_at(at(*page)).is_some());
        assert_eq!(left.pages.len() as u64, there);
        check(&left, &vmi);
    }
    // All but the last byte: all but one page.
    let options = OpenOptions::new().allow_truncated(true);
    let vmi = open_with(&bytes[..bytes.len() - 1], options).unwrap();
    assert_eq!(vmi.machine().memory.total() / PAGE as u64, dump.pages.len() as u64 - 1);
}

#[test]
fn a_tail_of_zeros_does_not_hide_what_is_missing() {
    let numbers = (0..20_000u64)
        .map(|n| if !(3..=100).contains(&n) { (n, vec![0; PAGE], Packing::Plain) } else { (n, page(n), Packing::Zlib) });
    let bytes = Dump::new(numbers).bytes();
    assert!(open(&bytes).is_ok());
    assert!(matches!(format_error(open(&bytes[..bytes.len() - 1])), FormatError::Truncated { .. }));
    let some = open_with(&bytes[..bytes.len() - 200], OpenOptions::new().allow_truncated(true)).unwrap();
    assert_eq!(regions(&some).last().unwrap().1, 20_000);
    assert!(regions(&some).len() == 2);
}

#[test]
fn a_writer_that_did_not_get_to_the_end() {
    let dump = Dump { status: 1 | 8, ..sample() };
    let mut bytes = dump.bytes();
    // Marked, but nothing is missing.
    check(&dump, &open(&bytes).unwrap());
    let descriptors = PAGE * (2 + 2 * (dump.max_page as usize).div_ceil(8 * PAGE));
    let lost: Vec<u64> = dump.pages.keys().copied().skip(30).step_by(2).collect();
    for (rank, page) in dump.pages.keys().enumerate() {
        if lost.contains(page) {
            bytes[descriptors + 24 * rank..][..24].fill(0);
        }
    }
    let error = format_error(open(&bytes));
    assert!(matches!(error, FormatError::Truncated { missing, .. } if missing == (lost.len() * PAGE) as u64), "{error}");
    let vmi = open_with(&bytes, OpenOptions::new().allow_truncated(true)).unwrap();
    let mut there = dump.clone();
    there.pages.retain(|page, _| !lost.contains(page));
    check(&there, &vmi);
    // Not marked: what is wrong is told where it is read.
    bytes[424] = 1;
    let vmi = open(&bytes).unwrap();
    let error = vmi.read_vec(at(lost[0]), 1).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Driver { .. }), "{error}");
}

#[test]
fn damaged_pages_are_errors_where_they_are_read() {
    let dump = Dump::new((0..10).map(|n| (n, page(n), KINDS[1 + n as usize % 4])));
    let good = dump.bytes();
    let first = 4 * PAGE;
    let place = |rank: usize| u64::from_le_bytes(good[first + 24 * rank..][..8].try_into().unwrap()) as usize;
    for rank in 0..4 {
        let mut bytes = good.clone();
        bytes[place(rank)..place(rank) + 12].fill(0xee);
        let vmi = open(&bytes).unwrap();
        assert!(matches!(vmi.read_vec(at(rank as u64), 10).unwrap_err().kind(), ErrorKind::Driver { .. }), "{rank}");
        assert_eq!(vmi.read_vec(at(5), PAGE).unwrap(), page(5));
        // Other sizes and flags.
        for (offset, value) in [(8, 5u32), (8, 5000), (8, u32::MAX), (12, 3), (12, 0), (4, u32::MAX)] {
            let mut bytes = good.clone();
            bytes[first + 24 * rank + offset..][..4].copy_from_slice(&value.to_le_bytes());
            match open(&bytes) {
                Ok(vmi) => assert!(vmi.read_vec(at(rank as u64), 10).is_err(), "{rank} {offset} {value}"),
                Err(OpenError::Image { source: FormatError::Truncated { .. }, .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn hostile_headers() {
    let with = |changes: &[(usize, u64)]| {
        let mut bytes = sample().bytes();
        for &(at, value) in changes {
            bytes[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
        }
        format_error(open(&bytes)).to_string()
    };
    // Blocks of another size, petabytes of pages, bitmaps beyond the file, a sub-header longer than any.
    assert!(with(&[(428, 65536)]).contains("65536"));
    assert!(with(&[(440, 0xffff_ffff)]).contains("bitmaps"));
    assert!(with(&[(436, 0xffff_ffff), (440, 0xffff_ffff)]).contains("missing"));
    assert!(with(&[(PAGE + 96, 0xffff_ffff), (PAGE + 100, 0xffff_ffff)]).contains("x86"));
    assert!(with(&[(PAGE + 96, 0), (PAGE + 100, 0x80), (436, 0xffff_ffff)]).contains("bitmap"));
    assert!(with(&[(432, 0xffff_ffff)]).contains("blocks"));
    assert!(with(&[(PAGE + 48, 0x2000), (PAGE + 56, 0x7fff_ffff)]).contains("notes"));
    // Pages backwards.
    assert!(with(&[(PAGE + 12, 1), (PAGE + 80, 9), (PAGE + 88, 5)]).contains("split"));
    let arm = Dump { machine: "aarch64", ..sample() };
    assert!(format_error(open(&arm.bytes())).to_string().contains("aarch64"));
    let nothing = Dump { max_page: 100, ..Dump::new([]) };
    assert_eq!(format_error(open(&nothing.bytes())), FormatError::NoMemory);
}

#[test]
fn flattened_files_are_what_they_were() {
    let dump = sample();
    let kdump = dump.bytes();
    let elf = Elf::new(vec![load(0x5000, pattern(3, 9000)), load(0x1_0000_0000, pattern(4, 5000))]).bytes();
    for lens in [&[1 << 20][..], &[7, 100, 4096], &[464, 104, 3, 16384], &[65536, 1, 65536]] {
        check(&dump, &open(&flatten(&kdump, lens)).unwrap());
        let vmi = open(&flatten(&elf, lens)).unwrap();
        assert_eq!(vmi.driver().format(), Format::Elf);
        assert_eq!(vmi.read_vec(PhysAddr::new(0x5000), 9000).unwrap(), pattern(3, 9000));
        assert_eq!(vmi.read_vec(PhysAddr::new(0x1_0000_0100), 4744).unwrap(), pattern(4, 5000)[0x100..0x100 + 4744]);
    }
}

#[test]
fn later_segments_override_earlier_ones() {
    let rubbish = |at: i64, len: usize| (at, vec![0xaa; len]);
    // 0..100 rubbish, of which some stays; a hole; a segment within another; one over the end of another.
    let segments = [
        rubbish(0, 5000),
        (100, pattern(1, 1000)),
        rubbish(600, 10),
        (600, pattern(2, 10)),
        (8192, pattern(3, 100)),
        (8142, pattern(4, 100)),
        (8292, pattern(5, 50)),
        rubbish(9000, 0),
    ];
    let mut expected = vec![0u8; 8342];
    for (at, bytes) in &segments[..7] {
        expected[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
    }
    let vmi = open_with(&flattened(&segments), OpenOptions::new().format(Format::Raw)).unwrap();
    assert_eq!(vmi.machine().memory.total(), 8342);
    assert_eq!(vmi.read_vec(PhysAddr::ZERO, 8342).unwrap(), expected);
    for at in [0, 99, 100, 599, 609, 610, 4999, 5000, 8141, 8242, 8341] {
        assert_eq!(vmi.read::<u8>(PhysAddr::new(at)).unwrap(), expected[at as usize], "{at}");
    }
}

#[test]
fn flattened_and_cut_short_or_hostile() {
    let dump = sample();
    let bytes = flatten(&dump.bytes(), &[464, 104, 8000, 30_000]);
    for len in (16..bytes.len()).filter(|len| len % 101 == 0 || *len > bytes.len() - 40) {
        let error = format_error(open(&bytes[..len]));
        assert!(matches!(error, FormatError::Truncated { .. }), "{len}: {error}");
        exercise(&bytes[..len], None, true);
    }
    // Without the end alone, everything is there.
    let whole = open_with(&bytes[..bytes.len() - 16], OpenOptions::new().allow_truncated(true)).unwrap();
    check(&dump, &whole);
    let with = |at: usize, value: u64| {
        let mut bytes = bytes.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        format_error(open(&bytes)).to_string()
    };
    assert!(with(16, 2).contains("version"));
    assert!(with(4096, u64::MAX).contains("segment"));
    assert!(with(4104, 1 << 62).contains("missing"));
    assert!(with(4096, i64::MAX as u64).contains("segment"));
    assert!(with(4096, 1 << 60).contains("no segment"));
    // Not twice.
    assert!(matches!(open(&flatten(&bytes, &[1000])), Err(OpenError::NotSupported { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changed_dumps(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), prop_oneof![Just(0u8), Just(0xff), Just(0x7f), any::<u8>()]), 1..12),
        narrow: bool,
        flat: bool,
        truncated: bool,
    ) {
        let dump = Dump::new((0..30).filter(|n| n % 4 != 1).map(|n| (n, page(n), KINDS[n as usize % 5])));
        let width = if narrow { Width::Narrow } else { Width::Wide };
        let notes = [note(b"CORE\0", 1, &[1; 336]), note(b"QEMU\0", 0, &[1; 440])].concat();
        let mut bytes = Dump { width, notes, ..dump }.bytes();
        if flat {
            bytes = flatten(&bytes, &[464, 104, 5000]);
        }
        for (at, header, value) in changes {
            // Half of them where the numbers are.
            let places = if header { 412..470usize } else { 0..bytes.len() };
            let at = places.start + at.index(places.len());
            let at = if flat && header { at + 4096 + 16 } else { at };
            bytes[at] = value;
        }
        exercise(&bytes, None, truncated);
    }
}
