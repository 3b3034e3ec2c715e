//! The state of the devices, by the text at the stream's end that describes it.
//!
//! The text (`vmdescription`: QEMU, migration/vmstate.c and savevm.c) names each device's fields in the order of the stream, with their sizes. It
//! has no magic number, but lies behind the mark of the stream's end. The file mostly ends with it, but need not: a volume that was made for the stream
//! beforehand, as Proxmox VE does, has anything behind it. Where anything does not fit, the devices from there on are not told: better an image without
//! registers than none.

use serde::Deserialize;

use super::cursor::Cursor;
use crate::FormatError;
use crate::source::Source;

/// Devices whose state is of use here.
const WANTED: [&str; 2] = ["cpu", "mc146818rtc"];
/// More state than one of these has.
const LONGEST: u64 = 1 << 20;
/// More text than the largest machine has: 10 KiB for a vCPU.
const LONGEST_TEXT: u64 = 16 << 20;
/// How far behind the memory the text is looked for, unless the file ends with it: devices have less than a megabyte of state, but for those that are passed
/// through.
const NEAR: u64 = 20 << 20;
/// How many places that look like it are tried.
const MOST_TRIED: usize = 16;

const FULL: u8 = 4;
const DESCRIPTION: u8 = 6;
const COMMAND: u8 = 8;
const FOOTER: u8 = 0x7e;

/// The devices that were found.
#[derive(Debug, Default)]
pub(super) struct Devices(Vec<State>);

/// A device, with its values.
#[derive(Debug)]
pub(super) struct State {
    device: Device,
    bytes: Vec<u8>,
}

#[derive(Debug, Deserialize)]
struct Description {
    devices: Vec<Device>,
}

#[derive(Debug, Deserialize)]
struct Device {
    name: String,
    instance_id: u32,
    /// Absent in devices without any.
    #[serde(default)]
    fields: Vec<Field>,
    #[serde(default)]
    subsections: Vec<Subsection>,
}

#[derive(Debug, Deserialize)]
struct Subsection {
    vmsd_name: String,
    #[serde(default)]
    fields: Vec<Field>,
    #[serde(default)]
    subsections: Vec<Subsection>,
}

/// A field, or as many in a row as `array_len` tells.
#[derive(Debug, Deserialize)]
struct Field {
    name: String,
    size: u64,
    #[serde(default = "one")]
    array_len: u64,
}

const fn one() -> u64 {
    1
}

impl Devices {
    /// The devices from `offset` on, up to what does not fit.
    pub(super) fn read(source: &Source, offset: u64) -> Self {
        let Some(description) = describe(source, offset) else {
            tracing::warn!("the stream does not describe its devices: there are no registers");
            return Self::default();
        };
        let mut states = Vec::new();
        let mut cursor = Cursor::new(source, offset);
        for device in description.devices {
            let name = device.name.clone();
            match next(&mut cursor, source, device) {
                Ok(state) => states.extend(state),
                Err(error) => {
                    tracing::warn!(name, %error, "the state of the devices does not fit its description from here on");
                    break;
                }
            }
        }
        states.sort_by_key(|state| state.device.instance_id);
        Self(states)
    }

    /// All devices of this name, by instance.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a State> {
        self.0.iter().filter(move |state| state.device.name == name)
    }
}

/// Finds the text and reads it.
fn describe(source: &Source, offset: u64) -> Option<Description> {
    let left = source.len().checked_sub(offset)?;
    let in_part = |from: u64, len: u64| {
        let part = source.get(from, len, "the description of the devices").ok()?;
        // The parser bounds the depth.
        let parse =
            |text| serde_json::from_slice(text).inspect_err(|error| tracing::debug!(%error, "no description of devices")).ok();
        texts(&part).take(MOST_TRIED).find_map(parse)
    };
    let tail = left.min(LONGEST_TEXT);
    in_part(offset, left.min(NEAR)).or_else(|| (left > NEAR).then(|| in_part(source.len().saturating_sub(tail), tail)).flatten())
}

/// What is a text by the marks around it: the end of the devices, its kind and its length before it, and braces at its ends.
fn texts(part: &[u8]) -> impl Iterator<Item = &[u8]> {
    part.windows(7).enumerate().filter_map(|(at, window)| match *window {
        [0, DESCRIPTION, a, b, c, d, b'{'] => {
            let len = u32::from_be_bytes([a, b, c, d]) as usize;
            part.get(at.checked_add(6)?..)?.get(..len).filter(|text| text.ends_with(b"}"))
        }
        _ => None,
    })
}

/// Reads the section of `device`, and its state if it is wanted.
fn next(cursor: &mut Cursor<'_>, source: &Source, device: Device) -> Result<Option<State>, FormatError> {
    const WHAT: &str = "the state of a device";
    let mut kind = cursor.byte(WHAT)?;
    while kind == COMMAND {
        cursor.skip(2);
        let len = cursor.half(WHAT)?;
        cursor.skip(u64::from(len));
        kind = cursor.byte(WHAT)?;
    }
    let offset = cursor.at();
    let malformed = |what: &str| FormatError::Malformed { offset, what: format!("{what} of the device `{}`", device.name) };
    let id = cursor.word(WHAT)?;
    if kind != FULL || cursor.name(WHAT)? != device.name || cursor.word(WHAT)? != device.instance_id {
        return Err(malformed("another section than that"));
    }
    let _version = cursor.word(WHAT)?;
    let start = cursor.at();
    let len = len(&device.fields, &device.subsections);
    cursor.skip(len);
    if cursor.byte(WHAT)? != FOOTER || cursor.word(WHAT)? != id {
        return Err(malformed("no footer behind the state"));
    }
    if !WANTED.contains(&device.name.as_str()) || len > LONGEST {
        return Ok(None);
    }
    let bytes = source.get(start, len, WHAT)?.into_owned();
    Ok(Some(State { device, bytes }))
}

/// How many bytes the fields have, and behind them the subsections with their kind, name and version.
fn len(fields: &[Field], subsections: &[Subsection]) -> u64 {
    let fields = fields.iter().fold(0u64, |sum, field| sum.saturating_add(field.len()));
    subsections.iter().fold(fields, |sum, subsection| {
        let header = (subsection.vmsd_name.len() as u64).saturating_add(6);
        sum.saturating_add(header).saturating_add(len(&subsection.fields, &subsection.subsections))
    })
}

impl Field {
    fn len(&self) -> u64 {
        self.size.saturating_mul(self.array_len)
    }
}

impl State {
    /// The bytes of a field.
    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        let mut at = 0u64;
        for field in &self.device.fields {
            let end = at.saturating_add(field.len());
            if field.name == name {
                return self.bytes.get(usize::try_from(at).ok()?..usize::try_from(end).ok()?);
            }
            at = end;
        }
        None
    }

    /// A field of one number, of any size.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        let bytes = self.bytes(name)?;
        (bytes.len() <= 8).then(|| bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// A field of numbers of 8 bytes.
    pub(super) fn numbers<const N: usize>(&self, name: &str) -> Option<[u64; N]> {
        let (numbers, rest) = self.bytes(name)?.as_chunks::<8>();
        let numbers: [[u8; 8]; N] = numbers.try_into().ok().filter(|_| rest.is_empty())?;
        Some(numbers.map(u64::from_be_bytes))
    }
}
