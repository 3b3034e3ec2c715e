//! QEMU's migration streams, plain and with memory at fixed places, and libvirt's saved domains.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod builder;
#[path = "builder/qemu.rs"]
mod qemu;

use std::io::Write;
use std::os::unix::fs::FileExt;

use builder::{exercise, open, open_with, pattern};
use proptest::prelude::*;
use qemu::{PAGE, Sent, Stream, libvirt_head};
use vmi_core::{Driver, Memory, PhysAddr, VcpuId, Vmi};
use vmi_driver_file::{Compression, Format, FormatError, ImageDriver, OpenError, OpenOptions};

const MIB: u64 = 1 << 20;
/// The least with which the clock tells the memory.
const LOW: u64 = 17 * MIB;

fn page(seed: u8) -> Option<Vec<u8>> {
    Some(pattern(seed, PAGE))
}

/// All pages of a block, of which every `step`-th one has content.
fn all(block: &'static str, len: u64, step: u64) -> Vec<Sent> {
    (0..len / PAGE as u64)
        .map(|number| (block, number * PAGE as u64, page(number as u8).filter(|_| number % step == 0)))
        .collect()
}

/// RAM of which a part is at 4 GiB, of a machine that ran while it was sent.
fn running() -> Stream {
    let (ram, p) = ("pc.ram", PAGE as u64);
    let again = vec![
        (ram, 0, page(101)),
        (ram, p, page(102)),
        (ram, 3 * p, None),
        // Later copies of pages in the middle of runs, on both sides of the place where RAM is cut.
        (ram, LOW - p, page(103)),
        (ram, LOW, page(104)),
    ];
    let last = vec![(ram, p, page(111)), (ram, LOW, None), (ram, LOW + p, page(112))];
    let first = [all("0000:00:02.0/vga.vram", 64 << 10, 1), all(ram, LOW + MIB, 3)].concat();
    let blocks = vec![("pc.ram", LOW + MIB), ("0000:00:02.0/vga.vram", 64 << 10), ("pc.bios", 0x1000)];
    Stream::new("pc-q35-7.2", blocks, vec![Vec::new(), first, again, last]).with_devices(LOW, MIB)
}

/// RAM as the pages leave it.
fn content(stream: &Stream, block: &str) -> Vec<u8> {
    let len = stream.blocks.iter().find(|entry| entry.0 == block).unwrap().1;
    let mut content = vec![0; len as usize];
    for (of, at, page) in stream.rounds.iter().flatten() {
        if *of == block {
            content[*at as usize..][..PAGE].copy_from_slice(page.as_deref().unwrap_or(&[0; PAGE]));
        }
    }
    content
}

fn regions(vmi: &Vmi<ImageDriver>) -> Vec<(u64, u64)> {
    vmi.machine().memory.regions().iter().map(|region| (region.start().get(), region.end().get())).collect()
}

/// Everything is there, at its place.
fn is_whole(vmi: &Vmi<ImageDriver>, ram: &[u8]) {
    assert_eq!(regions(vmi), [(0, 0xa_0000), (0xc_0000, LOW), (4 << 30, (4 << 30) + MIB)]);
    let read = |at: u64, len: u64| vmi.read_vec(PhysAddr::new(at), len as usize).unwrap();
    assert!(read(0, 0xa_0000) == ram[..0xa_0000]);
    assert!(read(0xc_0000, LOW - 0xc_0000) == ram[0xc_0000..LOW as usize]);
    assert!(read(4 << 30, MIB) == ram[LOW as usize..]);
    // Word by word over the edges of pages.
    for at in (0x10_0000..0x11_0000u64).step_by(1000) {
        assert_eq!(read(at, 3000), ram[at as usize..][..3000], "{at:#x}");
    }
    assert!(vmi.read::<u8>(PhysAddr::new(0xa_0000)).unwrap_err().is_absent());
    let registers = vmi.driver().vcpus().unwrap().registers(VcpuId(0)).unwrap();
    assert_eq!((registers.rax, registers.rbx, registers.rcx, registers.r15), (0x100, 0x103, 0x101, 0x10f));
    assert_eq!((registers.rip, registers.rflags, registers.cr3), (0xffff_ffff_8100_0000, 0x246, Some(0x1234_5000)));
    assert_eq!((registers.efer, registers.lstar, registers.cr0), (Some(0xd01), None, Some(0x8005_0033)));
    assert_eq!(registers.segments.cs.unwrap().selector, 0x11);
    assert_eq!(registers.segments.gs.unwrap().base, 0x5000);
    assert_eq!(registers.idtr.unwrap().base.get(), 0x7000);
}

#[test]
fn later_copies_hold() {
    let stream = running();
    let vmi = open(&stream.bytes()).unwrap();
    assert_eq!(vmi.driver().format(), Format::QemuStream);
    is_whole(&vmi, &content(&stream, "pc.ram"));
}

/// A stream in a volume that is larger, with what was in it before.
#[test]
fn what_lies_behind_the_stream_is_passed_over() {
    let stream = running();
    let (bytes, ram) = (stream.bytes(), content(&stream, "pc.ram"));
    let text = stream.description.as_bytes();
    let old = [&[0, 6], &(text.len() as u32).to_be_bytes()[..], &text[..text.len() - 1], b"?"].concat();
    for behind in [vec![0; 30 << 20], pattern(1, 30 << 20), b"\0\x06\0\0\0\x02{}".repeat(1000), old] {
        is_whole(&open(&[&bytes[..], &behind].concat()).unwrap(), &ram);
    }
    // Before it may be what looks like it; and devices may have much state.
    for (state, count) in [(&b"\0\x06\0\0\0\x02{}"[..], 3), (&[9; 1 << 20], 30)] {
        let mut stream = stream.clone();
        let section = [&b"\x04\0\0\0\x63\x05other\0\0\0\0\0\0\0\x01"[..], &state.repeat(count), b"\x7e\0\0\0\x63"].concat();
        stream.devices.extend(section);
        let field = format!(r#"{{"name": "x", "type": "x", "size": {}}}"#, state.len() * count);
        let other =
            format!(r#", {{"name": "other", "instance_id": 0, "vmsd_name": "other", "version": 1, "fields": [{field}]}}]}}"#);
        stream.description = stream.description.strip_suffix("]}").unwrap().to_owned() + &other;
        is_whole(&open(&stream.bytes()).unwrap(), &ram);
    }
}

#[test]
fn fixed_places_are_mapped() {
    let stream = running();
    let vmi = open(&stream.mapped(0)).unwrap();
    assert!(vmi.driver().mapping().is_some());
    is_whole(&vmi, &content(&stream, "pc.ram"));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A file of lzop, with blocks stored as they are: of version 1.04, with Adler-32.
fn lzop(bytes: &[u8], block: usize) -> Vec<u8> {
    let adler = |bytes: &[u8]| {
        let (low, high) = bytes.iter().fold((1u32, 0u32), |(low, high), &byte| {
            let low = (low + u32::from(byte)) % 65521;
            (low, (high + low) % 65521)
        });
        (high << 16 | low).to_be_bytes()
    };
    let header = [&[0x10, 0x40, 0x20, 0xa0, 0x09, 0x40, 1, 5, 3, 0, 0, 1, 0, 0, 0x81, 0xa4][..], &[0; 8], &[4], b"name"].concat();
    let mut out = b"\x89LZO\0\r\n\x1a\n".to_vec();
    out.extend(&header);
    out.extend(adler(&header));
    for block in bytes.chunks(block) {
        [block.len() as u32; 2].iter().for_each(|len| out.extend(len.to_be_bytes()));
        out.extend(adler(block));
        out.extend(block);
    }
    out.extend([0; 4]);
    out
}

/// Opens a file with holes, as QEMU writes it.
fn open_sparse(rounds: Vec<Vec<Sent>>) -> Vmi<ImageDriver> {
    let bytes = Stream::new("pc-i440fx-9.0", vec![("pc.ram", LOW)], rounds).with_devices(LOW, 0).mapped(0);
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes.len() as u64).unwrap();
    for (index, block) in bytes.chunks(PAGE).enumerate().filter(|(_, block)| block.iter().any(|&byte| byte != 0)) {
        file.as_file().write_all_at(block, (index * PAGE) as u64).unwrap();
    }
    Vmi::new(ImageDriver::open(file.path()).unwrap())
}

/// Where the file has a hole, memory is zero however long that goes on; what became zero late is zero whatever the file has.
#[test]
fn holes_of_a_file_are_mapped_with_what_is_around_them() {
    const PAGES: u64 = LOW / PAGE as u64;
    let sent = |at: u64, content| ("pc.ram", at * PAGE as u64, content);
    let rounds = vec![vec![sent(0, page(1)), sent(PAGES - 9, page(2)), sent(PAGES - 1, page(3))], vec![sent(PAGES - 9, None)]];
    let vmi = open_sparse(rounds);
    let mut expected = vec![0; LOW as usize];
    expected[..PAGE].copy_from_slice(&page(1).unwrap());
    expected[LOW as usize - PAGE..].copy_from_slice(&page(3).unwrap());
    assert!(vmi.read_vec(PhysAddr::ZERO, LOW as usize).unwrap() == expected);

    // Without that late page, all of it is one slice.
    let rounds = vec![vec![sent(0, page(1)), sent(PAGES - 1, page(3))]];
    let vmi = open_sparse(rounds);
    assert!(vmi.slice(PhysAddr::ZERO, LOW as usize).is_some_and(|all| all == expected));
}

#[test]
fn libvirt_saves_in_each_packing() {
    let stream = running();
    let (bytes, ram) = (stream.bytes(), content(&stream, "pc.ram"));
    let zstd = zstd::encode_all(bytes.as_slice(), 1).unwrap();
    for (packing, content) in [(0, bytes.clone()), (1, gzip(&bytes)), (4, lzop(&bytes, 256 << 10)), (5, zstd)] {
        let file = [libvirt_head(b"LibvirtQemudSave", 2, packing), content].concat();
        let vmi = open(&file).unwrap_or_else(|error| panic!("{packing}: {error}"));
        assert_eq!(vmi.driver().format(), Format::LibvirtSave);
        is_whole(&vmi, &ram);
    }
    let head = libvirt_head(b"LibvirtQemudSave", 2, 6);
    let sparse = [&head[..], &stream.mapped(head.len())[head.len()..]].concat();
    let vmi = open(&sparse).unwrap();
    assert!(vmi.driver().mapping().is_some());
    is_whole(&vmi, &ram);
}

#[test]
fn libvirt_files_that_are_none() {
    let bytes = running().bytes();
    let with = |head: Vec<u8>, rest: &[u8]| open(&[&head[..], rest].concat()).unwrap_err();
    assert!(matches!(with(libvirt_head(b"LibvirtQemudPart", 2, 0), &bytes), OpenError::NotSupported { .. }));
    assert!(with(libvirt_head(b"LibvirtQemudSave", 3, 0), &bytes).to_string().contains("version 3"));
    assert!(with(libvirt_head(b"LibvirtQemudSave", 2, 4), &[7; 5000]).to_string().contains("lzop"));
    assert!(with(libvirt_head(b"LibvirtQemudSave", 2, 1), &gzip(&[7; 5000])).to_string().contains("no migration stream"));
    let cut = gzip(&bytes);
    let error = with(libvirt_head(b"LibvirtQemudSave", 2, 1), &cut[..cut.len() / 2]);
    assert!(matches!(error, OpenError::Image { source: FormatError::Damaged { .. }, .. }), "{error}");
    let mut long = libvirt_head(b"LibvirtQemudSave", 2, 0);
    long[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(with(long, &bytes), OpenError::Image { source: FormatError::Truncated { .. }, .. }));
}

#[test]
fn lzop_and_its_damage() {
    let bytes = pattern(3, 100_000);
    let packed = lzop(&bytes, 30_000);
    let vmi = open(&[packed.clone(), lzop(&bytes, 7)].concat()).unwrap();
    assert_eq!(vmi.driver().compression(), Some(Compression::Lzop));
    assert!(vmi.read_vec(PhysAddr::ZERO, 200_000).unwrap() == [&bytes[..], &bytes].concat());
    for at in [5, 9, 20, 30, 40, 50, packed.len() / 2, packed.len() - 1] {
        assert!(open(&packed[..at.max(10)]).is_err(), "cut at {at}");
        let mut changed = packed.clone();
        changed[at] ^= 1;
        // The time of the file is within what is checked, too.
        assert!(open_with(&changed, OpenOptions::new().format(Format::Raw)).is_err() || at < 9, "changed at {at}");
    }
}

/// Backends of NUMA nodes: the stream has the larger one first, their names tell the order.
#[test]
fn several_backends() {
    let blocks = vec![("ram10", 3 * MIB), ("ram2", MIB)];
    let stream = Stream::new("pc-i440fx-7.2", blocks, vec![[all("ram10", 3 * MIB, 2), all("ram2", MIB, 1)].concat()]);
    let vmi = open(&stream.bytes()).unwrap();
    assert_eq!(regions(&vmi), [(0, 4 * MIB)]);
    assert!(vmi.read_vec(PhysAddr::new(MIB), 3 << 20).unwrap() == content(&stream, "ram10"));
    assert!(vmi.read_vec(PhysAddr::ZERO, 0xa_0000).unwrap() == content(&stream, "ram2")[..0xa_0000]);
    // Whoever knows better says where all RAM is.
    let map =
        OpenOptions::new().raw_map("0x0-0x100000@0x300000,0x80000000-0x80300000@0".parse().unwrap()).format(Format::QemuStream);
    let vmi = open_with(&stream.bytes(), map).unwrap();
    assert_eq!(regions(&vmi), [(0, MIB), (0x8000_0000, 0x8030_0000)]);
    assert!(vmi.read_vec(PhysAddr::ZERO, 1 << 20).unwrap() == content(&stream, "ram10")[2 << 20..]);
}

/// SRAT tells which backend is which node, whatever their names: node 0 has 2 MiB in `b`, node 1 has 1 MiB in `a`.
#[test]
fn the_table_of_nodes() {
    let entry = |node: u32, start: u64, len: u64| {
        let head = [&[1, 40][..], &node.to_le_bytes(), &[0; 2], &start.to_le_bytes(), &len.to_le_bytes(), &[0; 4], &[1, 0, 0, 0]]
            .concat();
        [head, vec![0; 8]].concat()
    };
    let entries = [entry(0, 0, 0xa_0000), entry(0, MIB, MIB), entry(1, 2 * MIB, MIB / 2), entry(1, 4 << 30, MIB / 2)].concat();
    let mut tables =
        [&b"FACS\x40\0\0\0"[..], &[0; 56], b"SRAT", &(48 + entries.len() as u32).to_le_bytes(), &[0; 40], &entries].concat();
    tables.resize(PAGE, 0);
    let blocks = vec![("b", 2 * MIB), ("a", MIB), ("/rom@etc/acpi/tables", PAGE as u64)];
    let pages = [all("b", 2 * MIB, 1), all("a", MIB, 3), vec![("/rom@etc/acpi/tables", 0, Some(tables))]].concat();
    let stream = Stream::new("pc-q35-10.0", blocks, vec![pages]);
    for bytes in [stream.bytes(), stream.mapped(0)] {
        let vmi = open(&bytes).unwrap();
        assert_eq!(regions(&vmi), [(0, 2 * MIB + MIB / 2), (4 << 30, (4 << 30) + MIB / 2)]);
        assert!(vmi.read_vec(PhysAddr::new(MIB), 1 << 20).unwrap() == content(&stream, "b")[1 << 20..]);
        assert!(vmi.read_vec(PhysAddr::new(4 << 30), 1 << 19).unwrap() == content(&stream, "a")[1 << 19..]);
    }
}

/// What capabilities put into the entries of the list: sizes of pages of some blocks, places of all, and both.
#[test]
fn entries_with_more_in_them() {
    let pages = || [all("a", MIB, 1), all("b", 2 * MIB, 2)].concat();
    for (capabilities, of_a, of_b) in [
        (vec![], vec![], vec![2 * MIB]),
        (vec![], vec![4096], vec![]),
        (vec!["x-ignore-shared"], vec![0], vec![2 * MIB]),
        (vec!["x-ignore-shared"], vec![1 << 30], vec![1 << 30]),
        (vec!["x-ignore-shared"], vec![4096, 0], vec![2 * MIB]),
    ] {
        let mut stream = Stream::new("pc-q35-7.2", vec![("a", MIB), ("b", 2 * MIB)], vec![pages()]);
        (stream.capabilities, stream.blocks[0].2, stream.blocks[1].2) = (capabilities, of_a, of_b);
        let vmi = open(&stream.bytes()).unwrap_or_else(|error| panic!("{:?}: {error}", stream.blocks));
        assert!(vmi.read_vec(PhysAddr::new(MIB), 2 << 20).unwrap() == content(&stream, "b"));
    }
    // Shared memory that was left out is in a file of its own: it is not zero.
    let mut stream = Stream::new("pc-q35-7.2", vec![("a", MIB), ("b", 2 * MIB)], vec![all("a", MIB, 1)]);
    stream.capabilities = vec!["x-ignore-shared"];
    stream.blocks.iter_mut().for_each(|block| block.2 = vec![0]);
    assert_eq!(regions(&open(&stream.bytes()).unwrap()), [(0, MIB)]);
}

#[test]
fn what_is_refused_has_a_name() {
    let error = |stream: &Stream| open(&stream.bytes()).unwrap_err().to_string();
    for (record, name) in [(0x40_u64, "xbzrle"), (0x100, "compress"), (0x200, "multifd"), (0x80, "RDMA"), (0x400, "0x400")] {
        let mut stream = Stream::new("pc-q35-7.2", vec![("pc.ram", MIB)], vec![all("pc.ram", MIB, 1)]);
        stream.record = Some(record);
        assert!(error(&stream).contains(name), "{}", error(&stream));
    }
    let foreign = Stream::new("virt-7.2", vec![("/rom@etc/x", MIB)], vec![Vec::new()]);
    assert!(error(&foreign).contains("virt-7.2"));
    let beyond = Stream::new("pc", vec![("pc.ram", MIB)], vec![vec![("pc.ram", MIB, page(1))]]);
    assert!(error(&beyond).contains("0x100000"));
    let unknown = Stream::new("pc", vec![("pc.ram", MIB)], vec![vec![("ram", 0, page(1))]]);
    assert!(error(&unknown).contains("`ram`"));
    let twice = Stream::new("pc", vec![("pc.ram", MIB), ("pc.ram", MIB)], vec![Vec::new()]);
    assert!(error(&twice).contains("two"));
    // Petabytes cost nothing.
    let huge = Stream::new("pc", vec![("pc.ram", 1 << 50)], vec![Vec::new()]);
    assert!(error(&huge).contains("cannot be"));
    let large = Stream::new("pc", vec![("pc.ram", 1 << 40)], vec![vec![("pc.ram", (1 << 40) - PAGE as u64, page(1))]]);
    let vmi = open(&large.bytes()).unwrap();
    assert_eq!(vmi.machine().memory.total(), 1 << 40);
}

fn small(mapped: bool) -> Vec<u8> {
    let p = PAGE as u64;
    let pages = vec![vec![("pc.ram", 0, page(1)), ("pc.ram", p, None), ("pc.ram", 2 * p, page(2))], vec![("pc.ram", 0, page(3))]];
    let stream = Stream::new("pc-q35-7.2", vec![("pc.ram", 3 * p)], pages).with_devices(LOW, 0);
    if mapped { stream.mapped(0) } else { stream.bytes() }
}

#[test]
fn cut_short_anywhere() {
    for (bytes, step) in [(small(false), 1), (small(true), 97)] {
        assert!(exercise(&bytes, None, false));
        // The memory ends before the devices do, without which there is an image still.
        let memory_end = bytes.len() - Stream::new("", vec![], vec![]).with_devices(LOW, 0).bytes().len() + 100;
        for len in (9..memory_end - 200).step_by(step) {
            match open(&bytes[..len]) {
                Err(OpenError::Image { source: FormatError::Truncated { .. }, .. } | OpenError::NotSupported { .. }) => {}
                other => panic!("cut to {len} of {}: {other:?}", bytes.len()),
            }
            exercise(&bytes[..len], None, true);
        }
    }
    // Pages that were not sent are holes then.
    let p = PAGE as u64;
    let stream = Stream::new("pc", vec![("pc.ram", 16 * p)], vec![all("pc.ram", 16 * p, 1)]);
    let bytes = stream.bytes();
    let part = open_with(&bytes[..bytes.len() - 5 * PAGE], OpenOptions::new().allow_truncated(true)).unwrap();
    assert_eq!(regions(&part), [(0, 11 * p)]);
    assert!(part.read_vec(PhysAddr::ZERO, 11 * PAGE).unwrap() == content(&stream, "pc.ram")[..11 * PAGE]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changed_streams(
        mapped: bool,
        in_the_tail: bool,
        changes in prop::collection::vec((0..700usize, prop_oneof![Just(0u8), Just(0xff), Just(0x7f), any::<u8>()]), 1..8),
        truncated: bool,
    ) {
        let mut bytes = small(mapped);
        let len = bytes.len();
        for (at, value) in changes {
            bytes[if in_the_tail { len - 1 - 3 * at } else { at }] = value;
        }
        exercise(&bytes, None, truncated);
        exercise(&[libvirt_head(b"LibvirtQemudSave", 2, 0), bytes].concat(), None, truncated);
    }

    #[test]
    fn any_pages(pages in prop::collection::vec((0u64..20, any::<bool>()), 0..80)) {
        let round: Vec<Sent> = (0u8..).zip(&pages).map(|(seed, (at, full))| ("pc.ram", at * PAGE as u64, page(seed).filter(|_| *full))).collect();
        let stream = Stream::new("microvm", vec![("pc.ram", 20 * PAGE as u64)], vec![round]);
        let vmi = open(&stream.bytes()).unwrap();
        prop_assert!(vmi.read_vec(PhysAddr::ZERO, 20 * PAGE).unwrap() == content(&stream, "pc.ram"));
    }
}
