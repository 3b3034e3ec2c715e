//! The token table and the index of its 256 strings.

use super::{Reject, u16_at};

/// Bytes in which a token table of 256 strings ends: real ones take 0.8 to 1.5 KiB.
const REACH: usize = 8 << 10;

/// Token strings that are at most this long are copied in one piece.
pub(super) const SHORT: usize = 16;

/// The 256 token strings.
#[derive(Debug)]
pub(super) struct Tokens {
    /// Offset of the first string.
    pub(super) start: usize,
    /// Offset behind the index.
    pub(super) end: usize,
    strings: Vec<Token>,
}

/// One token string, as text: bytes that are no printable ASCII are escaped, so that every name is text.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) text: Vec<u8>,
    /// The same, cut or padded: most tokens are shorter.
    pub(super) short: [u8; SHORT],
}

impl Tokens {
    /// The table whose digits are at `digits`. The index follows it: for every token the offset of its string, in 16 bits.
    pub(super) fn locate(bytes: &[u8], digits: usize) -> Result<Self, Reject> {
        let behind = digits.checked_add(super::DIGITS.len()).and_then(|end| end.checked_next_multiple_of(4));
        let first = behind.ok_or(Reject::Index)?;
        (first..first.saturating_add(REACH)).step_by(4).find_map(|index| Self::parse(bytes, digits, index)).ok_or(Reject::Index)
    }

    pub(super) fn parse(bytes: &[u8], digits: usize, index: usize) -> Option<Self> {
        let offset = |token: usize| u16_at(bytes, index.checked_add(token.checked_mul(2)?)?).map(usize::from);
        let digit = offset(usize::from(b'0'))?;
        if offset(0)? != 0 || offset(usize::from(b'1'))? != digit.checked_add(2)? {
            return None;
        }
        let start = digits.checked_sub(digit)?;
        let table = bytes.get(start..index)?;
        let mut strings = Vec::with_capacity(256);
        let mut at = 0usize;
        for token in 0..256usize {
            if offset(token)? != at {
                return None;
            }
            let rest = table.get(at..)?;
            let len = memchr::memchr(0, rest)?;
            strings.push(Token::new(rest.get(..len)?));
            at = at.checked_add(len)?.checked_add(1)?;
        }
        // Between the last string and the index lies nothing but alignment.
        if table.get(at..)?.len() >= 8 {
            return None;
        }
        Some(Self { start, end: index.checked_add(super::TOKEN_INDEX)?, strings })
    }

    pub(super) fn get(&self, token: u8) -> Option<&Token> {
        self.strings.get(usize::from(token))
    }
}

impl Token {
    fn new(raw: &[u8]) -> Self {
        let text: Vec<u8> = if raw.iter().all(u8::is_ascii_graphic) { raw.to_vec() } else { raw.escape_ascii().collect() };
        let mut short = [0; SHORT];
        short.iter_mut().zip(&text).for_each(|(to, from)| *to = *from);
        Self { text, short }
    }
}
