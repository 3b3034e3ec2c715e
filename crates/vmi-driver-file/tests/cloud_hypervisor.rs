//! Snapshots of Cloud Hypervisor.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;

use builder::cloud_hypervisor::{Form, state, vcpu};
use builder::{directory, exercise_path, format_error, pattern, read, regions};
use proptest::prelude::*;
use vmi_core::{Driver, VcpuId, Vmi};
use vmi_driver_file::{Format, FormatError, ImageDriver, OpenError, OpenOptions};

const HIGH: u64 = 4 << 30;
const RANGES: [(u64, u64); 3] = [(0, 0x3000), (HIGH, 0x2000), (0x8000, 0x1000)];
const CONFIG: &[u8] = br#"{"cpus":{"boot_vcpus":2,"max_vcpus":2},"memory":{"size":24576},"payload":{"kernel":"/vmlinux"}}"#;

fn memory() -> Vec<u8> {
    let mut bytes = pattern(1, 0x6000);
    bytes[0] = 0;
    bytes
}

fn vcpus(general_as_bytes: bool) -> Vec<String> {
    (0..12).map(|number| vcpu(1000 * number, general_as_bytes)).collect()
}

fn open(path: impl AsRef<std::path::Path>) -> Vmi<ImageDriver> {
    Vmi::new(ImageDriver::open(path).unwrap())
}

#[test]
fn every_form_by_every_file() {
    for (form, general_as_bytes) in [(Form::Text, false), (Form::Text, true), (Form::Bytes, false), (Form::Binary, false)] {
        let state = state(form, &RANGES, &vcpus(general_as_bytes));
        let files = directory(&[("state.json", state.as_bytes()), ("config.json", CONFIG), ("memory-ranges", &memory())]);
        for name in ["state.json", "config.json", "memory-ranges", ""] {
            let vmi = open(files.path().join(name));
            assert_eq!(vmi.driver().format(), Format::CloudHypervisor, "{name}");
            assert_eq!(regions(&vmi), [(0, 0x3000), (0x8000, 0x9000), (HIGH, HIGH + 0x2000)]);
            assert_eq!(read(&vmi, 0, 0x3000), memory()[..0x3000]);
            assert_eq!(read(&vmi, HIGH, 0x2000), memory()[0x3000..0x5000]);
            assert_eq!(read(&vmi, 0x8000, 0x1000), memory()[0x5000..]);
            // Ordered by number, not by name.
            for number in 0..12 {
                let cpu = vmi.registers(VcpuId(number)).unwrap();
                let first = 1000 * u64::from(number);
                assert_eq!(
                    (cpu.rax, cpu.rbp, cpu.r15, cpu.rip, cpu.rflags),
                    (first, first + 7, first + 15, first + 16, first + 17)
                );
                assert_eq!((cpu.cr3, cpu.cr4, cpu.efer), (Some(first + 102), Some(first + 103), Some(3329)));
                assert_eq!((cpu.segments.gs.unwrap().base, cpu.idtr.unwrap().base.get()), (first + 0x400, first + 0x2000));
            }
        }
        let raw = OpenOptions::new().format(Format::Raw).open(files.path().join("memory-ranges")).unwrap();
        assert_eq!(regions(&Vmi::new(raw)), [(0, 0x6000)]);
    }
}

#[test]
fn a_file_for_each_range() {
    let manager = r#"{"memory_regions":[{"content":"memory-region-0","start_addr":0,"size":12288},
        {"backing_file":"memory-region-1","start_addr":4294967296,"size":12288}]}"#;
    let bytes: Vec<_> = manager.bytes().map(|byte| byte.to_string()).collect();
    let section = format!(r#"{{"memory-manager-section":{{"id":"a","snapshot":[{}]}}}}"#, bytes.join(","));
    let state =
        format!(r#"{{"id":"vm","snapshots":{{"memory-manager":{{"id":"b","snapshots":{{}},"snapshot_data":{section}}}}}}}"#);
    let memory_bytes = memory();
    let (low, high) = memory_bytes.split_at(0x3000);
    let files = directory(&[("state.json", state.as_bytes()), ("memory-region-0", low), ("memory-region-1", high)]);
    let vmi = open(files.path());
    assert_eq!(regions(&vmi), [(0, 0x3000), (HIGH, HIGH + 0x3000)]);
    assert_eq!(read(&vmi, HIGH, 0x3000), memory()[0x3000..]);
    assert!(vmi.driver().vcpus().is_none());
}

#[test]
fn what_is_missing_is_named() {
    let bytes = state(Form::Text, &RANGES, &[]);
    let alone = directory(&[("state.json", bytes.as_bytes()), ("config.json", CONFIG)]);
    let error = format_error(ImageDriver::open(alone.path().join("config.json")));
    assert!(matches!(&error, FormatError::Files(what) if what.contains("memory-ranges")), "{error}");
    assert!(matches!(ImageDriver::open(alone.path()).unwrap_err(), OpenError::Directory { .. }));
    let config = directory(&[("config.json", CONFIG), ("memory-ranges", &memory())]);
    let error = format_error(ImageDriver::open(config.path().join("config.json")));
    assert!(matches!(&error, FormatError::Files(what) if what.contains("state.json")), "{error}");
    // Without its state it is as raw as any file.
    assert_eq!(open(config.path().join("memory-ranges")).driver().format(), Format::Raw);

    let short = directory(&[("state.json", bytes.as_bytes()), ("memory-ranges", &memory()[..0x5800])]);
    let error = format_error(ImageDriver::open(short.path()));
    assert!(matches!(&error, FormatError::Truncated { what, missing: 0x800 } if what.contains("0x8000")), "{error}");
    let part = OpenOptions::new().allow_truncated(true).open(short.path()).unwrap();
    assert_eq!(regions(&Vmi::new(part))[1], (0x8000, 0x8800));
}

#[test]
fn lies_are_found() {
    let with = |state: &str| {
        let files = directory(&[("state.json", state.as_bytes()), ("memory-ranges", &memory())]);
        format_error(ImageDriver::open(files.path()))
    };
    for form in [Form::Text, Form::Bytes, Form::Binary] {
        assert!(matches!(with(&state(form, &[(0, 1 << 50)], &[])), FormatError::Truncated { .. }));
        assert!(matches!(with(&state(form, &[(u64::MAX, 2)], &[])), FormatError::Malformed { .. }));
        assert!(matches!(with(&state(form, &[(0, 0x2000), (0x1000, 0x1000)], &[])), FormatError::Pieces(_)));
        assert!(matches!(with(&state(form, &[], &[])), FormatError::Malformed { .. }));
    }
    // Deeper than any reader should follow.
    let deep = format!("{}{}", r#"{"snapshot_data":{},"snapshots":{"a":"#.repeat(100_000), "1");
    with(&deep);
    let whole = state(Form::Text, &RANGES, &vcpus(false));
    let files = directory(&[("memory-ranges", &memory())]);
    let path = files.path().join("state.json");
    for len in (1..whole.len()).filter(|len| len % 61 == 0 || *len < 2048 || *len + 2048 > whole.len()) {
        std::fs::write(&path, &whole.as_bytes()[..len]).unwrap();
        assert!(!exercise_path(&path, false), "{len}");
        exercise_path(&path, true);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn changed(
        form in prop::sample::select(vec![Form::Text, Form::Bytes, Form::Binary]),
        changes in prop::collection::vec((0..100_000usize, prop_oneof![Just(b'0'), Just(b'9'), Just(b'"'), Just(b'}'), any::<u8>()]), 1..6),
        truncated: bool,
    ) {
        let mut bytes = state(form, &RANGES, &[vcpu(1000, true)]).into_bytes();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let files = directory(&[("state.json", &bytes), ("memory-ranges", &memory())]);
        exercise_path(&files.path().join("state.json"), truncated);
        exercise_path(&files.path().join("memory-ranges"), truncated);
    }
}
