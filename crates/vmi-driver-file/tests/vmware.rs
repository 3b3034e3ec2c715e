//! Saved states of VMware, with the memory in them and beside them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;

use builder::vmware::{NARROW, WIDE, block, file, regions as region_tags, tag};
use builder::{directory, exercise, exercise_path, format_error, open, open_with, pattern, read, regions};
use proptest::prelude::*;
use vmi_core::{Driver, VcpuId, Vmi};
use vmi_driver_file::{Format, FormatError, ImageDriver, OpenError, OpenOptions};

/// Pages 0 and 1, a hole, and two pages from 4 GiB on.
const REGIONS: [(u32, u32, u32); 2] = [(0, 0, 2), (0x10_0000, 2, 2)];

fn memory() -> Vec<u8> {
    let mut bytes = pattern(1, 4 * 4096);
    bytes[0] = 0;
    bytes
}

fn words(first: u64, count: u64) -> Vec<u8> {
    (first..first + count).flat_map(u64::to_le_bytes).collect()
}

fn cpus(wide: bool) -> Vec<u8> {
    let mut tags = tag("cpu:numVCPUs", &[], &2u32.to_le_bytes());
    for (cpu, base) in [(0u32, 1000u64), (1, 2000)] {
        tags.extend(block("gpregs", &[cpu], 63, 0, wide, &words(base, 16)));
        tags.extend(block("CR64", &[cpu], 63, 3, wide, &words(base + 100, 9)));
        tags.extend(block("IDTR", &[cpu], 63, 0, wide, &[&[0xff, 0x0f][..], &words(base + 200, 1)].concat()));
        tags.extend(tag("rip", &[cpu], &words(base + 300, 1)));
        tags.extend(tag("eflags", &[cpu], &0x246u32.to_le_bytes()));
        tags.extend(tag("S.base64", &[cpu, 5], &words(base + 400, 1)));
        tags.extend(tag("other", &[cpu, 5, 6], &[1; 61]));
    }
    tags.extend(tag("counter", &[77], &[1; 4]));
    tags
}

/// With the memory in it or not.
fn state(magic: u32, inside: bool) -> Vec<u8> {
    let wide = magic != NARROW;
    let mut memory_tags = region_tags(&REGIONS);
    if inside {
        memory_tags.extend(block("Memory", &[], 63, 5, wide, &memory()));
        memory_tags.extend(tag("align_mask", &[], &[0xff; 4]));
    }
    file(magic, &[("Checkpoint", tag("a", &[], b"b")), ("memory", memory_tags), ("cpu", cpus(wide))])
}

fn check(vmi: &Vmi<ImageDriver>) {
    assert_eq!(vmi.driver().format(), Format::Vmware);
    assert_eq!(regions(vmi), [(0, 0x2000), (0x1_0000_0000, 0x1_0000_2000)]);
    assert_eq!(read(vmi, 0, 0x2000), memory()[..0x2000]);
    assert_eq!(read(vmi, 0x1_0000_0000, 0x2000), memory()[0x2000..]);
    for (cpu, base) in [(0, 1000), (1, 2000)] {
        let registers = vmi.registers(VcpuId(cpu)).unwrap();
        let order = [registers.rax, registers.rcx, registers.rdx, registers.rbx, registers.rbp, registers.rsp, registers.rsi];
        assert_eq!(order, [0, 1, 2, 3, 4, 5, 6].map(|n| base + n));
        assert_eq!((registers.rdi, registers.r8, registers.r15), (base + 7, base + 8, base + 15));
        let control = [registers.cr0, registers.cr2, registers.cr3, registers.cr4, registers.cr8].map(Option::unwrap);
        assert_eq!(control, [0, 2, 3, 4, 8].map(|n| base + 100 + n));
        let idtr = registers.idtr.unwrap();
        assert_eq!((idtr.base.get(), idtr.limit), (base + 200, 0xfff));
        assert_eq!((registers.rip, registers.rflags), (base + 300, 0x246));
        assert_eq!(registers.segments.gs.unwrap().base, base + 400);
        assert!(registers.segments.cs.is_none() && registers.efer.is_none());
    }
}

#[test]
fn memory_inside() {
    for magic in [WIDE, 0xbed3_bed3, 0xbad1_bad1, 0xbad2_bad2, NARROW] {
        check(&open(&state(magic, true)).unwrap());
    }
}

#[test]
fn memory_beside() {
    for extension in ["vmss", "vmsn"] {
        let name = format!("Machine.{extension}");
        let files = directory(&[(&name, &state(WIDE, false)), ("Machine.vmem", &memory()), ("Other.vmem", &[0; 4096])]);
        check(&Vmi::new(ImageDriver::open(files.path().join(&name)).unwrap()));
        check(&Vmi::new(ImageDriver::open(files.path().join("Machine.vmem")).unwrap()));
        // The directory, as there is one state.
        check(&Vmi::new(ImageDriver::open(files.path()).unwrap()));
        // Whoever knows better says so.
        let raw = OpenOptions::new().format(Format::Raw).open(files.path().join("Machine.vmem")).unwrap();
        assert_eq!(raw.machine().memory.total(), 4 * 4096);
        assert_eq!(raw.format(), Format::Raw);
        let other = ImageDriver::open(files.path().join("Other.vmem")).unwrap();
        assert_eq!(other.format(), Format::Raw);
        let mapped = OpenOptions::new().raw_map("0x5000-0x6000".parse().unwrap());
        assert_eq!(regions(&Vmi::new(mapped.open(files.path().join("Machine.vmem")).unwrap())), [(0x5000, 0x6000)]);
    }
}

#[test]
fn memory_without_regions_is_one_to_one() {
    let tags = [tag("regionsCount", &[], &[0; 4]), block("Memory", &[], 63, 0, true, &memory())].concat();
    let vmi = open(&file(WIDE, &[("memory", tags)])).unwrap();
    assert_eq!(regions(&vmi), [(0, 0x4000)]);
    assert!(vmi.driver().vcpus().is_none());
}

#[test]
fn registers_with_a_tag_each() {
    let mut tags = Vec::new();
    for (name, value) in [("rax", 1u64), ("rsp", 2), ("r15", 3), ("rip", 4), ("efer", 0xd01)] {
        tags.extend(tag(name, &[0], &value.to_le_bytes()));
    }
    for (number, value) in [(0u32, 10u64), (3, 13), (4, 14)] {
        tags.extend(tag("CR64", &[0, number], &value.to_le_bytes()));
    }
    tags.extend(tag("EFLAGS", &[0], &2u32.to_le_bytes()));
    let memory = [tag("regionsCount", &[], &[0; 4]), block("Memory", &[], 63, 0, true, &[1; 4096])].concat();
    let vmi = open(&file(WIDE, &[("cpu", tags), ("memory", memory)])).unwrap();
    let registers = vmi.registers(VcpuId(0)).unwrap();
    assert_eq!((registers.rax, registers.rsp, registers.r15, registers.rip, registers.rflags), (1, 2, 3, 4, 2));
    assert_eq!((registers.cr0, registers.cr2, registers.cr3, registers.cr4), (Some(10), None, Some(13), Some(14)));
    assert_eq!(registers.efer, Some(0xd01));
}

#[test]
fn what_is_missing_is_named() {
    let alone = directory(&[("a.vmss", &state(WIDE, false))]);
    let error = format_error(ImageDriver::open(alone.path().join("a.vmss")));
    assert!(matches!(&error, FormatError::Files(what) if what.contains("a.vmem")), "{error}");
    // The memory is too short for its regions.
    let short = directory(&[("a.vmss", &state(WIDE, false)), ("a.vmem", &memory()[..0x3800])]);
    let error = format_error(ImageDriver::open(short.path()));
    assert!(matches!(&error, FormatError::Truncated { what, missing: 0x800 } if what.contains("region 1")), "{error}");
    let image = OpenOptions::new().allow_truncated(true).open(short.path()).unwrap();
    assert_eq!(regions(&Vmi::new(image))[1], (0x1_0000_0000, 0x1_0000_1800));
    // More than one state.
    let two = directory(&[("a.vmss", &state(WIDE, true)), ("b.vmsn", &state(WIDE, true))]);
    let error = ImageDriver::open(two.path()).unwrap_err();
    assert!(matches!(&error, OpenError::Directory { why, .. } if why.contains("a.vmss, b.vmsn")), "{error}");

    let compressed = [region_tags(&REGIONS), block("Memory", &[], 62, 0, true, &memory())].concat();
    let error = format_error(open(&file(WIDE, &[("memory", compressed)])));
    assert!(error.to_string().contains("compressed"), "{error}");
    let mut old = state(WIDE, true);
    old[..4].copy_from_slice(&0xbed0_bed0u32.to_le_bytes());
    assert!(format_error(open(&old)).to_string().contains("32-bit"));
    assert!(format_error(open(&file(WIDE, &[("cpu", cpus(true))]))).to_string().contains("memory"));
}

#[test]
fn lies_are_found() {
    let with = |tags: Vec<u8>| {
        format_error(open(&file(WIDE, &[("memory", [tags, block("Memory", &[], 63, 0, true, &memory())].concat())])))
    };
    // Promises of everything allocate nothing.
    with(region_tags(&[(0, 0, u32::MAX)]));
    with(region_tags(&[(0, u32::MAX, 1)]));
    assert!(matches!(with(region_tags(&[(0, 0, 2), (1, 2, 2)])), FormatError::Pieces(_)));
    with(tag("regionsCount", &[], &u32::MAX.to_le_bytes()));
    with(tag("regionsCount", &[], &[1; 61]));
    with(tag("regionPPN", &[u32::MAX], &[0; 4]));
    with([tag("regionsCount", &[], &[1, 0, 0, 0]), tag("regionSize", &[0], &[0xff; 8])].concat());
    let mut bytes = state(WIDE, true);
    bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    format_error(open(&bytes));
    let huge = [tag("regionsCount", &[], &[0; 4]), block("Memory", &[], 63, 0, true, &memory())].concat();
    let mut bytes = file(WIDE, &[("memory", huge)]);
    let at = bytes.windows(6).position(|name| name == b"Memory").unwrap() + 6;
    bytes[at..at + 8].copy_from_slice(&(1u64 << 50).to_le_bytes());
    let FormatError::Truncated { missing, .. } = format_error(open(&bytes)) else { panic!() };
    assert_eq!(missing, (1 << 50) - 4 * 4096 - 2);
}

#[test]
fn cut_short_anywhere() {
    let bytes = state(WIDE, true);
    assert!(exercise(&bytes, None, false));
    for len in 1..bytes.len() {
        assert!(!exercise(&bytes[..len], Some(Format::Vmware), false), "{len}");
        exercise(&bytes[..len], Some(Format::Vmware), true);
    }
    // A file that ends within the memory: what is there, with the registers if they are before it.
    let tags = [tag("regionsCount", &[], &[0; 4]), block("Memory", &[], 63, 0, true, &memory())].concat();
    for (groups, vcpus) in [([("cpu", cpus(true)), ("memory", tags.clone())], 2), ([("memory", tags), ("cpu", cpus(true))], 0)] {
        let bytes = file(WIDE, &groups);
        let end = bytes.windows(256).rposition(|bytes| *bytes == memory()[0x4000 - 256..]).unwrap() + 256;
        let error = format_error(open(&bytes[..end - 100]));
        assert!(matches!(&error, FormatError::Truncated { what, missing: 100 } if what == "the memory"), "{error}");
        let part = open_with(&bytes[..end - 100], OpenOptions::new().allow_truncated(true)).unwrap();
        assert_eq!(regions(&part), [(0, 0x4000 - 100)]);
        assert_eq!(part.driver().vcpus().map_or(0, vmi_core::Vcpus::vcpu_count), vcpus);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changed(
        changes in prop::collection::vec((0..1500usize, prop_oneof![Just(0u8), Just(0xff), Just(0x3f), any::<u8>()]), 1..10),
        inside: bool,
        truncated: bool,
    ) {
        let mut bytes = state(WIDE, inside);
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        exercise(&bytes, Some(Format::Vmware), truncated);
        let files = directory(&[("a.vmss", &bytes), ("a.vmem", &memory())]);
        exercise_path(&files.path().join("a.vmem"), truncated);
    }
}
