//! Why bytes are not usable BTF.

/// Why bytes are not usable BTF.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BtfError {
    /// The first bytes are not those of BTF of a little-endian machine.
    #[error("not BTF: it begins with {found:02x?} instead of 9f eb 01 00 (little-endian BTF, version 1)")]
    NotBtf {
        /// The first bytes, at most four.
        found: Vec<u8>,
    },
    /// A header shorter than the first one ever used.
    #[error("the BTF header says it has {len} bytes; the shortest has 24")]
    Header {
        /// Length that the header gives.
        len: u32,
    },
    /// A section reaches beyond the bytes.
    #[error("the {section} section of the BTF ends at byte {end}, but there are {have} bytes: the data is cut short or not BTF")]
    Short {
        /// `type`, `string` or `layout`.
        section: &'static str,
        /// Where it ends, from the start of the header.
        end: u64,
        /// Bytes there are.
        have: usize,
    },
    /// The string section does not begin with an empty name or does not end with a terminator.
    #[error("the string section of the BTF does not begin and end with a NUL byte")]
    Strings,
    /// The last record is not whole.
    #[error("BTF type {id} at byte {at} of the types reaches beyond their end")]
    Cut {
        /// Number of the type.
        id: u32,
        /// Where its record starts, from the start of the types.
        at: usize,
    },
    /// A kind of type that is not known and that the BTF does not describe itself, so that nothing behind it can be found.
    #[error("BTF type {id} has the unknown kind {kind}, and this BTF has no layout section that says how long it is")]
    UnknownKind {
        /// Number of the kind.
        kind: u8,
        /// Number of the type.
        id: u32,
    },
    /// A name that lies outside the names, or never ends.
    #[error("the name of BTF type {id}, at {at}, is not within the names; a module's BTF needs the base it was made against")]
    Name {
        /// Number of the type.
        id: u32,
        /// Offset of the name.
        at: u32,
    },
    /// More than 4 GiB of types or names.
    #[error("the BTF is longer than 4 GiB")]
    TooLong,
}
