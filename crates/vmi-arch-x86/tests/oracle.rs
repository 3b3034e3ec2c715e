//! Random page tables, valid and hostile, against a second opinion that is written down bit by bit.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod support;

use proptest::prelude::*;
use support::Pages;
use vmi_arch_x86::PagingMode::{Bits32, Level4, Level5, Pae};
use vmi_arch_x86::{Mapping, PagingMode};
use vmi_core::{Access, ErrorKind, FaultKind, Paging, PhysAddr, Translation, VirtAddr, Vmi, synthetic::SyntheticDriver};

/// Pages of memory, from address 0 up.
const PAGES: u64 = 8;

type Answer = Result<(u64, u8, Access), (u8, FaultKind)>;

/// What a processor does, one bit after the other, from the tables of the manual.
fn oracle(pages: &Pages, mode: PagingMode, cr3: u64, at: u64) -> Answer {
    let bit = |value: u64, n: u32| value >> n & 1 == 1;
    let any = |value: u64, from: u32, to: u32| (from..=to).any(|n| bit(value, n));
    let (top, width) = match mode {
        Bits32 => (2, 4),
        Pae => (3, 8),
        Level4 => (4, 8),
        Level5 => (5, 8),
    };
    let canonical = match mode {
        Bits32 | Pae => !any(at, 32, 63),
        Level4 => (47..64).all(|n| bit(at, n) == bit(at, 47)),
        Level5 => (56..64).all(|n| bit(at, n) == bit(at, 56)),
    };
    if !canonical {
        return Err((top, FaultKind::NotCanonical));
    }
    let mut table = match mode {
        Bits32 => cr3 % (1 << 32) / 4096 * 4096,
        Pae => cr3 % (1 << 32) / 32 * 32,
        Level4 | Level5 => cr3 % (1 << 52) / 4096 * 4096,
    };
    let mut access = Access { write: true, execute: true, user: true };
    for level in (1..=top).rev() {
        // Bytes that an entry of this level covers.
        let covers: u64 = match (mode, level) {
            (_, 1) => 4 << 10,
            (Bits32, _) => 4 << 20,
            (_, 2) => 2 << 20,
            (_, 3) => 1 << 30,
            (_, 4) => 512 << 30,
            (_, _) => 256 << 40,
        };
        let entries = if mode == Bits32 { 1024 } else { 512 };
        let index = at / covers % entries;
        let Some(bytes) = pages.get(table + index * width, width as usize) else { return Err((level, FaultKind::NoTable)) };
        let entry = bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        if !bit(entry, 0) {
            return Err((level, FaultKind::NotPresent));
        }
        let large = bit(entry, 7) && (level == 2 || level == 3 && (mode == Level4 || mode == Level5));
        let page = large || level == 1;
        let reserved = match (mode, level) {
            (Bits32, 2) => large && bit(entry, 21),
            (Bits32, _) => false,
            (Pae, 3) => any(entry, 1, 2) || any(entry, 6, 8) || any(entry, 52, 63),
            (Pae, 2) => any(entry, 52, 62) || large && any(entry, 13, 20),
            (Pae, _) => any(entry, 52, 62),
            (_, 5 | 4) => bit(entry, 7),
            (_, 3) => large && any(entry, 13, 29),
            (_, 2) => large && any(entry, 13, 20),
            (_, _) => false,
        };
        if reserved {
            return Err((level, FaultKind::ReservedBits));
        }
        if (mode, level) != (Pae, 3) {
            access.write = access.write && bit(entry, 1);
            access.user = access.user && bit(entry, 2);
            access.execute = access.execute && !bit(entry, 63);
        }
        let address = entry % (1 << 52) / 4096 * 4096;
        if page {
            let high = if mode == Bits32 && large { entry >> 13 & 0xff } else { 0 };
            let shift = (0..64).find(|n| 1u64 << n == covers).unwrap() as u8;
            return Ok(((high << 32) + address / covers * covers + at % covers, shift, access));
        }
        table = address;
    }
    unreachable!("level 1 maps pages")
}

fn answer(translated: vmi_core::Result<Translation>) -> Answer {
    match translated {
        Ok(to) => Ok((to.at.get(), to.page_shift, to.access)),
        Err(error) => match error.kind() {
            ErrorKind::Fault(fault) => Err((fault.level, fault.kind)),
            other => panic!("{other}"),
        },
    }
}

/// An entry: absent, of a table or page in memory with any flags, large, in a hole, or any bits at all.
fn entry() -> impl Strategy<Value = u64> {
    let flags = prop_oneof![6 => Just(0u64), 2 => 0u64..0x80, 1 => 0u64..0x1000];
    let frame = prop_oneof![8 => 0..PAGES, 1 => PAGES..PAGES * 2, 1 => any::<u64>().prop_map(|n| n % (1 << 40))];
    let high = prop_oneof![8 => Just(0u64), 1 => Just(1u64 << 63), 1 => (52u32..64).prop_map(|n| 1 << n)];
    prop_oneof![
        2 => Just(0u64),
        8 => (frame, flags, high).prop_map(|(frame, flags, high)| frame << 12 | flags | high | 1),
        1 => (any::<u64>(), any::<u64>()).prop_map(|(frame, flags)| (frame % 64) << 21 | flags & 0x107f | 0x81),
        1 => any::<u64>(),
    ]
}

/// Memory whose every word is one of a few entries, so that every index leads somewhere.
fn memory(period: usize) -> impl Strategy<Value = Pages> {
    prop::collection::vec(entry(), period).prop_map(move |pool| {
        let words = PAGES as usize * 512;
        let bytes: Vec<u8> = (0..words).flat_map(|i| pool[(i + i / 512 * 5) % pool.len()].to_le_bytes()).collect();
        let mut pages = Pages::new();
        for (i, page) in bytes.chunks(4096).enumerate() {
            pages.put(i as u64 * 4096, page);
        }
        pages
    })
}

fn mode() -> impl Strategy<Value = PagingMode> {
    prop_oneof![Just(Bits32), Just(Pae), Just(Level4), Just(Level5)]
}

/// Any address, made canonical most of the time.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        1 => any::<u64>(),
        3 => any::<u32>().prop_map(u64::from),
        3 => any::<i64>().prop_map(|at| (at >> 16) as u64),
        3 => any::<i64>().prop_map(|at| (at >> 7) as u64),
    ]
}

fn machine(pages: &Pages) -> Vmi<SyntheticDriver<vmi_arch_x86::X86>> {
    pages.clone().vmi()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn walks_agree(pages in memory(37), mode in mode(), cr3 in 0..PAGES * 4096 + 64, at in prop::collection::vec(address(), 64)) {
        let vmi = machine(&pages);
        let root = PhysAddr::new(cr3);
        for at in at {
            let expected = oracle(&pages, mode, cr3, at);
            prop_assert_eq!(answer(mode.translate(&vmi, root, VirtAddr::new(at))), expected, "{:?} {:#x}", mode, at);
            let walk = mode.walk(&vmi, root, VirtAddr::new(at)).unwrap();
            prop_assert_eq!(answer(walk.translation().map_err(Into::into)), expected);
            // Every entry is where its table says, and tells what it points at.
            let entries: Vec<_> = walk.entries().collect();
            for pair in entries.windows(2) {
                prop_assert_eq!(pair[0].level, pair[1].level + 1);
                let table = pair[0].target().unwrap().get();
                prop_assert!(pair[1].at.get() >= table && pair[1].at.get() < table + 4096);
            }
            prop_assert_eq!(walk.leaf().is_some(), expected.is_ok());
        }
    }

    /// What is listed translates so, in ascending order; what translates is listed.
    #[test]
    fn mappings_agree(pages in memory(19), mode in mode(), cr3 in 0..PAGES * 4096, at in prop::collection::vec(address(), 64)) {
        let vmi = machine(&pages);
        let root = PhysAddr::new(cr3);
        let mut listed: Vec<(u64, u64, Option<Mapping>)> = Vec::new();
        for item in mode.mappings(&vmi, root, ..) {
            // First and last address of the item.
            let (first, last, mapping) = match item {
                Ok(Mapping::Pages(run)) => {
                    let (first, last) = (run.at.get(), run.last().get());
                    for (at, target) in [(first, run.target.get()), (last, run.target.get() + run.len - 1)] {
                        prop_assert_eq!(oracle(&pages, mode, cr3, at), Ok((target, run.page_shift, run.access)));
                    }
                    (first, last, Some(Mapping::Pages(run)))
                }
                Ok(Mapping::Repeated(table)) => {
                    let first = table.at.get();
                    prop_assert!(table.first.get() < first);
                    (first, first + (table.len - 1), Some(Mapping::Repeated(table)))
                }
                Err(error) => {
                    let ErrorKind::Fault(fault) = error.kind() else { panic!("{error}") };
                    prop_assert_eq!(oracle(&pages, mode, cr3, fault.at.get()), Err((fault.level, fault.kind)));
                    (fault.at.get(), fault.at.get(), None)
                }
            };
            if let Some((_, before, _)) = listed.last() {
                prop_assert!(first > *before, "{first:#x} after {before:#x}");
            }
            listed.push((first, last, mapping));
        }
        for at in at {
            let item = listed[..listed.partition_point(|(first, ..)| *first <= at)].last().filter(|(_, last, _)| at <= *last);
            match (oracle(&pages, mode, cr3, at), item) {
                (Ok((target, ..)), Some((first, _, Some(Mapping::Pages(run))))) => {
                    prop_assert_eq!(run.target.get() + (at - first), target);
                }
                (got, Some((first, _, Some(Mapping::Repeated(table))))) => {
                    let there = oracle(&pages, mode, cr3, table.first.get() + (at - first));
                    prop_assert_eq!(got.map(|(target, shift, _)| (target, shift)), there.map(|(target, shift, _)| (target, shift)));
                    // The range of the repeated table, asked for by itself, tells what is behind it.
                    let page = VirtAddr::new(at).page();
                    let part: Vec<_> = mode.mappings(&vmi, root, page..=page).filter_map(Result::ok).collect();
                    match got {
                        Ok((target, _, access)) => prop_assert!(
                            matches!(part[..], [Mapping::Pages(run)] if run.target == PhysAddr::new(target).page() && run.access == access)
                        ),
                        Err(_) => prop_assert!(part.is_empty()),
                    }
                }
                (Ok(_), other) => prop_assert!(false, "{at:#x} is mapped, but listed as {other:?}"),
                (Err(_), Some((_, _, Some(Mapping::Pages(run))))) => prop_assert!(false, "{at:#x} is not mapped, but listed in {run:?}"),
                (Err(_), _) => {}
            }
        }
    }
}
