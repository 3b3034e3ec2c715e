//! Reads, strings, lossy reads, cursors, batches and caches over synthetic machines.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic, missing_docs)]

use std::io::{Read, Seek, SeekFrom, Write};

use proptest::prelude::*;
use vmi_core::synthetic::{LiveDriver, SyntheticDriver};
use vmi_core::{
    Access, Architecture, Driver, Error, ErrorKind, Fault, FaultKind, Memory, PAGE_SIZE, Paging, PhysAddr, ReadOp, Region,
    Result, Translation, VirtAddr, Vmi,
};

/// Paging by a table of 64-bit words at the root: word n holds the physical page of virtual page n, or zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Flat;

impl Architecture for Flat {
    type Registers = ();
    type Paging = Self;
    type Watch = core::convert::Infallible;
    type Incident = core::convert::Infallible;
    type Injection = core::convert::Infallible;

    fn runs_on((): &(), _root: PhysAddr) -> Option<bool> {
        None
    }

    fn springs(watch: &Self::Watch, _incident: &Self::Incident) -> bool {
        match *watch {}
    }

    fn ability(watch: &Self::Watch) -> vmi_core::EventAbility {
        match *watch {}
    }
}

impl Paging for Flat {
    fn pointer_size(self) -> usize {
        4
    }

    fn translate<M: Memory<Addr = PhysAddr> + ?Sized>(self, memory: &M, root: PhysAddr, at: VirtAddr) -> Result<Translation> {
        let entry_at = root.wrapping_add(at.get() / PAGE_SIZE * 8);
        let mut entry = [0; 8];
        memory.read_into(entry_at, &mut entry)?;
        let entry = u64::from_le_bytes(entry);
        if entry == 0 {
            return Err(Error::from(Fault { at, root, level: 1, entry_at, entry, kind: FaultKind::NotPresent }));
        }
        let access = Access { write: true, ..Access::default() };
        Ok(Translation { at: PhysAddr::new(entry + at.page_offset()), page_shift: 12, access })
    }
}

const PAGE: usize = PAGE_SIZE as usize;

/// Four virtual pages at 0x1000..0x5000, backwards in physical memory; the page table is page 0, the pages after are not mapped.
fn machine(pages: [Vec<u8>; 4]) -> Vmi<SyntheticDriver<Flat>> {
    Vmi::new(SyntheticDriver::with_arch([(PhysAddr::ZERO, image(pages))]))
}

fn image(pages: [Vec<u8>; 4]) -> Vec<u8> {
    let mut memory = vec![0; 5 * PAGE];
    for (i, page) in pages.into_iter().enumerate() {
        let frame = 4 - i;
        memory[8 * (i + 1)..][..8].copy_from_slice(&((frame * PAGE) as u64).to_le_bytes());
        memory[frame * PAGE..][..page.len()].copy_from_slice(&page);
    }
    memory
}

fn counting() -> Vmi<SyntheticDriver<Flat>> {
    machine([0usize, 1, 2, 3].map(|p| (0..PAGE).map(|i| (i * 31 + p * 7 + i / 256) as u8).collect()))
}

#[test]
fn virtual_reads_cross_pages_that_are_apart() {
    let vmi = counting();
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    let bytes = space.read_vec(VirtAddr::new(0x1ffe), 2 + PAGE + 3).unwrap();
    let expected: Vec<u8> = [
        vmi.read_vec(PhysAddr::new(0x4ffe), 2).unwrap(),
        vmi.read_vec(PhysAddr::new(0x3000), PAGE).unwrap(),
        vmi.read_vec(PhysAddr::new(0x2000), 3).unwrap(),
    ]
    .concat();
    assert_eq!(bytes, expected);
    assert_eq!(
        space.read_pointer(VirtAddr::new(0x1ffe)).unwrap().get(),
        u64::from(u32::from_le_bytes(bytes[..4].try_into().unwrap()))
    );
}

#[test]
fn a_partial_read_says_how_far_it_got_and_why_it_stopped() {
    let vmi = counting();
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    let mut buf = [0; 16];
    let error = space.read_into(VirtAddr::new(0x4ff8), &mut buf).unwrap_err();
    assert_eq!(error.done(), 8);
    let ErrorKind::Fault(fault) = error.kind() else { panic!("{error:?}") };
    assert_eq!((fault.at, fault.kind, fault.entry_at), (VirtAddr::new(0x5000), FaultKind::NotPresent, PhysAddr::new(40)));
    assert_eq!(buf[..8], vmi.read_vec(PhysAddr::new(0x1ff8), 8).unwrap());
}

#[test]
fn strings_at_odd_addresses_across_pages_and_before_unmapped_ones() {
    let text = b"three pages long ".repeat(600);
    let mut pages = [vec![0; PAGE], vec![0; PAGE], vec![0; PAGE], vec![0; PAGE]];
    for (i, &byte) in text.iter().enumerate() {
        let at = 0xfff + i;
        pages[at / PAGE][at % PAGE] = byte;
    }
    pages[3][PAGE - 3..].copy_from_slice(b"ab\0");
    let vmi = machine(pages);
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    assert_eq!(space.read_c_string(VirtAddr::new(0x1fff), 20_000).unwrap(), text, "three page boundaries, odd start");
    assert_eq!(space.read_c_string(VirtAddr::new(0x4ffd), 100).unwrap(), b"ab", "the next page is not mapped and not touched");
    let error = space.read_c_string(VirtAddr::new(0x1fff), 100).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unterminated { at: 0x1fff, limit: 100 }));
}

#[test]
fn a_string_that_runs_into_an_unmapped_page_is_an_error() {
    let vmi = machine([vec![], vec![], vec![], vec![b'x'; PAGE]]);
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    let error = space.read_c_string(VirtAddr::new(0x4f00), 1000).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Fault(fault) if fault.at == VirtAddr::new(0x5000)));
    assert_eq!(error.done(), 0x100);
    let error = space.read_utf16(VirtAddr::new(0x4f01), 1000).unwrap_err();
    assert!(error.is_absent());
}

/// LibVMI hangs here: a UTF-16 string at an odd address whose unit straddles a page boundary.
#[test]
fn libvmi_5_utf16_at_an_odd_address_across_a_page() {
    let text: Vec<u16> = "wide characters ".repeat(300).encode_utf16().collect();
    let bytes: Vec<u8> = text.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    let mut pages = [vec![0; PAGE], vec![0; PAGE], vec![0; PAGE], vec![0; PAGE]];
    for (i, &byte) in bytes.iter().enumerate() {
        let at = 0xffd + i;
        pages[at / PAGE][at % PAGE] = byte;
    }
    let vmi = machine(pages);
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    assert_eq!(space.read_utf16(VirtAddr::new(0x1ffd), 10_000).unwrap(), text);
    assert!(matches!(space.read_utf16(VirtAddr::new(0x1ffd), 10).unwrap_err().kind(), ErrorKind::Unterminated { limit: 20, .. }));
}

/// vmi-rs skips memory in strings that span three pages, as it adds the cumulative length to the address.
#[test]
fn vmi_rs_string_over_three_pages() {
    let mut pages = [vec![b'a'; PAGE], vec![b'b'; PAGE], vec![b'c'; PAGE], vec![b'd'; PAGE]];
    pages[3][10] = 0;
    let vmi = machine(pages);
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    let text = space.read_c_string(VirtAddr::new(0x1000), 5 * PAGE).unwrap();
    assert_eq!(text.len(), 3 * PAGE + 10);
    assert_eq!([text[0], text[PAGE], text[2 * PAGE], text[3 * PAGE]], *b"abcd");
}

#[test]
fn lossy_reads_pad_and_say_where() {
    let vmi = Vmi::new(SyntheticDriver::new([
        (PhysAddr::new(0x1800), vec![1; 0x1000]),
        (PhysAddr::new(0x5000), vec![2; 0x10]),
        (PhysAddr::new(0x5100), vec![3; 0x10]),
    ]));
    let mut buf = vec![0xee; 0x5000];
    let padded = vmi.read_lossy(PhysAddr::new(0x1000), &mut buf).unwrap();
    assert_eq!(padded, [0..0x800, 0x1800..0x4000, 0x4010..0x4100, 0x4110..0x5000]);
    assert!(buf[0x800..0x1800].iter().all(|&b| b == 1));
    assert!(buf[0x4000..0x4010].iter().all(|&b| b == 2));
    assert!(buf[0x4100..0x4110].iter().all(|&b| b == 3));
    assert!(padded.iter().all(|gap| buf[gap.clone()].iter().all(|&b| b == 0)));
}

#[test]
fn lossy_virtual_reads_pad_whole_pages() {
    let vmi = machine([vec![1; PAGE], vec![2; PAGE], vec![3; PAGE], vec![4; PAGE]]);
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    let mut buf = vec![0xee; 3 * PAGE];
    assert_eq!(space.read_lossy(VirtAddr::new(0x4800), &mut buf).unwrap(), vec![0x800..3 * PAGE; 1]);
    assert_eq!(space.read_lossy(VirtAddr::new(0x0800), &mut buf).unwrap(), vec![0..0x800; 1]);
}

#[test]
fn a_cursor_reads_seeks_and_stops_at_its_end() {
    let vmi = counting();
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    let all = space.read_vec(VirtAddr::new(0x1000), 4 * PAGE).unwrap();
    let mut cursor = space.reader(VirtAddr::new(0x1000)..VirtAddr::new(0x5000));
    let mut read = Vec::new();
    cursor.read_to_end(&mut read).unwrap();
    assert_eq!(read, all);
    assert_eq!(cursor.seek(SeekFrom::End(-3)).unwrap(), 4 * PAGE_SIZE - 3);
    assert_eq!(cursor.read(&mut [0; 10]).unwrap(), 3);
    assert_eq!(cursor.read(&mut [0; 10]).unwrap(), 0);
    assert!(cursor.seek(SeekFrom::Current(-(5 * PAGE as i64))).is_err());
    cursor.seek(SeekFrom::Start(1 << 40)).unwrap();
    assert_eq!(cursor.read(&mut [0; 10]).unwrap(), 0, "past the end there is nothing");
}

#[test]
fn a_cursor_gives_what_there_is_before_it_fails() {
    let vmi = counting();
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    let mut cursor = space.reader(VirtAddr::new(0x4ff0)..VirtAddr::new(0x6000));
    let mut buf = [0; 64];
    assert_eq!(cursor.read(&mut buf).unwrap(), 16);
    let error = cursor.read(&mut buf).unwrap_err();
    let inner = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
    assert!(inner.is_absent());
}

#[test]
fn a_cursor_writes_where_the_back_end_can() {
    let vmi = Vmi::new(LiveDriver::<Flat>::new(image([vec![], vec![], vec![], vec![]]), Some(1)));
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    let mut cursor = space.reader(VirtAddr::new(0x1ffc)..VirtAddr::new(0x3000));
    cursor.write_all(b"across a page").unwrap();
    assert_eq!(space.read_vec(VirtAddr::new(0x1ffc), 13).unwrap(), b"across a page");
    let mut physical = vmi.reader(PhysAddr::new(0x1000)..PhysAddr::new(0x1004));
    assert!(physical.write_all(b"12345").is_err(), "beyond the range nothing is written");
    assert_eq!(vmi.read_vec(PhysAddr::new(0x1000), 5).unwrap(), b"1234\0");
}

/// LibVMI flushes its translation cache under another key than it fills it with, so stale translations stay.
#[test]
fn libvmi_6_a_write_forgets_pages_and_translations() {
    let vmi = Vmi::new(LiveDriver::<Flat>::new(image([vec![1; PAGE], vec![2; PAGE], vec![], vec![]]), Some(1)));
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    let at = VirtAddr::new(0x1000);
    assert_eq!(space.read::<u8>(at).unwrap(), 1);
    assert_eq!(space.read::<u8>(at).unwrap(), 1);
    assert_eq!(space.walks(), 1, "the second translation came from the cache");
    assert!(vmi.page_cache_counters().hits > 0);
    vmi.write(PhysAddr::new(8), &0x3000u64.to_le_bytes()).unwrap();
    assert_eq!(space.read::<u8>(at).unwrap(), 2, "the page table changed under the caches");
    assert_eq!(space.walks(), 2);
}

/// A cache that prefers what was read often would stay full of pages of an epoch that is over.
#[test]
fn a_full_page_cache_takes_what_is_read_now() {
    const PAGES: u64 = 1000;
    let driver = LiveDriver::<Flat>::new(vec![1; PAGES as usize * PAGE], Some(1));
    let vmi = Vmi::with_page_cache(driver, PAGES * 5 / 4 * PAGE_SIZE);
    for epoch in 1..=4 {
        for _ in 0..20 {
            for page in 0..PAGES {
                vmi.read::<u64>(PhysAddr::new(page * PAGE_SIZE)).unwrap();
            }
        }
        assert_eq!(vmi.page_cache_counters().misses, epoch * PAGES);
        vmi.write(PhysAddr::ZERO, &[1]).unwrap();
    }
}

/// vmi-rs keys its translation cache by byte address, so each byte of a page is a miss of its own.
#[test]
fn vmi_rs_translations_are_remembered_by_page() {
    let vmi = counting();
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    for at in 0x1000..0x1800 {
        space.read::<u8>(VirtAddr::new(at)).unwrap();
    }
    assert_eq!(space.walks(), 1);
}

/// LibVMI answers success with nothing done where a back end lacks a function; libmicrovmi panics.
#[test]
fn libvmi_10_what_a_back_end_lacks_is_an_error() {
    let error = Error::unsupported(vmi_core::Capability::Vcpus, "raw image");
    assert_eq!(error.to_string(), "raw image does not support vCPU registers");
    assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::Unsupported);
}

#[test]
fn a_range_is_mapped_where_memory_is() {
    let range = |start, len| Region::new(PhysAddr::new(start), len).unwrap();
    let vmi = Vmi::new(SyntheticDriver::<Flat>::with_arch([
        (PhysAddr::ZERO, vec![1; PAGE]),
        (PhysAddr::new(PAGE as u64), vec![2; PAGE]),
    ]));
    let page = PAGE as u64;
    let mapped = vmi.map_range(range(page - 8, 16)).unwrap();
    assert_eq!(mapped.read::<[u64; 2]>(PhysAddr::new(page - 8)).unwrap(), [0x0101_0101_0101_0101, 0x0202_0202_0202_0202]);
    let error = vmi.map_range(range(2 * page - 8, 16)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == 2 * page), "{error}");
    let vmi = Vmi::new(LiveDriver::<Flat>::new(vec![0; PAGE], Some(1)));
    let error = vmi.map_range(range(0, 8)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported { .. }) && error.to_string().contains("mapping its memory"), "{error}");
}

/// libmicrovmi panics on writes that are not aligned or longer than a page.
#[test]
fn libmicrovmi_unaligned_write_over_pages() {
    let vmi = Vmi::new(LiveDriver::<Flat>::new(vec![0; 4 * PAGE], Some(1)));
    let data: Vec<u8> = (0..2 * PAGE + 5).map(|i| i as u8 | 1).collect();
    vmi.write(PhysAddr::new(0xffd), &data).unwrap();
    assert_eq!(vmi.read_vec(PhysAddr::new(0xffd), data.len()).unwrap(), data);
    let error = vmi.write(PhysAddr::new(0x3ffe), &data).unwrap_err();
    assert_eq!(error.done(), 2, "what was written before the end of memory");
}

/// memflow fills what it cannot read with zeros; its users, and libmicrovmi's driver over it, report all of it as read.
#[test]
fn memflow_padding_is_told() {
    let vmi = machine([vec![1; PAGE], vec![2; PAGE], vec![3; PAGE], vec![4; PAGE]]);
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    let mut buf = vec![0xee; 2 * PAGE];
    let error = space.read_into(VirtAddr::new(0x4000), &mut buf).unwrap_err();
    assert_eq!(error.done(), PAGE);
    assert_eq!(space.read_lossy(VirtAddr::new(0x4000), &mut buf).unwrap(), vec![PAGE..2 * PAGE; 1]);
}

#[test]
fn memory_that_may_change_is_never_cached() {
    let vmi = Vmi::new(LiveDriver::<Flat>::new(image([vec![1; PAGE], vec![], vec![], vec![]]), None));
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    for _ in 0..3 {
        assert_eq!(space.read::<u8>(VirtAddr::new(0x1000)).unwrap(), 1);
    }
    assert_eq!((space.walks(), vmi.page_cache_counters()), (0, Default::default()));
}

#[test]
fn batches_have_a_status_each() {
    let vmi = counting();
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    let (mut a, mut b, mut c) = ([0; 4], [0; 4], [0; 4]);
    let mut ops = [
        ReadOp::new(VirtAddr::new(0x1000), &mut a[..]),
        ReadOp::new(VirtAddr::new(0x9000), &mut b[..]),
        ReadOp::new(VirtAddr::new(0x2000), &mut c[..]),
    ];
    space.read_batch(&mut ops);
    assert_eq!(ops.map(|op| op.result.is_ok()), [true, false, true]);
    assert_eq!(c.to_vec(), space.read_vec(VirtAddr::new(0x2000), 4).unwrap());
}

#[test]
fn slices_are_lent_only_where_the_range_is_contiguous() {
    let vmi = counting();
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    assert_eq!(space.slice(VirtAddr::new(0x1100), 64).unwrap(), vmi.read_vec(PhysAddr::new(0x4100), 64).unwrap());
    assert!(space.slice(VirtAddr::new(0x1fff), 2).is_none());
    assert!(space.slice(VirtAddr::new(0x5000), 1).is_none());
    let live = Vmi::new(LiveDriver::<Flat>::new(vec![0; PAGE], Some(1)));
    assert!(live.slice(PhysAddr::ZERO, 1).is_none());
}

#[test]
fn one_handle_serves_many_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    let vmi = counting();
    let space = vmi.address_space(PhysAddr::ZERO, Flat);
    shared(&vmi);
    shared(&space);
    let expected = space.read_vec(VirtAddr::new(0x1000), 4 * PAGE).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (space, expected) = (&space, &expected);
            scope.spawn(move || {
                for round in 0..2000usize {
                    let at = (thread * 1237 + round * 61) % (4 * PAGE - 8);
                    let value: u64 = space.read(VirtAddr::new(0x1000 + at as u64)).unwrap();
                    assert_eq!(value.to_le_bytes(), expected[at..at + 8]);
                }
            });
        }
    });
}

#[test]
fn what_a_back_end_lacks_is_none_at_run_time() {
    let vmi = counting();
    assert!(vmi.driver().vcpus().is_none() && vmi.driver().control().is_none() && vmi.driver().write_memory().is_none());
    assert!(LiveDriver::<Flat>::new(vec![], None).write_memory().is_some());
}

proptest! {
    /// Mapped and unmapped reads agree with a byte-by-byte oracle, whatever the runs of memory.
    #[test]
    fn reads_agree_with_a_naive_oracle(
        runs in prop::collection::vec((0u64..200, 1usize..40), 0..6),
        at in 0u64..250, len in 0usize..80,
    ) {
        let mut byte_at = std::collections::BTreeMap::new();
        let mut kept: Vec<(PhysAddr, Vec<u8>)> = Vec::new();
        for (start, size) in runs {
            let range = start..start + size as u64;
            if range.clone().any(|a| byte_at.contains_key(&a)) {
                continue;
            }
            byte_at.extend(range.map(|a| (a, (a * 37 + 11) as u8)));
            kept.push((PhysAddr::new(start), (start..start + size as u64).map(|a| (a * 37 + 11) as u8).collect()));
        }
        let good = (at..at + len as u64).take_while(|a| byte_at.contains_key(a)).count();
        let vmi = Vmi::new(SyntheticDriver::new(kept));
        let mut buf = vec![0; len];
        match vmi.read_into(PhysAddr::new(at), &mut buf) {
            Ok(()) => prop_assert_eq!(good, len),
            Err(error) => {
                prop_assert_eq!(error.done(), good);
                let hole = matches!(error.kind(), ErrorKind::Hole { at: hole } if hole.get() == at + good as u64);
                prop_assert!(hole, "{:?}", error);
            }
        }
        for (i, byte) in buf.iter().take(good).enumerate() {
            prop_assert_eq!(*byte, byte_at[&(at + i as u64)]);
        }
    }
}
