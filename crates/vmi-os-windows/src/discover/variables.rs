//! The kernel's variables that were found in one way or another, by name.

use vmi_core::{Symbols, SymbolsBuilder, VirtAddr};

/// Names and addresses, and how each was found.
#[derive(Debug, Default)]
pub(super) struct Variables {
    /// What the image itself names.
    pub(super) exports: Symbols,
    found: Vec<(&'static str, VirtAddr, &'static str)>,
}

impl Variables {
    /// Adds a variable; the way that came first keeps the word.
    pub(super) fn add(&mut self, name: &'static str, at: VirtAddr, how: &'static str) {
        if !self.found.iter().any(|variable| variable.0 == name) {
            self.found.push((name, at, how));
        }
    }

    /// `symbols`, and the exports and variables that they lack; and a sentence for each that the symbols put elsewhere.
    pub(super) fn add_to(&self, symbols: Option<&Symbols>) -> (Symbols, Vec<String>) {
        let none = Symbols::default();
        let symbols = symbols.unwrap_or(&none);
        let mut all = SymbolsBuilder::default();
        all.reserve(symbols.len().saturating_add(self.exports.len()).saturating_add(self.found.len()));
        for symbol in symbols.iter() {
            all.push(symbol.name, symbol.address, symbol.kind);
        }
        for export in self.exports.iter().filter(|export| symbols.find(export.name).is_none()) {
            all.push(export.name, export.address, export.kind);
        }
        let mut differences = Vec::new();
        for &(name, at, how) in &self.found {
            match symbols.find(name).or_else(|| self.exports.find(name)) {
                Some(symbol) if symbol.address != at => {
                    differences.push(format!("{name} is at {} by the symbols, at {at} by {how}", symbol.address));
                }
                Some(_) => {}
                // As nm(1) marks what it does not know.
                None => _ = all.push(name, at, b'?'),
            }
        }
        (all.build(), differences)
    }
}
