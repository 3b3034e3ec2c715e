//! `struct btf_header`.

use core::ops::Range;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::BtfError;

/// The magic number 0xeb9f, version 1, no flags: as they lie in memory.
pub(super) const MAGIC: [u8; 4] = [0x9f, 0xeb, 1, 0];

/// `struct btf_header` up to 7.0. Section offsets count from the end of the header as its own length says.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fixed {
    magic: U16,
    version: u8,
    flags: u8,
    len: U32,
    type_off: U32,
    type_len: U32,
    str_off: U32,
    str_len: U32,
}

/// What 7.1 appended (`btf: Add BTF kind layout encoding`): a section with the record size of each kind.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Appended {
    layout_off: U32,
    layout_len: U32,
}

/// Types, strings and, if there, layouts.
pub(super) type Sections = (Range<usize>, Range<usize>, Option<Range<usize>>);

/// A header whose first bytes are right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    fixed: Fixed,
    appended: Option<Appended>,
}

impl Header {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BtfError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(BtfError::NotBtf { found: bytes.iter().take(MAGIC.len()).copied().collect() });
        }
        let short = BtfError::Short { section: "header", end: 24, have: bytes.len() };
        let (fixed, rest) = Fixed::read_from_prefix(bytes).map_err(|_| short)?;
        let appended = match fixed.len.get() {
            len @ ..24 => return Err(BtfError::Header { len }),
            24..32 => None,
            _ => {
                let short = BtfError::Short { section: "header", end: 32, have: bytes.len() };
                Some(Appended::read_from_prefix(rest).map_err(|_| short)?.0)
            }
        };
        Ok(Self { fixed, appended })
    }

    /// Length of the header in bytes, as it says itself.
    pub(super) fn len(&self) -> u32 {
        self.fixed.len.get()
    }

    /// Where the strings begin, from the start of the header.
    pub(super) fn strings(&self) -> Range<u64> {
        self.span(self.fixed.str_off, self.fixed.str_len)
    }

    /// Where the types are, from the start of the header.
    pub(super) fn types(&self) -> Range<u64> {
        self.span(self.fixed.type_off, self.fixed.type_len)
    }

    /// Where the layouts are, from the start of the header.
    pub(super) fn layouts(&self) -> Option<Range<u64>> {
        let span = self.appended.map(|appended| self.span(appended.layout_off, appended.layout_len))?;
        (!span.is_empty()).then_some(span)
    }

    /// The sections as ranges of `have` bytes that begin with the header.
    pub(super) fn sections(&self, have: usize) -> Result<Sections, BtfError> {
        let within = |section, span: Range<u64>| match (usize::try_from(span.start), usize::try_from(span.end)) {
            (Ok(start), Ok(end)) if end <= have => Ok(start..end),
            _ => Err(BtfError::Short { section, end: span.end, have }),
        };
        let layouts = self.layouts().map(|span| within("layout", span)).transpose()?;
        Ok((within("type", self.types())?, within("string", self.strings())?, layouts))
    }

    fn span(&self, offset: U32, len: U32) -> Range<u64> {
        // Sums of three 32-bit numbers: no overflow.
        let start = u64::from(self.len()).saturating_add(offset.get().into());
        start..start.saturating_add(len.get().into())
    }
}
