//! What is written is what is read.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use builder::pattern;
use vmi_core::synthetic::{LiveDriver, SyntheticDriver, Unpaged};
use vmi_core::{
    Driver, Error, GuestMapping, Liveness, MachineInfo, Memory, MemoryMap, Note, PhysAddr, Region, Result, VcpuId, Vcpus, Vmi,
};
use vmi_driver_file::write::{self, WriteError};
use vmi_driver_file::{Format, ImageDriver};

const FORMATS: [Format; 5] = [Format::Raw, Format::Lime, Format::Elf, Format::Avml, Format::Kdump];

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

/// What the source says of itself goes before what others know of it.
#[test]
fn notes_are_added_where_there_are_none() {
    let note = |text: &[u8]| vec![Note::VmCoreInfo(text.to_vec())];
    let silent = Vmi::new(SyntheticDriver::new([(PhysAddr::new(0x1000), pattern(1, 8192))]));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let options = write::Options::new().notes(note(b"OSRELEASE=5.10.0\n"));
    for format in [Format::Elf, Format::Kdump] {
        for (source, expected) in [(&silent, note(b"OSRELEASE=5.10.0\n")), (&machine(), note(b"OSRELEASE=6.1.0\n"))] {
            options.image(source, &path, format, |_, _| ()).unwrap();
            assert_eq!(ImageDriver::open(&path).unwrap().machine().notes, expected, "{format}");
        }
    }
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
        if format == Format::Lime || format == Format::Elf {
            assert_eq!(copy.machine().memory, machine.machine().memory);
        }
        if format == Format::Elf || format == Format::Kdump {
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
    let verify = write::Options::new().verify(true);
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = verify.image(&machine, &pipe, Format::Raw, |_, _| ()).unwrap_err();
    assert!(matches!(error, WriteError::VerifiedPipe { .. }), "{error}");
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

#[test]
fn a_pipe_gets_the_same_bytes() {
    let machine = machine();
    let directory = tempfile::tempdir().unwrap();
    let (path, pipe) = (directory.path().join("image"), directory.path().join("pipe"));
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for format in FORMATS {
        write::image(&machine, &path, format, |_, _| ()).unwrap();
        let expected = std::fs::read(&path).unwrap();
        let mut bytes = Vec::new();
        let summary = write::stream(&machine, &mut bytes, format, |_, _| ()).unwrap();
        assert_eq!(summary.stored, bytes.len() as u64);
        // The parts of a kdump file are not written in their order: through a pipe it goes flattened, and is rearranged when it is read.
        let expected = match format {
            Format::Kdump => {
                let (rearranged, plain) = (builder::open(&bytes).unwrap(), builder::open(&expected).unwrap());
                assert_eq!(rearranged.machine().memory, plain.machine().memory);
                for region in plain.machine().memory.regions() {
                    let read = |vmi: &Vmi<ImageDriver>| vmi.read_vec(region.start(), region.len() as usize).unwrap();
                    assert!(read(&rearranged) == read(&plain));
                }
                bytes
            }
            _ => {
                assert!(bytes == expected, "{format}");
                expected
            }
        };
        // A named pipe, with somebody at its other end.
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe).unwrap()
        });
        write::image(&machine, &pipe, format, |_, _| ()).unwrap();
        assert!(reader.join().unwrap() == expected, "{format}");
    }
}

/// Takes so many bytes and no more.
struct Full(usize);

impl std::io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let len = bytes.len().min(self.0);
        self.0 -= len;
        if len == 0 { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(len) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stream_that_ends_is_an_error() {
    let machine = machine();
    for format in FORMATS {
        for room in [0, 10, 1 << 20] {
            let error = write::stream(&machine, &mut Full(room), format, |_, _| ()).unwrap_err();
            assert!(
                matches!(&error, WriteError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull),
                "{error}"
            );
        }
    }
}

#[test]
fn verified_images() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let verify = write::Options::new().verify(true);
    let live = Vmi::new(LiveDriver::<Unpaged>::new(pattern(5, 9 << 20), None));
    for format in FORMATS {
        let mut calls = Vec::new();
        verify.image(&machine(), &path, format, |done, total| calls.push((done, total))).unwrap();
        let total = machine().machine().memory.total();
        assert!(calls.is_sorted() && calls.last() == Some(&(2 * total, 2 * total)));
        verify.image(&live, &path, format, |_, _| ()).unwrap();
        let summary = verify.image(&partial(false), &path, format, |_, _| ()).unwrap();
        assert_eq!(summary.unreadable_bytes(), 0x5000);
        // A machine that has nothing but zeros.
        let zeros = Vmi::new(SyntheticDriver::new([(PhysAddr::ZERO, vec![0; 5 << 20])]));
        verify.image(&zeros, &path, format, |_, _| ()).unwrap();
    }
}

/// Frozen, it says, but each read gives something else in one page.
struct Fickle {
    machine: MachineInfo,
    reads: std::sync::atomic::AtomicU8,
}

impl Driver for Fickle {
    type Arch = Unpaged;

    fn machine(&self) -> &MachineInfo {
        &self.machine
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        buf.fill(1);
        let here = 0x12_3456usize.checked_sub(at.get() as usize);
        if let Some(byte) = here.and_then(|here| buf.get_mut(here)) {
            *byte = self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(())
    }
}

#[test]
fn what_differs_is_told_and_leaves_no_image() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let memory = MemoryMap::new([region(0, 3 << 20)]);
    let machine = MachineInfo { name: "fickle".into(), memory, liveness: Liveness::Frozen, notes: Vec::new() };
    let machine = Vmi::new(Fickle { machine, reads: 5.into() });
    for format in FORMATS {
        let error = write::Options::new().verify(true).image(&machine, &path, format, |_, _| ()).unwrap_err();
        assert!(matches!(&error, WriteError::Differs { differing, .. } if *differing == [region(0x12_3000, 0x1000)]), "{error}");
        assert!(error.to_string().contains("123000"), "{error}");
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
    }
}

#[test]
fn registers_go_into_elf_images_and_back() {
    let source = {
        let mut registers = vmi_arch_x86::Registers::default();
        (registers.rax, registers.r15, registers.rip, registers.rflags) = (1, 2, 0xffff_ffff_8100_0000, 0x246);
        registers
    };
    let directory = tempfile::tempdir().unwrap();
    let elf = builder::Elf::new(vec![
        builder::notes([qemu_note(0x1000), qemu_note(0x2000)].concat()),
        builder::load(0x1000, pattern(1, 5000)),
    ]);
    let path = directory.path().join("image");
    let vmi = builder::open(&elf.bytes()).unwrap();
    write::image(&vmi, &path, Format::Elf, |_, _| ()).unwrap();
    let copy = ImageDriver::open(&path).unwrap();
    assert_eq!(copy.vcpu_count(), 2);
    for vcpu in [VcpuId(0), VcpuId(1)] {
        assert_eq!(copy.registers(vcpu).unwrap(), vmi.registers(vcpu).unwrap());
    }
    assert_eq!(copy.registers(VcpuId(1)).unwrap().cr3, Some(0x2000));
    // Of a source that knows general registers alone, no more is told.
    let mut status = vec![0; 336];
    status[112 + 10 * 8..][..8].copy_from_slice(&source.rax.to_le_bytes());
    status[112..][..8].copy_from_slice(&source.r15.to_le_bytes());
    status[112 + 16 * 8..][..8].copy_from_slice(&source.rip.to_le_bytes());
    status[112 + 18 * 8..][..8].copy_from_slice(&source.rflags.to_le_bytes());
    let elf = builder::Elf::new(vec![builder::notes(builder::note(b"CORE\0", 1, &status)), builder::load(0, pattern(1, 5000))]);
    let vmi = builder::open(&elf.bytes()).unwrap();
    write::image(&vmi, &path, Format::Elf, |_, _| ()).unwrap();
    assert_eq!(ImageDriver::open(&path).unwrap().registers(VcpuId(0)).unwrap(), source);
}

/// QEMU's note: version, size, 18 registers, 10 segments of 24 bytes, 5 control registers, the kernel's GS base.
fn qemu_note(cr3: u64) -> Vec<u8> {
    let mut state = [1u32.to_le_bytes(), 440u32.to_le_bytes()].concat();
    (0..18u64).for_each(|register| state.extend((register * 0x1_0001).to_le_bytes()));
    for segment in 0..10u32 {
        // A present 64-bit code segment, or a data segment; tables have none of that.
        let flags = if segment > 7 { 0 } else { [0x00a0_9b00, 0x00c0_9300][segment as usize % 2] };
        [if segment > 7 { 0 } else { segment * 8 }, 0xffff, flags, 0].iter().for_each(|half| state.extend(half.to_le_bytes()));
        state.extend((0xffff_8000_0000_0000 + u64::from(segment)).to_le_bytes());
    }
    [0x8005_0033, 0, 0x7fff, cr3, 0x6f0, 0xffff_8880_0000_0000u64].iter().for_each(|word| state.extend(word.to_le_bytes()));
    assert_eq!(state.len(), 440);
    builder::note(b"QEMU\0", 0, &state)
}
