//! Xpress without Huffman codes: [MS-XCA] 2.3 and 2.4, "Plain LZ77".

/// A match has at least this length, and the first extensions of the length begin behind these.
const SHORTEST: usize = 3;
const IN_PAIR: usize = 7;
const IN_HALF_BYTE: usize = 15;
const IN_BYTE: usize = 255;

/// Unpacks `input` until `out` is full.
///
/// # Errors
/// What contradicts the format.
pub(super) fn unpack(input: &[u8], out: &mut [u8]) -> Result<(), &'static str> {
    let mut input = Bytes { rest: input };
    let mut done = 0usize;
    // Flags of the next literals and matches, the next one highest.
    let (mut flags, mut left) = (0u32, 0u32);
    // The second half of a byte with lengths of which one match has used the first half.
    let mut half = None;
    while done < out.len() {
        if left == 0 {
            flags = u32::from_le_bytes(input.take()?);
            left = 32;
        }
        let is_match = flags >> 31 != 0;
        flags = flags.wrapping_shl(1);
        left = left.saturating_sub(1);
        if !is_match {
            let [literal] = input.take()?;
            if let Some(byte) = out.get_mut(done) {
                *byte = literal;
            }
            done = done.saturating_add(1);
            continue;
        }
        let pair = usize::from(u16::from_le_bytes(input.take()?));
        let distance = (pair >> 3).saturating_add(1);
        let mut len = pair & 7;
        if len == IN_PAIR {
            len = match half.take() {
                Some(half) => half,
                None => {
                    let [byte] = input.take()?;
                    half = Some(usize::from(byte >> 4));
                    usize::from(byte & 15)
                }
            };
            if len == IN_HALF_BYTE {
                let [byte] = input.take()?;
                len = usize::from(byte);
                len = if len == IN_BYTE {
                    // These are whole lengths.
                    let whole = match u16::from_le_bytes(input.take()?) {
                        0 => u32::from_le_bytes(input.take()?) as usize,
                        whole => usize::from(whole),
                    };
                    whole.checked_sub(IN_PAIR).filter(|&len| len >= IN_HALF_BYTE).ok_or("a long match is short")?
                } else {
                    len.saturating_add(IN_HALF_BYTE)
                };
            }
            len = len.saturating_add(IN_PAIR);
        }
        len = len.saturating_add(SHORTEST);
        done = copy(out, done, distance, len)?;
    }
    Ok(())
}

/// Repeats `len` bytes from `distance` bytes before `done`, or as many as there is room for. Where they end.
fn copy(out: &mut [u8], done: usize, distance: usize, len: usize) -> Result<usize, &'static str> {
    let from = done.checked_sub(distance).ok_or("a match begins before the first byte")?;
    let end = done.saturating_add(len).min(out.len());
    // The source may reach into what is being written: a repeated pattern.
    let mut at = done;
    while at < end {
        let step = end.saturating_sub(at).min(at.saturating_sub(from));
        out.copy_within(from..from.saturating_add(step), at);
        at = at.saturating_add(step);
    }
    Ok(end)
}

struct Bytes<'a> {
    rest: &'a [u8],
}

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or("ends too early")?;
        self.rest = rest;
        Ok(*bytes)
    }
}
