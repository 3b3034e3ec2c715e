//! Steps that take long, and are not taken again while nothing has changed of what they depend on.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use crate::step::root;

/// What a step depends on, as it is now, and the note of how it was when the step passed last.
#[derive(Debug)]
pub(crate) struct Unchanged {
    note: PathBuf,
    sources: &'static [&'static str],
    state: String,
}

impl Unchanged {
    /// `sources` are files, and directories with all below them; `version` is what else matters. The state that passed is kept in `note`.
    pub(crate) fn new(note: PathBuf, sources: &'static [&'static str], version: &str) -> Self {
        let mut files = BTreeMap::new();
        for source in sources {
            read_all(&root().join(source), &mut files);
        }
        let mut hasher = DefaultHasher::new();
        (files, version).hash(&mut hasher);
        Self { note, sources, state: format!("{:016x}", hasher.finish()) }
    }

    /// Whether the step passed with all as it is: then why it is left out.
    pub(crate) fn since_it_passed(&self) -> Option<String> {
        let same = std::fs::read_to_string(&self.note).is_ok_and(|passed| passed == self.state);
        same.then(|| format!("it passed, and nothing of {} has changed since", self.sources.join(", ")))
    }

    /// Notes that the step has passed.
    pub(crate) fn passed(&self) {
        if let Err(error) = std::fs::write(&self.note, &self.state) {
            println!("{}: {error}", self.note.display());
        }
    }
}

/// The content of a file, or of all below a directory; of those that cannot be read, none.
fn read_all(path: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            read_all(&entry.path(), files);
        }
    } else {
        let content = std::fs::read(path).unwrap_or_default();
        files.insert(path.strip_prefix(root()).unwrap_or(path).to_path_buf(), content);
    }
}
