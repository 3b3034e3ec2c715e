//! Names and addresses of a kernel, both ways.

use core::fmt;
use core::hash::BuildHasher;
use std::sync::OnceLock;

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

use crate::{ErrorKind, Result, VirtAddr};

/// A symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Name.
    pub name: &'a str,
    /// Address in the running guest, its address-space randomisation included.
    pub address: VirtAddr,
    /// The letter of nm(1): `T` text, `D` data, `R` read-only data, `A` absolute, ...; lower case if local.
    pub kind: u8,
    /// The module that defines it; `None` for the kernel itself.
    pub module: Option<&'a str>,
}

/// The symbols of a kernel and its modules.
///
/// ```
/// use vmi_core::{SymbolsBuilder, VirtAddr};
///
/// let mut builder = SymbolsBuilder::default();
/// builder.push("do_idle", VirtAddr::new(0x1000), b't');
/// builder.push("schedule", VirtAddr::new(0x1080), b'T');
/// let symbols = builder.build();
/// assert_eq!(symbols.address("schedule").unwrap(), VirtAddr::new(0x1080));
/// let (symbol, offset) = symbols.nearest(VirtAddr::new(0x1010)).unwrap();
/// assert_eq!((symbol.name, offset), ("do_idle", 0x10));
/// ```
#[derive(Default)]
pub struct Symbols {
    /// All names, one after another.
    names: String,
    modules: Vec<String>,
    /// Ascending by address.
    entries: Vec<Entry>,
    /// Indices into `entries` by name, made when a name is first looked up.
    by_name: OnceLock<HashTable<u32>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    address: VirtAddr,
    name_start: u32,
    name_len: u16,
    /// Index into `modules` plus one; 0 for the kernel.
    module: u16,
    kind: u8,
}

impl Symbols {
    /// How many symbols there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All symbols, ascending by address.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Symbol<'_>> {
        self.entries.iter().map(|entry| self.symbol(entry))
    }

    /// The symbol of this name; of several (static functions of the same name), the kernel's own with the lowest address.
    pub fn find(&self, name: &str) -> Option<Symbol<'_>> {
        self.all(name).min_by_key(|symbol| (symbol.module.is_some(), symbol.address))
    }

    /// The address of the symbol of this name, as [`Symbols::find`] chooses it.
    ///
    /// # Errors
    /// [`ErrorKind::NoSymbol`] if there is none.
    pub fn address(&self, name: &str) -> Result<VirtAddr> {
        match self.find(name) {
            Some(symbol) => Ok(symbol.address),
            None => Err(ErrorKind::NoSymbol { name: name.to_owned() }.into()),
        }
    }

    /// Every symbol of this name, in no particular order.
    pub fn all<'s>(&'s self, name: &str) -> impl Iterator<Item = Symbol<'s>> {
        let index = self.by_name.get_or_init(|| self.index());
        index
            .iter_hash(FxBuildHasher.hash_one(name))
            .filter_map(|&entry| self.entries.get(entry as usize))
            .map(|entry| self.symbol(entry))
            .filter(move |symbol| symbol.name == name)
    }

    /// The last symbol at or below `at`, and how far above it `at` is.
    pub fn nearest(&self, at: VirtAddr) -> Option<(Symbol<'_>, u64)> {
        let above = self.entries.partition_point(|entry| entry.address <= at);
        let last = self.entries.get(above.checked_sub(1)?)?;
        // Of several names for one address, the first: aliases follow their original.
        let first = self.entries.partition_point(|entry| entry.address < last.address);
        let entry = self.entries.get(first)?;
        Some((self.symbol(entry), at.offset_from(entry.address)?))
    }

    /// All symbols at exactly `at`.
    pub fn at(&self, at: VirtAddr) -> impl Iterator<Item = Symbol<'_>> {
        let first = self.entries.partition_point(|entry| entry.address < at);
        let entries = self.entries.get(first..).unwrap_or_default();
        entries.iter().take_while(move |entry| entry.address == at).map(|entry| self.symbol(entry))
    }

    fn symbol(&self, entry: &Entry) -> Symbol<'_> {
        let module = entry.module.checked_sub(1).and_then(|index| self.modules.get(usize::from(index)));
        Symbol { name: self.name(entry), address: entry.address, kind: entry.kind, module: module.map(String::as_str) }
    }

    fn name(&self, entry: &Entry) -> &str {
        let start = entry.name_start as usize;
        self.names.get(start..start.saturating_add(usize::from(entry.name_len))).unwrap_or_default()
    }

    fn index(&self) -> HashTable<u32> {
        let hash = |&index: &u32| match self.entries.get(index as usize) {
            Some(entry) => FxBuildHasher.hash_one(self.name(entry)),
            None => 0,
        };
        let mut table = HashTable::with_capacity(self.entries.len());
        for index in 0..self.entries.len() as u32 {
            table.insert_unique(hash(&index), index, hash);
        }
        table
    }
}

impl fmt::Debug for Symbols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Symbols").field("len", &self.len()).field("modules", &self.modules).finish_non_exhaustive()
    }
}

/// Collects symbols in any order.
#[derive(Debug, Default)]
pub struct SymbolsBuilder {
    symbols: Symbols,
    module: u16,
}

impl SymbolsBuilder {
    /// Makes room for so many more symbols, of about 24 bytes of name each. The caller bounds the number.
    pub fn reserve(&mut self, symbols: usize) {
        self.symbols.entries.reserve(symbols);
        self.symbols.names.reserve(symbols.saturating_mul(24));
    }

    /// What follows belongs to this module. At most 65,534 modules are told apart; those beyond share the last name.
    pub fn module(&mut self, name: &str) {
        if self.symbols.modules.len() < usize::from(u16::MAX - 1) {
            self.symbols.modules.push(name.to_owned());
        }
        self.module = self.symbols.modules.len() as u16;
    }

    /// Adds a symbol of the current module, or of the kernel before the first call of [`SymbolsBuilder::module`].
    ///
    /// Symbols beyond 4 GiB of names and names above 64 KiB do not fit and return `false`; nothing is added then.
    pub fn push(&mut self, name: &str, address: VirtAddr, kind: u8) -> bool {
        let (Ok(name_start), Ok(name_len)) = (u32::try_from(self.symbols.names.len()), u16::try_from(name.len())) else {
            return false;
        };
        self.symbols.names.push_str(name);
        self.symbols.entries.push(Entry { address, name_start, name_len, module: self.module, kind });
        true
    }

    /// The finished table.
    pub fn build(mut self) -> Symbols {
        // Stable, so that symbols of one address keep the order of their source. Kernel tables come sorted: this is one pass then.
        self.symbols.entries.sort_by_key(|entry| entry.address);
        self.symbols
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_both_ways() {
        let mut builder = SymbolsBuilder::default();
        builder.push("b", VirtAddr::new(0x20), b'T');
        builder.push("a", VirtAddr::new(0x10), b'T');
        builder.push("a_alias", VirtAddr::new(0x10), b't');
        builder.module("loop");
        builder.push("a", VirtAddr::new(0x8), b't');
        let symbols = builder.build();
        assert_eq!(symbols.address("a").unwrap(), VirtAddr::new(0x10), "the kernel's own comes first");
        assert_eq!(symbols.all("a").count(), 2);
        assert_eq!(symbols.nearest(VirtAddr::new(0x1f)).map(|(s, o)| (s.name, o)), Some(("a", 0xf)));
        assert_eq!(symbols.nearest(VirtAddr::new(0x9)).unwrap().0.module, Some("loop"));
        assert_eq!(symbols.nearest(VirtAddr::new(0x7)), None);
        assert_eq!(symbols.at(VirtAddr::new(0x10)).map(|s| s.name).collect::<Vec<_>>(), ["a", "a_alias"]);
        assert!(matches!(symbols.address("c").unwrap_err().kind(), ErrorKind::NoSymbol { name } if name == "c"));
    }
}
