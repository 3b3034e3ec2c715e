//! Snapshots of Firecracker, and images over a base.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use builder::firecracker::{FORMS, Form, state, vcpu};
use builder::{directory, exercise_path, format_error, lime, pattern, read, regions};
use proptest::prelude::*;
use vmi_arch_x86::SegmentAttributes;
use vmi_core::{Driver, Memory, PhysAddr, VcpuId, Vmi};
use vmi_driver_file::{Format, FormatError, ImageDriver, OpenError, OpenOptions};

const MIB: u64 = 1 << 20;
const HIGH: u64 = 4 << 30;
const REGIONS: [(u64, u64); 2] = [(0, 2 * MIB), (HIGH, MIB)];

fn memory() -> Vec<u8> {
    let mut bytes = pattern(1, 3 << 20);
    bytes[0] = 0;
    bytes
}

fn check(vmi: &Vmi<ImageDriver>) {
    assert_eq!(vmi.driver().format(), Format::Firecracker);
    assert_eq!(regions(vmi), [(0, 2 * MIB), (HIGH, HIGH + MIB)]);
    assert_eq!(read(vmi, 0, 2 << 20), memory()[..2 << 20]);
    assert_eq!(read(vmi, HIGH, 1 << 20), memory()[2 << 20..]);
    let cpu = vmi.registers(VcpuId(1)).unwrap();
    let order = [cpu.rax, cpu.rbx, cpu.rcx, cpu.rdx, cpu.rsi, cpu.rdi, cpu.rsp, cpu.rbp, cpu.r8, cpu.r15, cpu.rip, cpu.rflags];
    assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17].map(|n| 5000 + n));
    let control = [cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.cr8, cpu.efer].map(Option::unwrap);
    assert_eq!(control, [5100, 5101, 5102, 5103, 5104, 0xd01]);
    let (gs, tr) = (cpu.segments.gs.unwrap(), cpu.segments.tr.unwrap());
    assert_eq!((gs.base, gs.selector, tr.base), (5000 + 0x400, 32, 5000 + 0x600));
    assert!(gs.attributes.unwrap().contains(SegmentAttributes::LONG | SegmentAttributes::PRESENT | SegmentAttributes::CODE));
    assert_eq!(cpu.idtr.unwrap().base.get(), 5000 + 0x1000);
    assert_eq!(vmi.registers(VcpuId(0)).unwrap().rax, 1000);
}

fn open(path: impl AsRef<Path>) -> Vmi<ImageDriver> {
    Vmi::new(ImageDriver::open(path).unwrap())
}

#[test]
fn every_form_of_state() {
    let vcpus = [vcpu(1000), vcpu(5000)];
    for form in FORMS.into_iter().filter(|form| *form != Form::Bitcode) {
        let files =
            directory(&[("vmstate", &state(form, &REGIONS, &vcpus)), ("mem_file", &memory()), ("log", b"a text of no interest")]);
        for name in ["vmstate", "mem_file", ""] {
            check(&open(files.path().join(name)));
        }
        let raw = OpenOptions::new().format(Format::Raw).open(files.path().join("mem_file")).unwrap();
        assert_eq!(regions(&Vmi::new(raw)), [(0, 3 * MIB)]);
    }
}

/// Of the newest form only the size is read.
#[test]
fn packed_numbers() {
    let files = directory(&[("state", &state(Form::Bitcode, &[(0, 3 * MIB)], &[])), ("mem", &memory())]);
    assert_eq!(regions(&open(files.path().join("mem"))), [(0, 3 * MIB)]);
    assert_eq!(regions(&open(files.path())), [(0, 3 * MIB)]);
    let large = [(0, 3 << 30), (HIGH, 16 * MIB)];
    let files = directory(&[("state", &state(Form::Bitcode, &large, &[]))]);
    let mem = File::create(files.path().join("mem")).unwrap();
    mem.set_len((3 << 30) + 16 * MIB).unwrap();
    mem.write_all_at(b"above", 3 << 30).unwrap();
    let vmi = open(files.path());
    assert_eq!(regions(&vmi), [(0, 3 << 30), (HIGH, HIGH + 16 * MIB)]);
    assert_eq!(read(&vmi, HIGH, 5), b"above");
}

#[test]
fn a_raw_file_without_a_state_stays_raw() {
    let other = state(Form::Bincode, &[(0, MIB)], &[]);
    let files = directory(&[("mem", &memory()), ("state", &other)]);
    assert_eq!(open(files.path().join("mem")).driver().format(), Format::Raw);
}

#[test]
fn what_is_missing_or_ambiguous_is_named() {
    let bytes = state(Form::Bincode, &REGIONS, &[]);
    let alone = directory(&[("state", &bytes), ("mem", &memory()[1..])]);
    let error = format_error(ImageDriver::open(alone.path().join("state")));
    assert!(matches!(&error, FormatError::Files(what) if what.contains("3145728")), "{error}");
    let two = directory(&[("state", &bytes), ("mem-a", &memory()), ("mem-b", &memory())]);
    let error = format_error(ImageDriver::open(two.path().join("state")));
    assert!(matches!(&error, FormatError::Files(what) if what.contains("mem-a, mem-b")), "{error}");
    assert_eq!(open(two.path().join("mem-b")).driver().format(), Format::Firecracker);
    let states = directory(&[("s1", &bytes), ("s2", &bytes), ("mem", &memory())]);
    let error = ImageDriver::open(states.path()).unwrap_err();
    assert!(matches!(&error, OpenError::Directory { why, .. } if why.contains("s1, s2")), "{error}");
    // They agree on the layout; whose registers it has cannot be told.
    let vmi = open(states.path().join("mem"));
    assert_eq!(regions(&vmi), [(0, 2 * MIB), (HIGH, HIGH + MIB)]);
    assert!(vmi.driver().vcpus().is_none());
}

#[test]
fn cut_short_anywhere() {
    let vcpus = [vcpu(1000)];
    for form in FORMS {
        let bytes = state(form, &[(0, MIB)], &vcpus);
        let files = directory(&[("mem", &memory()[..1 << 20])]);
        let path = files.path().join("state");
        for len in 16..bytes.len() {
            std::fs::write(&path, &bytes[..len]).unwrap();
            // What is left of it, for whoever asks.
            exercise_path(&path, true);
            let error = format_error(ImageDriver::open(&path));
            assert!(matches!(error, FormatError::Malformed { .. } | FormatError::Truncated { .. }), "{form:?} {len}: {error}");
        }
    }
}

/// A memory file beside a damaged state is not taken for raw memory: above the gap that would be wrong.
#[test]
fn a_damaged_state_is_named() {
    let mut bytes = state(Form::Bincode, &REGIONS, &[vcpu(1000)]);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let files = directory(&[("state", &bytes), ("mem", &memory())]);
    for name in ["state", "mem"] {
        let error = format_error(ImageDriver::open(files.path().join(name)));
        assert!(matches!(&error, FormatError::Malformed { what, .. } if what.contains("checksum")), "{name}: {error}");
        let left = OpenOptions::new().allow_truncated(true).open(files.path().join(name)).unwrap();
        assert_eq!(regions(&Vmi::new(left)), [(0, 2 * MIB), (HIGH, HIGH + MIB)]);
    }
}

/// A sparse file of the machine's length, with one page of `seed` at each of `pages`.
fn differential(path: &Path, len: u64, pages: &[u64], seed: u8) {
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    pages.iter().for_each(|page| file.write_all_at(&pattern(seed, 4096), page * 4096).unwrap());
}

#[test]
fn differential_snapshots_over_full_ones() {
    let vcpus = [vcpu(1000), vcpu(5000)];
    let bytes = state(Form::Bincode, &REGIONS, &vcpus);
    let full = directory(&[("mem", &memory())]);
    let first = directory(&[("state", &bytes)]);
    let second = directory(&[("state", &bytes)]);
    // The last page below the gap, the first one above it, and one that both have.
    differential(&first.path().join("mem"), 3 * MIB, &[511, 512, 7], 0x40);
    differential(&second.path().join("mem"), 3 * MIB, &[7], 0x60);
    let expected = |at: u64| memory()[at as usize * 4096..][..4096].to_vec();
    for name in ["mem", "state", ""] {
        let options = OpenOptions::new().base(first.path().join("mem")).base(full.path().join("mem"));
        let vmi = Vmi::new(options.open(second.path().join(name)).unwrap());
        assert_eq!(regions(&vmi), [(0, 2 * MIB), (HIGH, HIGH + MIB)]);
        assert_eq!(read(&vmi, 7 * 4096, 4096), pattern(0x60, 4096));
        assert_eq!(read(&vmi, 511 * 4096, 4096), pattern(0x40, 4096));
        assert_eq!(read(&vmi, HIGH, 4096), pattern(0x40, 4096));
        // The full one has no state beside it, and yet its memory is where it was.
        assert_eq!(read(&vmi, HIGH + 4096, 4096), expected(513));
        let run = [expected(6), pattern(0x60, 4096), expected(8)].concat();
        assert_eq!(read(&vmi, 6 * 4096, 3 * 4096), run);
        assert_eq!(vmi.driver().vcpus().unwrap().vcpu_count(), 2);
        assert!(vmi.driver().mapping().is_some());
    }
    // Without its base, what the hole is cannot be known to be memory: it reads as the zeros of the file.
    assert_eq!(read(&open(first.path().join("mem")), 0, 16), [0; 16]);
}

#[test]
fn any_image_over_any_base() {
    let base = directory(&[("base.raw", &memory())]);
    let base = base.path().join("base.raw");
    let top = directory(&[("top.lime", &lime(0x1800, &pattern(9, 0x1000)))]);
    let vmi = Vmi::new(OpenOptions::new().base(&base).open(top.path().join("top.lime")).unwrap());
    assert_eq!(regions(&vmi), [(0, 3 * MIB)]);
    assert_eq!(read(&vmi, 0x1800, 0x1000), pattern(9, 0x1000));
    assert_eq!((read(&vmi, 0x17ff, 1)[0], read(&vmi, 0x2800, 1)[0]), (memory()[0x17ff], memory()[0x2800]));
    let missing = OpenOptions::new().base(top.path().join("nothing")).open(top.path().join("top.lime"));
    assert!(matches!(format_error(missing), FormatError::Beside { .. }));
    let text = OpenOptions::new().base(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).open(top.path().join("top.lime"));
    assert!(format_error(text).to_string().contains("base"));
    // A packed file has lost its holes.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &memory()).unwrap();
    let packed = directory(&[("diff.gz", &encoder.finish().unwrap())]);
    let error = format_error(OpenOptions::new().base(&base).open(packed.path().join("diff.gz")));
    assert!(error.to_string().contains("holes"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn changed(
        form in prop::sample::select(FORMS.to_vec()),
        changes in prop::collection::vec((0..260usize, prop_oneof![Just(0u8), Just(0xff), Just(1), any::<u8>()]), 1..10),
    ) {
        let mut bytes = state(form, &[(0, MIB)], &[vcpu(1000)]);
        for (at, value) in changes {
            bytes[at] = value;
        }
        let files = directory(&[("state", &bytes)]);
        File::create(files.path().join("mem")).unwrap().set_len(MIB).unwrap();
        exercise_path(&files.path().join("state"), true);
        exercise_path(&files.path().join("mem"), true);
    }

    /// Three files over each other against a table with one entry a page.
    #[test]
    fn layers(layers in prop::collection::vec(prop::collection::vec(0u64..30, 0..12), 1..4)) {
        let files = tempfile::tempdir().unwrap();
        let mut options = OpenOptions::new();
        for (index, pages) in layers.iter().enumerate() {
            let path = files.path().join(index.to_string());
            differential(&path, 30 * 4096, pages, index as u8 * 2);
            if index > 0 {
                options = options.base(path);
            }
        }
        let Ok(image) = options.open(files.path().join("0")) else { return Ok(()) };
        let vmi = Vmi::new(image);
        for page in 0..30 {
            let owner = layers.iter().position(|pages| pages.contains(&page));
            let expected = match owner {
                Some(owner) => Some(pattern(owner as u8 * 2, 4096)),
                // The last one lies over nothing, so that its holes are zeros.
                None => Some(vec![0; 4096]),
            };
            prop_assert_eq!(vmi.read_vec(PhysAddr::new(page * 4096), 4096).ok(), expected);
        }
    }
}
