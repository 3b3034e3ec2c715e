//! What was read once, kept in the form that reads fast.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{SymbolFile, read};
use crate::PdbIdentity;

/// A directory of symbol files that were read before, by the identity of their program databases.
///
/// A file there is never trusted: one that is damaged, of another version or of another image is as good as absent, and is written anew.
#[derive(Clone, Debug)]
pub struct SymbolCache {
    directory: Option<PathBuf>,
}

impl SymbolCache {
    /// The cache in this directory, which is made when something is stored.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: Some(directory.into()) }
    }

    /// The cache of this user: `$XDG_CACHE_HOME/vmi/symbols`, or `~/.cache/vmi/symbols`. Without either variable nothing is kept.
    pub fn of_user() -> Self {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let caches = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
        Self { directory: caches.map(|caches| caches.join("vmi").join("symbols")) }
    }

    /// No cache: nothing is found and nothing is kept.
    pub fn none() -> Self {
        Self { directory: None }
    }

    /// Where the symbols of this program database are kept, if anywhere.
    pub fn path(&self, identity: &PdbIdentity) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(format!("{}.vmisym", identity.key())))
    }

    /// The symbols that were kept; `None` if there are none that can be used.
    pub fn load(&self, identity: &PdbIdentity) -> Option<SymbolFile> {
        let path = self.path(identity)?;
        let bytes = read(&path).ok()?;
        let file = match SymbolFile::from_cache(bytes) {
            Ok(file) => file,
            Err(error) => {
                tracing::debug!("{}: {error}", path.display());
                return None;
            }
        };
        let same = file.identity().is_some_and(|found| (found.guid, found.age) == (identity.guid, identity.age));
        same.then(|| file.with_origin(path.display().to_string()))
    }

    /// Keeps what was read. That it cannot be kept is no error: it is read from its source again then.
    pub fn store(&self, file: &SymbolFile) {
        let Some(path) = file.identity().and_then(|identity| self.path(identity)) else { return };
        if let Err(error) = write(&path, file.as_bytes()) {
            tracing::debug!("cannot keep symbols in {}: {error}", path.display());
        }
    }
}

/// Writes a file at once or not at all: another process may read it at any time.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let Some(directory) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(directory)?;
    let unfinished = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = std::fs::File::create(&unfinished)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| std::fs::rename(&unfinished, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    written
}
