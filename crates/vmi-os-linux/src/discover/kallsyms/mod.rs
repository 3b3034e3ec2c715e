//! The kernel's symbol table in its memory (kallsyms), found and read by its structure alone.
//!
//! `scripts/kallsyms.c` of the kernel writes the table into `.rodata` at build time. Names are sequences of tokens out of a table of
//! 256; markers hold the offset of every 256th name; addresses are kept in one of four encodings. The pieces and their order
//! changed over the releases, and distributions backport the changes, so nothing here asks for a version: each piece is found by
//! what it must look like, and the pieces prove each other.
//!
//! | kernel | order | addresses |
//! |---|---|---|
//! | to 4.5 | addresses, num_syms, names, markers, tokens, index | absolute |
//! | 4.6 to 6.1 | offsets, relative_base, num_syms, names, markers, tokens, index | per-CPU absolute, or relative |
//! | 6.2, 6.3, late 6.1.y | the same with seqs_of_names between markers and tokens | the same |
//! | 6.4 to 6.14 | num_syms, names, markers, tokens, index, offsets, relative_base, seqs_of_names | the same |
//! | 6.15 to 6.19 | the same | relative |
//! | from 7.0 | the same without relative_base | relative to the place of the offset |
//!
//! Markers are pointers before 4.20 and 32-bit since; names longer than 127 tokens have a two-byte length since 6.1.

mod addresses;
mod names;
#[cfg(test)]
pub(super) mod tests;
mod tokens;

use vmi_core::{SymbolsBuilder, VirtAddr};

use addresses::Addresses;
pub use addresses::Encoding;
use names::Names;
use tokens::Tokens;

/// The token strings of the ten digits: each is a token of its own in every kernel, and the ten lie in a row.
pub const DIGITS: &[u8; 20] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";

/// Bytes of the token index: 256 offsets of 16 bits.
const TOKEN_INDEX: usize = 512;

/// Symbols that a table may have. Real kernels have 0.05 to 0.3 million.
const MAX_SYMBOLS: usize = 1 << 21;

/// Bytes that a table may take before and behind its tokens: enough for two million names of usual length.
pub const MAX_REACH: u64 = 48 << 20;

/// A piece of a table that is not as it must be: why a place that looked like a symbol table is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reject {
    /// No array of 256 token offsets behind the digits.
    #[error("no token index behind the digit tokens")]
    Index,
    /// No marker array before the tokens that agrees with the names before it.
    #[error("no markers that agree with the names before the tokens")]
    Markers,
    /// Neither before nor behind the names lie addresses in ascending order.
    #[error("no ascending addresses beside the names")]
    Addresses,
    /// A name that is longer than the kernel allows, or empty.
    #[error("a name that no symbol can have")]
    Name,
}

/// A symbol table, located and not yet decoded.
#[derive(Debug)]
pub struct Table<'b> {
    tokens: Tokens,
    names: Names<'b>,
    addresses: Addresses<'b>,
}

impl<'b> Table<'b> {
    /// The table whose digit tokens are at `digits` in `bytes`.
    ///
    /// `bytes` starts at a page boundary of the guest, and `start` is the address of its first byte: where the encoding is relative to its
    /// place, symbols come out in the address space that `start` belongs to.
    ///
    /// # Errors
    /// What is missing: there is no table here.
    pub fn locate(bytes: &'b [u8], digits: usize, start: u64, pointer_size: usize) -> Result<Self, Reject> {
        let tokens = Tokens::locate(bytes, digits)?;
        let names = Names::locate(bytes, &tokens)?;
        let addresses = Addresses::locate(bytes, &tokens, &names, start, pointer_size)?;
        Ok(Self { tokens, names, addresses })
    }

    /// How many symbols there are; never zero.
    #[allow(clippy::len_without_is_empty)] // a table is never empty
    pub fn len(&self) -> usize {
        self.names.count
    }

    /// How addresses are kept.
    pub fn encoding(&self) -> Encoding {
        self.addresses.encoding
    }

    /// The kernel's names for the pieces of the table, which the table itself does not list, and where they are: in the address space that
    /// `start` of [`Table::locate`] belongs to.
    pub fn pieces(&self) -> Vec<(&'static str, VirtAddr)> {
        let Self { tokens, names, addresses } = self;
        let (offsets, base_at) = match addresses.encoding {
            Encoding::Absolute => ("kallsyms_addresses", None),
            Encoding::PlaceRelative => ("kallsyms_offsets", None),
            // The base follows the offsets. Before the names, these follow it.
            _ if addresses.at < names.count_at => ("kallsyms_offsets", names.count_at.checked_sub(addresses.pointer_size)),
            _ => {
                let end = addresses.at.saturating_add(names.count.saturating_mul(4));
                ("kallsyms_offsets", end.checked_next_multiple_of(addresses.pointer_size))
            }
        };
        let mut pieces = vec![
            (offsets, addresses.at),
            ("kallsyms_num_syms", names.count_at),
            ("kallsyms_names", names.start),
            ("kallsyms_markers", names.markers_at),
            ("kallsyms_token_table", tokens.start),
            ("kallsyms_token_index", tokens.end.saturating_sub(TOKEN_INDEX)),
        ];
        pieces.extend(base_at.map(|at| ("kallsyms_relative_base", at)));
        pieces.into_iter().map(|(name, at)| (name, VirtAddr::new(addresses.start.wrapping_add(at as u64)))).collect()
    }

    /// Decodes all symbols into `builder`.
    ///
    /// # Errors
    /// [`Reject::Name`] if a name is impossible; `builder` holds the symbols before it then.
    pub fn decode(&self, builder: &mut SymbolsBuilder) -> Result<(), Reject> {
        let text = self.names.decode(&self.tokens)?;
        builder.reserve(self.len());
        let mut start = 0usize;
        for (index, &end) in text.ends.iter().enumerate() {
            let name = text.names.get(start..end as usize).ok_or(Reject::Name)?;
            start = end as usize;
            // The first character is the type as nm(1) writes it, the rest the name.
            let (kind, name) = name.split_at_checked(1).ok_or(Reject::Name)?;
            let kind = kind.bytes().next().ok_or(Reject::Name)?;
            let address = self.addresses.get(index).ok_or(Reject::Addresses)?;
            if name.is_empty() || !builder.push(name, VirtAddr::new(address), kind) {
                return Err(Reject::Name);
            }
        }
        Ok(())
    }
}

/// Whether the index of a token table follows the digit tokens at `digits`: a check that needs only their surroundings.
///
/// # Errors
/// [`Reject::Index`] if not.
pub fn has_index(bytes: &[u8], digits: usize) -> Result<(), Reject> {
    Tokens::locate(bytes, digits).map(drop)
}

/// The little-endian number of `N` bytes at `at`.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    number(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_le_bytes)
}
