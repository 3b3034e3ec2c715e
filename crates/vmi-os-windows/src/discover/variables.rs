//! The kernel's variables that were found in one way or another, by name.

use vmi_core::{Symbols, SymbolsBuilder, VirtAddr};

/// Names and addresses, and how each was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Variables {
    found: Vec<(String, VirtAddr, &'static str)>,
}

impl Variables {
    /// Adds a variable; the way that came first keeps the word.
    pub(super) fn add(&mut self, name: &str, at: VirtAddr, how: &'static str) {
        if self.find(name).is_none() {
            self.found.push((name.to_owned(), at, how));
        }
    }

    /// Where the variable is.
    pub(super) fn find(&self, name: &str) -> Option<VirtAddr> {
        self.found.iter().find(|variable| variable.0 == name).map(|variable| variable.1)
    }

    /// `symbols` and those of these variables that they lack; and a sentence for each that the symbols put elsewhere.
    pub(super) fn add_to(&self, symbols: Option<&Symbols>) -> (Symbols, Vec<String>) {
        let mut all = SymbolsBuilder::default();
        let mut differences = Vec::new();
        if let Some(symbols) = symbols {
            all.reserve(symbols.len().saturating_add(self.found.len()));
            for symbol in symbols.iter() {
                all.push(symbol.name, symbol.address, symbol.kind);
            }
        }
        for (name, at, how) in &self.found {
            match symbols.and_then(|symbols| symbols.find(name)) {
                Some(symbol) if symbol.address != *at && *how != EXPORTS => {
                    differences.push(format!("{name} is at {} by the symbols, at {at} by {how}", symbol.address));
                }
                Some(_) => {}
                // As nm(1) marks what it does not know.
                None => _ = all.push(name, *at, b'?'),
            }
        }
        (all.build(), differences)
    }
}

/// How exports are named here: their addresses are those of the image in memory and need no comparison.
pub(super) const EXPORTS: &str = "the image's exports";
