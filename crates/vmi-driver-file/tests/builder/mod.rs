//! Images made byte by byte, from the formats' descriptions and without the crate's own code.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

pub mod hiberfil;
pub mod windows_dump;

use std::path::PathBuf;

use tempfile::TempDir;
use vmi_core::{Driver, ErrorKind, Memory, VcpuId, Vmi};
use vmi_driver_file::{Format, ImageDriver, OpenError, OpenOptions};

/// A directory with one file in it.
pub struct TestFile {
    directory: TempDir,
}

impl TestFile {
    pub fn new(bytes: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("image"), bytes).unwrap();
        Self { directory }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("image")
    }
}

pub fn open(bytes: &[u8]) -> Result<Vmi<ImageDriver>, OpenError> {
    open_with(bytes, OpenOptions::new())
}

pub fn open_with(bytes: &[u8], options: OpenOptions) -> Result<Vmi<ImageDriver>, OpenError> {
    options.open_bytes("image", bytes.to_vec()).map(Vmi::new)
}

/// Opens `bytes` as `format` and touches what can be touched. Whether they opened.
pub fn exercise(bytes: &[u8], format: Option<Format>, allow_truncated: bool) -> bool {
    let options = OpenOptions::new().allow_truncated(allow_truncated).max_unpacked(1 << 20);
    let options = match format {
        Some(format) => options.format(format),
        None => options,
    };
    let Ok(vmi) = open_with(bytes, options) else { return false };
    // Packed memory may turn out to be damaged when it is read; what is there in plain may not.
    let read = |at, buf: &mut [u8]| match vmi.read_into(at, buf) {
        Err(error) if vmi.driver().mapping().is_none() && matches!(error.kind(), ErrorKind::Driver { .. }) => None,
        other => Some(other.map_err(|error| error.done())),
    };
    for region in vmi.machine().memory.regions().iter().take(100) {
        let last = region.end().checked_sub(1).unwrap();
        let mut buf = [0; 2];
        assert!(read(region.start(), &mut buf[..1]).is_none_or(|read| read.is_ok()));
        assert!(read(last, &mut buf[..1]).is_none_or(|read| read.is_ok()));
        // Across the end: one byte is good, as regions lie apart.
        assert!(read(last, &mut buf).is_none_or(|read| read == Err(1)));
    }
    if let Some(vcpus) = vmi.driver().vcpus() {
        vcpus.registers(VcpuId(vcpus.vcpu_count() - 1)).unwrap();
    }
    true
}

/// Bytes that tell where they are.
pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31) ^ ((i >> 8) as u8) ^ seed | 1).collect()
}

/// A LiME range.
pub fn lime(start: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"EMiL\x01\0\0\0".to_vec();
    bytes.extend(start.to_le_bytes());
    bytes.extend((start + data.len() as u64 - 1).to_le_bytes());
    bytes.extend(0xdead_beef_dead_beef_u64.to_le_bytes());
    bytes.extend(data);
    bytes
}

/// An ELF core under construction.
#[derive(Clone)]
pub struct Elf {
    pub class64: bool,
    pub machine: u16,
    pub kind: u16,
    pub ident_version: u8,
    pub extended_count: bool,
    pub segments: Vec<Segment>,
}

/// A program header, and the bytes it points at.
#[derive(Clone, Default)]
pub struct Segment {
    pub kind: u32,
    pub virtual_address: u64,
    pub physical_address: u64,
    pub data: Vec<u8>,
    /// Instead of the place of `data`.
    pub offset: Option<u64>,
    /// Instead of the length of `data`.
    pub file_len: Option<u64>,
    pub memory_len: Option<u64>,
}

pub fn load(at: u64, data: Vec<u8>) -> Segment {
    Segment { kind: 1, virtual_address: at, physical_address: at, data, ..Segment::default() }
}

pub fn notes(data: Vec<u8>) -> Segment {
    Segment { kind: 4, data, ..Segment::default() }
}

pub fn note(name: &[u8], kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in [name.len() as u32, data.len() as u32, kind] {
        bytes.extend(number.to_le_bytes());
    }
    for part in [name, data] {
        bytes.extend(part);
        while bytes.len() % 4 != 0 {
            bytes.push(0);
        }
    }
    bytes
}

impl Elf {
    pub fn new(segments: Vec<Segment>) -> Self {
        Self { class64: true, machine: 62, kind: 4, ident_version: 1, extended_count: false, segments }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let word = |value: u64| if self.class64 { value.to_le_bytes().to_vec() } else { (value as u32).to_le_bytes().to_vec() };
        let (header_len, segment_len, section_len) = if self.class64 { (64, 56, 64) } else { (52, 32, 40) };
        let segments_at = header_len + if self.extended_count { section_len } else { 0 };
        let mut data_at = (segments_at + segment_len * self.segments.len()) as u64;
        let mut out = vec![0x7f, b'E', b'L', b'F', 1 + u8::from(self.class64), 1, self.ident_version];
        out.resize(16, 0);
        out.extend(self.kind.to_le_bytes());
        out.extend(self.machine.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        out.extend(word(0));
        out.extend(word(segments_at as u64));
        out.extend(word(if self.extended_count { header_len as u64 } else { 0 }));
        out.extend(0u32.to_le_bytes());
        let count = if self.extended_count { 0xffff } else { self.segments.len() as u16 };
        for half in [header_len as u16, segment_len as u16, count, section_len as u16, u16::from(self.extended_count), 0] {
            out.extend(half.to_le_bytes());
        }
        assert_eq!(out.len(), header_len);
        if self.extended_count {
            let mut section = vec![0; section_len];
            let info = if self.class64 { 44 } else { 28 };
            section[info..info + 4].copy_from_slice(&(self.segments.len() as u32).to_le_bytes());
            out.extend(section);
        }
        for segment in &self.segments {
            let file_len = segment.file_len.unwrap_or(segment.data.len() as u64);
            let words = [
                segment.offset.unwrap_or(data_at),
                segment.virtual_address,
                segment.physical_address,
                file_len,
                segment.memory_len.unwrap_or(file_len),
            ];
            out.extend(segment.kind.to_le_bytes());
            if self.class64 {
                out.extend(7u32.to_le_bytes());
            }
            words.iter().for_each(|&value| out.extend(word(value)));
            if !self.class64 {
                out.extend(7u32.to_le_bytes());
            }
            out.extend(word(0));
            data_at += segment.data.len() as u64;
        }
        self.segments.iter().for_each(|segment| out.extend(&segment.data));
        out
    }
}
