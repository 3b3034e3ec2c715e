//! AVML images of version 2, from the format's source and Snappy's `framing_format.txt`.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

const CHUNK: usize = 64 << 10;

/// A range: header, stream and the stream's length. Chunks that do not shrink are stored.
pub fn range(start: u64, data: &[u8]) -> Vec<u8> {
    range_in_chunks(start, data, CHUNK)
}

pub fn range_in_chunks(start: u64, data: &[u8], chunk: usize) -> Vec<u8> {
    let mut stream = b"\xff\x06\x00\x00sNaPpY".to_vec();
    for chunk in data.chunks(chunk) {
        let packed = snap::raw::Encoder::new().compress_vec(chunk).unwrap();
        let (kind, body) = if packed.len() < chunk.len() { (0, &packed[..]) } else { (1, chunk) };
        stream.extend(chunk_of(kind, chunk, body));
    }
    around(start, data.len() as u64, &stream)
}

/// A chunk of `kind` with `body`, and the checksum of `memory`.
pub fn chunk_of(kind: u8, memory: &[u8], body: &[u8]) -> Vec<u8> {
    let crc = crc32c(memory);
    let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
    let mut bytes = vec![kind];
    bytes.extend(&(body.len() as u32 + 4).to_le_bytes()[..3]);
    bytes.extend(masked.to_le_bytes());
    bytes.extend(body);
    bytes
}

/// Header and length around a stream.
pub fn around(start: u64, len: u64, stream: &[u8]) -> Vec<u8> {
    let mut bytes = b"AVML\x02\0\0\0".to_vec();
    bytes.extend(start.to_le_bytes());
    bytes.extend((start + len - 1).to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(stream);
    bytes.extend((stream.len() as u64).to_le_bytes());
    bytes
}

/// CRC-32C (Castagnoli), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}
