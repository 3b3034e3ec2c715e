//! Guest data as text.

use core::fmt;
use std::borrow::Cow;
use std::fmt::Write;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

/// An address: JSON has it as a string of 16 digits, as its numbers lose bits above 2^53 in many readers.
#[derive(Clone, Copy)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text of a cell: `-` for what is not known.
pub fn cell<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// `text` without what a terminal would obey: a guest chooses the names in it. Control characters and those that change the
/// direction of writing become `\u{..}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(acts_on_a_terminal) {
        return text.into();
    }
    let escape = |c: char| if acts_on_a_terminal(c) { c.escape_unicode().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

/// The same for JSON text, where such characters occur only in strings.
pub fn json_printable(json: &str) -> Cow<'_, str> {
    if !json.contains(acts_on_a_terminal) {
        return json.into();
    }
    // All of them are below U+10000: one escape each.
    let escape = |c: char| if acts_on_a_terminal(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    json.chars().map(escape).collect()
}

fn acts_on_a_terminal(c: char) -> bool {
    (c.is_control() && c != '\t') || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A time as RFC 3339 has it, in UTC with milliseconds: `2026-11-21T02:04:08.000Z`. `None` before 1970 and after 9999.
pub fn rfc3339(time: SystemTime) -> Option<String> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let millis = since.subsec_millis();
    (year <= 9999).then(|| format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"))
}

/// Year, month and day of a number of days since 1970-01-01. Years are counted from March, so that a leap day ends one, within
/// eras of 400 years, which are all alike (146,097 days).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // days from 0000-03-01 to 1970-01-01
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153; // 0 is March
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// Bytes as `hexdump -C` prints them, 16 a line; `at` is the address of the first.
pub fn hexdump(at: u64, bytes: &[u8]) -> String {
    let mut dump = String::new();
    for (line, bytes) in bytes.chunks(16).enumerate() {
        let at = at.wrapping_add(line as u64 * 16);
        let hex: Vec<String> = bytes.chunks(8).map(|half| hex(half, " ")).collect();
        let _ = writeln!(dump, "  {at:016x}  {:<48}  |{}|", hex.join("  "), ascii(bytes));
    }
    dump
}

/// Bytes as two digits each.
pub fn hex(bytes: &[u8], separator: &str) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(separator)
}

/// Guest memory: JSON has it as two digits for each byte.
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0, ""))
    }
}

/// Bytes as ASCII, a dot for each that is not a visible character.
pub fn ascii(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| if byte.is_ascii_graphic() || byte == b' ' { byte.into() } else { '.' }).collect()
}

/// A size as people read it: `96.0 MiB`.
pub fn size(bytes: u64) -> String {
    let (unit, shift) = match bytes {
        0..0x400 => return format!("{bytes} B"),
        0x400..0x10_0000 => ("KiB", 10),
        0x10_0000..0x4000_0000 => ("MiB", 20),
        _ => ("GiB", 30),
    };
    format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64)
}
