//! Little-endian numbers and names out of the bytes of a cell.

/// The two bytes at `at` as a number.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

/// The four bytes at `at` as a number.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

/// The eight bytes at `at` as a number.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

/// UTF-16 text; what is not UTF-16 is replaced, an odd last byte is left out.
pub(crate) fn utf16(bytes: &[u8]) -> String {
    char::decode_utf16(bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit)))
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// A name of a key or value: compressed ones have a byte for each of the first 256 characters of Unicode.
pub(super) fn name(bytes: &[u8], compressed: bool) -> String {
    if compressed { bytes.iter().map(|&byte| char::from(byte)).collect() } else { utf16(bytes) }
}

/// Whether two names are the same to the registry, which does not tell upper case from lower case.
pub(super) fn same_name(one: &str, other: &str) -> bool {
    one.chars().flat_map(char::to_uppercase).eq(other.chars().flat_map(char::to_uppercase))
}
