//! Keys: `_CM_KEY_NODE`, `nk`, and the lists of their subkeys.

use std::borrow::Cow;

use super::bytes::{name, same_name, u16_at, u32_at, u64_at, utf16};
use super::cells::{Cells, NO_CELL, RegistryError};
use super::value::Value;

/// More subkeys than a key can sensibly have.
const MAX_SUBKEYS: usize = 1 << 20;
/// The same for values.
const MAX_VALUES: usize = 1 << 20;
/// Bytes of a name: the registry allows 255 characters of UTF-16 ("Registry element size limits" in Microsoft's documentation).
const MAX_NAME: usize = 512;
/// Bytes of a key before its name.
const NAME: usize = 0x4c;
/// The key is the mount point of another hive (`KEY_HIVE_EXIT`).
const EXIT: u16 = 0x02;
/// The key is a symbolic link (`KEY_SYM_LINK`).
const LINK: u16 = 0x10;
/// The name has a byte for each character (`KEY_COMP_NAME`).
const COMPRESSED: u16 = 0x20;

/// A hive: cells, with keys and values in them.
#[derive(Clone, Copy, Debug)]
pub struct Hive<C> {
    cells: C,
}

impl<C: Cells> Hive<C> {
    /// The hive of these cells.
    pub fn new(cells: C) -> Self {
        Self { cells }
    }

    /// Where its cells come from.
    pub fn cells(&self) -> &C {
        &self.cells
    }

    /// The root key.
    ///
    /// # Errors
    /// [`RegistryError`] if it cannot be read.
    pub fn root(&self) -> Result<Key<'_, C>, RegistryError> {
        self.key_at(self.cells.root()?)
    }

    /// The key whose cell is `cell`.
    ///
    /// # Errors
    /// [`RegistryError::Corrupt`] if there is none; [`RegistryError::Memory`] if it is not in memory.
    pub fn key_at(&self, cell: u32) -> Result<Key<'_, C>, RegistryError> {
        Key::read(self, cell)
    }

    /// The key at a path from the root key: names joined by backslashes, in any case. The empty path is the root key.
    ///
    /// # Errors
    /// [`RegistryError::NoKey`] if there is no such key; else the first error on the way.
    pub fn key(&self, path: &str) -> Result<Key<'_, C>, RegistryError> {
        let mut key = self.root()?;
        let mut so_far = String::new();
        for part in path.split('\\').filter(|part| !part.is_empty()) {
            so_far.push('\\');
            so_far.push_str(part);
            key = key.subkey(part)?.ok_or_else(|| RegistryError::NoKey { path: so_far.clone() })?;
        }
        Ok(key)
    }
}

/// A key. What it says of itself was read with it; subkeys and values are read when asked for.
#[derive(Debug)]
pub struct Key<'h, C> {
    hive: &'h Hive<C>,
    cell: u32,
    node: Cow<'h, [u8]>,
}

impl<C> Clone for Key<'_, C> {
    fn clone(&self) -> Self {
        Self { hive: self.hive, cell: self.cell, node: self.node.clone() }
    }
}

impl<'h, C: Cells> Key<'h, C> {
    fn read(hive: &'h Hive<C>, cell: u32) -> Result<Self, RegistryError> {
        let node = hive.cells.cell(cell)?;
        if !node.starts_with(b"nk") {
            return Err(RegistryError::corrupt(cell, "is no key: it does not start with `nk`"));
        }
        let key = Self { hive, cell, node };
        if key.name_bytes().is_none() {
            return Err(RegistryError::corrupt(
                cell,
                format!("a key of {} bytes with a name of {}", key.node.len(), key.short(0x48)),
            ));
        }
        Ok(key)
    }

    /// A number of the node. That it is long enough was checked when it was read.
    fn number(&self, at: usize) -> u32 {
        u32_at(&self.node, at).unwrap_or(0)
    }

    fn short(&self, at: usize) -> u16 {
        u16_at(&self.node, at).unwrap_or(0)
    }

    fn name_bytes(&self) -> Option<&[u8]> {
        self.node.get(NAME..)?.get(..usize::from(u16_at(&self.node, 0x48)?)).filter(|name| name.len() <= MAX_NAME)
    }

    /// The hive that it is in.
    pub fn hive(&self) -> &'h Hive<C> {
        self.hive
    }

    /// The index of its cell.
    pub fn cell(&self) -> u32 {
        self.cell
    }

    /// Its name. Of a root key it is the kernel's name for the hive: `CMI-CreateHive{...}`, `ROOT`.
    pub fn name(&self) -> String {
        name(self.name_bytes().unwrap_or_default(), self.short(2) & COMPRESSED != 0)
    }

    /// When the key was last written, as FILETIME: units of 100 ns since the year 1601. The times of its subkeys are their own.
    pub fn last_write(&self) -> u64 {
        u64_at(&self.node, 4).unwrap_or(0)
    }

    /// The flags of the key (`KEY_*`).
    pub fn flags(&self) -> u16 {
        self.short(2)
    }

    /// Whether it is a symbolic link; its value `SymbolicLinkValue` holds the path that it leads to.
    pub fn is_link(&self) -> bool {
        self.flags() & LINK != 0
    }

    /// Whether another hive is mounted here: its subkeys are those of that hive's root key, and none here.
    pub fn is_mount_point(&self) -> bool {
        self.flags() & EXIT != 0
    }

    /// Whether it exists in memory only and is gone after a restart: its cell is in the volatile storage.
    pub fn is_volatile(&self) -> bool {
        self.cell >> 31 != 0
    }

    /// The cell of the key that it is in. A root key names none that is of use.
    pub fn parent(&self) -> u32 {
        self.number(0x10)
    }

    /// How many subkeys it has, volatile ones included, as it says of itself.
    pub fn subkey_count(&self) -> u64 {
        if self.is_mount_point() {
            return 0;
        }
        let volatile = if self.hive.cells.has_volatile() { self.number(0x18) } else { 0 };
        u64::from(self.number(0x14)).saturating_add(u64::from(volatile))
    }

    /// How many values it has, as it says of itself.
    pub fn value_count(&self) -> u32 {
        if self.is_mount_point() { 0 } else { self.number(0x24) }
    }

    /// The class name, which few keys have (parts of the boot key are hidden in such names).
    ///
    /// # Errors
    /// [`RegistryError`] if it cannot be read.
    pub fn class(&self) -> Result<Option<String>, RegistryError> {
        let (cell, len) = (self.number(0x30), usize::from(self.short(0x4a)));
        if cell == NO_CELL || len == 0 || self.is_mount_point() {
            return Ok(None);
        }
        let content = self.hive.cells.cell(cell)?;
        let class = content.get(..len).ok_or_else(|| RegistryError::corrupt(cell, "is shorter than the class name in it"))?;
        Ok(Some(utf16(class)))
    }

    /// Its subkeys, those on disk first, then the volatile ones.
    ///
    /// Lists that end early, or hold less than the key says, end in an error behind what could be read. A subkey that cannot be read is
    /// an error among the others.
    pub fn subkeys(&self) -> impl Iterator<Item = Result<Key<'h, C>, RegistryError>> + use<'h, C> {
        let (cells, error) = self.listed();
        let hive = self.hive;
        cells.into_iter().map(move |cell| Key::read(hive, cell)).chain(error.map(Err))
    }

    /// The subkey of this name, in any case; `None` if there is none.
    ///
    /// # Errors
    /// The first error of the list, if the name was not found before.
    pub fn subkey(&self, name: &str) -> Result<Option<Key<'h, C>>, RegistryError> {
        let mut error = None;
        for key in self.subkeys() {
            match key {
                Ok(key) if same_name(&key.name(), name) => return Ok(Some(key)),
                Ok(_) => {}
                Err(first) => error = error.or(Some(first)),
            }
        }
        error.map_or(Ok(None), Err)
    }

    /// The cells of its subkeys, and the error that ended their lists.
    pub(super) fn listed(&self) -> (Vec<u32>, Option<RegistryError>) {
        let mut cells = Vec::new();
        let error = self.subkey_cells(&mut cells).err();
        (cells, error)
    }

    fn subkey_cells(&self, cells: &mut Vec<u32>) -> Result<(), RegistryError> {
        if self.is_mount_point() {
            return Ok(());
        }
        // Counts and lists of the two storages: on disk, and volatile.
        for (count, list) in [(0x14, 0x1c), (0x18, 0x20)] {
            let (volatile, count, list) = (count == 0x18, self.number(count), self.number(list));
            if count == 0 || volatile && !self.hive.cells.has_volatile() {
                continue;
            }
            let before = cells.len();
            let limit = before.saturating_add(usize::try_from(count).unwrap_or(MAX_SUBKEYS)).min(MAX_SUBKEYS);
            self.list(list, cells, limit, true)?;
            let found = cells.len().saturating_sub(before);
            if found as u64 != u64::from(count) {
                let what = format!("lists {found} subkeys, and its key {:#x} says {count}", self.cell);
                return Err(RegistryError::corrupt(list, what));
            }
        }
        Ok(())
    }

    /// Appends the subkeys of one list, and of the lists that it names.
    fn list(&self, cell: u32, cells: &mut Vec<u32>, limit: usize, may_nest: bool) -> Result<(), RegistryError> {
        let content = self.hive.cells.cell(cell)?;
        let (Some(signature), Some(count)) = (content.first_chunk::<2>(), u16_at(&content, 2)) else {
            return Err(RegistryError::corrupt(cell, "is too short for a list of subkeys"));
        };
        // `lf` and `lh` have a hint or hash of the name behind each cell.
        let step = match signature {
            b"lf" | b"lh" => 8,
            b"li" => 4,
            b"ri" if may_nest => 4,
            _ => {
                let signature = signature.escape_ascii();
                return Err(RegistryError::corrupt(cell, format!("is no list of subkeys: its signature is `{signature}`")));
            }
        };
        let elements = content.get(4..).unwrap_or_default().chunks_exact(step);
        let (have, count) = (elements.len(), usize::from(count));
        for element in elements.take(count) {
            let element = u32_at(element, 0).unwrap_or(NO_CELL);
            if signature == b"ri" {
                self.list(element, cells, limit, false)?;
            } else if cells.len() >= limit {
                let what = format!("lists more subkeys than its key {:#x} says", self.cell);
                return Err(RegistryError::corrupt(cell, what));
            } else {
                cells.push(element);
            }
        }
        if have < count {
            return Err(RegistryError::corrupt(cell, format!("is a list of {count} elements with room for {have}")));
        }
        Ok(())
    }

    /// Its values. Errors as in [`Key::subkeys`].
    pub fn values(&self) -> impl Iterator<Item = Result<Value<'h, C>, RegistryError>> + use<'h, C> {
        let mut cells = Vec::new();
        let error = self.value_cells(&mut cells).err();
        let hive = self.hive;
        cells.into_iter().map(move |cell| Value::read(hive, cell)).chain(error.map(Err))
    }

    /// The value of this name, in any case; the empty name is that of the default value. `None` if there is none.
    ///
    /// # Errors
    /// The first error of the list, if the name was not found before.
    pub fn value(&self, name: &str) -> Result<Option<Value<'h, C>>, RegistryError> {
        let mut error = None;
        for value in self.values() {
            match value {
                Ok(value) if same_name(&value.name(), name) => return Ok(Some(value)),
                Ok(_) => {}
                Err(first) => error = error.or(Some(first)),
            }
        }
        error.map_or(Ok(None), Err)
    }

    fn value_cells(&self, cells: &mut Vec<u32>) -> Result<(), RegistryError> {
        let (count, list) = (self.value_count(), self.number(0x28));
        if count == 0 {
            return Ok(());
        }
        let content = self.hive.cells.cell(list)?;
        let elements = content.as_chunks::<4>().0;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > MAX_VALUES {
            return Err(RegistryError::Limit { what: format!("the values of the key {:#x}", self.cell), limit: MAX_VALUES });
        }
        cells.extend(elements.iter().take(count).map(|element| u32::from_le_bytes(*element)));
        if elements.len() < count {
            let what = format!("is a list of {count} values with room for {}", elements.len());
            return Err(RegistryError::corrupt(list, what));
        }
        Ok(())
    }
}
