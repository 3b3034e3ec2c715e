//! Windows crash dumps: built ones, and a real one if `VMI_SHARED_DATA` names the directory with `windows/triage_x64.dmp`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;

use std::io::Cursor;
use std::path::{Path, PathBuf};

use builder::windows_dump::{Pages, bitmap, full, header, live, put32, put64, triage};
use builder::{exercise, open, open_with, pattern};
use kdmp_parser::parse::KernelDumpParser;
use proptest::prelude::*;
use vmi_arch_x86::PagingMode;
use vmi_core::{
    AddressSpace, Driver, ErrorKind, Memory, Note, PhysAddr, Region, VcpuId, VirtAddr, Vmi, WindowsDump, WindowsDumpKind,
};
use vmi_driver_file::{Format, FormatError, ImageDriver, OpenError, OpenOptions};

fn note(vmi: &Vmi<ImageDriver>) -> &WindowsDump {
    match &vmi.machine().notes[..] {
        [Note::WindowsDump(note)] => note,
        other => panic!("{other:?}"),
    }
}

fn malformed(result: Result<Vmi<ImageDriver>, OpenError>) -> String {
    match result.unwrap_err() {
        OpenError::Image { source: error @ FormatError::Malformed { .. }, .. } => error.to_string(),
        other => panic!("{other}"),
    }
}

/// What is missing, by name.
fn truncated(result: Result<Vmi<ImageDriver>, OpenError>) -> (String, u64) {
    match result.unwrap_err() {
        OpenError::Image { source: FormatError::Truncated { what, missing }, .. } => (what, missing),
        other => panic!("{other}"),
    }
}

fn regions(vmi: &Vmi<ImageDriver>) -> Vec<(u64, u64)> {
    vmi.machine().memory.regions().iter().map(|region| (region.start().get(), region.len())).collect()
}

fn read(vmi: &Vmi<ImageDriver>, page: u64, pages: usize) -> Vec<u8> {
    vmi.read_vec(PhysAddr::new(page * 4096), pages * 4096).unwrap()
}

/// Low memory with a hole in it, and memory above 4 GiB; not in order.
fn runs() -> Vec<(u64, Vec<u8>)> {
    vec![(0x10_0000, pattern(3, 2 * 4096)), (1, pattern(1, 3 * 4096)), (0x100, pattern(2, 4096))]
}

fn options() -> OpenOptions {
    OpenOptions::new().allow_truncated(true)
}

#[test]
fn full_dumps() {
    for long in [true, false] {
        let vmi = open(&full(long, &runs())).unwrap();
        assert_eq!(vmi.driver().format(), Format::WindowsDump);
        assert_eq!(regions(&vmi), [(0x1000, 0x3000), (0x10_0000, 0x1000), (0x1_0000_0000, 0x2000)]);
        for (page, data) in runs() {
            assert!(read(&vmi, page, data.len() / 4096) == data);
        }
        assert!(vmi.driver().mapping().is_some());
        assert_eq!(note(&vmi).kind, WindowsDumpKind::Full);
        let cut = &full(long, &runs())[..];
        let cut = &cut[..cut.len() - 5000];
        let (what, missing) = truncated(open(cut));
        assert!(what.contains("0x1 to 0x4") && missing == 904, "{what} {missing}");
        assert_eq!(regions(&open_with(cut, options()).unwrap()), [(0x1000, 0x2c78), (0x1_0000_0000, 0x2000)]);
    }
}

#[test]
fn the_header_is_told() {
    let vmi = open(&full(true, &runs())).unwrap();
    let mut expected = WindowsDump::default();
    expected.is_64_bit = true;
    expected.directory_table_base = PhysAddr::new(0x1a_d000);
    expected.pfn_database = Some(VirtAddr::new(0xffff_f804_1111_0000));
    expected.loaded_modules = Some(VirtAddr::new(0xffff_f804_2222_0000));
    expected.active_processes = Some(VirtAddr::new(0xffff_f804_3333_0000));
    expected.debugger_data = Some(VirtAddr::new(0xffff_f804_4444_0000));
    expected.machine = 0x8664;
    expected.processors = 16;
    expected.major_version = 15;
    expected.build = 19041;
    expected.bug_check = 0x1000_007e;
    expected.bug_check_parameters = [0x100, 0x101, 0x102, 0x103];
    expected.exception_code = 0xc000_0005;
    expected.exception_address = VirtAddr::new(0xffff_f804_5555_0000);
    expected.system_time = Some(0x01d7_0000_0000_0000);
    expected.up_time = Some(0x1234_5678);
    assert_eq!(note(&vmi), &expected);

    let vmi = open(&full(false, &runs())).unwrap();
    let mut expected = WindowsDump::default();
    expected.pae = Some(true);
    expected.directory_table_base = PhysAddr::new(0x1a_d000);
    expected.pfn_database = Some(VirtAddr::new(0x8111_0000));
    expected.loaded_modules = Some(VirtAddr::new(0x8222_0000));
    expected.active_processes = Some(VirtAddr::new(0x8333_0000));
    expected.debugger_data = Some(VirtAddr::new(0x8444_0000));
    expected.machine = 0x14c;
    expected.processors = 1;
    expected.major_version = 15;
    expected.build = 2600;
    expected.bug_check = 0x7f;
    expected.bug_check_parameters = [0x100, 0x101, 0x102, 0x103];
    expected.exception_code = 0xc000_0005;
    expected.exception_address = VirtAddr::new(0x8555_0000);
    expected.system_time = Some(0x01c7_0000_0000_0000);
    // The writer left the filler there.
    expected.up_time = None;
    assert_eq!(note(&vmi), &expected);
}

#[test]
fn registers_of_the_processor_that_wrote_it() {
    let vmi = open(&full(true, &runs())).unwrap();
    let vcpus = vmi.driver().vcpus().unwrap();
    assert_eq!(vcpus.vcpu_count(), 1);
    let r = vcpus.registers(VcpuId(0)).unwrap();
    let general = [r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15];
    assert_eq!(general, core::array::from_fn(|at| 0xffff_0000_0000_0000 + at as u64));
    assert_eq!((r.rip, r.rflags), (0xffff_f804_5555_0000, 0x246));
    let selectors = [r.segments.cs, r.segments.ds, r.segments.es, r.segments.ss].map(|segment| segment.unwrap().selector);
    assert_eq!(selectors, [0x10, 0x2b, 0x2b, 0x18]);
    assert_eq!(r.dr, Some([0xd0, 0xd1, 0xd2, 0xd3, 0, 0, 0xd4, 0xd5]));
    // What the record does not have is not made up.
    assert_eq!((r.segments.fs, r.segments.gs, r.cr3, r.cr0), (None, None, None, None));

    let vmi = open(&full(false, &runs())).unwrap();
    let r = vmi.driver().vcpus().unwrap().registers(VcpuId(0)).unwrap();
    assert_eq!([r.rdi, r.rsi, r.rbx, r.rdx, r.rcx, r.rax, r.rbp], [0x9c, 0xa0, 0xa4, 0xa8, 0xac, 0xb0, 0xb4]);
    assert_eq!([r.rip, r.rflags, r.rsp], [0xb8, 0xc0, 0xc4]);
    let selectors = [r.segments.cs, r.segments.ds, r.segments.es, r.segments.ss].map(|segment| segment.unwrap().selector);
    assert_eq!(selectors, [0xbc, 0x98, 0x94, 0xc8]);
    assert_eq!(r.dr, None);

    // A record that was not written is none.
    for long in [true, false] {
        let mut bytes = full(long, &runs());
        let at = if long { 0x348 } else { 0x320 };
        bytes[at..at + 716].copy_from_slice(&b"PAGE".repeat(179));
        assert!(open(&bytes).unwrap().driver().vcpus().is_none());
    }
}

/// Single pages, runs, both ends of words and of chunks of the bitmap, and memory above 4 GiB.
fn pages() -> Pages {
    let numbers = [0, 1, 2, 5, 63, 64, 65, 127, 128, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0x10_0000, 0x10_0003, 0x10_0010];
    numbers.iter().map(|&page| (page, pattern(page as u8, 4096))).collect()
}

#[test]
fn bitmap_dumps() {
    let kinds = [
        (2, b"SDMP", WindowsDumpKind::Kernel),
        (5, b"FDMP", WindowsDumpKind::BitmapFull),
        (6, b"SDMP", WindowsDumpKind::Active),
        (7, b"SDMP", WindowsDumpKind::Automatic),
    ];
    for (kind, magic, expected) in kinds {
        for long in [true, false] {
            let bytes = bitmap(long, kind, magic, 0x10_0011, &pages());
            let vmi = open(&bytes).unwrap();
            assert_eq!(note(&vmi).kind, expected);
            assert_eq!(vmi.machine().memory.total(), 16 * 4096);
            for (page, data) in pages() {
                assert!(read(&vmi, page, 1) == data, "{page:#x}");
            }
            for hole in [3, 4, 6, 62, 66, 126, 129, 0x7ffd, 0x8002, 0xf_ffff, 0x10_0001, 0x10_0011, 0x10_0012] {
                assert!(matches!(vmi.read::<u8>(PhysAddr::new(hole * 4096)).unwrap_err().kind(), ErrorKind::Hole { .. }));
            }
            let cut = &bytes[..bytes.len() - 4096 - 100];
            let (what, missing) = truncated(open(cut));
            assert!(what.contains("0x100003") && missing == 100, "{what} {missing}");
            let vmi = open_with(cut, options()).unwrap();
            assert_eq!(vmi.machine().memory.total(), 15 * 4096 - 100);
            // Neither the header of the bitmap nor the bitmap.
            let start = if long { 0x2000 } else { 0x1000 };
            assert!(truncated(open(&bytes[..start + 0x37])).0.contains("header of the bitmap"));
            assert!(truncated(open(&bytes[..start + 0x38])).0.contains("bitmap"));
        }
    }
}

/// More runs than are shown in place: every second page of 2 GiB and a bit.
#[test]
fn scattered_pages() {
    let bits = (1u64 << 19) + 70;
    let mut pages: Pages = (0..bits).step_by(2).map(|page| (page, Vec::new())).collect();
    pages.insert(1, Vec::new());
    // Contents at the end of the file only: a file of 1 GiB is not needed to find out where each page is.
    let mut bytes = bitmap(true, 2, b"SDMP", bits, &pages);
    let stored = 2000u64;
    for page in 0..stored {
        bytes.extend(pattern(page as u8, 4096));
    }
    let (what, missing) = truncated(open(&bytes));
    assert_eq!((what.as_str(), missing), ("the 262180 pages of the bitmap", (262180 - stored) * 4096));
    let vmi = open_with(&bytes, options()).unwrap();
    assert!(vmi.driver().mapping().is_none());
    assert_eq!(vmi.machine().memory.total(), stored * 4096);
    for (rank, &page) in pages.keys().enumerate() {
        let found = vmi.read_vec(PhysAddr::new(page * 4096), 4096);
        if (rank as u64) < stored {
            assert!(found.unwrap() == pattern(rank as u8, 4096), "{page:#x}");
        } else if rank < 2100 {
            assert!(found.is_err());
        }
    }
    assert!(vmi.read::<u8>(PhysAddr::new(3 * 4096)).is_err());
    let first = vmi.read_vec(PhysAddr::new(10), 3 * 4096 - 10).unwrap();
    assert!(first == [pattern(0, 4096), pattern(1, 4096), pattern(2, 4096)].concat()[10..]);
}

#[test]
fn dumps_of_running_systems() {
    let runs = [(1, pattern(1, 3 * 4096)), (0x100, pattern(2, 4096)), (0x10_0000, pattern(3, 2 * 4096))];
    for (kind, expected) in
        [(8, WindowsDumpKind::LiveKernel), (9, WindowsDumpKind::LiveKernelAndUser), (10, WindowsDumpKind::LiveFull)]
    {
        let bytes = live(kind, &runs);
        let vmi = open(&bytes).unwrap();
        assert_eq!(note(&vmi).kind, expected);
        for (page, data) in &runs {
            assert!(&read(&vmi, *page, data.len() / 4096) == data);
        }
        assert_eq!(truncated(open(&bytes[..bytes.len() - 1])).1, 1);
        assert!(truncated(open(&bytes[..0x2040])).0.contains("table of runs"));
        let mut lie = bytes.clone();
        put64(&mut lie, 0x2018, 1 << 60);
        assert!(malformed(open(&lie)).contains("first page"));
    }
}

#[test]
fn what_is_not_read_is_named() {
    let with = |long, kind| malformed(open(&header(long, kind, 0)));
    assert!(with(true, 3).contains("without memory"));
    assert!(with(false, 4).contains("triage"));
    assert!(with(true, 0x55).contains("type 85"));
    assert!(with(false, 8).contains("type 8"));
    let mut arm = full(true, &runs());
    put32(&mut arm, 0x30, 0xaa64);
    assert!(malformed(open(&arm)).contains("ARM64"));
    let mut wrong = full(false, &runs());
    put32(&mut wrong, 0x20, 0x8664);
    assert!(malformed(open(&wrong)).contains("0x8664"));
    for len in [8, 0x1fff] {
        let bytes = &full(true, &runs())[..len];
        assert_eq!(truncated(open_with(bytes, options())), ("the header".to_owned(), 0x2000 - len as u64));
    }
}

#[test]
fn lying_headers() {
    for long in [true, false] {
        let good = full(long, &runs());
        let (count, run) = if long { (0x88, 0x98) } else { (0x64, 0x6c) };
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            open(&bytes)
        };
        assert!(malformed(with(&|bytes| put32(bytes, count, 87))).contains("87 runs"));
        assert!(malformed(with(&|bytes| put32(bytes, count, u32::MAX))).contains("room for"));
        // Petabytes, and beyond the addresses.
        if long {
            assert!(truncated(with(&|bytes| put64(bytes, run + 8, 1 << 38))).1 > 1 << 49);
            assert!(malformed(with(&|bytes| put64(bytes, run + 8, u64::MAX))).contains("beyond"));
            assert!(malformed(with(&|bytes| put64(bytes, run, u64::MAX))).contains("beyond"));
        } else {
            assert!(truncated(with(&|bytes| put32(bytes, run + 4, u32::MAX))).1 > 1 << 43);
        }
        // The same page twice.
        let overlap = with(&|bytes| if long { put64(bytes, run, 2) } else { put32(bytes, run, 2) });
        assert!(matches!(overlap.unwrap_err(), OpenError::Image { source: FormatError::Pieces(_), .. }));
        assert!(matches!(
            with(&|bytes| put32(bytes, count, 0)).unwrap_err(),
            OpenError::Image { source: FormatError::NoMemory, .. }
        ));
    }
    let good = bitmap(true, 5, b"FDMP", 0x10_0011, &pages());
    let with = |at: usize, value: u64| {
        let mut bytes = good.clone();
        put64(&mut bytes, at, value);
        malformed(open(&bytes))
    };
    assert!(with(0x2030, u64::MAX).contains("than any machine"));
    assert!(with(0x2030, 1 << 32).contains("within the bitmap"));
    assert!(with(0x2020, 0x2038).contains("within the bitmap"));
    assert!(with(0x2000, 0).contains("SDMP"));
    let mut far = good;
    put64(&mut far, 0x2020, u64::MAX);
    truncated(open(&far));
}

const STACK: u64 = 0xffff_8504_2989_0ee8;

/// Blocks that share pages, cross pages, touch each other, and lie in both halves of the addresses.
fn blocks() -> Vec<(u64, Vec<u8>)> {
    vec![
        (0xffff_f804_7ba0_0000, pattern(1, 4096)),
        (0xffff_c08b_dce9_4180, pattern(2, 0x100)),
        (0xffff_c08b_dce9_4800, pattern(3, 0x900)),
        (0xffff_c08b_dce9_5100, pattern(4, 3 * 4096)),
        (0xffff_ffff_ffff_f000, pattern(5, 4095)),
        (0x7ff6_0000_0ff0, pattern(6, 0x20)),
        // The first one speaks.
        (0xffff_c08b_dce9_4200, pattern(7, 0x100)),
    ]
}

/// The page tables that the note names.
fn space(vmi: &Vmi<ImageDriver>) -> AddressSpace<'_, ImageDriver> {
    vmi.address_space(note(vmi).directory_table_base, PagingMode::Level4)
}

#[test]
fn triage_dumps_are_virtual_memory() {
    let bytes = triage(&blocks(), (STACK, pattern(9, 0x2118)));
    let vmi = open(&bytes).unwrap();
    let space = space(&vmi);
    for (at, data) in &blocks()[..6] {
        assert!(&space.read_vec(VirtAddr::new(*at), data.len()).unwrap() == data, "{at:#x}");
    }
    assert!(space.read_vec(VirtAddr::new(STACK), 0x2118).unwrap() == pattern(9, 0x2118));
    assert!(space.read_vec(note(&vmi).debugger_data.unwrap(), 80).unwrap() == b"KDBG".repeat(20));
    let later = space.read_vec(VirtAddr::new(0xffff_c08b_dce9_4280), 0x80).unwrap();
    assert!(later == pattern(7, 0x100)[0x80..]);
    // Nothing else is there: neither beside a block in its page, nor in other pages.
    for (at, data) in &blocks()[..6] {
        let end = at + data.len() as u64;
        for at in [at.wrapping_sub(1), end] {
            let saved = blocks().iter().any(|(start, data)| (*start..start + data.len() as u64).contains(&at));
            assert_eq!(space.read::<u8>(VirtAddr::new(at)).is_ok(), saved, "{at:#x}");
        }
    }
    let fault = space.read::<u8>(VirtAddr::new(0xffff_f804_7ba0_1000)).unwrap_err();
    assert!(matches!(fault.kind(), ErrorKind::Fault(_)), "{fault}");
    let hole = space.read_vec(VirtAddr::new(0xffff_c08b_dce9_4180), 0x200).unwrap_err();
    assert!(matches!(hole.kind(), ErrorKind::Hole { .. }) && hole.done() == 0x180, "{hole}");

    let parts = note(&vmi).triage.unwrap();
    let read = |region: Region, len| vmi.read_vec(region.start(), len).unwrap();
    assert!(read(parts.file, bytes.len()) == bytes);
    assert_eq!(parts.file.len(), bytes.len() as u64);
    for (part, name) in [(parts.processor, b"prcb"), (parts.process, b"proc"), (parts.thread, b"thrd")] {
        assert_eq!(part.unwrap().len(), 40);
        assert!(read(part.unwrap(), 40) == name.repeat(10));
    }
    assert!(read(parts.drivers.unwrap(), 288) == b"drvr".repeat(72));
    assert_eq!((parts.driver_count, parts.strings), (2, None));
}

#[test]
fn triage_dumps_that_are_cut_or_lie() {
    let good = triage(&blocks(), (STACK, pattern(9, 0x2118)));
    let (what, missing) = truncated(open(&good[..good.len() - 5]));
    assert!(what.contains("0xffffc08bdce94200") && missing == 1, "{what} {missing}");
    let (what, _) = truncated(open(&good[..0x2000 + 0x7f]));
    assert!(what.contains("header of the triage dump"));
    let (what, _) = truncated(open(&good[..0x2100]));
    assert!(what.contains("list of the blocks"), "{what}");
    let part = open_with(&good[..good.len() - 0x200], options()).unwrap();
    assert!(space(&part).read_vec(VirtAddr::new(0xffff_f804_7ba0_0000), 4096).unwrap() == pattern(1, 4096));
    // The root may be anywhere, also where the other tables would be.
    for root in [0, 1 << 40, (1 << 40) + (1 << 32), u64::MAX] {
        let mut bytes = good.clone();
        put64(&mut bytes, 0x10, root);
        let vmi = open(&bytes).unwrap();
        assert!(space(&vmi).read_vec(VirtAddr::new(0xffff_f804_7ba0_0000), 4096).unwrap() == pattern(1, 4096));
    }
    let count = |value| {
        let mut bytes = good.clone();
        put32(&mut bytes, 0x207c, value);
        open(&bytes)
    };
    assert!(malformed(count(u32::MAX)).contains("blocks"));
    truncated(count(1 << 20));
    for (at, len) in [(0x8000_0000_0000, 1), (0x7fff_ffff_ffff, 2), (u64::MAX, 2), (0xffff_7fff_ffff_ffff, 1)] {
        let bytes = triage(&[(at, vec![1; len])], (STACK, vec![2; 16]));
        assert!(malformed(open(&bytes)).contains("no memory can be"), "{at:#x}");
    }
    // Many blocks over the same bytes, each of which would need tables of its own.
    let scattered: Vec<_> = (0..20_000).map(|at| (0xffff_8000_0000_0000 + (at << 30), vec![])).collect();
    let mut bytes = triage(&scattered, (STACK, vec![2; 16]));
    let list = u32::from_le_bytes(bytes[0x2078..0x207c].try_into().unwrap()) as usize;
    (0..20_000).for_each(|at| put32(&mut bytes, list + 16 * at + 12, 1));
    assert!(malformed(open(&bytes)).contains("scattered"));
    let vast: Vec<_> = (0..5000).map(|at| (0xffff_8000_0000_0000 + (at << 24), vec![])).collect();
    let mut bytes = triage(&vast, (STACK, vec![2; 16 << 20]));
    let list = u32::from_le_bytes(bytes[0x2078..0x207c].try_into().unwrap()) as usize;
    (0..5000).for_each(|at| {
        put32(&mut bytes, list + 16 * at + 8, 0x2100);
        put32(&mut bytes, list + 16 * at + 12, 16 << 20);
    });
    assert!(malformed(open(&bytes)).contains("more memory"));
}

/// The second opinion: header, registers, and all memory.
fn compare(bytes: &[u8], vmi: &Vmi<ImageDriver>) {
    let other = KernelDumpParser::with_reader(Cursor::new(bytes.to_vec())).unwrap();
    let (theirs, note) = (other.headers(), note(vmi));
    assert_eq!((theirs.major_version, theirs.minor_version), (note.major_version, note.build));
    assert_eq!(theirs.directory_table_base, note.directory_table_base.get());
    let pointers = [note.pfn_database, note.loaded_modules, note.active_processes, note.debugger_data];
    let their_pointers =
        [theirs.pfn_database, theirs.ps_loaded_module_list, theirs.ps_active_process_head, theirs.kd_debugger_data_block];
    assert_eq!(their_pointers.map(|at| Some(VirtAddr::new(at))), pointers);
    assert_eq!((theirs.machine_image_type, theirs.number_processors), (note.machine, note.processors));
    assert_eq!((theirs.bug_check_code, theirs.bug_check_code_parameters), (note.bug_check, note.bug_check_parameters));
    assert_eq!([theirs.system_time as u64, theirs.system_up_time as u64].map(Some), [note.system_time, note.up_time]);
    let exception = other.exception_record();
    assert_eq!((exception.exception_code, exception.exception_address), (note.exception_code, note.exception_address.get()));

    let (c, r) = (other.context_record(), vmi.driver().vcpus().unwrap().registers(VcpuId(0)).unwrap());
    let general = [c.rax, c.rbx, c.rcx, c.rdx, c.rsi, c.rdi, c.rbp, c.rsp, c.r8, c.r9, c.r10, c.r11, c.r12, c.r13, c.r14, c.r15];
    assert_eq!(
        general,
        [r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15]
    );
    assert_eq!((c.rip, u64::from(c.eflags)), (r.rip, r.rflags));
    let selectors = [r.segments.cs, r.segments.ss, r.segments.ds, r.segments.es].map(|segment| segment.unwrap().selector);
    assert_eq!([c.seg_cs, c.seg_ss, c.seg_ds, c.seg_es], selectors);
    assert_eq!(r.dr, Some([c.dr0, c.dr1, c.dr2, c.dr3, 0, 0, c.dr6, c.dr7]));

    if note.triage.is_none() {
        assert_eq!(other.physmem().len() as u64 * 4096, vmi.machine().memory.total());
    }
    for (at, offset) in other.physmem() {
        let page = vmi.read_vec(PhysAddr::new(u64::from(at)), 4096).unwrap();
        assert!(page == bytes[offset as usize..offset as usize + 4096]);
    }
}

#[test]
fn kdmp_parser_agrees() {
    let agrees = |bytes: &[u8]| compare(bytes, &open(bytes).unwrap());
    agrees(&full(true, &runs()));
    agrees(&bitmap(true, 5, b"FDMP", 0x10_0011, &pages()));
    agrees(&bitmap(true, 6, b"SDMP", 0x10_0018, &pages()));
    let ascending = [(1, pattern(1, 3 * 4096)), (0x100, pattern(2, 4096)), (0x10_0000, pattern(3, 2 * 4096))];
    (8..=10).for_each(|kind| agrees(&live(kind, &ascending)));
    // It reads no triage dumps, but the header of one that is called full, and without memory.
    let header = |mut bytes: Vec<u8>| {
        let vmi = open(&bytes).unwrap();
        put32(&mut bytes, 0xf98, 1);
        put32(&mut bytes, 0x88, 0);
        compare(&bytes, &vmi);
    };
    let mut triage = triage(&blocks(), (STACK, pattern(9, 0x2118)));
    put64(&mut triage, 0x10, 0x1a_d000);
    header(triage);
    if let Some(path) = real() {
        header(std::fs::read(path).unwrap());
    }
}

fn real() -> Option<PathBuf> {
    let found = std::env::var_os("VMI_SHARED_DATA").map(|data| Path::new(&data).join("windows/triage_x64.dmp"));
    let found = found.filter(|path| path.exists());
    if found.is_none() {
        eprintln!("skipped: VMI_SHARED_DATA names no directory with windows/triage_x64.dmp");
    }
    found
}

/// A triage dump of Windows 10, build 19041.
#[test]
fn a_real_triage_dump() {
    let Some(path) = real() else { return };
    let bytes = std::fs::read(&path).unwrap();
    let vmi = Vmi::new(ImageDriver::open(&path).unwrap());
    let note = note(&vmi);
    assert_eq!((note.kind, note.build, note.processors, note.machine), (WindowsDumpKind::Triage, 19041, 16, 0x8664));
    assert_eq!((note.bug_check, note.bug_check_parameters[0]), (0x1000_007e, 0xffff_ffff_c000_0005));
    assert_eq!(note.directory_table_base, PhysAddr::new(0x1a_d000));
    assert_eq!(note.active_processes, Some(VirtAddr::new(0xffff_f804_7c61_e200)));
    // A breakpoint of the kernel's own, after the fault that the parameters tell of.
    assert_eq!((note.exception_code, note.exception_address.get()), (0x8000_0003, 0xffff_f804_7bdf_5a80));
    let registers = vmi.driver().vcpus().unwrap().registers(VcpuId(0)).unwrap();
    assert_eq!(registers.rip, note.bug_check_parameters[1]);
    assert_eq!(registers.privilege_level(), Some(0));

    // Every block of the list, which is read here without the crate.
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let space = space(&vmi);
    let (list, count) = (number(0x2078), number(0x207c));
    assert_eq!(count, 1831);
    for at in (list..list + 16 * count).step_by(16) {
        let address = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let (offset, len) = (number(at + 8), number(at + 12));
        assert!(space.read_vec(VirtAddr::new(address), len).unwrap() == bytes[offset..offset + len], "{address:#x}");
    }
    // The head of the list of processes leads to System, whose name and process number are where this build has them.
    let flink: u64 = space.read(note.active_processes.unwrap()).unwrap();
    assert_eq!(flink - 0x448, 0xffff_c08b_dce9_4180);
    let kernel = space.read_vec(VirtAddr::new(0xffff_f804_7ba0_0000), 4096).unwrap();
    let pe = u32::from_le_bytes(kernel[0x3c..0x40].try_into().unwrap()) as usize;
    assert!(kernel.starts_with(b"MZ") && kernel[pe..].starts_with(b"PE\0\0"));
    assert!(space.read::<u8>(VirtAddr::new(0xffff_f804_7ba0_1000)).is_err());
    let decoded = space.read_vec(note.debugger_data.unwrap(), 0x380).unwrap();
    assert_eq!(&decoded[0x10..0x14], b"KDBG");
    assert_eq!(decoded[0x18..0x20], 0xffff_f804_7ba0_0000_u64.to_le_bytes());
    assert_eq!(decoded[0x50..0x58], 0xffff_f804_7c61_e200_u64.to_le_bytes());

    let parts = note.triage.unwrap();
    // The lengths are those of _KPRCB, _EPROCESS and _ETHREAD in this build.
    assert_eq!([parts.processor, parts.process, parts.thread].map(|part| part.unwrap().len()), [0xaf00, 0xa40, 0x898]);
    let process = parts.process.unwrap().start();
    assert_eq!(vmi.read::<u64>(process.checked_add(0x440).unwrap()).unwrap(), 4);
    assert_eq!(vmi.read_vec(process.checked_add(0x5a8).unwrap(), 7).unwrap(), b"System\0");
    assert_eq!(vmi.read::<u64>(process.checked_add(0x28).unwrap()).unwrap(), note.directory_table_base.get());
    assert_eq!((parts.driver_count, parts.drivers.unwrap().len()), (151, 151 * 144));
    let name = vmi.read::<u32>(parts.drivers.unwrap().start()).unwrap();
    let name = parts.file.start().checked_add(name.into()).unwrap();
    let len = vmi.read::<u32>(name).unwrap() as usize;
    let name = vmi.read_vec(name.checked_add(4).unwrap(), 2 * len).unwrap();
    let name: Vec<u16> = name.chunks(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
    assert_eq!(String::from_utf16_lossy(&name), r"\SystemRoot\system32\ntoskrnl.exe");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changed_headers(
        kind in 0usize..6,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
        truncated: bool,
    ) {
        let mut bytes = match kind {
            0 => full(true, &runs()),
            1 => full(false, &runs()),
            2 => bitmap(true, 5, b"FDMP", 200, &pages().into_iter().take(9).collect()),
            3 => bitmap(false, 2, b"SDMP", 200, &pages().into_iter().take(9).collect()),
            4 => live(9, &runs()),
            _ => triage(&blocks(), (STACK, pattern(9, 0x2118))),
        };
        for (at, value) in changes {
            // The fields, and not what fills the header.
            let near = [0x10, 0x64, 0x88, 0xf88, 0x1000, 0x2000, 0x2000];
            let at = near[at.index(near.len())] + at.index(0x90);
            if at < bytes.len() {
                bytes[at] = value;
            }
        }
        if truncated {
            bytes.truncate(cut.index(bytes.len()) + 1);
        }
        exercise(&bytes, Some(Format::WindowsDump), truncated);
    }
}
