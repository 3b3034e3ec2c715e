//! Tables of every layout, and what only looks like one.

pub(crate) mod builder;

use memchr::memmem;
use proptest::prelude::*;
use vmi_core::SymbolsBuilder;

use self::builder::{Addresses, LAYOUTS, Layout, Line, Order};
use super::*;

/// The address of the first byte of what [`memory`] makes.
fn start(layout: Layout) -> u64 {
    if layout.pointer == 4 { 0xc100_0000 } else { 0xffff_ffff_9a00_0000 }
}

/// So many symbols, sorted: a few per-CPU ones where there can be some, aliases, and text and data 32 bytes apart on average.
fn lines(count: usize, layout: Layout) -> Vec<Line> {
    let text = start(layout) - 0x20_0000;
    let names = ["do_init", "sys_read", "per.isra.0", "a_very_long_token_string_x", "nmi_Z", "_"];
    (0..count as u64)
        .map(|i| {
            let name = format!("{}{}", names[i as usize % names.len()], i);
            match i {
                0..=9 if layout.addresses == Addresses::PerCpu => (i * 0x40, 'A', name),
                _ => (text + (i - u64::from(i % 4 == 1)) * 32, if i % 3 == 0 { 'T' } else { 't' }, name),
            }
        })
        .collect()
}

/// Pages of noise with a table in them, and where its digits are.
fn memory(lines: &[Line], layout: Layout) -> (Vec<u8>, usize) {
    let mut bytes: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let digits = builder::write(&mut bytes, start(layout), lines, layout);
    bytes.extend((0..8192u32).map(|i| (i.wrapping_mul(2_246_822_519) >> 11) as u8));
    (bytes, digits)
}

fn read(bytes: &[u8], digits: usize, layout: Layout) -> Result<Vec<Line>, Reject> {
    let mut builder = SymbolsBuilder::default();
    Table::locate(bytes, digits, start(layout), layout.pointer)?.decode(&mut builder)?;
    let symbols = builder.build();
    Ok(symbols.iter().map(|s| (s.address.get(), char::from(s.kind), s.name.to_owned())).collect())
}

/// Names the first difference; whole tables would be unreadable.
fn assert_same(read: Result<Vec<Line>, Reject>, lines: &[Line], name: &str) {
    let read = read.unwrap_or_else(|reject| panic!("{name}: {reject}"));
    if let Some((got, want)) = read.iter().zip(lines).find(|(got, want)| got != want) {
        panic!("{name}: {got:x?} instead of {want:x?}");
    }
    assert_eq!(read.len(), lines.len(), "{name}");
}

#[test]
fn every_layout_is_read() {
    for (name, layout) in LAYOUTS {
        for count in [1023, 1024, 1025, 5000] {
            let lines = lines(count, layout);
            let (bytes, digits) = memory(&lines, layout);
            assert_same(read(&bytes, digits, layout), &lines, name);
        }
    }
}

#[test]
fn long_names_are_read_by_what_the_markers_say() {
    for (name, layout) in LAYOUTS {
        let mut lines = lines(2000, layout);
        // 'T' and 'q' have no token with others: one code each, so the length is that of the text.
        lines[700].2 = "q".repeat(if layout.two_byte_lengths { 400 } else { 200 });
        lines[701].2 = "q".repeat(127);
        let (bytes, digits) = memory(&lines, layout);
        assert_same(read(&bytes, digits, layout), &lines, name);
    }
}

#[test]
fn the_digits_alone_are_no_table() {
    for behind in [&b":\0;\0<\0"[..], b"", b"\0\0\0\0", b"a\0b\0"] {
        let mut bytes = vec![0; 4096];
        bytes.extend(DIGITS);
        bytes.extend(behind);
        bytes.resize(65536, 0);
        assert_eq!(Table::locate(&bytes, 4096, 0, 8).unwrap_err(), Reject::Index);
    }
    assert_eq!(Table::locate(DIGITS, 0, 0, 8).unwrap_err(), Reject::Index);
    assert_eq!(Table::locate(&[], usize::MAX, 0, 8).unwrap_err(), Reject::Index);
}

#[test]
fn zeros_are_no_addresses() {
    // What lies behind the index is a hole, which reads as zeros: offsets from their own place would ascend.
    let (_, layout) = LAYOUTS[9];
    let (mut bytes, digits) = memory(&lines(3000, layout), layout);
    let index = (digits..bytes.len()).find(|&at| Tokens::parse(&bytes, digits, at).is_some()).unwrap();
    bytes[index + 512..].fill(0);
    assert_eq!(read(&bytes, digits, layout).unwrap_err(), Reject::Addresses);
}

#[test]
fn a_table_cut_short_is_none() {
    for (name, layout) in LAYOUTS {
        let lines = lines(1500, layout);
        let (bytes, digits) = memory(&lines, layout);
        let table = 4096;
        for end in [digits, digits + 20, digits + 200] {
            assert!(read(&bytes[..end], digits, layout).is_err(), "{name}");
        }
        // The first page of the table is missing in front.
        let cut = table + 4096;
        let rest = read(&bytes[cut..], digits - cut, layout);
        assert!(rest.is_err() || (layout.order == Order::NamesFirst && cut < 4096), "{name}");
    }
}

#[test]
fn names_that_are_no_text_are_escaped() {
    let (_, layout) = LAYOUTS[6];
    let lines = lines(1200, layout);
    let (mut bytes, digits) = memory(&lines, layout);
    let token = memmem::find(&bytes[digits..], b"er\0").unwrap() + digits;
    bytes[token] = 0xc3;
    let read = read(&bytes, digits, layout).unwrap();
    assert!(read.iter().any(|line| line.2.contains("\\xc3r")), "{:?}", &read[..20]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn broken_tables_end(which in 0..LAYOUTS.len(), changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let (_, layout) = LAYOUTS[which];
        let lines = lines(1100, layout);
        let (mut bytes, digits) = memory(&lines, layout);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(read) = read(&bytes, digits, layout) {
            prop_assert_eq!(read.len(), lines.len());
        }
    }

    #[test]
    fn noise_ends(mut bytes in proptest::collection::vec(any::<u8>(), 600..20_000), at in any::<prop::sample::Index>(), pointer in prop_oneof![Just(4usize), Just(8)]) {
        let at = at.index(bytes.len() - DIGITS.len());
        bytes[at..at + DIGITS.len()].copy_from_slice(DIGITS);
        prop_assert!(Table::locate(&bytes, at, 0xffff_ffff_8100_0000, pointer).is_err());
    }
}

#[test]
fn pieces_are_where_their_contents_are() {
    for (name, layout) in LAYOUTS {
        let lines = lines(1500, layout);
        let (bytes, digits) = memory(&lines, layout);
        let table = Table::locate(&bytes, digits, start(layout), layout.pointer).unwrap();
        let pieces = table.pieces();
        let piece =
            |wanted: &str| pieces.iter().find(|(piece, _)| *piece == wanted).map(|(_, at)| (at.get() - start(layout)) as usize);
        let u32_of = |at: usize| u32_at(&bytes, at).unwrap();
        let pointer_of = |at: usize| if layout.pointer == 4 { u32_of(at).into() } else { u64_at(&bytes, at).unwrap() };

        assert_eq!(u32_of(piece("kallsyms_num_syms").unwrap()), 1500, "{name}");
        let (tokens, index) = (piece("kallsyms_token_table").unwrap(), piece("kallsyms_token_index").unwrap());
        let token = |code: u8| tokens + usize::from(u16_at(&bytes, index + 2 * usize::from(code)).unwrap());
        assert_eq!((token(0), token(b'0'), token(b'9')), (tokens, digits, digits + 18), "{name}");
        // The first name's tokens give its type and its name; each marker is an offset from it.
        let names = piece("kallsyms_names").unwrap();
        let length = usize::from(bytes[names]);
        let text: Vec<u8> = bytes[names + 1..][..length]
            .iter()
            .flat_map(|&code| bytes[token(code)..].iter().copied().take_while(|&byte| byte != 0).collect::<Vec<_>>())
            .collect();
        assert_eq!(String::from_utf8(text).unwrap(), format!("{}{}", lines[0].1, lines[0].2), "{name}");
        let markers = piece("kallsyms_markers").unwrap();
        assert_eq!(u32_of(markers), 0, "{name}");

        let last = lines[1499].0;
        match (piece("kallsyms_addresses"), piece("kallsyms_offsets"), piece("kallsyms_relative_base")) {
            (Some(addresses), None, None) => assert_eq!(pointer_of(addresses + 1499 * layout.pointer), last, "{name}"),
            (None, Some(offsets), Some(base)) => {
                let (value, base) = (u32_of(offsets + 4 * 1499), pointer_of(base));
                // Without a sign from the base, or with CONFIG_KALLSYMS_ABSOLUTE_PERCPU `base - 1 - value`.
                let ways = [base.wrapping_add(value.into()), base.wrapping_add((!value).into())];
                assert!(ways.contains(&last), "{name}");
            }
            (None, Some(offsets), None) => {
                let at = offsets + 4 * 1499;
                let target = (start(layout) + at as u64).wrapping_add_signed(i64::from(u32_of(at).cast_signed()));
                assert_eq!(if layout.pointer == 4 { target & 0xffff_ffff } else { target }, last, "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}
