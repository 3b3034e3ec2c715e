//! Names in a symbol file: each stands for one type, whatever the source calls it.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};
use serde::Serialize;

use super::IsfWriteError;

/// Bytes of names that are remembered.
const MAX_NAMES: usize = 64 << 20;

/// The names of one section that are taken.
#[derive(Debug, Default)]
pub(super) struct Names {
    taken: FxHashSet<String>,
    /// The last number that was put behind a name, or behind `unnamed_`.
    last: FxHashMap<String, u32>,
    bytes: usize,
}

impl Names {
    /// Takes a name that only one type can have.
    pub(super) fn take(&mut self, name: &str) -> Result<(), IsfWriteError> {
        if self.taken.insert(name.to_owned()) { self.count(name) } else { Ok(()) }
    }

    /// Takes a name like `name`, or like `unnamed_1f` if that is empty, as `dwarf2json` calls what has no tag. `known` tells the names that
    /// other types have a right to.
    pub(super) fn make(&mut self, name: &str, known: impl Fn(&str) -> bool) -> Result<String, IsfWriteError> {
        if !self.last.contains_key(name) {
            self.last.insert(name.to_owned(), u32::from(!name.is_empty()));
            self.count(name)?;
        }
        let last = self.last.entry(name.to_owned()).or_default();
        loop {
            *last = last.saturating_add(1);
            let made = if name.is_empty() { format!("unnamed_{last:x}") } else { format!("{name}_{last}") };
            if !known(&made) && self.taken.insert(made.clone()) {
                self.count(&made)?;
                return Ok(made);
            }
        }
    }

    fn count(&mut self, name: &str) -> Result<(), IsfWriteError> {
        self.bytes = self.bytes.saturating_add(name.len());
        if self.bytes > MAX_NAMES { Err(IsfWriteError::Names { limit: MAX_NAMES }) } else { Ok(()) }
    }
}

/// An integer, character, truth value or floating-point number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Number {
    size: u64,
    signed: bool,
    kind: &'static str,
    endian: &'static str,
}

/// The numbers that were used, by name.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    by_name: BTreeMap<String, Number>,
    names: Names,
    /// What a number that shares its name with another is called.
    renamed: FxHashMap<(String, u64, bool), String>,
    pointer_size: u64,
}

/// C's numbers as gcc calls them, with their sizes for pointers of 8 and of 4 bytes. Volatility asks for them whether a structure uses them
/// or not. `char` has no sign in kernels since 6.2 (commit 3bc753c06dd0); there it comes from the source.
const STANDARD: &[(&str, u64, u64, bool)] = &[
    ("char", 1, 1, true),
    ("signed char", 1, 1, true),
    ("unsigned char", 1, 1, false),
    ("short int", 2, 2, true),
    ("short unsigned int", 2, 2, false),
    ("int", 4, 4, true),
    ("unsigned int", 4, 4, false),
    ("long int", 8, 4, true),
    ("long unsigned int", 8, 4, false),
    ("long long int", 8, 8, true),
    ("long long unsigned int", 8, 8, false),
    ("_Bool", 1, 1, false),
];

/// What clang calls some of them.
const CLANG: &[(&str, &str)] = &[
    ("short", "short int"),
    ("unsigned short", "short unsigned int"),
    ("long", "long int"),
    ("unsigned long", "long unsigned int"),
    ("long long", "long long int"),
    ("unsigned long long", "long long unsigned int"),
    // The name since C23.
    ("bool", "_Bool"),
];

/// Words that stand for something else in the file.
const RESERVED: &[&str] =
    &["pointer", "void", "array", "struct", "union", "class", "enum", "bitfield", "function", "string", "bytes"];

impl Numbers {
    pub(super) fn new(pointer_size: u64) -> Self {
        let mut numbers = Self { pointer_size, ..Self::default() };
        numbers.by_name.insert("pointer".to_owned(), Number::new("", pointer_size, false));
        numbers.by_name.insert("void".to_owned(), Number { kind: "void", ..Number::new("", 0, false) });
        numbers
    }

    /// The name in the file of a number of the source.
    pub(super) fn name(&mut self, name: &str, size: u64, signed: bool) -> Result<String, IsfWriteError> {
        let name = CLANG.iter().find(|(clang, _)| *clang == name).map_or(name, |(_, gcc)| gcc);
        let number = Number::new(name, size, signed);
        let key = (name.to_owned(), size, signed);
        if let Some(name) = self.renamed.get(&key) {
            return Ok(name.clone());
        }
        let free = !name.is_empty() && !RESERVED.contains(&name);
        match self.by_name.get(name) {
            Some(known) if free && *known == number => return Ok(name.to_owned()),
            None if free => {
                self.names.take(name)?;
                self.by_name.insert(name.to_owned(), number);
                return Ok(name.to_owned());
            }
            _ => {}
        }
        let by_name = &self.by_name;
        let made = self.names.make(name, |made| by_name.contains_key(made))?;
        self.by_name.insert(made.clone(), number);
        self.renamed.insert(key, made.clone());
        Ok(made)
    }

    /// The name of a standard number, as it is in the file.
    pub(super) fn standard(&mut self, name: &str) -> Result<String, IsfWriteError> {
        if !self.by_name.contains_key(name)
            && let Some(&(name, wide, narrow, signed)) = STANDARD.iter().find(|(standard, ..)| *standard == name)
        {
            return self.name(name, if self.pointer_size == 8 { wide } else { narrow }, signed);
        }
        Ok(name.to_owned())
    }

    /// The name of an integer of this size, under which an enumeration is kept.
    pub(super) fn integer(&mut self, size: u64, signed: bool) -> Result<String, IsfWriteError> {
        let fits = |&&(_, wide, narrow, sign): &&(&str, u64, u64, bool)| {
            sign == signed && size == if self.pointer_size == 8 { wide } else { narrow }
        };
        match STANDARD.iter().filter(|number| number.0 != "char").find(fits) {
            Some(number) => self.name(number.0, size, signed),
            None => self.name(if signed { "int" } else { "unsigned int" }, size, signed),
        }
    }

    /// All, the standard ones included.
    pub(super) fn finish(&mut self) -> Result<&BTreeMap<String, Number>, IsfWriteError> {
        for (name, ..) in STANDARD {
            self.standard(name)?;
        }
        Ok(&self.by_name)
    }
}

impl Number {
    fn new(name: &str, size: u64, signed: bool) -> Self {
        let kind = match name {
            "_Bool" => "bool",
            "float" | "double" | "long double" => "float",
            _ if name.contains("char") => "char",
            _ => "int",
        };
        Self { size, signed, kind, endian: "little" }
    }
}
