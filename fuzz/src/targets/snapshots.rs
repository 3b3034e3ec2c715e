//! Images of several files: the state is hostile, what is beside it is as long as the seeds say.

use std::fs::{self, File};
use std::path::Path;

use crc::{CRC_64_REDIS, Crc};
use vmi_driver_file::{Format, OpenOptions};

use super::{head, images};

/// A saved state, alone and beside a memory file.
pub fn vmware(data: &[u8]) -> bool {
    let alone = OpenOptions::new().format(Format::Vmware).open_bytes("image", data.to_vec()).map(images::read).is_ok();
    beside("a.vmss", data, "a.vmem", 0x4000) || alone
}

/// A state file, opened by itself and by the memory file. Its checksum is made right: by chance it never is.
pub fn firecracker(data: &[u8]) -> bool {
    let sum = Crc::<u64>::new(&CRC_64_REDIS).checksum(data);
    beside("state", &[data, &sum.to_le_bytes()].concat(), "memory", 2 << 20)
}

/// `state.json`, opened by itself and by the memory.
pub fn cloud_hypervisor(data: &[u8]) -> bool {
    beside("state.json", data, "memory-ranges", 0x6000)
}

/// A dump in two parts, opened by the first one. Input: its length, and both.
pub fn kdump_split(data: &[u8]) -> bool {
    let Some((len, parts)) = head::<4>(data) else { return false };
    let (first, second) = parts.split_at(parts.len().min(u32::from_le_bytes(len) as usize));
    let files = directory();
    let path = files.path().join("dump_1");
    fs::write(&path, first).and_then(|()| fs::write(files.path().join("dump_2"), second)).expect("the parts");
    let open = |truncated| OpenOptions::new().allow_truncated(truncated).open(&path).map(images::read).is_ok();
    let whole = open(false);
    assert!(open(true) || !whole);
    whole
}

/// In memory, where the machine has such a place.
fn directory() -> tempfile::TempDir {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() }.expect("a directory for the files")
}

/// Whether the state opens, with a memory file of this length that is all hole beside it. That one, by itself, may be a raw image too.
fn beside(state: &str, data: &[u8], memory: &str, len: u64) -> bool {
    let files = directory();
    let (state, memory) = (files.path().join(state), files.path().join(memory));
    File::create(&memory).and_then(|file| file.set_len(len)).expect("the memory file");
    fs::write(&state, data).expect("the state file");
    let open = |truncated| OpenOptions::new().allow_truncated(truncated).open(&state).map(images::read).is_ok();
    let whole = open(false);
    assert!(open(true) || !whole);
    let _ = OpenOptions::new().open(&memory).map(images::read);
    whole
}
