//! Which program database belongs to a PE file: what its CodeView record (`RSDS`) says.

use core::fmt;

/// The longest CodeView record that is read: its head, and a path as long as Windows allows.
pub(crate) const MAX_RECORD: usize = 24 + 1024;

/// The identity of a program database, as the CodeView record of a PE file gives it.
///
/// It names one build of one file: two files with the same identity have the same symbols and types.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PdbIdentity {
    /// File name: `ntkrnlmp.pdb`.
    pub name: String,
    /// The GUID, in the order in which it is written: the first of its 32 hexadecimal digits are the highest ones here.
    pub guid: u128,
    /// How often the database was written.
    pub age: u32,
}

impl PdbIdentity {
    /// The identity in a CodeView record: `RSDS`, the GUID as Windows lays it out in memory (its first three parts little-endian), the age, and the path of
    /// the database when it was linked, of which the file name is taken. `None` if the bytes are no such record.
    ///
    /// The path ends with a zero, or with the bytes.
    pub fn from_codeview(record: &[u8]) -> Option<Self> {
        let rest = record.strip_prefix(b"RSDS")?;
        let (guid, rest) = rest.split_first_chunk::<16>()?;
        let (age, path) = rest.split_first_chunk::<4>()?;
        let path = path.split(|&byte| byte == 0).next()?;
        let name = path.rsplit(|&byte| byte == b'\\' || byte == b'/').next()?;
        let guid = guid_of_memory(*guid);
        Some(Self { name: String::from_utf8_lossy(name).into_owned(), guid, age: u32::from_le_bytes(*age) })
    }

    /// The identity that a key of a symbol store ([`PdbIdentity::key`]) gives; `None` if it is none.
    pub fn from_key(name: &str, key: &str) -> Option<Self> {
        let hexadecimal = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let (guid, age) = key.split_at_checked(32).filter(|(guid, age)| hexadecimal(guid) && hexadecimal(age))?;
        let guid = u128::from_str_radix(guid, 16).ok()?;
        Some(Self { name: name.to_owned(), guid, age: u32::from_str_radix(age, 16).ok()? })
    }

    /// The key of a symbol store: the GUID in 32 upper-case digits and the age in hexadecimal without leading zeros.
    pub fn key(&self) -> String {
        format!("{:032X}{:X}", self.guid, self.age)
    }
}

/// A GUID in the order in which it is written.
fn guid_of_memory(bytes: [u8; 16]) -> u128 {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
    let [i, j, k, l, m, n, o, p] = rest;
    u128::from_be_bytes([d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p])
}

impl fmt::Display for PdbIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel of the triage dump: its GUID as the symbol file's name gives it, laid out as a GUID structure is.
    #[test]
    fn a_codeview_record_and_a_key_give_the_same_identity() {
        let mut record = b"RSDS".to_vec();
        record.extend(0x5278AFF8u32.to_le_bytes());
        record.extend(0x6C34u16.to_le_bytes());
        record.extend(0x1677u16.to_le_bytes());
        record.extend([0xD7, 0xD7, 0x83, 0x5C, 0x85, 0xB7, 0xB8, 0x44]);
        record.extend(1u32.to_le_bytes());
        record.extend(b"d:\\w7rtm\\ntkrnlmp.pdb\0rest");
        let identity = PdbIdentity::from_codeview(&record).unwrap();
        assert_eq!(identity.to_string(), "ntkrnlmp.pdb 5278AFF86C341677D7D7835C85B7B8441");
        assert_eq!(PdbIdentity::from_key("ntkrnlmp.pdb", &identity.key()), Some(identity));
        assert_eq!(PdbIdentity::from_codeview(b"NB10"), None);
        assert_eq!(PdbIdentity::from_codeview(&record[..23]), None);
        assert_eq!(PdbIdentity::from_key("", "5278AFF86C341677D7D7835C85B7B844"), None, "a key without an age");
        assert_eq!(PdbIdentity::from_key("", "+278AFF86C341677D7D7835C85B7B8441"), None);
    }
}
