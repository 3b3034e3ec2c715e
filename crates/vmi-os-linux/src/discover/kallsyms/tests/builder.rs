//! Writes symbol tables as the kernel's build does (scripts/kallsyms.c, function write_src, of the releases named below). It shares
//! nothing with the parser.

/// A symbol: address, type letter, name.
pub(crate) type Line = (u64, char, String);

/// The order of the pieces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Order {
    /// Addresses first (to 6.1).
    AddressesFirst,
    /// The same with seqs_of_names between markers and tokens (6.2 and 6.3).
    AddressesFirstSeqsBetween,
    /// Addresses and seqs_of_names behind the index (from 6.4).
    NamesFirst,
}

/// How addresses are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Addresses {
    /// One pointer each.
    Absolute,
    /// CONFIG_KALLSYMS_ABSOLUTE_PERCPU: positive values are absolute, negative ones count from the base.
    PerCpu,
    /// Unsigned, from the base.
    Base,
    /// Signed, from their own place (from 7.0).
    Place,
}

/// What differs between kernels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) order: Order,
    pub(crate) addresses: Addresses,
    /// Bytes in a pointer.
    pub(crate) pointer: usize,
    /// Bytes in a marker and in the number of symbols: a pointer before 4.20, 4 since.
    pub(crate) marker: usize,
    /// Alignment of each piece: a pointer, and 4 from 7.0.
    pub(crate) align: usize,
    /// Lengths above 127 take two bytes (from 6.1).
    pub(crate) two_byte_lengths: bool,
}

/// Layouts of real releases.
pub(crate) const LAYOUTS: [(&str, Layout); 10] = {
    use Addresses::*;
    use Order::*;
    const fn layout(order: Order, addresses: Addresses, pointer: usize, marker: usize) -> Layout {
        Layout { order, addresses, pointer, marker, align: pointer, two_byte_lengths: false }
    }
    const fn recent(order: Order, addresses: Addresses, pointer: usize, align: usize) -> Layout {
        Layout { order, addresses, pointer, marker: 4, align, two_byte_lengths: true }
    }
    [
        ("4.5, 64 bits", layout(AddressesFirst, Absolute, 8, 8)),
        ("4.6, 64 bits", layout(AddressesFirst, PerCpu, 8, 8)),
        ("4.20, 64 bits", layout(AddressesFirst, PerCpu, 8, 4)),
        ("4.9, 32 bits", layout(AddressesFirst, Base, 4, 4)),
        ("4.5, 32 bits", layout(AddressesFirst, Absolute, 4, 4)),
        ("6.2, 64 bits", recent(AddressesFirstSeqsBetween, PerCpu, 8, 8)),
        ("6.4, 64 bits", recent(NamesFirst, PerCpu, 8, 8)),
        ("6.4, 32 bits", recent(NamesFirst, Base, 4, 4)),
        ("6.15, 64 bits", recent(NamesFirst, Base, 8, 8)),
        ("7.0, 64 bits", recent(NamesFirst, Place, 8, 4)),
    ]
};

/// Token strings beyond the single characters, at codes that no name uses as a character.
const PAIRS: [(u8, &str); 8] = [
    (0x01, "Tdo_"),
    (0x02, "t__"),
    (0x80, "sys_"),
    (0x81, "_init"),
    (0x90, "a_very_long_token_string_"),
    (0xfe, "er"),
    (0xff, "on"),
    (0x7f, "_"),
];

fn token(code: u8) -> String {
    let pair = PAIRS.iter().find(|pair| pair.0 == code).map(|pair| pair.1.to_owned());
    pair.unwrap_or_else(|| if code.is_ascii_graphic() { char::from(code).to_string() } else { String::new() })
}

/// The longest token at each place, as the kernel's own table is made to allow.
fn compress(tokens: &[String], text: &str) -> Vec<u8> {
    let mut codes = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let fits = |code: &u8| !tokens[usize::from(*code)].is_empty() && rest.starts_with(&tokens[usize::from(*code)]);
        let best = (0..=255u8).filter(fits).max_by_key(|&code| tokens[usize::from(code)].len()).unwrap();
        codes.push(best);
        rest = &rest[tokens[usize::from(best)].len()..];
    }
    codes
}

fn align(out: &mut Vec<u8>, to: usize) {
    while !out.len().is_multiple_of(to) {
        out.push(0);
    }
}

fn pointer(out: &mut Vec<u8>, value: u64, size: usize) {
    out.extend(&value.to_le_bytes()[..size]);
}

/// Appends a table to `out`, whose first byte is at address `start`. Returns the offset of the digit tokens.
pub(crate) fn write(out: &mut Vec<u8>, start: u64, lines: &[Line], layout: Layout) -> usize {
    let mut digits = 0;
    let tokens: Vec<String> = (0..=255).map(token).collect();
    let addresses_first = layout.order != Order::NamesFirst;
    if addresses_first {
        write_addresses(out, start, lines, layout);
    }
    align(out, layout.align);
    pointer(out, lines.len() as u64, layout.marker);
    align(out, layout.align);
    let (names, mut markers) = (out.len(), Vec::new());
    for (index, line) in lines.iter().enumerate() {
        if index % 256 == 0 {
            markers.push((out.len() - names) as u64);
        }
        let codes = compress(&tokens, &format!("{}{}", line.1, line.2));
        if layout.two_byte_lengths && codes.len() > 127 {
            out.extend([0x80 | (codes.len() & 0x7f) as u8, (codes.len() >> 7) as u8]);
        } else {
            out.push(u8::try_from(codes.len()).unwrap());
        }
        out.extend(codes);
    }
    align(out, layout.align);
    markers.iter().for_each(|&marker| pointer(out, marker, layout.marker));
    align(out, layout.align);
    if layout.order == Order::AddressesFirstSeqsBetween {
        write_seqs(out, lines);
        align(out, layout.align);
    }
    let (table, mut index) = (out.len(), Vec::new());
    for code in 0..=255u8 {
        index.push((out.len() - table) as u16);
        if code == b'0' {
            digits = out.len();
        }
        out.extend(token(code).as_bytes());
        out.push(0);
    }
    align(out, layout.align);
    index.iter().for_each(|offset| out.extend(offset.to_le_bytes()));
    if !addresses_first {
        write_addresses(out, start, lines, layout);
        align(out, layout.align);
        write_seqs(out, lines);
    }
    digits
}

fn write_seqs(out: &mut Vec<u8>, lines: &[Line]) {
    let mut order: Vec<usize> = (0..lines.len()).collect();
    order.sort_by(|&a, &b| lines[a].2.cmp(&lines[b].2));
    order.iter().for_each(|&index| out.extend(&(index as u32).to_be_bytes()[1..]));
}

fn write_addresses(out: &mut Vec<u8>, start: u64, lines: &[Line], layout: Layout) {
    align(out, layout.align);
    let in_kernel = |address: &u64| *address >= if layout.pointer == 4 { 0x4000_0000 } else { 1 << 63 };
    let base = lines.iter().map(|line| line.0).find(in_kernel).unwrap();
    for &(address, ..) in lines {
        match layout.addresses {
            Addresses::Absolute => pointer(out, address, layout.pointer),
            Addresses::PerCpu if !in_kernel(&address) => out.extend((address as i32).to_le_bytes()),
            Addresses::PerCpu => out.extend((base.wrapping_sub(1).wrapping_sub(address) as i32).to_le_bytes()),
            Addresses::Base => out.extend(((address - base) as u32).to_le_bytes()),
            Addresses::Place => {
                let here = start + out.len() as u64;
                out.extend((address.wrapping_sub(here) as i32).to_le_bytes());
            }
        }
    }
    if matches!(layout.addresses, Addresses::PerCpu | Addresses::Base) {
        align(out, layout.align);
        pointer(out, base, layout.pointer);
    }
}
