//! Hibernation files, and both packings of [MS-XCA] that are in them.

use std::collections::HashMap;

use super::windows_dump::{put32, put64};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Stored,
    Lz77,
    /// Codes of 9 bits for everything.
    FlatCodes,
    /// A zero has one bit.
    SkewedCodes,
}

pub const PACKINGS: [Packing; 4] = [Packing::Stored, Packing::Lz77, Packing::FlatCodes, Packing::SkewedCodes];

/// A page, by its number.
pub type Page = (u64, Vec<u8>);

/// A compression set; it is stored if packing does not help.
pub fn set(wide: bool, packing: Packing, pages: &[Page]) -> Vec<u8> {
    let raw: Vec<u8> = pages.iter().flat_map(|(_, data)| data.clone()).collect();
    let packed = match packing {
        Packing::Stored => raw.clone(),
        Packing::Lz77 => lz77(&raw),
        Packing::FlatCodes => huffman(&raw, &[9; 512]),
        Packing::SkewedCodes => {
            let mut lens = [10; 512];
            (lens[0], lens[1]) = (1, 9);
            huffman(&raw, &lens)
        }
    };
    let (packed, huffman) = if packed.len() < raw.len() {
        (packed, matches!(packing, Packing::FlatCodes | Packing::SkewedCodes))
    } else {
        (raw, false)
    };
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (number, _) in pages {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == *number => *count += 1,
            _ => runs.push((*number, 1)),
        }
    }
    let mut bytes = Vec::new();
    bytes.extend((runs.len() as u32 | (packed.len() as u32) << 8 | u32::from(huffman) << 30).to_le_bytes());
    for (first, count) in runs {
        let run = first << 4 | (count - 1);
        bytes.extend(&run.to_le_bytes()[..if wide { 8 } else { 4 }]);
    }
    bytes.extend(packed);
    bytes
}

/// A file with a header of this length: `PO_MEMORY_IMAGE` of the kernels' symbols.
pub fn file(header_len: u32, boot: &[Vec<u8>], boot_pages: u64, kernel: &[Vec<u8>], kernel_pages: u64) -> Vec<u8> {
    let wide = header_len >= 0x360;
    let mut bytes = vec![0xa5; 0x1000];
    bytes[..4].copy_from_slice(b"HIBR");
    put32(&mut bytes, 12, header_len);
    bytes.resize(0x3000, 0x5a);
    let boot_at = bytes.len() as u64 / 4096;
    boot.iter().for_each(|set| bytes.extend(set));
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    let kernel_at = bytes.len() as u64 / 4096;
    kernel.iter().for_each(|set| bytes.extend(set));
    let performance = match header_len {
        0x360 => 0x1c8,
        0x3b0 => 0x218,
        0x3c8 => 0x220,
        0x3d8 | 0x3e0 | 0x448 => 0x230,
        0x4d8 => 0x238,
        0x2c8 => 0x1b0,
        0x310 => 0x1f8,
        0x328 => 0x200,
        0x338 | 0x340 => 0x210,
        _ => panic!("{header_len:#x}"),
    };
    put64(&mut bytes, performance, kernel_pages);
    if wide {
        put32(&mut bytes, 0x18, 4096);
        put64(&mut bytes, 0x58, boot_pages);
        // Since Windows 10 there is another field before them, of a restore set that is encrypted.
        let first = if header_len == 0x360 { 0x60 } else { 0x68 };
        put64(&mut bytes, first, boot_at);
        put64(&mut bytes, first + 8, kernel_at);
    } else {
        put32(&mut bytes, 0x14, 4096);
        put64(&mut bytes, 0x48, boot_pages);
        put32(&mut bytes, 0x50, boot_at as u32);
        put32(&mut bytes, 0x54, kernel_at as u32);
    }
    bytes
}

/// A literal, or a match of a distance and a length.
enum Item {
    Literal(u8),
    Match(usize, usize),
}

/// Where three bytes were seen last, if not further back than `window`.
fn items(data: &[u8], window: usize, longest: usize) -> Vec<Item> {
    let mut seen: HashMap<&[u8], usize> = HashMap::new();
    let (mut items, mut at) = (Vec::new(), 0);
    while at < data.len() {
        let found = data.get(at..at + 3).and_then(|key| seen.insert(key, at)).filter(|from| at - from <= window);
        match found {
            Some(from) => {
                let len = (0..longest.min(data.len() - at)).take_while(|i| data[from + i] == data[at + i]).count();
                items.push(Item::Match(at - from, len));
                at += len;
            }
            None => {
                items.push(Item::Literal(data[at]));
                at += 1;
            }
        }
    }
    items
}

/// Plain LZ77: [MS-XCA] 2.3.
pub fn lz77(data: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    let (mut flags, mut count, mut flags_at) = (0u32, 0, 0);
    let mut half: Option<usize> = None;
    out.extend([0; 4]);
    for item in items(data, 8192, usize::MAX) {
        match item {
            Item::Literal(byte) => {
                flags <<= 1;
                out.push(byte);
            }
            Item::Match(distance, len) => {
                flags = flags << 1 | 1;
                let len = len - 3;
                out.extend((((distance - 1) << 3 | len.min(7)) as u16).to_le_bytes());
                if len >= 7 {
                    let nibble = (len - 7).min(15) as u8;
                    match half.take() {
                        Some(at) => out[at] |= nibble << 4,
                        None => {
                            half = Some(out.len());
                            out.push(nibble);
                        }
                    }
                    if nibble == 15 {
                        let rest = len - 7 - 15;
                        if rest < 255 {
                            out.push(rest as u8);
                        } else {
                            out.push(255);
                            match u16::try_from(len) {
                                Ok(len) => out.extend(len.to_le_bytes()),
                                Err(_) => {
                                    out.extend([0; 2]);
                                    out.extend((len as u32).to_le_bytes());
                                }
                            }
                        }
                    }
                }
            }
        }
        count += 1;
        if count == 32 {
            out[flags_at..flags_at + 4].copy_from_slice(&flags.to_le_bytes());
            (flags, count, flags_at) = (0, 0, out.len());
            out.extend([0; 4]);
        }
    }
    let flags = ((u64::from(flags) + 1) << (32 - count)) - 1;
    out[flags_at..flags_at + 4].copy_from_slice(&(flags as u32).to_le_bytes());
    out
}

/// LZ77 with Huffman codes of these lengths, which must be complete: [MS-XCA] 2.1.
pub fn huffman(data: &[u8], lens: &[u8; 512]) -> Vec<u8> {
    let mut order: Vec<usize> = (0..512).collect();
    order.sort_by_key(|&symbol| (lens[symbol], symbol));
    let (mut codes, mut code, mut last) = ([0u32; 512], 0u32, lens[order[0]]);
    for symbol in order {
        code <<= lens[symbol] - last;
        last = lens[symbol];
        codes[symbol] = code;
        code += 1;
    }
    assert_eq!(code, 1 << last, "the codes are complete");

    let mut out: Vec<u8> = lens.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect();
    let mut bits = Bits { out: &mut out, places: [0; 2], word: 0, free: 16 };
    bits.reserve(0);
    bits.reserve(1);
    let symbol = |bits: &mut Bits<'_>, symbol: usize| bits.write(lens[symbol].into(), codes[symbol]);
    for item in items(data, 65535, 65535) {
        match item {
            Item::Literal(byte) => symbol(&mut bits, byte.into()),
            Item::Match(distance, len) => {
                let (len, log) = (len - 3, distance.ilog2());
                symbol(&mut bits, 256 + len.min(15) + 16 * log as usize);
                if len >= 15 {
                    if len - 15 < 255 {
                        bits.out.push((len - 15) as u8);
                    } else {
                        bits.out.push(255);
                        bits.out.extend((len as u16).to_le_bytes());
                    }
                }
                bits.write(log, (distance - (1 << log)) as u32);
            }
        }
    }
    symbol(&mut bits, 256);
    bits.word <<= bits.free;
    bits.put();
    out
}

/// Words of bits, of which two are always open: bytes come between them.
struct Bits<'o> {
    out: &'o mut Vec<u8>,
    places: [usize; 2],
    word: u32,
    free: u32,
}

impl Bits<'_> {
    fn reserve(&mut self, place: usize) {
        self.places[place] = self.out.len();
        self.out.extend([0; 2]);
    }

    fn put(&mut self) {
        self.out[self.places[0]..][..2].copy_from_slice(&(self.word as u16).to_le_bytes());
    }

    fn write(&mut self, count: u32, value: u32) {
        if count <= self.free {
            self.free -= count;
            self.word = self.word << count | value;
            return;
        }
        let rest = count - self.free;
        self.word = self.word << self.free | value >> rest;
        self.put();
        self.places[0] = self.places[1];
        self.reserve(1);
        self.word = value & ((1 << rest) - 1);
        self.free = 16 - rest;
    }
}
