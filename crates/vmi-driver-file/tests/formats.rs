//! Each format from bytes made by hand.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;

use builder::{Elf, Segment, TestFile, lime, load, note, notes, open, open_with, pattern};
use vmi_core::{Driver, ErrorKind, Memory, Note, PhysAddr, VcpuId, Vmi};
use vmi_driver_file::{Format, FormatError, ImageDriver, OpenError, OpenOptions};

fn read(vmi: &Vmi<ImageDriver>, at: u64, len: usize) -> Vec<u8> {
    vmi.read_vec(PhysAddr::new(at), len).unwrap()
}

fn regions(vmi: &Vmi<ImageDriver>) -> Vec<(u64, u64)> {
    vmi.machine().memory.regions().iter().map(|region| (region.start().get(), region.end().get())).collect()
}

fn format_error(result: Result<Vmi<ImageDriver>, OpenError>) -> FormatError {
    match result.unwrap_err() {
        OpenError::Image { source, .. } => source,
        other => panic!("{other}"),
    }
}

fn missing(result: Result<Vmi<ImageDriver>, OpenError>) -> u64 {
    match format_error(result) {
        FormatError::Truncated { missing, .. } => missing,
        other => panic!("{other}"),
    }
}

#[test]
fn raw_is_what_nothing_else_is() {
    let mut bytes = pattern(3, 3 * 4096 + 100);
    bytes[0] = 0;
    let vmi = open(&bytes).unwrap();
    assert_eq!((vmi.driver().format(), vmi.driver().compression()), (Format::Raw, None));
    // The last page is not whole, and readable as far as it goes.
    assert_eq!(read(&vmi, 0, bytes.len()), bytes);
    let error = vmi.read_vec(PhysAddr::new(3 * 4096), 101).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == bytes.len() as u64));
    assert!(vmi.driver().vcpus().is_none());
}

/// LibVMI copies only the head of a memory map that it is given, and reads the ranges from beyond it.
#[test]
fn libvmi_4_raw_with_a_map() {
    let mut bytes = pattern(5, 4 * 4096);
    bytes[0] = 0;
    let options = || OpenOptions::new().raw_map("0x0-0x1000,0x100000000-0x100002000@0x2000".parse().unwrap());
    let vmi = open_with(&bytes, options()).unwrap();
    assert_eq!(regions(&vmi), [(0, 0x1000), (0x1_0000_0000, 0x1_0000_2000)]);
    assert_eq!(read(&vmi, 0x1_0000_0000, 0x2000), bytes[0x2000..]);
    // Cut short, and allowed to be.
    assert_eq!(missing(open_with(&bytes[..0x3800], options())), 0x800);
    assert_eq!(missing(open_with(&bytes[..0x1800], options())), 0x2000);
    let part = open_with(&bytes[..0x3800], options().allow_truncated(true)).unwrap();
    assert_eq!(regions(&part)[1], (0x1_0000_0000, 0x1_0000_1800));
    let overlapping = OpenOptions::new().raw_map("0-0x2000@0,0x1000-0x3000@0".parse().unwrap());
    assert!(matches!(format_error(open_with(&bytes, overlapping)), FormatError::Pieces(_)));
}

#[test]
fn what_is_no_image_says_so() {
    assert!(matches!(open(b""), Err(OpenError::Empty { .. })));
    let with = |magic: &[u8], at: usize| {
        let mut bytes = vec![0; 0x9000];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        match open(&bytes) {
            Err(OpenError::NotSupported { format, advice, .. }) => format!("{format}: {advice}"),
            other => panic!("{other:?}"),
        }
    };
    assert!(with(&0x4c4d_5641_u32.to_le_bytes(), 0).contains("AVML"));
    assert!(with(b"EMiL\x02\0\0\0", 0).contains("LiME"));
    assert!(with(b"QEVM\0\0\0\x02", 0).contains("QEMU"));
    assert!(with(b"LibvirtQemudPart", 0).contains("libvirt"));
    assert!(with(&0xf00f_ebed_u32.to_le_bytes(), 0).contains("Xen"));
    assert!(with(b"QFI\xfb", 0).contains("disk"));
    assert!(with(b"CD001", 0x8001).contains("ISO"));
    let text = "[package]\nname = \"not an image\"\n".repeat(300);
    assert!(matches!(open(text.as_bytes()), Err(OpenError::NotSupported { format: "a text file", .. })));
    assert!(matches!(open(&[0; 100]), Err(OpenError::NotSupported { .. })));
    // Whoever knows better says so.
    assert!(open_with(text.as_bytes(), OpenOptions::new().format(Format::Raw)).is_ok());
}

#[test]
fn what_is_no_file_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let error = ImageDriver::open(directory.path()).unwrap_err();
    assert!(matches!(error, OpenError::Directory { .. }));
    assert!(matches!(ImageDriver::open("/dev/null").unwrap_err(), OpenError::NotRegular { .. }));
    let missing = directory.path().join("nothing");
    let error = ImageDriver::open(&missing).unwrap_err();
    assert!(matches!(&error, OpenError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound));
    assert!(error.to_string().contains(missing.to_str().unwrap()));
}

#[test]
fn lime_ranges_in_any_order() {
    let (low, high) = (pattern(1, 5000), pattern(2, 4096));
    let bytes = [lime(0x1_0000_0000, &high), lime(0x1000, &low)].concat();
    let vmi = open(&bytes).unwrap();
    assert_eq!(vmi.driver().format(), Format::Lime);
    assert_eq!(regions(&vmi), [(0x1000, 0x1000 + 5000), (0x1_0000_0000, 0x1_0000_1000)]);
    assert_eq!(read(&vmi, 0x1000, 5000), low);
    assert_eq!(read(&vmi, 0x1_0000_0000, 4096), high);
    // Padding to a block.
    assert_eq!(regions(&open(&[&bytes[..], &[0; 700]].concat()).unwrap()), regions(&vmi));
}

/// Some writers put the first address behind the range where the last one belongs.
#[test]
fn lime_ranges_with_exclusive_ends() {
    let exclusive = |start: u64, data: &[u8]| {
        let mut bytes = lime(start, data);
        bytes[16..24].copy_from_slice(&(start + data.len() as u64).to_le_bytes());
        bytes
    };
    let (low, high) = (pattern(1, 8192), pattern(2, 4096));
    for tail in [0, 512] {
        let bytes = [exclusive(0x1000, &low), exclusive(0x1_0000_0000, &high), vec![0; tail]].concat();
        let vmi = open(&bytes).unwrap();
        assert_eq!(regions(&vmi), [(0x1000, 0x3000), (0x1_0000_0000, 0x1_0000_1000)]);
        assert_eq!(vmi.read_vec(PhysAddr::new(0x1000), 8192).unwrap(), low);
    }
    // A range that does have one byte more than a page.
    let odd = [lime(0x1000, &low[..4097]), lime(0x8000, &high)].concat();
    assert_eq!(regions(&open(&odd).unwrap()), [(0x1000, 0x2001), (0x8000, 0x9000)]);
}

#[test]
fn lying_lime_headers() {
    let range = lime(0x1000, &pattern(1, 4096));
    assert_eq!(missing(open(&range[..range.len() - 7])), 7);
    assert_eq!(missing(open(&[&range[..], &range[..30]].concat())), 2);
    let part = open_with(&range[..range.len() - 7], OpenOptions::new().allow_truncated(true)).unwrap();
    assert_eq!(regions(&part), [(0x1000, 0x1ff9)]);
    assert!(matches!(format_error(open(&[&range[..], &range[..]].concat())), FormatError::Pieces(_)));
    let garbage = [&range[..], &pattern(9, 64)].concat();
    assert!(matches!(format_error(open(&garbage)), FormatError::Malformed { offset, .. } if offset == range.len() as u64));
    for last in [0xfff_u64, 0, u64::MAX] {
        let mut lie = range.clone();
        lie[16..24].copy_from_slice(&last.to_le_bytes());
        format_error(open(&lie));
    }
    let mut whole_address_range = range;
    whole_address_range[8..16].fill(0);
    whole_address_range[16..24].fill(0xff);
    format_error(open(&whole_address_range));
}

#[test]
fn elf_segments_and_zero_filled_tails() {
    let data = pattern(7, 6000);
    let mut tail = load(0x10_0000, data.clone());
    tail.memory_len = Some(0x3000);
    let core = Elf::new(vec![tail, load(0x1_0000_0000, pattern(8, 4096)), load(0xfffc_0000, pattern(9, 0x4_0000))]);
    for (class64, machine) in [(true, 62), (true, 3), (false, 3)] {
        let mut core = Elf { class64, machine, ..core.clone() };
        if !class64 {
            core.segments.remove(1);
        }
        let vmi = open(&core.bytes()).unwrap();
        assert_eq!(vmi.driver().format(), Format::Elf);
        assert_eq!(regions(&vmi)[0], (0x10_0000, 0x10_3000));
        let expected = [&data[..], &vec![0; 0x3000 - 6000]].concat();
        assert_eq!(read(&vmi, 0x10_0000, 0x3000), expected);
        // Through the end of the tail: how far it got.
        let mut buf = [1; 16];
        let error = vmi.read_into(PhysAddr::new(0x10_2ff8), &mut buf).unwrap_err();
        assert_eq!((error.done(), &buf[..8]), (8, &[0; 8][..]));
        assert!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == 0x10_3000));
        assert_eq!(read(&vmi, 0xfffc_0000, 4), pattern(9, 4));
    }
    // The BIOS ends where memory above 4 GiB starts.
    let vmi = open(&core.bytes()).unwrap();
    assert_eq!(read(&vmi, 0xffff_fff8, 16), [&pattern(9, 0x4_0000)[0x3_fff8..], &pattern(8, 8)].concat());
}

#[test]
fn elf_of_which_makedumpfile_has_excluded_the_end_of_a_segment() {
    let mut segment = load(0x10_0000, pattern(7, 0x1000));
    segment.memory_len = Some(0x3000);
    let with = |first: Vec<Segment>| open(&Elf::new([first, vec![segment.clone()]].concat()).bytes()).unwrap();
    let vmi = with(vec![notes(note(b"VMCOREINFO\0", 0, b"OSRELEASE=6\n"))]);
    assert_eq!(regions(&vmi), [(0x10_0000, 0x10_1000)]);
    let error = vmi.read::<u64>(PhysAddr::new(0x10_1000)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == 0x10_1000));
    assert_eq!(read(&with(Vec::new()), 0x10_1000, 0x2000), [0; 0x2000]);
}

#[test]
fn elf_with_more_segments_than_the_header_can_count() {
    let segments: Vec<Segment> = (0..70_000u64).map(|i| load(i * 0x2000, vec![i as u8; 16])).collect();
    let mut core = Elf::new(segments);
    core.extended_count = true;
    let vmi = open(&core.bytes()).unwrap();
    assert_eq!(vmi.machine().memory.regions().len(), 70_000);
    assert_eq!(read(&vmi, 69_999 * 0x2000, 16), [69_999u64 as u8; 16]);
}

#[test]
fn elf_that_shows_memory_twice() {
    // As /proc/vmcore does with the kernel's text, and QEMU with paging=on.
    let (first, second) = (pattern(1, 0x3000), pattern(2, 0x6000));
    let mut mapped = load(0x10_0000, first.clone());
    mapped.virtual_address = 0xffff_ffff_8100_0000;
    let mut again = mapped.clone();
    again.virtual_address = 0xffff_8880_0010_0000;
    let mut absent = load(0xfeb0_0000, Vec::new());
    (absent.offset, absent.memory_len) = (Some(u64::MAX), Some(0x1000));
    let mut virtual_only = load(u64::MAX, pattern(3, 0x1000));
    virtual_only.virtual_address = 0xffff_c900_0000_0000;
    let vmi = open(&Elf::new(vec![mapped, again, load(0xf_f000, second.clone()), absent, virtual_only]).bytes()).unwrap();
    assert_eq!(regions(&vmi), [(0xf_f000, 0x10_5000)]);
    assert_eq!(read(&vmi, 0xf_f000, 0x6000), [&second[..0x1000], &first[..], &second[0x4000..]].concat());
}

#[test]
fn elf_files_that_are_no_machine() {
    let core = Elf::new(vec![load(0x1000, pattern(1, 64))]);
    let malformed = |core: Elf| match format_error(open(&core.bytes())) {
        FormatError::Malformed { what, .. } => what,
        other => panic!("{other}"),
    };
    assert!(malformed(Elf { kind: 2, ..core.clone() }).contains("not a core"));
    assert!(malformed(Elf { machine: 183, ..core.clone() }).contains("not x86"));
    let mut process = core.clone();
    process.segments[0].physical_address = 0;
    assert!(malformed(process).contains("process"));
    let mut high = core.clone();
    high.segments[0].physical_address = 1 << 60;
    assert!(malformed(high).contains("beyond"));
    assert_eq!(format_error(open(&Elf { segments: vec![], ..core.clone() }.bytes())), FormatError::NoMemory);
    // Sections alone, but not as Xen's cores have them.
    let sections = Elf { segments: vec![], extended_count: true, ..core }.bytes();
    assert_eq!(format_error(open(&sections)), FormatError::NoMemory);
}

#[test]
fn a_header_that_promises_petabytes_allocates_nothing() {
    let mut core = Elf::new(vec![load(0, pattern(1, 4096))]);
    core.segments[0].file_len = Some(1 << 50);
    assert_eq!(missing(open(&core.bytes())), (1 << 50) - 4096);
    core.segments[0].file_len = None;
    core.segments[0].memory_len = Some(1 << 50);
    let vmi = open(&core.bytes()).unwrap();
    assert_eq!(vmi.machine().memory.total(), 1 << 50);
    assert_eq!(read(&vmi, 1 << 49, 8), [0; 8]);
    // Millions of segments that are not there.
    let mut core = Elf::new(vec![load(0, pattern(1, 4096))]);
    core.extended_count = true;
    let mut bytes = core.bytes();
    bytes[64 + 44..64 + 48].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(format_error(open(&bytes)), FormatError::Truncated { .. } | FormatError::Malformed { .. }));
    let mut range = lime(0x1000, &pattern(1, 64));
    range[16..24].copy_from_slice(&(1u64 << 51).to_le_bytes());
    assert_eq!(missing(open(&range)), (1 << 51) - 0xfff - 64);
}

/// Numbers from `first`, counting up, as 64-bit words.
fn words(first: u64, count: u64) -> Vec<u8> {
    (first..first + count).flat_map(u64::to_le_bytes).collect()
}

#[test]
fn qemu_notes_are_registers() {
    let cpu = |base: u64, with_kernel_gs: bool| {
        let mut data = [1u32.to_le_bytes(), 440u32.to_le_bytes()].concat();
        data.extend(words(base, 18));
        for segment in 0..10u32 {
            for number in [segment, 0xff, 0x9300, 0] {
                data.extend(number.to_le_bytes());
            }
            data.extend((base + 0x100 * u64::from(segment)).to_le_bytes());
        }
        data.extend(words(base + 0x8000, 5));
        if with_kernel_gs {
            data.extend(words(base + 0x9000, 1));
        }
        note(b"QEMU\0", 0, &data)
    };
    let text = b"OSRELEASE=6.1.0\n";
    let all = [note(b"CORE\0", 1, &[0; 336]), cpu(1000, true), cpu(2000, false), note(b"VMCOREINFO\0", 0, text)].concat();
    let vmi = open(&Elf::new(vec![notes(all), load(0x1000, pattern(1, 64))]).bytes()).unwrap();
    assert_eq!(vmi.driver().vcpus().unwrap().vcpu_count(), 2);
    let first = vmi.registers(VcpuId(0)).unwrap();
    assert_eq!([first.rax, first.rbx, first.rsp, first.rbp, first.r15], [1000, 1001, 1006, 1007, 1015]);
    assert_eq!([first.rip, first.rflags], [1016, 1017]);
    assert_eq!(first.segments.gs.unwrap().base, 1000 + 0x400);
    assert_eq!(first.idtr.unwrap().base.get(), 1000 + 0x900);
    assert_eq!([first.cr0, first.cr2, first.cr3, first.cr4].map(Option::unwrap), [0, 2, 3, 4].map(|n| 1000 + 0x8000 + n));
    assert_eq!(first.kernel_gs_base, Some(1000 + 0x9000));
    let second = vmi.registers(VcpuId(1)).unwrap();
    assert_eq!((second.rax, second.kernel_gs_base), (2000, None));
    assert!(matches!(vmi.registers(VcpuId(2)).unwrap_err().kind(), ErrorKind::NoObject { .. }));
    assert_eq!(vmi.machine().notes, [Note::VmCoreInfo(text.to_vec())]);
}

#[test]
fn virtualbox_notes_are_registers() {
    // 6 + 12 general, 6 selectors, 4 control, 8 debug, 2 tables, 2 selectors, 3 sysenter, 8 MSRs
    let mut data = words(1, 18);
    data.extend(words(100, 18));
    data.extend(words(200, 4));
    data.extend(words(300, 8));
    data.extend([0x8000u64, 0x7f, 0x9000, 0xfff].iter().flat_map(|n| n.to_le_bytes()));
    data.extend(words(400, 6));
    data.extend(words(500, 3));
    data.extend(words(600, 8));
    // The writer gives the name's length without its end, and pads everything to 8 bytes (VirtualBox, DBGFCoreWrite.cpp).
    let all = [note(b"VBCORE", 0xb00, &[0; 24]), note(b"VBCPU", 0xb01, &data)].concat();
    let device = Segment { memory_len: Some(0x1000), ..load(0xfec0_0000, Vec::new()) };
    let core = Elf { ident_version: 0, ..Elf::new(vec![notes(all), load(0x1000, pattern(1, 64)), device]) };
    let vmi = open(&core.bytes()).unwrap();
    assert!(matches!(vmi.read::<u8>(PhysAddr::new(0xfec0_0000)).unwrap_err().kind(), ErrorKind::Hole { .. }));
    let cpu = vmi.registers(VcpuId(0)).unwrap();
    assert_eq!([cpu.rax, cpu.rdi, cpu.r8, cpu.r15, cpu.rip, cpu.rsp, cpu.rbp, cpu.rflags], [1, 6, 7, 14, 15, 16, 17, 18]);
    assert_eq!(cpu.segments.gs.unwrap().base, 112);
    assert_eq!(cpu.segments.ss.unwrap().selector, 117);
    assert_eq!((cpu.cr3, cpu.cr4, cpu.dr.unwrap()[7]), (Some(202), Some(203), 307));
    assert_eq!((cpu.idtr.unwrap().base.get(), cpu.idtr.unwrap().limit), (0x9000, 0xfff));
    assert_eq!(cpu.segments.tr.unwrap().base, 403);
    assert_eq!((cpu.sysenter_cs, cpu.sysenter_eip, cpu.sysenter_esp), (Some(500), Some(501), Some(502)));
    assert_eq!((cpu.efer, cpu.star, cpu.pat, cpu.lstar), (Some(600), Some(601), Some(602), Some(603)));
    assert_eq!((cpu.cstar, cpu.sfmask, cpu.kernel_gs_base), (Some(604), Some(605), Some(606)));
}

#[test]
fn prstatus_notes_are_general_registers_alone() {
    let long = [vec![0; 112], words(1, 27), vec![0; 8]].concat();
    let short = [vec![0; 72], (1..=17u32).flat_map(u32::to_le_bytes).collect(), vec![0; 4]].concat();
    // An empty note ends the list, as in /proc/vmcore.
    let all = [note(b"CORE\0", 1, &long), note(b"CORE\0", 1, &short), vec![0; 25]].concat();
    let vmi = open(&Elf::new(vec![notes(all), load(0x1000, pattern(1, 64))]).bytes()).unwrap();
    let cpu = vmi.registers(VcpuId(0)).unwrap();
    assert_eq!([cpu.r15, cpu.rbp, cpu.rbx, cpu.rax, cpu.rdi, cpu.rip, cpu.rflags, cpu.rsp], [1, 5, 6, 11, 15, 17, 19, 20]);
    assert!(cpu.cr3.is_none() && cpu.segments.gs.is_none());
    let cpu = vmi.registers(VcpuId(1)).unwrap();
    assert_eq!([cpu.rbx, cpu.rbp, cpu.rax, cpu.rip, cpu.rflags, cpu.rsp], [1, 6, 7, 13, 15, 16]);
}

#[test]
fn the_name_says_format_and_path() {
    let file = TestFile::new(&lime(0, &pattern(1, 64)));
    let driver = ImageDriver::open(file.path()).unwrap();
    assert_eq!(driver.machine().name, format!("LiME image {}", file.path().display()));
}
