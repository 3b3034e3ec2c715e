//! Values: `_CM_KEY_VALUE`, `vk`, and their data.

use core::fmt;
use std::borrow::Cow;

use super::bytes::{name, u16_at, u32_at, u64_at, utf16};
use super::cells::{Cells, MAX_CELL, RegistryError};
use super::key::Hive;

/// Bytes of a value before its name.
const NAME: usize = 0x14;
/// The data is in the value itself, not in another cell.
const RESIDENT: u32 = 0x8000_0000;
/// The name has a byte for each character (`VALUE_COMP_NAME`).
const COMPRESSED: u16 = 1;
/// What one segment of split data holds (`CM_KEY_VALUE_BIG`).
const SEGMENT: usize = 16344;

/// A value of a key. Its data is read when asked for.
#[derive(Debug)]
pub struct Value<'h, C> {
    hive: &'h Hive<C>,
    cell: u32,
    node: Cow<'h, [u8]>,
}

impl<C> Clone for Value<'_, C> {
    fn clone(&self) -> Self {
        Self { hive: self.hive, cell: self.cell, node: self.node.clone() }
    }
}

/// The type of a value's data, by its number (`REG_*`, winnt.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueType(pub u32);

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "REG_NONE",
            1 => "REG_SZ",
            2 => "REG_EXPAND_SZ",
            3 => "REG_BINARY",
            4 => "REG_DWORD",
            5 => "REG_DWORD_BIG_ENDIAN",
            6 => "REG_LINK",
            7 => "REG_MULTI_SZ",
            8 => "REG_RESOURCE_LIST",
            9 => "REG_FULL_RESOURCE_DESCRIPTOR",
            10 => "REG_RESOURCE_REQUIREMENTS_LIST",
            11 => "REG_QWORD",
            other => return write!(f, "type {other:#x}"),
        })
    }
}

/// The data of a value as its type means it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Data {
    /// `REG_SZ`, `REG_EXPAND_SZ`, `REG_LINK`: text up to its first zero.
    Text(String),
    /// `REG_MULTI_SZ`: texts up to the empty one that ends them.
    Texts(Vec<String>),
    /// `REG_DWORD`, `REG_DWORD_BIG_ENDIAN`, `REG_QWORD`.
    Number(u64),
    /// Any other type, and data that is too short for its type.
    Bytes(Vec<u8>),
}

impl Data {
    /// What `bytes` mean as data of this type.
    pub fn of(kind: ValueType, bytes: Vec<u8>) -> Self {
        let number = match kind.0 {
            4 => u32_at(&bytes, 0).map(u64::from),
            5 => u32_at(&bytes, 0).map(|number| u64::from(number.swap_bytes())),
            11 => u64_at(&bytes, 0),
            _ => None,
        };
        match (kind.0, number) {
            (_, Some(number)) => Self::Number(number),
            (1 | 2 | 6, _) => Self::Text(utf16(&bytes).split('\0').next().unwrap_or_default().to_owned()),
            (7, _) => Self::Texts(utf16(&bytes).split('\0').take_while(|text| !text.is_empty()).map(str::to_owned).collect()),
            _ => Self::Bytes(bytes),
        }
    }
}

impl<'h, C: Cells> Value<'h, C> {
    pub(super) fn read(hive: &'h Hive<C>, cell: u32) -> Result<Self, RegistryError> {
        let node = hive.cells().cell(cell)?;
        if !node.starts_with(b"vk") {
            return Err(RegistryError::corrupt(cell, "is no value: it does not start with `vk`"));
        }
        let value = Self { hive, cell, node };
        if value.name_bytes().is_none() {
            return Err(RegistryError::corrupt(cell, format!("a value of {} bytes cannot hold its name", value.node.len())));
        }
        Ok(value)
    }

    fn number(&self, at: usize) -> u32 {
        u32_at(&self.node, at).unwrap_or(0)
    }

    fn name_bytes(&self) -> Option<&[u8]> {
        self.node.get(NAME..)?.get(..usize::from(u16_at(&self.node, 2)?))
    }

    /// The index of its cell.
    pub fn cell(&self) -> u32 {
        self.cell
    }

    /// Its name; empty for the default value.
    pub fn name(&self) -> String {
        let compressed = u16_at(&self.node, 0x10).unwrap_or(0) & COMPRESSED != 0;
        name(self.name_bytes().unwrap_or_default(), compressed)
    }

    /// The type of its data.
    pub fn data_type(&self) -> ValueType {
        ValueType(self.number(0xc))
    }

    /// Bytes of its data, as it says of itself.
    pub fn data_len(&self) -> u32 {
        self.number(4) & !RESIDENT
    }

    /// Its data as bytes.
    ///
    /// # Errors
    /// [`RegistryError`] if a cell of it cannot be read, or is shorter than the data in it. Nothing is cut off in silence.
    pub fn bytes(&self) -> Result<Vec<u8>, RegistryError> {
        let len = usize::try_from(self.data_len()).unwrap_or(usize::MAX);
        if self.number(4) & RESIDENT != 0 {
            let all = self.node.get(8..12).unwrap_or_default();
            let what = || RegistryError::corrupt(self.cell, format!("has {len} bytes of data within itself, where 4 have room"));
            return Ok(all.get(..len).ok_or_else(what)?.to_vec());
        }
        if len == 0 {
            return Ok(Vec::new());
        }
        let cell = self.number(8);
        let content = self.hive.cells().cell(cell)?;
        if let Some(data) = content.get(..len) {
            return Ok(data.to_vec());
        }
        if len > SEGMENT && content.starts_with(b"db") {
            return self.segments(cell, &content, len);
        }
        let what = format!("has {} bytes, where the value {:#x} has data of {len}", content.len(), self.cell);
        Err(RegistryError::corrupt(cell, what))
    }

    /// Data that is split over several cells: `_CM_BIG_DATA`, `db`, since version 1.4 of the format.
    fn segments(&self, cell: u32, big: &[u8], len: usize) -> Result<Vec<u8>, RegistryError> {
        let (count, list) = (u16_at(big, 2).unwrap_or(0), u32_at(big, 4).unwrap_or(u32::MAX));
        if len > MAX_CELL || usize::from(count) != len.div_ceil(SEGMENT) {
            let what = format!("splits data of {len} bytes into {count} segments, which hold {SEGMENT} each");
            return Err(RegistryError::corrupt(cell, what));
        }
        let cells = self.hive.cells().cell(list)?;
        let mut data = Vec::new();
        for index in 0..usize::from(count) {
            let segment = u32_at(&cells, index.saturating_mul(4))
                .ok_or_else(|| RegistryError::corrupt(list, format!("is a list of {count} segments with room for {index}")))?;
            let content = self.hive.cells().cell(segment)?;
            let rest = len.saturating_sub(data.len()).min(SEGMENT);
            let part = content.get(..rest);
            data.extend_from_slice(part.ok_or_else(|| RegistryError::corrupt(segment, "is shorter than the segment in it"))?);
        }
        Ok(data)
    }

    /// Its data as its type means it.
    ///
    /// # Errors
    /// As [`Value::bytes`].
    pub fn data(&self) -> Result<Data, RegistryError> {
        Ok(Data::of(self.data_type(), self.bytes()?))
    }
}
