//! Directories as targets: hypervisors that keep a machine in several files put them into one.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::OpenError;
use crate::format::{cloud_hypervisor, firecracker, vmware};

/// A directory of more entries is none that a hypervisor writes.
const MAX_ENTRIES: usize = 4096;

/// The directory of the file at `path`.
pub(crate) fn of(path: &Path) -> PathBuf {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// The regular files in `directory`, in the order of their names; none if there are too many.
pub(crate) fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = directory.read_dir()?.take(MAX_ENTRIES.saturating_add(1)).collect::<io::Result<Vec<_>>>()?;
    if entries.len() > MAX_ENTRIES {
        return Ok(Vec::new());
    }
    let mut files: Vec<_> = entries.iter().map(std::fs::DirEntry::path).filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}

/// Whether the first bytes of the file at `path` satisfy `test`. What cannot be read does not.
pub(crate) fn begins(path: &Path, test: fn(&[u8]) -> bool) -> bool {
    let mut head = [0; 16];
    File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok_and(|()| test(&head))
}

/// Names of `files`, for messages.
pub(crate) fn names(files: &[PathBuf]) -> String {
    let names: Vec<_> = files.iter().filter_map(|file| file.file_name()).map(|name| name.to_string_lossy()).collect();
    names.join(", ")
}

/// The file in `directory` that is to be opened:
///
/// - `state.json` of Cloud Hypervisor, if `memory-ranges` or the older `memory-region-0` is with it;
/// - a state file of Firecracker, told by its content;
/// - a `.vmss` or `.vmsn` of VMware, told by its content; else a `.vmem`.
///
/// # Errors
/// [`OpenError::Directory`] if there is none of these, or more than one.
pub(crate) fn image(directory: &Path) -> Result<PathBuf, OpenError> {
    let io = |source| OpenError::Io { path: directory.to_owned(), action: "list", source };
    let files = files(directory).map_err(io)?;
    let of = |test: &dyn Fn(&PathBuf) -> bool| files.iter().filter(|file| test(file)).cloned().collect::<Vec<_>>();
    let extension = |file: &PathBuf, wanted: &str| file.extension() == Some(OsStr::new(wanted));
    let mut found = Vec::new();
    let memory = files.iter().any(|file| file.file_name().is_some_and(cloud_hypervisor::is_memory));
    found.extend(Some(directory.join(cloud_hypervisor::STATE)).filter(|state| memory && files.contains(state)));
    found.extend(of(&|file| begins(file, firecracker::matches)));
    found.extend(of(&|file| (extension(file, "vmss") || extension(file, "vmsn")) && begins(file, vmware::matches)));
    if found.is_empty() {
        found = of(&|file| extension(file, vmware::MEMORY));
    }
    let why = match found.as_slice() {
        [one] => return Ok(one.clone()),
        [] => {
            "no snapshot in this directory that is known: a memory image is opened by its own name, a directory if it has Cloud \
               Hypervisor's state.json and memory-ranges, a state file of Firecracker, or a .vmss, .vmsn or .vmem of VMware"
                .to_owned()
        }
        many => format!("more than one snapshot in this directory ({}): open one of them", names(many)),
    };
    Err(OpenError::Directory { path: directory.to_owned(), why })
}
