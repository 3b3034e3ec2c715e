//! A hive written by hand for tests: cells one after the other in one bin.

/// No cell.
pub(crate) const NONE: u32 = u32::MAX;

/// A key to be written.
#[derive(Clone, Debug, Default)]
pub(crate) struct TestKey {
    pub(crate) name: String,
    pub(crate) values: Vec<(String, u32, Vec<u8>)>,
    pub(crate) subkeys: Vec<TestKey>,
    /// The kind of list of its subkeys: `lf`, `lh`, `li`, or `ri` for two lists in one.
    pub(crate) list: &'static str,
    pub(crate) class: Option<String>,
}

impl TestKey {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), list: "lh", ..Self::default() }
    }

    pub(crate) fn value(mut self, name: &str, kind: u32, data: &[u8]) -> Self {
        self.values.push((name.to_owned(), kind, data.to_vec()));
        self
    }

    pub(crate) fn with(mut self, key: Self) -> Self {
        self.subkeys.push(key);
        self
    }

    pub(crate) fn list(mut self, list: &'static str) -> Self {
        self.list = list;
        self
    }
}

/// Text as the registry stores it: UTF-16 with a zero behind it.
pub(crate) fn utf16z(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

/// The storage of a hive: a bin's header and cells.
#[derive(Clone, Debug)]
pub(crate) struct TestHive {
    pub(crate) cells: Vec<u8>,
    pub(crate) root: u32,
    /// What is added to the indices of its cells: the top bit in the volatile storage.
    base: u32,
}

impl TestHive {
    pub(crate) fn new() -> Self {
        Self { cells: [b"hbin".as_slice(), &[0; 28]].concat(), root: NONE, base: 0 }
    }

    /// The volatile storage of a hive.
    pub(crate) fn volatile() -> Self {
        Self { base: 0x8000_0000, ..Self::new() }
    }

    /// A hive of this key and what is in it.
    pub(crate) fn of(root: &TestKey) -> Self {
        let mut hive = Self::new();
        hive.root = hive.key(root, NONE, true);
        hive
    }

    pub(crate) fn cell(&mut self, content: &[u8]) -> u32 {
        let index = self.cells.len() as u32;
        let size = (content.len() + 4).next_multiple_of(8);
        self.cells.extend((-(size as i32)).to_le_bytes());
        self.cells.extend(content);
        self.cells.resize(index as usize + size, 0);
        index | self.base
    }

    pub(crate) fn put32(&mut self, at: u32, value: u32) {
        let at = (at & 0x7fff_ffff) as usize;
        self.cells[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn data(&mut self, data: &[u8]) -> u32 {
        if data.len() <= 16344 {
            return self.cell(data);
        }
        let segments: Vec<u32> = data.chunks(16344).map(|part| self.cell(part)).collect();
        let list: Vec<u8> = segments.iter().flat_map(|cell| cell.to_le_bytes()).collect();
        let list = self.cell(&list);
        self.cell(&[b"db".as_slice(), &(segments.len() as u16).to_le_bytes(), &list.to_le_bytes()].concat())
    }

    pub(crate) fn value(&mut self, name: &str, kind: u32, data: &[u8]) -> u32 {
        let (name, compressed) = encode(name);
        let mut content = b"vk".to_vec();
        content.extend((name.len() as u16).to_le_bytes());
        if data.len() <= 4 {
            let mut resident = data.to_vec();
            resident.resize(4, 0);
            content.extend((data.len() as u32 | 0x8000_0000).to_le_bytes());
            content.extend(resident);
        } else {
            let cell = self.data(data);
            content.extend((data.len() as u32).to_le_bytes());
            content.extend(cell.to_le_bytes());
        }
        content.extend(kind.to_le_bytes());
        content.extend([u8::from(compressed), 0, 0, 0]);
        content.extend(name);
        self.cell(&content)
    }

    pub(crate) fn list(&mut self, kind: &str, cells: &[u32]) -> u32 {
        if kind == "ri" {
            let (one, other) = cells.split_at(cells.len() / 2);
            let lists = [self.list("li", one), self.list("lh", other)];
            return self.elements("ri", &lists);
        }
        self.elements(kind, cells)
    }

    pub(crate) fn elements(&mut self, kind: &str, cells: &[u32]) -> u32 {
        let mut content = kind.as_bytes().to_vec();
        content.extend((cells.len() as u16).to_le_bytes());
        for cell in cells {
            content.extend(cell.to_le_bytes());
            if matches!(kind, "lf" | "lh") {
                content.extend([0; 4]);
            }
        }
        self.cell(&content)
    }

    pub(crate) fn key(&mut self, key: &TestKey, parent: u32, root: bool) -> u32 {
        let (name, compressed) = encode(&key.name);
        let flags = if compressed { 0x20u16 } else { 0 } | if root { 0xc } else { 0 };
        let mut content = b"nk".to_vec();
        content.extend(flags.to_le_bytes());
        content.extend(0x01d0_0000_0000_0000u64.to_le_bytes());
        content.extend(0u32.to_le_bytes());
        content.extend(parent.to_le_bytes());
        content.extend((key.subkeys.len() as u32).to_le_bytes());
        content.extend(0u32.to_le_bytes());
        content.extend([0xff; 8]);
        content.extend((key.values.len() as u32).to_le_bytes());
        content.extend([0xff; 12]);
        content.extend([0; 20]);
        content.extend((name.len() as u16).to_le_bytes());
        content.extend(0u16.to_le_bytes());
        content.extend(name);
        let cell = self.cell(&content);
        let at = cell + 4;
        if !key.subkeys.is_empty() {
            let subkeys: Vec<u32> = key.subkeys.iter().map(|subkey| self.key(subkey, cell, false)).collect();
            let list = self.list(key.list, &subkeys);
            self.put32(at + 0x1c, list);
        }
        if !key.values.is_empty() {
            let values: Vec<u8> =
                key.values.iter().flat_map(|(name, kind, data)| self.value(name, *kind, data).to_le_bytes()).collect();
            let list = self.cell(&values);
            self.put32(at + 0x28, list);
        }
        if let Some(class) = &key.class {
            let class: Vec<u8> = class.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let class_cell = self.cell(&class);
            self.put32(at + 0x30, class_cell);
            let lengths = u32::from(self.cells[(at + 0x48) as usize]) | (class.len() as u32) << 16;
            self.put32(at + 0x48, lengths);
        }
        cell
    }

    /// The bytes of a file with this storage.
    pub(crate) fn file(mut self) -> Vec<u8> {
        let used = self.cells.len();
        let len = used.next_multiple_of(0x1000);
        if len - used >= 8 {
            self.cells.extend(((len - used) as i32).to_le_bytes());
        }
        self.cells.resize(len, 0);
        self.cells[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        let mut base = vec![0; 0x1000];
        base[..4].copy_from_slice(b"regf");
        for (at, number) in [(4, 7u32), (8, 7), (0x14, 1), (0x18, 5), (0x20, 1), (0x24, self.root), (0x28, len as u32), (0x2c, 1)]
        {
            base[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        let sum = base[..508].chunks(4).fold(0, |sum, word| sum ^ u32::from_le_bytes(word.try_into().unwrap()));
        base[508..512].copy_from_slice(&sum.to_le_bytes());
        base.extend(self.cells);
        base
    }
}

/// A name as the registry stores it, and whether it is compressed.
fn encode(name: &str) -> (Vec<u8>, bool) {
    match name.chars().map(|c| u8::try_from(u32::from(c))).collect::<Result<Vec<u8>, _>>() {
        Ok(bytes) => (bytes, true),
        Err(_) => (name.encode_utf16().flat_map(u16::to_le_bytes).collect(), false),
    }
}
