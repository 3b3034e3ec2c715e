//! Which program database belongs to a PE file: what its CodeView record (`RSDS`) says.

use core::fmt;

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

impl fmt::Display for PdbIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.key())
    }
}
