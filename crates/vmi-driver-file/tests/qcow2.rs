//! Snapshots in qcow2 disk images.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;
#[path = "builder/qcow2.rs"]
mod qcow2;
#[path = "builder/qemu.rs"]
mod qemu;

use builder::{exercise, format_error, open, open_with, pattern, regions};
use proptest::prelude::*;
use qcow2::{Disk, Snapshot};
use qemu::{PAGE, Stream};
use vmi_core::{Driver, Memory, PhysAddr, VcpuId, Vmi};
use vmi_driver_file::{Format, FormatError, ImageDriver, OpenError, OpenOptions};

/// Pages of the machine.
const PAGES: usize = 300;

/// A machine's memory, and its state as a migration stream. Numbers differ with `seed`.
fn machine(seed: u8) -> (Vec<u8>, Vec<u8>) {
    // Of every three pages one has bytes, one is sent with zeros in it, of which small clusters are not there, and one is said to be zero.
    let content = |number: usize| match number % 3 {
        0 => Some(pattern(seed.wrapping_add(number as u8), PAGE)),
        1 => Some(vec![0; PAGE]),
        _ => None,
    };
    let pages = (0..PAGES).map(|number| ("pc.ram", (number * PAGE) as u64, content(number))).collect();
    let ram = (0..PAGES).flat_map(|number| content(number).unwrap_or_else(|| vec![0; PAGE])).collect();
    let stream = Stream::new("pc-q35-7.2", vec![("pc.ram", (PAGES * PAGE) as u64)], vec![pages]);
    (ram, stream.with_devices(17 << 20, 0).bytes())
}

fn holds(vmi: &Vmi<ImageDriver>, ram: &[u8]) {
    assert_eq!(vmi.driver().format(), Format::Qcow2);
    assert_eq!(regions(vmi), [(0, ram.len() as u64)]);
    assert!(vmi.read_vec(PhysAddr::ZERO, ram.len()).unwrap() == ram);
    for at in (0..0x1_0000).step_by(1000) {
        assert_eq!(vmi.read_vec(PhysAddr::new(at as u64), 3000).unwrap(), ram[at..][..3000], "{at:#x}");
    }
}

#[test]
fn every_size_of_cluster() {
    let (ram, state) = machine(1);
    for (version, cluster_bits, features) in
        [(2, 16, 0), (3, 16, 0), (3, 9, 0), (3, 12, 1 << 3), (3, 21, 1), (3, 14, 1 << 4), (3, 17, 1 << 4)]
    {
        // An empty disk, one of a part of an entry of the first level, and of several.
        for size in [0, 512, 3 << 20, (700 << 20) + 512] {
            let disk =
                Disk { version, cluster_bits, features, size, ..Disk::new(vec![Snapshot::new("1", "a", 1, state.clone())]) };
            let vmi = open(&disk.bytes()).unwrap_or_else(|error| panic!("{version} {cluster_bits} {features} {size}: {error}"));
            holds(&vmi, &ram);
            assert_eq!(vmi.driver().vcpus().unwrap().registers(VcpuId(0)).unwrap().r15, 0x10f);
        }
    }
}

#[test]
fn packed_disk_images_open_too() {
    let (ram, state) = machine(1);
    let bytes = Disk::new(vec![Snapshot::new("1", "a", 1, state)]).bytes();
    holds(&open(&zstd::encode_all(bytes.as_slice(), 1).unwrap()).unwrap(), &ram);
}

#[test]
fn a_disk_that_has_grown_since() {
    let (ram, state) = machine(1);
    let snapshot = Snapshot { disk_size: Some(10 << 20), ..Snapshot::new("1", "a", 1, state) };
    holds(&open(&Disk { size: 9 << 30, ..Disk::new(vec![snapshot]) }.bytes()).unwrap(), &ram);
}

/// Three moments with memory and one without; one's name is another's number.
fn several() -> (Disk, [Vec<u8>; 3]) {
    let [first, newest, last] = [1, 2, 3].map(machine);
    let snapshots = vec![
        Snapshot::new("1", "before", 100, first.1),
        Snapshot::new("2", "disk only", 400, Vec::new()),
        Snapshot::new("3", "after", 300, newest.1),
        Snapshot::new("4", "1", 200, last.1),
    ];
    (Disk::new(snapshots), [first.0, newest.0, last.0])
}

#[test]
fn one_of_several() {
    let (disk, [first, newest, last]) = several();
    let bytes = disk.bytes();
    let named = |name: &str| open_with(&bytes, OpenOptions::new().snapshot(name));
    holds(&open(&bytes).unwrap(), &newest);
    holds(&named("before").unwrap(), &first);
    holds(&named("3").unwrap(), &newest);
    holds(&named("1").unwrap(), &last);
    let refused = |name| match format_error(named(name)) {
        FormatError::NoSnapshot(why) => why,
        other => panic!("{other}"),
    };
    let unknown = refused("nowhere");
    assert!(
        unknown.contains("`nowhere`")
            && unknown.contains("3 (`after`)")
            && unknown.contains("without memory: snapshot 2 (`disk only`)"),
        "{unknown}"
    );
    assert!(refused("disk only").contains("there are: snapshot 1"));
}

#[test]
fn disks_without_memory() {
    let why = |disk: Disk| format_error(open(&disk.bytes())).to_string();
    assert!(why(Disk::new(Vec::new())).starts_with("the disk has no snapshots; "));
    let many = (0..12).map(|_| Snapshot::new("7", "disk\tonly", 1, Vec::new())).collect();
    let why = why(Disk::new(many));
    assert!(why.starts_with("no memory is in snapshot 7 (`disk\\tonly`), ") && why.contains(", 2 more; "), "{why}");
    // Of a format that has none, a snapshot cannot be asked for.
    let raw = open_with(&pattern(1, 8192), OpenOptions::new().snapshot("a"));
    assert!(matches!(format_error(raw), FormatError::NoSnapshot(_)));
    assert!(matches!(open(&Disk { version: 1, ..Disk::new(Vec::new()) }.bytes()), Err(OpenError::NotSupported { .. })));
}

#[test]
fn what_is_refused_has_a_name() {
    let small = || Disk::new(vec![Snapshot::new("1", "a", 1, machine(1).1)]);
    let refused = |disk: Disk, part: &str| {
        let error = format_error(open(&disk.bytes())).to_string();
        assert!(error.contains(part), "{part}: {error}");
    };
    refused(Disk { encryption: 2, ..small() }, "encrypted");
    refused(Disk { features: 1 << 2, ..small() }, "another file");
    refused(Disk { features: 1 << 5, ..small() }, "unknown features (0x20)");
    refused(Disk { features: 1 << 4, cluster_bits: 13, ..small() }, "2^13");
    let mut stranger = small();
    stranger.snapshots[0].state = pattern(1, 5000);
    refused(stranger, "no migration stream");
    // More than the tables lead to, and more than any file has.
    for size in [1 << 30, 1 << 50, u64::MAX] {
        let mut promise = small();
        promise.snapshots[0].state_size = Some(size);
        refused(promise, "of state");
    }
}

#[test]
fn entries_that_cannot_be() {
    let disk = Disk { cluster_bits: 9, ..Disk::new(vec![Snapshot::new("1", "a", 1, machine(1).1)]) };
    let built = disk.build();
    let (first, second) = built.tables[0];
    let refused = |at: usize, change: fn(u64) -> u64| {
        let mut bytes = built.bytes.clone();
        let entry = &mut bytes[at..at + 8];
        let changed = change(u64::from_be_bytes((&*entry).try_into().unwrap()));
        entry.copy_from_slice(&changed.to_be_bytes());
        format_error(open(&bytes))
    };
    assert!(refused(second, |entry| entry | 1 << 62).to_string().contains("packed cluster"));
    assert!(refused(second, |_| 0).to_string().contains("no migration stream"));
    assert!(matches!(refused(second, |entry| entry | 1 << 40), FormatError::Truncated { .. }));
    assert!(matches!(refused(first, |entry| entry | 1 << 40), FormatError::Truncated { .. }));
    // Tables are at clusters; these are larger than 512 bytes.
    let built = Disk { cluster_bits: 12, ..disk }.build();
    let (first, second) = built.tables[0];
    let mut bytes = built.bytes;
    bytes[first..first + 8].copy_from_slice(&(second as u64 + 0x200).to_be_bytes());
    assert!(format_error(open(&bytes)).to_string().contains("not at a cluster"));
}

/// Entries that all lead to the same table, and entries that all lead to the same cluster: a small file that promises a large state.
#[test]
fn the_same_again_and_again() {
    const TABLES: usize = 100;
    let disk = Disk {
        cluster_bits: 9,
        size: 0,
        tables_first: true,
        ..Disk::new(vec![Snapshot::new("1", "a", 1, vec![1; TABLES * 64 * 512])])
    };
    let built = disk.build();
    let (first, second) = built.tables[0];
    let mut bytes = built.bytes;
    let data = (first + TABLES * 8).next_multiple_of(512);
    bytes.truncate(data + 512);
    (0..TABLES).for_each(|index| bytes[first + index * 8..][..8].copy_from_slice(&(second as u64).to_be_bytes()));
    (0..64).for_each(|index| bytes[second + index * 8..][..8].copy_from_slice(&(data as u64).to_be_bytes()));
    assert!(format_error(open(&bytes)).to_string().contains("more than once"));
}

#[test]
fn cut_short_anywhere() {
    let (ram, state) = machine(1);
    for cluster_bits in [9, 16] {
        let disk = Disk { cluster_bits, size: 1 << 20, ..Disk::new(vec![Snapshot::new("1", "a", 1, state.clone())]) };
        let bytes = disk.bytes();
        for len in (8..bytes.len()).step_by(509) {
            match open(&bytes[..len]) {
                Err(OpenError::Image { source: FormatError::Truncated { .. }, .. }) => {}
                other => panic!("cut to {len} of {}: {other:?}", bytes.len()),
            }
            exercise(&bytes[..len], None, true);
        }
    }
    // Tables may be anywhere: where they are before the state, what there is of that is read.
    let disk = Disk { cluster_bits: 9, size: 1 << 20, tables_first: true, ..Disk::new(vec![Snapshot::new("1", "a", 1, state)]) };
    let bytes = disk.bytes();
    holds(&open(&bytes).unwrap(), &ram);
    // Clusters are not in their order: the first that is missing ends it.
    for len in (bytes.len() / 2..bytes.len()).step_by(100_000) {
        assert!(matches!(format_error(open(&bytes[..len])), FormatError::Truncated { .. }));
        exercise(&bytes[..len], None, true);
    }
    let part = open_with(&bytes[..bytes.len() / 10 * 9], OpenOptions::new().allow_truncated(true)).unwrap();
    let (there, all) = (part.machine().memory.total(), ram.len() as u64);
    assert!(there > all / 10 && there < all, "{there:#x}");
    assert!(part.read_vec(PhysAddr::ZERO, there as usize).unwrap() == ram[..there as usize]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn changed_disks(
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![Just(0u8), Just(0xff), Just(0x7f), any::<u8>()]), 1..12),
        extended: bool,
        truncated: bool,
    ) {
        let p = PAGE as u64;
        let pages = vec![("pc.ram", 0, Some(pattern(1, PAGE))), ("pc.ram", p, None), ("pc.ram", 2 * p, Some(pattern(2, PAGE)))];
        let state = Stream::new("pc-q35-7.2", vec![("pc.ram", 3 * p)], vec![pages]).bytes();
        let (cluster_bits, features) = if extended { (14, 1 << 4) } else { (9, 0) };
        let disk = Disk { cluster_bits, features, size: 1 << 20, ..Disk::new(vec![Snapshot::new("1", "a", 1, state)]) };
        let built = disk.build();
        // Headers and tables, not the state.
        let mut bytes = built.bytes;
        let places: Vec<usize> = (0..104).chain(built.tables[0].1..bytes.len()).collect();
        for (at, value) in changes {
            bytes[*at.get(&places)] = value;
        }
        exercise(&bytes, None, truncated);
    }
}
