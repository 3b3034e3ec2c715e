//! Packets of the gdb remote serial protocol (GDB manual, appendix "GDB Remote Serial Protocol", section "Overview").

use super::error::GdbCause;

/// The most that a packet may hold, before and after its runs are expanded. QEMU sends at most 0x20020 bytes.
pub(super) const MAX_PACKET: usize = 1 << 20;

/// Something that came from the stub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// The stub got our packet.
    Ack,
    /// The stub got our packet damaged.
    Nak,
    /// A packet, its runs expanded and its escapes undone.
    Packet(Vec<u8>),
    /// A notification, which is not acknowledged.
    Notification(Vec<u8>),
    /// A packet with a wrong checksum or a wrong run.
    Damaged,
}

/// Appends a packet with this payload to `out`.
pub fn encode(payload: &[u8], out: &mut Vec<u8>) {
    let mut sum = 0_u8;
    out.push(b'$');
    let mut put = |byte: u8| {
        sum = sum.wrapping_add(byte);
        out.push(byte);
    };
    for &byte in payload {
        if matches!(byte, b'#' | b'$' | b'*' | b'}') {
            put(b'}');
            put(byte ^ 0x20);
        } else {
            put(byte);
        }
    }
    out.push(b'#');
    push_hex(sum, out);
}

/// Two hexadecimal digits.
pub(super) fn push_hex(byte: u8, out: &mut Vec<u8>) {
    for digit in [byte >> 4, byte & 15] {
        out.push(if digit < 10 { b'0'.saturating_add(digit) } else { b'a'.saturating_add(digit.saturating_sub(10)) });
    }
}

/// The value of a hexadecimal digit.
pub(super) fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte.wrapping_sub(b'0')),
        b'a'..=b'f' => Some(byte.wrapping_sub(b'a').wrapping_add(10)),
        b'A'..=b'F' => Some(byte.wrapping_sub(b'A').wrapping_add(10)),
        _ => None,
    }
}

/// Finds packets and acknowledgements in a stream of bytes. Bytes between them mean nothing and are passed over.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// What lies before is done with.
    start: usize,
    /// The packet at `start` has no end before this place.
    searched: usize,
}

impl Decoder {
    /// Takes what has arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start.min(self.bytes.len()));
            self.searched = self.searched.saturating_sub(self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Forgets what has arrived.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The next whole item, if there is one.
    ///
    /// # Errors
    /// [`GdbCause::TooLong`] if a packet does not end, or expands beyond measure.
    pub fn next_item(&mut self) -> Result<Option<Item>, GdbCause> {
        loop {
            let rest = self.bytes.get(self.start..).unwrap_or_default();
            let Some((&first, body)) = rest.split_first() else { return Ok(None) };
            match first {
                b'+' | b'-' => {
                    self.advance(1);
                    return Ok(Some(if first == b'+' { Item::Ack } else { Item::Nak }));
                }
                b'$' | b'%' => {
                    let searched = self.searched.saturating_sub(self.start).min(body.len());
                    let found = body
                        .get(searched..)
                        .and_then(|unsearched| unsearched.iter().position(|byte| matches!(byte, b'#' | b'$')));
                    let Some(end) = found.map(|place| place.saturating_add(searched)) else {
                        if body.len() > MAX_PACKET {
                            return Err(GdbCause::TooLong { limit: MAX_PACKET });
                        }
                        self.searched = self.start.saturating_add(body.len());
                        return Ok(None);
                    };
                    if body.get(end) == Some(&b'$') {
                        // A packet that begins within another: the first was cut off.
                        self.advance(end.saturating_add(1));
                        continue;
                    }
                    let Some(&[high, low]) = body.get(end.saturating_add(1)..end.saturating_add(3)) else {
                        self.searched = self.start.saturating_add(end);
                        return Ok(None);
                    };
                    let payload = body.get(..end).unwrap_or_default();
                    let sum = payload.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
                    let right = digit(high).zip(digit(low)).is_some_and(|(high, low)| high << 4 | low == sum);
                    let item = match (right, first) {
                        (false, _) => Item::Damaged,
                        (true, b'$') => expand(payload)?.map_or(Item::Damaged, Item::Packet),
                        (true, _) => expand(payload)?.map_or(Item::Damaged, Item::Notification),
                    };
                    self.advance(end.saturating_add(4));
                    return Ok(Some(item));
                }
                _ => self.advance(1),
            }
        }
    }

    fn advance(&mut self, by: usize) {
        self.start = self.start.saturating_add(by);
        self.searched = self.start;
    }
}

/// Undoes escapes and runs. `None` if they are wrong.
fn expand(payload: &[u8]) -> Result<Option<Vec<u8>>, GdbCause> {
    if !payload.iter().any(|byte| matches!(byte, b'}' | b'*')) {
        return if payload.len() > MAX_PACKET {
            Err(GdbCause::TooLong { limit: MAX_PACKET })
        } else {
            Ok(Some(payload.to_vec()))
        };
    }
    let mut out = Vec::with_capacity(payload.len());
    let mut bytes = payload.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'}' => match bytes.next() {
                Some(&escaped) => out.push(escaped ^ 0x20),
                None => return Ok(None),
            },
            b'*' => {
                // A printable character that tells how often the one before is repeated, plus 29.
                let count =
                    bytes.next().filter(|count| (b' '..=b'~').contains(count)).map(|count| usize::from(count.wrapping_sub(29)));
                match (count, out.last().copied()) {
                    (Some(count), Some(last)) => out.resize(out.len().saturating_add(count), last),
                    _ => return Ok(None),
                }
            }
            _ => out.push(byte),
        }
        if out.len() > MAX_PACKET {
            return Err(GdbCause::TooLong { limit: MAX_PACKET });
        }
    }
    Ok(Some(out))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn items(bytes: &[u8]) -> Vec<Item> {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        std::iter::from_fn(|| decoder.next_item().unwrap()).collect()
    }

    #[test]
    fn packets_of_a_stream() {
        let stream = b"junk+-$OK#9a%Stop:T05#55$m0,4#fd+$0* #7a$*a#8b$x}\x03#f8";
        let expected = [
            Item::Ack,
            Item::Nak,
            Item::Packet(b"OK".to_vec()),
            Item::Damaged,
            Item::Packet(b"m0,4".to_vec()),
            Item::Ack,
            Item::Packet(b"0000".to_vec()),
            Item::Damaged,
            Item::Packet(b"x#".to_vec()),
        ];
        assert_eq!(items(stream), expected);
    }

    #[test]
    fn a_notification_is_told_apart() {
        assert_eq!(items(b"%Stop#99"), [Item::Damaged]);
        assert_eq!(items(b"%Stop#a6"), [Item::Notification(b"Stop".to_vec())]);
    }

    #[test]
    fn a_packet_that_was_cut_off_is_dropped() {
        assert_eq!(items(b"$m0,4$OK#9a"), [Item::Packet(b"OK".to_vec())]);
    }

    #[test]
    fn a_packet_without_end_is_refused() {
        let mut decoder = Decoder::default();
        decoder.push(b"$");
        for _ in 0..16 {
            decoder.push(&[b'0'; MAX_PACKET / 16]);
            assert_eq!(decoder.next_item().unwrap(), None);
        }
        decoder.push(b"0");
        assert!(matches!(decoder.next_item(), Err(GdbCause::TooLong { .. })));
        let mut bomb = b"$0".to_vec();
        bomb.extend(b"*~".repeat(MAX_PACKET / 90));
        let sum = bomb.iter().skip(1).fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        bomb.push(b'#');
        push_hex(sum, &mut bomb);
        decoder.clear();
        decoder.push(&bomb);
        assert!(matches!(decoder.next_item(), Err(GdbCause::TooLong { .. })));
    }

    proptest! {
        /// What is encoded is decoded, however the stream is cut.
        #[test]
        fn round_trip(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..6), cut in 1_usize..9) {
            let mut stream = Vec::new();
            for payload in &payloads {
                encode(payload, &mut stream);
            }
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for bytes in stream.chunks(cut) {
                decoder.push(bytes);
                while let Some(item) = decoder.next_item().unwrap() {
                    got.push(item);
                }
            }
            prop_assert_eq!(got, payloads.into_iter().map(Item::Packet).collect::<Vec<_>>());
        }

        #[test]
        fn any_bytes(bytes in prop::collection::vec(prop::sample::select(b"$#%+-*}~ 0a\xff\x03".to_vec()), 0..200), cut in 1_usize..9) {
            let whole = items(&bytes);
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for bytes in bytes.chunks(cut) {
                decoder.push(bytes);
                while let Some(item) = decoder.next_item().unwrap() {
                    got.push(item);
                }
            }
            prop_assert_eq!(got, whole);
        }
    }
}
