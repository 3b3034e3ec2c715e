//! What is written is what is read.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use builder::pattern;
use vmi_core::synthetic::{LiveDriver, SyntheticDriver, Unpaged};
use vmi_core::{Driver, Error, GuestMapping, Liveness, MachineInfo, Memory, MemoryMap, Note, PhysAddr, Region, Result, Vmi};
use vmi_driver_file::write::{self, WriteError};
use vmi_driver_file::{Format, ImageDriver};

const FORMATS: [Format; 3] = [Format::Raw, Format::Lime, Format::Elf];

fn region(start: u64, len: u64) -> Region {
    Region::new(PhysAddr::new(start), len).unwrap()
}

/// Some memory, zeros in it, memory above a hole, and a region that is no whole page.
fn machine() -> Vmi<SyntheticDriver> {
    let low = [vec![0; 4096], pattern(1, 6 << 20), vec![0; 3 << 20], pattern(2, 4096)].concat();
    let runs = [(0, low), (0x200_0000, pattern(3, 4097)), (0x210_0800, [vec![0; 0x800], pattern(4, 0x3000)].concat())];
    let driver = SyntheticDriver::new(runs.map(|(at, bytes)| (PhysAddr::new(at), bytes)));
    Vmi::new(driver.with_notes(vec![Note::VmCoreInfo(b"OSRELEASE=6.1.0\n".to_vec())]))
}

#[test]
fn round_trips() {
    let machine = machine();
    let directory = tempfile::tempdir().unwrap();
    for format in FORMATS {
        let path = directory.path().join("image");
        let mut calls = Vec::new();
        let summary = write::image(&machine, &path, format, |done, total| calls.push((done, total))).unwrap();
        let total = machine.machine().memory.total();
        assert_eq!((summary.memory, summary.unreadable_bytes()), (total, 0));
        assert!(calls.is_sorted() && calls[0] == (0, total) && calls.last() == Some(&(total, total)));
        let copy = Vmi::new(ImageDriver::open(&path).unwrap());
        assert_eq!(copy.driver().format(), format);
        if format != Format::Raw {
            assert_eq!(copy.machine().memory, machine.machine().memory);
        }
        if format == Format::Elf {
            assert_eq!(copy.machine().notes, machine.machine().notes);
        }
        for region in machine.machine().memory.regions() {
            let len = region.len() as usize;
            assert!(copy.read_vec(region.start(), len).unwrap() == machine.read_vec(region.start(), len).unwrap());
        }
        // Three of the nine megabytes are zero, and the hole up to 0x2000000 takes no room either.
        let metadata = path.metadata().unwrap();
        assert!(metadata.blocks() * 512 < 7 << 20, "{format}: {} bytes", metadata.blocks() * 512);
        assert!(summary.stored < 7 << 20);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        // Nothing but the image is left in the directory.
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);
    }
}

#[test]
fn memory_that_is_not_mapped() {
    let bytes = pattern(5, 9 << 20);
    let machine = Vmi::new(LiveDriver::<Unpaged>::new(bytes.clone(), None));
    let directory = tempfile::tempdir().unwrap();
    for format in FORMATS {
        let path = directory.path().join(format.to_string());
        write::image(&machine, &path, format, |_, _| ()).unwrap();
        let copy = Vmi::new(ImageDriver::open(&path).unwrap());
        assert!(copy.read_vec(PhysAddr::ZERO, bytes.len()).unwrap() == bytes, "{format}");
    }
}

#[test]
fn many_segments() {
    let runs = (0..66_000u64).map(|i| (PhysAddr::new(i * 0x2000), vec![i as u8 | 1; 8]));
    let machine = Vmi::new(SyntheticDriver::new(runs));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    write::image(&machine, &path, Format::Elf, |_, _| ()).unwrap();
    let copy = Vmi::new(ImageDriver::open(&path).unwrap());
    assert_eq!(copy.machine().memory, machine.machine().memory);
    let last = PhysAddr::new(65_999 * 0x2000);
    assert_eq!(copy.read::<u64>(last).unwrap(), machine.read::<u64>(last).unwrap());
}

/// A machine whose memory map has more than it can read, or that fails altogether.
struct Partial {
    machine: MachineInfo,
    readable: SyntheticDriver,
    broken: bool,
}

impl Driver for Partial {
    type Arch = Unpaged;

    fn machine(&self) -> &MachineInfo {
        &self.machine
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        if self.broken && at.get() >= 0x2000 {
            let source = Box::new(std::io::Error::other("gone"));
            let kind = vmi_core::ErrorKind::Driver { back_end: "test".into(), action: "reading".into(), source };
            return Err(Error::from(kind));
        }
        self.readable.read(at, buf)
    }

    fn mapping(&self) -> Option<&GuestMapping> {
        None
    }
}

fn partial(broken: bool) -> Vmi<Partial> {
    let runs = [(0, pattern(1, 0x2000)), (0x3000, pattern(2, 0x1000)), (0x8000, pattern(3, 0x1000))];
    Vmi::new(Partial {
        machine: MachineInfo {
            name: "partial".into(),
            memory: MemoryMap::new([region(0, 0x9000)]),
            liveness: Liveness::Live,
            notes: Vec::new(),
        },
        readable: SyntheticDriver::new(runs.map(|(at, bytes)| (PhysAddr::new(at), bytes))),
        broken,
    })
}

#[test]
fn unreadable_pages_are_zero_and_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let summary = write::image(&partial(false), &path, Format::Lime, |_, _| ()).unwrap();
    assert_eq!(summary.unreadable, [region(0x2000, 0x1000), region(0x4000, 0x4000)]);
    assert_eq!(summary.unreadable_bytes(), 0x5000);
    let copy = Vmi::new(ImageDriver::open(&path).unwrap());
    assert_eq!(copy.read_vec(PhysAddr::new(0x3000), 0x1000).unwrap(), pattern(2, 0x1000));
    assert_eq!(copy.read_vec(PhysAddr::new(0x4000), 0x4000).unwrap(), vec![0; 0x4000]);
}

#[test]
fn a_failure_leaves_what_was_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, "old").unwrap();
    let error = write::image(&partial(true), &path, Format::Raw, |_, _| ()).unwrap_err();
    assert!(matches!(error, WriteError::Guest(_)), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(directory.path().read_dir().unwrap().count(), 1);
}

#[test]
fn where_an_image_cannot_be() {
    let machine = machine();
    let directory = tempfile::tempdir().unwrap();
    let write = |path: &std::path::Path| write::image(&machine, path, Format::Raw, |_, _| ());
    assert!(matches!(write(directory.path()), Err(WriteError::NotRegular { .. })));
    assert!(matches!(write("/dev/null".as_ref()), Err(WriteError::NotRegular { .. })));
    assert!(matches!(write(&directory.path().join("no/image")), Err(WriteError::Io { .. })));
    // A link is followed.
    let (target, link) = (directory.path().join("target"), directory.path().join("link"));
    std::fs::write(&target, "old").unwrap();
    symlink(&target, &link).unwrap();
    write(&link).unwrap();
    assert!(link.is_symlink() && target.metadata().unwrap().len() > 1 << 20);
}
