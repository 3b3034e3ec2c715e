//! Writes BTF, after the kernel's documentation and with nothing of the parser.

/// BTF in the making.
#[derive(Clone)]
pub(super) struct Blob {
    types: Vec<u8>,
    strings: Vec<u8>,
    next_id: u32,
    first_name: u32,
    /// Layout section; with one, the header has 32 bytes.
    pub(super) layouts: Option<Vec<u8>>,
}

impl Blob {
    pub(super) fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0], next_id: 1, first_name: 0, layouts: None }
    }

    pub(super) fn continuing(base: &Self) -> Self {
        let first_name = base.first_name + base.strings.len() as u32;
        Self { types: Vec::new(), strings: Vec::new(), next_id: base.next_id, first_name, layouts: None }
    }

    pub(super) fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.first_name + self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    /// Adds a record and gives its number.
    pub(super) fn record(&mut self, name: &str, kind: u32, count: u32, flag: bool, size_or_type: u32, extra: &[u32]) -> u32 {
        let head = [self.name(name), u32::from(flag) << 31 | kind << 24 | count, size_or_type];
        self.types.extend(head.iter().chain(extra).flat_map(|word| word.to_le_bytes()));
        self.next_id += 1;
        self.next_id - 1
    }

    pub(super) fn int(&mut self, name: &str, size: u32, bits: u32, signed: bool) -> u32 {
        self.record(name, 1, 0, false, size, &[u32::from(signed) << 24 | bits])
    }

    pub(super) fn structure(&mut self, name: &str, size: u32, flag: bool, members: &[(&str, u32, u32)]) -> u32 {
        let words: Vec<u32> = members.iter().flat_map(|&(name, ty, offset)| [self.name(name), ty, offset]).collect();
        self.record(name, 4, members.len() as u32, flag, size, &words)
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let layouts = self.layouts.clone().unwrap_or_default();
        let types = self.types.len() as u32;
        let strings = types + layouts.len() as u32;
        let mut words = vec![0x0001_eb9f, 24, 0, types, strings, self.strings.len() as u32];
        if self.layouts.is_some() {
            words[1] = 32;
            words.extend([types, layouts.len() as u32]);
        }
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend([self.types.clone(), layouts, self.strings.clone()].concat());
        bytes
    }
}
