//! All keys below a key.

use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::cells::{Cells, RegistryError};
use super::key::Key;

/// The registry allows 512 levels of keys ("Registry element size limits" in Microsoft's documentation).
const MAX_DEPTH: usize = 512;
/// More keys than a hive can hold.
const MAX_KEYS: usize = 1 << 25;
/// A hive with more errors than this is none.
const MAX_ERRORS: usize = 1 << 16;

/// A key in a tree, and where it is.
#[derive(Clone, Debug)]
pub struct TreeKey<'h, C> {
    /// Names from the key where the walk began, without its own, joined by backslashes; empty for that key.
    pub path: String,
    /// The key.
    pub key: Key<'h, C>,
}

/// A walk over a key and all keys below it, each before those in it.
///
/// A key that two lists name is an error where it comes again: the walk does not follow it, and ends therefore. What cannot be read is an error
/// among the other keys.
#[derive(Debug)]
pub struct Tree<'h, C> {
    first: Option<Key<'h, C>>,
    hive: &'h super::Hive<C>,
    /// Cells of keys to come, the next one last.
    stack: Vec<Pending>,
    seen: FxHashSet<u32>,
    errors: usize,
}

/// A key to come, or the error that ended a list.
#[derive(Debug)]
struct Pending {
    parent: Arc<str>,
    depth: usize,
    cell: Result<u32, RegistryError>,
}

impl<'h, C: Cells> Key<'h, C> {
    /// This key and all keys below it.
    pub fn tree(&self) -> Tree<'h, C> {
        Tree { first: Some(self.clone()), hive: self.hive(), stack: Vec::new(), seen: FxHashSet::default(), errors: 0 }
    }
}

impl<'h, C: Cells> Tree<'h, C> {
    /// Makes the subkeys of a key the next ones.
    fn enter(&mut self, path: String, depth: usize, key: Key<'h, C>) -> Result<TreeKey<'h, C>, RegistryError> {
        if !self.seen.insert(key.cell()) {
            return Err(RegistryError::corrupt(key.cell(), format!("is a subkey twice, the second time as `{path}`")));
        }
        if self.seen.len() > MAX_KEYS {
            self.stack.clear();
            return Err(RegistryError::Limit { what: "the tree of keys".to_owned(), limit: MAX_KEYS });
        }
        if depth > MAX_DEPTH {
            return Err(RegistryError::Limit { what: format!("the path of the key `{path}`"), limit: MAX_DEPTH });
        }
        let (cells, error) = key.listed();
        let parent: Arc<str> = Arc::from(path.as_str());
        let below = depth.saturating_add(1);
        let pending = |cell| Pending { parent: parent.clone(), depth: below, cell };
        self.stack.extend(error.map(Err).map(pending));
        self.stack.extend(cells.into_iter().rev().map(Ok).map(pending));
        Ok(TreeKey { path, key })
    }

    fn next_key(&mut self) -> Option<Result<TreeKey<'h, C>, RegistryError>> {
        if let Some(first) = self.first.take() {
            return Some(self.enter(String::new(), 0, first));
        }
        let Pending { parent, depth, cell } = self.stack.pop()?;
        Some(cell.and_then(|cell| {
            let key = self.hive.key_at(cell)?;
            let path = if parent.is_empty() { key.name() } else { format!("{parent}\\{}", key.name()) };
            self.enter(path, depth, key)
        }))
    }
}

impl<'h, C: Cells> Iterator for Tree<'h, C> {
    type Item = Result<TreeKey<'h, C>, RegistryError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_key()?;
        if next.is_err() {
            self.errors = self.errors.saturating_add(1);
            if self.errors > MAX_ERRORS {
                self.stack.clear();
                return Some(Err(RegistryError::Limit {
                    what: "the list of errors of the tree of keys".to_owned(),
                    limit: MAX_ERRORS,
                }));
            }
        }
        Some(next)
    }
}
