//! Where symbol files lie: symbol stores, folders, and the cache. Nothing is fetched from anywhere, unless `SymbolStore::with_downloads` asked for it.
//!
//! The symbol path has the form of Microsoft's debuggers ("Symbol path for Windows debuggers", "Using SymSrv", "SymStore" on learn.microsoft.com): directories and
//! `srv*...`, `cache*...`, `symsrv*symsrv.dll*...` elements between semicolons. Each directory is searched for the layouts that people have: a store of one or two
//! tiers (`index2.txt`), a plain folder of databases, and folders of Volatility symbol files.

#[cfg(feature = "download")]
mod download;

use core::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::symbol_files::{PdbSignature, SymbolCache, SymbolFile, SymbolFileError, is_pdb};
use crate::{PdbIdentity, symbol_files};

/// Where Microsoft publishes the symbols of Windows; named in messages if the symbol path names no server.
const PUBLIC_SERVER: &str = "https://msdl.microsoft.com/download/symbols";

/// The longest symbol path that is believed, in bytes.
const MAX_PATH_TEXT: usize = 64 << 10;

/// The longest file name of common file systems.
const MAX_NAME: usize = 255;

/// Places of symbol files.
#[derive(Clone, Debug)]
pub struct SymbolStore {
    directories: Vec<PathBuf>,
    servers: Vec<String>,
    cache: SymbolCache,
    #[cfg(feature = "download")]
    downloads: bool,
}

impl SymbolStore {
    /// The places that the user set up: `_NT_SYMBOL_PATH` and `_NT_ALT_SYMBOL_PATH`, then `$XDG_DATA_HOME/vmi/symbols` (`~/.local/share/vmi/symbols`); with the
    /// user's cache.
    pub fn from_environment() -> Self {
        let mut store = Self::empty().with_cache(SymbolCache::of_user());
        for variable in ["_NT_SYMBOL_PATH", "_NT_ALT_SYMBOL_PATH"] {
            store.add(&std::env::var(variable).unwrap_or_default());
        }
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local").join("share")));
        store.directories.extend(data.map(|data| data.join("vmi").join("symbols")));
        store
    }

    /// The places of a symbol path: `srv*/var/symbols*https://msdl.microsoft.com/download/symbols;/home/me/pdbs`. Without a cache.
    pub fn parse(path: &str) -> Self {
        let mut store = Self::empty();
        store.add(path);
        store
    }

    fn empty() -> Self {
        Self {
            directories: Vec::new(),
            servers: Vec::new(),
            cache: SymbolCache::none(),
            #[cfg(feature = "download")]
            downloads: false,
        }
    }

    /// What no directory has is fetched from the servers of the symbol path, or from Microsoft's public one if it names none, and put where a miss would have said:
    /// into the first directory, in the form of a symbol store. The file must be the one that was asked for.
    #[cfg(feature = "download")]
    #[must_use]
    pub fn with_downloads(mut self) -> Self {
        self.downloads = true;
        self
    }

    /// One more directory, searched after the others.
    #[must_use]
    pub fn with_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directories.push(directory.into());
        self
    }

    /// What is read is kept here.
    #[must_use]
    pub fn with_cache(mut self, cache: SymbolCache) -> Self {
        self.cache = cache;
        self
    }

    /// The directories, in the order in which they are searched.
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// The servers that the symbol path names. They are not asked unless `with_downloads` was called; messages name them.
    pub fn servers(&self) -> &[String] {
        &self.servers
    }

    fn add(&mut self, path: &str) {
        if path.len() > MAX_PATH_TEXT {
            tracing::warn!("the symbol path has more than {MAX_PATH_TEXT} bytes and is not used");
            return;
        }
        for element in path.split(';').map(str::trim).filter(|element| !element.is_empty()) {
            let mut places: Vec<_> = element.split('*').collect();
            let kind = places.first().map(|kind| kind.to_ascii_lowercase()).unwrap_or_default();
            match kind.as_str() {
                _ if places.len() == 1 => {}
                "srv" | "cache" => _ = places.remove(0),
                // The second part is the name of the library that serves it.
                "symsrv" => drop(places.drain(..places.len().min(2))),
                _ => {}
            }
            for place in places.into_iter().map(str::trim).filter(|place| !place.is_empty()) {
                match place.get(..8).unwrap_or(place).to_ascii_lowercase() {
                    start if start.starts_with("http://") || start.starts_with("https://") => {
                        self.servers.push(place.trim_end_matches('/').to_owned());
                    }
                    _ => self.directories.push(PathBuf::from(place)),
                }
            }
        }
    }

    /// The symbols of this program database: those that were kept, unless a file came or changed since.
    ///
    /// # Errors
    /// [`Missing`]: every place that was searched and what was wrong with it, and how to get the file.
    pub fn load(&self, identity: &PdbIdentity) -> Result<SymbolFile, Box<Missing>> {
        if self.is_up_to_date(identity)
            && let Some(kept) = self.cache.load(identity)
        {
            return Ok(kept);
        }
        let mut tried = Vec::new();
        for candidate in self.candidates(identity) {
            if !candidate.is_file() {
                tried.push((candidate, Finding::Absent));
                continue;
            }
            match open(&candidate, identity) {
                Ok(file) => {
                    self.cache.store(&file);
                    return Ok(file);
                }
                Err(error) => tried.push((candidate, Finding::Unusable(error))),
            }
        }
        let mut wanted = self.wanted(identity);
        // What is there cannot be used.
        wanted.here = None;
        #[cfg(feature = "download")]
        if self.downloads {
            match download::fetch(&wanted, |path| open(path, identity)) {
                Ok(file) => {
                    self.cache.store(&file);
                    return Ok(file);
                }
                Err(failures) => tried.extend(failures),
            }
        }
        // Better what was read before than nothing, where the file that came since is none.
        self.cache.load(identity).ok_or_else(|| Box::new(Missing { wanted, tried }))
    }

    /// Whether something is kept and no file came or changed since: a user who puts a better file in place means it to be used.
    fn is_up_to_date(&self, identity: &PdbIdentity) -> bool {
        let Some(kept) = self.cache.path(identity).and_then(|path| changed(&path)) else { return false };
        !self.candidates(identity).filter_map(|candidate| changed(&candidate)).any(|file| file >= kept)
    }

    /// What is needed of these program databases, each once: for a list of what to fetch for a machine that is not connected.
    pub fn needed(&self, identities: impl IntoIterator<Item = PdbIdentity>) -> Vec<Wanted> {
        let mut identities: Vec<_> = identities.into_iter().collect();
        identities.sort_by(|a, b| (&a.name, a.guid, a.age).cmp(&(&b.name, b.guid, b.age)));
        identities.dedup();
        identities.iter().map(|identity| self.wanted(identity)).collect()
    }

    fn wanted(&self, identity: &PdbIdentity) -> Wanted {
        let in_store = file_name(&identity.name).map(|name| format!("{name}/{}/{name}", identity.key()));
        let public = [PUBLIC_SERVER.to_owned()];
        let servers = if self.servers.is_empty() { &public[..] } else { &self.servers };
        let urls = in_store.iter().flat_map(|path| servers.iter().map(move |server| format!("{server}/{path}"))).collect();
        let here = self.candidates(identity).find(|candidate| candidate.is_file());
        let put = self.directories.first().zip(in_store.as_ref()).map(|(directory, path)| directory.join(path));
        Wanted { identity: identity.clone(), in_store, urls, here, put }
    }

    /// All paths at which the symbols may be, in the order in which they are tried.
    fn candidates(&self, identity: &PdbIdentity) -> impl Iterator<Item = PathBuf> {
        let name = file_name(&identity.name).map(str::to_owned);
        let (key, guid, age) = (identity.key(), format!("{:032X}", identity.guid), identity.age);
        self.directories.iter().flat_map(move |directory| {
            let mut paths = Vec::new();
            if let Some(name) = &name {
                in_directory(directory, name, &key, &mut paths);
            }
            // Volatility writes the age in decimal digits.
            let isf = format!("{guid}-{age}.json");
            let parents = [Some(String::new()), name.clone(), name.as_ref().map(|name| format!("windows/{name}"))];
            for (parent, end) in parents.into_iter().flatten().flat_map(|parent| [(parent.clone(), ".xz"), (parent, "")]) {
                paths.push(directory.join(parent).join(format!("{isf}{end}")));
            }
            paths
        })
    }
}

/// When a file got its content or its name (`st_ctim` of `stat(2)`, which copies and moves do not take along): seconds and nanoseconds.
fn changed(path: &Path) -> Option<(i64, i64)> {
    let file = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    Some((file.ctime(), file.ctime_nsec()))
}

/// Stores and plain folders of program databases.
fn in_directory(directory: &Path, name: &str, key: &str, paths: &mut Vec<PathBuf>) {
    // Stores come from Windows, where case does not count: tools that fill them elsewhere write names in lower case, and some the keys.
    let lower = (name.to_lowercase(), key.to_lowercase());
    let mut names = vec![(name, key)];
    for variant in [(lower.0.as_str(), key), (lower.0.as_str(), lower.1.as_str())] {
        if !names.contains(&variant) {
            names.push(variant);
        }
    }
    // With this file the store has a level of directories named by the first two letters.
    let two_tiers = directory.join("index2.txt").is_file();
    for (name, key) in names {
        let mut root = directory.to_owned();
        if two_tiers {
            root.push(name.chars().take(2).collect::<String>());
        }
        let place = root.join(name).join(key);
        paths.push(place.join(name));
        // Compressed, in a cabinet.
        if let Some(stem) = name.strip_suffix(|_: char| true) {
            paths.push(place.join(format!("{stem}_")));
        }
    }
    paths.push(directory.join(name));
}

/// The name as one that can be part of a path. A guest says it, and may say anything.
fn file_name(name: &str) -> Option<&str> {
    let plain = !name.is_empty() && name != "." && name != ".." && name.len() <= MAX_NAME;
    (plain && !name.contains(['/', '\\']) && !name.contains(char::is_control)).then_some(name)
}

/// Reads a file that must be of this program database.
fn open(path: &Path, identity: &PdbIdentity) -> Result<SymbolFile, SymbolFileError> {
    let other = |found: String| SymbolFileError::Other { path: path.to_owned(), found, wanted: identity.to_string() };
    let bytes = symbol_files::read(path)?;
    if is_pdb(&bytes) {
        // A plain folder has one database of each name, of whatever build: that is seen before all of it is read.
        let found = PdbSignature::read(&bytes)?;
        return match found.fits(identity) {
            true => Ok(SymbolFile::from_pdb_of(&bytes, identity)?.with_origin(path.display().to_string())),
            false => Err(other(found.identity().key())),
        };
    }
    let same = |found: &PdbIdentity| (found.guid, found.age) == (identity.guid, identity.age);
    let file = SymbolFile::parse(&bytes)?;
    match file.identity() {
        Some(found) if same(found) => Ok(file.with_origin(path.display().to_string())),
        Some(found) => Err(other(found.key())),
        None => Err(other("an image that it does not name".to_owned())),
    }
}

/// A program database that is needed, and where it is to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which one.
    pub identity: PdbIdentity,
    /// Its place in any symbol store: `ntkrnlmp.pdb/5278AFF86C341677D7D7835C85B7B8441/ntkrnlmp.pdb`; `None` if the name that the guest gives cannot be a file's.
    pub in_store: Option<String>,
    /// Where it can be fetched: on the servers of the symbol path, or on Microsoft's public one.
    pub urls: Vec<String>,
    /// A file that is there already. Whether it can be read was not tried.
    pub here: Option<PathBuf>,
    /// Where to put it.
    pub put: Option<PathBuf>,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { identity, urls, here, put, .. } = self;
        write!(f, "{} {}", identity.name.escape_debug(), identity.key())?;
        match (here, urls.first(), put) {
            (Some(here), ..) => write!(f, ": there already: {}", here.display()),
            (None, Some(url), Some(put)) => write!(f, ": fetch {url} and put it at {}", put.display()),
            (None, Some(url), None) => write!(f, ": fetch {url} and name its directory in _NT_SYMBOL_PATH"),
            (None, None, _) => f.write_str(": the guest names it as no file can be named"),
        }
    }
}

/// No symbols were found.
#[derive(Debug)]
pub struct Missing {
    /// What was looked for, and how to get it.
    pub wanted: Wanted,
    /// Each path that was tried, and what was found there.
    pub tried: Vec<(PathBuf, Finding)>,
}

/// What was found where symbols could have been.
#[derive(Debug)]
#[non_exhaustive]
pub enum Finding {
    /// Nothing.
    Absent,
    /// A file that cannot be used.
    Unusable(SymbolFileError),
    /// A server that did not give it.
    #[cfg(feature = "download")]
    NotFetched(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("not there"),
            Self::Unusable(error) => error.fmt(f),
            #[cfg(feature = "download")]
            Self::NotFetched(why) => write!(f, "not fetched: {why}"),
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = &self.wanted.identity;
        write!(f, "no symbols for {} (key {})", identity.name.escape_debug(), identity.key())?;
        if self.tried.is_empty() {
            f.write_str("; no directory to look into: set _NT_SYMBOL_PATH")?;
        }
        for (path, finding) in &self.tried {
            write!(f, "\n  {}: {finding}", path.display())?;
        }
        write!(f, "\n  {}", self.wanted)
    }
}

impl std::error::Error for Missing {}

/// Takes a symbol path and asks it for a file, for tests on hostile text. Nothing of it is read.
#[doc(hidden)]
pub fn exercise(path: &str) -> usize {
    let store = SymbolStore::parse(path);
    let identity = PdbIdentity { name: path.chars().rev().take(20).collect(), guid: 1, age: 1 };
    store.candidates(&identity).count()
}

#[cfg(test)]
mod tests;
