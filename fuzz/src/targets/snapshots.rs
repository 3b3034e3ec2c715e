//! Images of several files: the state is hostile, what is beside it is as long as the seeds say.

use std::fs::{self, File};
use std::path::Path;
use std::sync::LazyLock;

use tempfile::TempDir;
use vmi_driver_file::{Format, OpenOptions};

use super::images;

/// A saved state, alone and beside a memory file.
pub fn vmware(data: &[u8]) -> bool {
    static FILES: LazyLock<TempDir> = LazyLock::new(|| memory("a.vmem", 0x4000));
    let alone = OpenOptions::new().format(Format::Vmware).open_bytes("image", data.to_vec()).map(images::read).is_ok();
    beside(&FILES, "a.vmss", "a.vmem", data) || alone
}

/// A state file, opened by itself and by the memory file.
pub fn firecracker(data: &[u8]) -> bool {
    static FILES: LazyLock<TempDir> = LazyLock::new(|| memory("memory", 2 << 20));
    beside(&FILES, "state", "memory", data)
}

/// `state.json`, opened by itself and by the memory.
pub fn cloud_hypervisor(data: &[u8]) -> bool {
    static FILES: LazyLock<TempDir> = LazyLock::new(|| memory("memory-ranges", 0x6000));
    beside(&FILES, "state.json", "memory-ranges", data)
}

/// A directory with a memory file that is all hole; in memory, where the machine has such a place.
fn memory(name: &str, len: u64) -> TempDir {
    let shared = Path::new("/dev/shm");
    let directory = if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() };
    let directory = directory.expect("a directory for the files");
    File::create(directory.path().join(name)).and_then(|file| file.set_len(len)).expect("a memory file");
    directory
}

/// Whether the state opens, whichever file is named. The memory file by itself is a raw image and always opens.
fn beside(files: &TempDir, state: &str, memory: &str, data: &[u8]) -> bool {
    let path = files.path().join(state);
    fs::write(&path, data).expect("the state file");
    let open = |truncated| OpenOptions::new().allow_truncated(truncated).open(&path).map(images::read).is_ok();
    let whole = open(false);
    assert!(open(true) || !whole);
    let _ = OpenOptions::new().open(files.path().join(memory)).map(images::read);
    whole
}
