//! The cells of a registry hive, and the hive as a file.
//!
//! Format: "Windows registry file format specification" by Maxim Suhanov, <https://github.com/msuhanov/regf>; the structures `_HBASE_BLOCK`, `_HBIN`,
//! `_CM_KEY_NODE`, `_CM_KEY_VALUE` in the public symbols agree with it.

use serde_json::{Value, json};

/// Bytes of a block.
pub const BLOCK: usize = 0x1000;
/// Set in an index of a cell of the volatile storage.
pub const VOLATILE: u32 = 1 << 31;
const NONE: u32 = u32::MAX;
/// Data longer than this is stored in segments since version 1.4 of the format.
const SEGMENT: usize = 16344;

/// How a key lists its subkeys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// With the first four letters of the names.
    Lf,
    /// With hashes of the names.
    Lh,
    /// Bare.
    Li,
    /// A list of lists, each with at most this many keys.
    Ri(usize),
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// Name; empty for the default value.
    pub name: String,
    /// `REG_SZ` is 1, `REG_BINARY` 3, `REG_DWORD` 4.
    pub kind: u32,
    /// Data as it is stored.
    pub data: Vec<u8>,
}

/// A key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Name.
    pub name: String,
    /// FILETIME of the last change.
    pub written: u64,
    /// Whether it is gone after a restart.
    pub volatile: bool,
    /// How its subkeys are listed.
    pub list: List,
    /// Values in their order.
    pub values: Vec<KeyValue>,
    /// Subkeys; they are stored sorted by name.
    pub keys: Vec<Key>,
    /// Index of its cell.
    pub cell: u32,
}

impl Key {
    /// A key without anything.
    pub fn new(name: &str) -> Self {
        let written = crate::FIRST_TIME - 864_000_000_000 + name.len() as u64 * 10_000_000;
        Self { name: name.to_owned(), written, volatile: false, list: List::Lh, values: Vec::new(), keys: Vec::new(), cell: 0 }
    }

    /// With a value.
    pub fn value(mut self, name: &str, kind: u32, data: &[u8]) -> Self {
        self.values.push(KeyValue { name: name.to_owned(), kind, data: data.to_vec() });
        self
    }

    /// With a text.
    pub fn text(self, name: &str, text: &str) -> Self {
        let data: Vec<u8> = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        self.value(name, 1, &data)
    }

    /// With a number.
    pub fn number(self, name: &str, number: u32) -> Self {
        self.value(name, 4, &number.to_le_bytes())
    }

    /// With subkeys listed like that.
    pub fn keys(mut self, list: List, keys: Vec<Self>) -> Self {
        self.list = list;
        self.keys.extend(keys);
        self
    }

    /// Volatile, with all below it.
    pub fn volatile(mut self) -> Self {
        self.volatile = true;
        self.keys = self.keys.into_iter().map(Self::volatile).collect();
        self
    }

    /// The subkey with this path.
    pub fn find(&self, path: &str) -> Option<&Self> {
        path.split('\\').filter(|part| !part.is_empty()).try_fold(self, |key, part| key.keys.iter().find(|key| key.name == part))
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let values = self.values.iter().map(|value| json!({"name": value.name, "type": value.kind, "data": hex(&value.data)}));
        json!({
            "name": self.name, "written": self.written, "volatile": self.volatile, "cell": self.cell, "list": format!("{:?}", self.list),
            "values": values.collect::<Vec<_>>(), "keys": self.keys.iter().map(Self::to_json).collect::<Vec<_>>(),
        })
    }
}

/// The bins of one storage of a hive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Storage {
    /// The bins one after the other.
    pub bytes: Vec<u8>,
    /// Where each bin begins, and its length.
    pub bins: Vec<(usize, usize)>,
    next: usize,
}

impl Storage {
    /// A cell with these bytes; gives its index without the bit of the storage.
    fn add(&mut self, data: &[u8]) -> u32 {
        let size = (data.len() + 4).next_multiple_of(8);
        let end = self.bytes.len();
        if self.next + size > end {
            self.close_bin();
            let len = (size + 0x20).next_multiple_of(BLOCK);
            self.bins.push((end, len));
            self.bytes.resize(end + len, 0);
            self.bytes[end..end + 4].copy_from_slice(b"hbin");
            self.put(end + 4, &(end as u32).to_le_bytes());
            self.put(end + 8, &(len as u32).to_le_bytes());
            self.next = end + 0x20;
        }
        let at = self.next;
        self.put(at, &(-(size as i32)).to_le_bytes());
        self.put(at + 4, data);
        self.next = at + size;
        at as u32
    }

    /// What is left of the last bin is a free cell.
    fn close_bin(&mut self) {
        let rest = self.bytes.len() - self.next;
        if rest >= 8 {
            self.put(self.next, &(rest as i32).to_le_bytes());
            self.next += rest;
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// The cells of a hive: permanent and volatile storage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cells {
    /// Permanent and volatile.
    pub storage: [Storage; 2],
    /// Index of the root key's cell.
    pub root: u32,
    security: [Option<u32>; 2],
}

impl Cells {
    /// Writes a tree of keys; the keys get the indexes of their cells.
    pub fn new(root: &mut Key) -> Self {
        let mut cells = Self::default();
        cells.root = cells.add_key(root, NONE, true);
        cells.storage.iter_mut().for_each(Storage::close_bin);
        cells
    }

    fn add(&mut self, volatile: bool, data: &[u8]) -> u32 {
        let index = self.storage[usize::from(volatile)].add(data);
        if volatile { index | VOLATILE } else { index }
    }

    fn put(&mut self, cell: u32, at: usize, bytes: &[u8]) {
        let storage = &mut self.storage[usize::from(cell & VOLATILE != 0)];
        storage.put((cell & !VOLATILE) as usize + 4 + at, bytes);
    }

    fn put_number(&mut self, cell: u32, at: usize, number: u32) {
        self.put(cell, at, &number.to_le_bytes());
    }

    fn add_key(&mut self, key: &mut Key, parent: u32, is_root: bool) -> u32 {
        let (name, compressed) = name_bytes(&key.name);
        let mut node = vec![0; 0x4C];
        node[0..2].copy_from_slice(b"nk");
        let is_link = key.values.iter().any(|value| value.name == "SymbolicLinkValue");
        let link = if is_link { 0x10 } else { 0 };
        let flags: u16 = if compressed { 0x20 } else { 0 } | if is_root { 0xC } else { 0 } | link | u16::from(key.volatile);
        node[2..4].copy_from_slice(&flags.to_le_bytes());
        node[4..12].copy_from_slice(&key.written.to_le_bytes());
        for at in [0x1C, 0x20, 0x28, 0x2C, 0x30] {
            node[at..at + 4].copy_from_slice(&NONE.to_le_bytes());
        }
        node[0x10..0x14].copy_from_slice(&parent.to_le_bytes());
        node[0x48..0x4A].copy_from_slice(&(name.len() as u16).to_le_bytes());
        node.extend(name);
        let cell = self.add(key.volatile, &node);
        key.cell = cell;
        let security = self.security_cell(key.volatile);
        self.put_number(cell, 0x2C, security);
        if !key.values.is_empty() {
            let values: Vec<u32> = key.values.iter().map(|value| self.add_value(key.volatile, value)).collect();
            let list: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let list = self.add(key.volatile, &list);
            self.put_number(cell, 0x24, key.values.len() as u32);
            self.put_number(cell, 0x28, list);
        }
        key.keys.sort_by_key(|key| key.name.to_uppercase());
        for volatile in [false, true] {
            let mut children = Vec::new();
            for child in key.keys.iter_mut().filter(|child| child.volatile == volatile) {
                let index = self.add_key(child, cell, false);
                children.push((index, child.name.clone()));
            }
            if !children.is_empty() {
                let list = self.add_list(volatile, key.list, &children);
                let place = usize::from(volatile) * 4;
                self.put_number(cell, 0x14 + place, children.len() as u32);
                self.put_number(cell, 0x1C + place, list);
            }
        }
        cell
    }

    fn add_list(&mut self, volatile: bool, list: List, keys: &[(u32, String)]) -> u32 {
        if let List::Ri(each) = list {
            let lists: Vec<u32> = keys.chunks(each).map(|keys| self.add_list(volatile, List::Lh, keys)).collect();
            return self.add(volatile, &list_bytes(b"ri", lists.iter().map(|list| vec![*list])));
        }
        let bytes = match list {
            List::Lf => list_bytes(b"lf", keys.iter().map(|(cell, name)| vec![*cell, first_letters(name)])),
            List::Li => list_bytes(b"li", keys.iter().map(|(cell, _)| vec![*cell])),
            _ => list_bytes(b"lh", keys.iter().map(|(cell, name)| vec![*cell, hash(name)])),
        };
        self.add(volatile, &bytes)
    }

    fn add_value(&mut self, volatile: bool, value: &KeyValue) -> u32 {
        let (name, compressed) = name_bytes(&value.name);
        let len = value.data.len();
        let (size, data) = if len <= 4 {
            let mut inline = [0; 4];
            inline[..len].copy_from_slice(&value.data);
            (len as u32 | 1 << 31, u32::from_le_bytes(inline))
        } else if len > SEGMENT {
            let segments: Vec<u32> =
                value.data.chunks(SEGMENT).map(|part| self.add(volatile, &[part, &[0; 4]].concat())).collect();
            let list: Vec<u8> = segments.iter().flat_map(|cell| cell.to_le_bytes()).collect();
            let list = self.add(volatile, &list);
            let mut big = b"db".to_vec();
            big.extend((segments.len() as u16).to_le_bytes());
            big.extend(list.to_le_bytes());
            big.extend([0; 4]);
            (len as u32, self.add(volatile, &big))
        } else {
            (len as u32, self.add(volatile, &value.data))
        };
        let mut cell = b"vk".to_vec();
        cell.extend((name.len() as u16).to_le_bytes());
        for number in [size, data, value.kind, u32::from(compressed)] {
            cell.extend(number.to_le_bytes());
        }
        cell.extend(name);
        self.add(volatile, &cell)
    }

    /// One security descriptor for all keys of a storage: owner and group LocalSystem, no access list.
    fn security_cell(&mut self, volatile: bool) -> u32 {
        if let Some(cell) = self.security[usize::from(volatile)] {
            return cell;
        }
        let sid = super::token::sid_bytes("S-1-5-18");
        let mut descriptor = vec![1, 0, 0, 0x80];
        for offset in [20u32, 32, 0, 0] {
            descriptor.extend(offset.to_le_bytes());
        }
        descriptor.extend(sid.iter().chain(&sid));
        let mut bytes = b"sk\0\0".to_vec();
        for number in [0, 0, 1, descriptor.len() as u32] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(descriptor);
        let cell = self.add(volatile, &bytes);
        for at in [4, 8] {
            self.put_number(cell, at, cell);
        }
        self.security[usize::from(volatile)] = Some(cell);
        cell
    }

    /// The base block, as it is at the start of a file and in memory.
    pub fn base_block(&self, file_name: &str, written: u64) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[..4].copy_from_slice(b"regf");
        let mut put = |at: usize, number: u32| block[at..at + 4].copy_from_slice(&number.to_le_bytes());
        for (at, number) in [(4, 7), (8, 7), (0x14, 1), (0x18, 5), (0x20, 1), (0x24, self.root), (0x2C, 1)] {
            put(at, number);
        }
        put(0x28, self.storage[0].bytes.len() as u32);
        block[0xC..0x14].copy_from_slice(&written.to_le_bytes());
        // The last 31 characters of the path.
        let units: Vec<u16> = file_name.encode_utf16().collect();
        let name: Vec<u8> = units[units.len().saturating_sub(31)..].iter().flat_map(|unit| unit.to_le_bytes()).collect();
        block[0x30..0x30 + name.len()].copy_from_slice(&name);
        let sum = block[..508].chunks(4).fold(0, |sum, word| sum ^ u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        block[508..512].copy_from_slice(&sum.to_le_bytes());
        block
    }

    /// The hive as a file: base block and permanent bins. Volatile keys are not in it, but their parents count them.
    pub fn file(&self, file_name: &str, written: u64) -> Vec<u8> {
        let mut file = self.base_block(file_name, written);
        file.extend(&self.storage[0].bytes);
        file
    }
}

/// One byte for each character if all are Latin-1, which the flags then say.
fn name_bytes(name: &str) -> (Vec<u8>, bool) {
    match name.chars().map(|letter| u8::try_from(u32::from(letter)).ok()).collect() {
        Some(latin) => (latin, true),
        None => (name.encode_utf16().flat_map(u16::to_le_bytes).collect(), false),
    }
}

fn list_bytes(signature: &[u8; 2], entries: impl ExactSizeIterator<Item = Vec<u32>>) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend((entries.len() as u16).to_le_bytes());
    entries.flatten().for_each(|number| bytes.extend(number.to_le_bytes()));
    bytes
}

fn first_letters(name: &str) -> u32 {
    let mut letters = [0; 4];
    name.chars().zip(&mut letters).for_each(|(letter, at)| *at = u8::try_from(u32::from(letter)).unwrap_or(0));
    u32::from_le_bytes(letters)
}

fn hash(name: &str) -> u32 {
    let upper = name.chars().flat_map(char::to_uppercase);
    upper.fold(0u32, |hash, letter| hash.wrapping_mul(37).wrapping_add(u32::from(letter)))
}
