//! kdump's compressed format and makedumpfile's flattened form, written from their layouts.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;

pub const PAGE: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Zlib,
    Lzo,
    Snappy,
    Zstd,
}

/// Whose rules the structures follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    Wide,
    /// 32 bits, 64-bit fields aligned by 4 as on i386.
    Narrow,
    /// 32 bits, 64-bit fields aligned by 8.
    NarrowPadded,
}

#[derive(Clone)]
pub struct Dump {
    pub signature: &'static [u8; 8],
    pub width: Width,
    pub version: u32,
    pub machine: &'static str,
    pub status: u32,
    pub pages: BTreeMap<u64, (Vec<u8>, Packing)>,
    /// One more than the highest page.
    pub max_page: u64,
    pub one_bitmap: bool,
    pub range: Option<Range<u64>>,
    pub vmcoreinfo: Vec<u8>,
    pub notes: Vec<u8>,
}

impl Dump {
    pub fn new(pages: impl IntoIterator<Item = (u64, Vec<u8>, Packing)>) -> Self {
        let pages: BTreeMap<_, _> = pages.into_iter().map(|(number, bytes, packing)| (number, (bytes, packing))).collect();
        Self {
            signature: b"KDUMP   ",
            width: Width::Wide,
            version: 6,
            machine: "x86_64",
            status: 0,
            max_page: pages.last_key_value().map_or(0, |(number, _)| number + 1),
            pages,
            one_bitmap: false,
            range: None,
            vmcoreinfo: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let bitmap_blocks = (self.max_page as usize).div_ceil(8 * PAGE).max(1);
        let copies = if self.one_bitmap { 1 } else { 2 };
        let sub = self.sub_header();
        let sub_blocks = sub.len().div_ceil(PAGE);

        let mut out = self.signature.to_vec();
        out.extend(self.version.to_le_bytes());
        for text in ["Linux", "node", "6.1.0", "#1 SMP", self.machine, "(none)"] {
            let mut field = text.as_bytes().to_vec();
            field.resize(65, 0);
            out.extend(field);
        }
        out.resize(if self.width == Width::Wide { 424 } else { 412 }, 0);
        let max = u32::try_from(self.max_page).unwrap_or(u32::MAX);
        let counts = [self.status, PAGE as u32, sub_blocks as u32, (bitmap_blocks * copies) as u32, max, 0, 0, 0, 0, 1];
        counts.iter().for_each(|count| out.extend(count.to_le_bytes()));
        out.resize(PAGE, 0);
        out.extend(sub);
        out.resize(PAGE * (1 + sub_blocks), 0);

        let mut bitmap = vec![0u8; bitmap_blocks * PAGE];
        if !self.one_bitmap {
            // All memory that exists: more than what was dumped.
            out.extend(vec![0xff; bitmap_blocks * PAGE]);
        }
        for &page in self.pages.keys() {
            bitmap[page as usize / 8] |= 1 << (page % 8);
        }
        out.extend(bitmap);

        let mine = |page: &u64| self.range.as_ref().is_none_or(|range| range.contains(page));
        let mine: Vec<_> = self.pages.iter().filter(|(page, _)| mine(page)).map(|(_, page)| page).collect();
        let data_at = out.len() + 24 * mine.len();
        let (mut table, mut data) = (Vec::new(), Vec::<u8>::new());
        let mut zero_at = None;
        for (bytes, packing) in mine {
            let packed = pack(bytes, *packing);
            let is_zero = bytes.iter().all(|byte| *byte == 0);
            let at = match zero_at.filter(|_| is_zero) {
                Some(at) => at,
                None => {
                    let at = data_at + data.len();
                    data.extend(&packed);
                    at
                }
            };
            if is_zero {
                zero_at = Some(at);
            }
            let flags: u32 = match packing {
                Packing::Plain => 0,
                Packing::Zlib => 1,
                Packing::Lzo => 2,
                Packing::Snappy => 4,
                Packing::Zstd => 0x20,
            };
            table.extend((at as u64).to_le_bytes());
            table.extend((packed.len() as u32).to_le_bytes());
            table.extend(flags.to_le_bytes());
            table.extend(0u64.to_le_bytes());
        }
        out.extend(table);
        out.extend(data);
        out
    }

    /// The sub-header, and behind it VMCOREINFO and notes.
    fn sub_header(&self) -> Vec<u8> {
        let base = PAGE as u64;
        let (info_at, info_len) = (base + 200, self.vmcoreinfo.len() as u64);
        let (notes_at, notes_len) = (info_at + info_len.next_multiple_of(4), self.notes.len() as u64);
        let there = |at: u64, len: u64| if len == 0 { (0, 0) } else { (at, len) };
        let (info_at, info_len) = there(info_at, info_len);
        let notes_begin = notes_at;
        let (notes_at, notes_len) = there(notes_at, notes_len);
        let range = self.range.clone().unwrap_or(0..0);
        let split = u32::from(self.range.is_some());
        let mut out = Vec::new();
        let word = |out: &mut Vec<u8>, value: u64| match self.width {
            Width::Wide => out.extend(value.to_le_bytes()),
            _ => out.extend((value as u32).to_le_bytes()),
        };
        let long = |out: &mut Vec<u8>, value: u64| {
            if self.width == Width::NarrowPadded {
                out.resize(out.len().next_multiple_of(8), 0);
            }
            out.extend(value.to_le_bytes());
        };
        word(&mut out, 0x100_0000);
        out.extend(31u32.to_le_bytes());
        if self.version >= 2 {
            out.extend(split.to_le_bytes());
            word(&mut out, range.start);
            word(&mut out, range.end);
        }
        for (version, at, len) in [(3, info_at, info_len), (4, notes_at, notes_len), (5, 0, 0)] {
            if self.version >= version {
                long(&mut out, at);
                word(&mut out, len);
            }
        }
        if self.version >= 6 {
            [range.start, range.end, self.max_page].iter().for_each(|&value| long(&mut out, value));
        }
        assert!(out.len() <= 200);
        // A file of an older version may have anything here.
        out.resize(200, if self.version < 6 { 0x5a } else { 0 });
        out.extend(&self.vmcoreinfo);
        out.resize(notes_begin as usize - PAGE, 0);
        out.extend(&self.notes);
        out
    }
}

/// Packs a page; plain if that is not smaller.
pub fn pack(page: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain => page.to_vec(),
        Packing::Zlib => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(page).unwrap();
            encoder.finish().unwrap()
        }
        Packing::Lzo => lzo_of_16_bytes_repeated(page),
        Packing::Snappy => snap::raw::Encoder::new().compress_vec(page).unwrap(),
        Packing::Zstd => zstd::bulk::compress(page, 1).unwrap(),
    }
}

/// LZO1X by hand: 16 literals, one match of distance 16 for the rest, the end (Linux, Documentation/staging/lzo.rst).
fn lzo_of_16_bytes_repeated(page: &[u8]) -> Vec<u8> {
    let (literals, rest) = page.split_at(16);
    assert!(rest.iter().zip(page).all(|(a, b)| a == b), "not 16 bytes repeated");
    let mut out = vec![17 + 16];
    out.extend(literals);
    // Length 2 + 31 + 255 for each zero + the byte that is none.
    let more = rest.len() - 33;
    out.push(0x20);
    out.extend(vec![0; more / 255]);
    out.push((more % 255) as u8);
    out.extend((15u16 << 2).to_le_bytes());
    out.extend([0x11, 0, 0]);
    out
}

/// A page that each packing makes smaller.
pub fn page(seed: u64) -> Vec<u8> {
    let mut block: Vec<u8> = (0..16u8).map(|i| (seed as u8).wrapping_mul(37) ^ i.wrapping_mul(seed as u8 | 1)).collect();
    block[..8].copy_from_slice(&(seed + 1).to_le_bytes());
    block.repeat(PAGE / 16)
}

/// `bytes` in segments of these lengths (the last one again and again), each at its place.
pub fn flatten(bytes: &[u8], lens: &[usize]) -> Vec<u8> {
    let mut segments = Vec::new();
    let (mut at, mut lens) = (0, lens.iter().copied().peekable());
    let mut len = 1;
    while at < bytes.len() {
        len = lens.next().unwrap_or(len).max(1);
        let end = (at + len).min(bytes.len());
        segments.push((at as i64, bytes[at..end].to_vec()));
        at = end;
    }
    flattened(&segments)
}

pub fn flattened(segments: &[(i64, Vec<u8>)]) -> Vec<u8> {
    let mut out = b"makedumpfile\0\0\0\0".to_vec();
    out.extend(1i64.to_be_bytes());
    out.extend(1i64.to_be_bytes());
    out.resize(4096, 0);
    for (offset, data) in segments {
        out.extend(offset.to_be_bytes());
        out.extend((data.len() as i64).to_be_bytes());
        out.extend(data);
    }
    out.extend((-1i64).to_be_bytes());
    out.extend((-1i64).to_be_bytes());
    out
}
