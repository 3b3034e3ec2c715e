//! The guest's memory as QEMU has it, by roads that need nothing of the library.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::harness::{LiveGuest, Range};

/// A file through which each shared backend can be read and written, with the name of the backend.
fn shared_files(guest: &LiveGuest) -> Vec<(String, PathBuf)> {
    // QEMU gives all memfds one name, and makes them in order.
    let fds = fs::read_dir(format!("/proc/{}/fd", guest.pid())).unwrap().map(|entry| entry.unwrap().path());
    let mut memfds: Vec<PathBuf> = fds
        .filter(|fd| fs::read_link(fd).is_ok_and(|target| target.starts_with("/memfd:memory-backend-memfd (deleted)")))
        .collect();
    memfds.sort_by_key(|fd| fd.file_name().unwrap().to_str().unwrap().parse::<u32>().unwrap());
    let mut memfds = memfds.into_iter();
    let shared = guest.backends().iter().filter(|backend| backend.shared);
    shared.map(|backend| (backend.id.clone().unwrap(), backend.path.clone().unwrap_or_else(|| memfds.next().unwrap()))).collect()
}

/// The file of the range's backend, if it is shared.
fn file_of(files: &[(String, PathBuf)], range: &Range) -> Option<fs::File> {
    let path = &files.iter().find(|(backend, _)| *backend == range.backend)?.1;
    Some(fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// The memory of QEMU's process.
fn process_memory(guest: &LiveGuest, write: bool) -> fs::File {
    fs::File::options().read(true).write(write).open(format!("/proc/{}/mem", guest.pid())).unwrap()
}

/// The actor's page is where the guest says, and has the pattern.
pub(crate) fn known_page(guest: &LiveGuest) {
    let actor = guest.actor();
    let bytes = guest.qmp2().pmemsave(actor.physical, 4096);
    for (at, word) in (actor.page..).step_by(8).zip(bytes.chunks(8)).skip(3) {
        assert_eq!(u64::from_le_bytes(word.try_into().unwrap()), at ^ 0x5a5a_5a5a_5a5a_5a5a, "at {at:#x}");
    }
}

/// The ranges of RAM have the backends' sizes; and of a paused guest, QEMU's process has what it saves, and so have shared files.
pub(crate) fn pmemsave(guest: &LiveGuest) {
    let files = shared_files(guest);
    assert_eq!(files.is_empty(), guest.backends().iter().all(|backend| !backend.shared));
    guest.qmp2().while_paused(|qmp| {
        let ranges = qmp.ram();
        let (mapped, all) = (
            ranges.iter().map(|range| range.length).sum::<u64>(),
            guest.backends().iter().map(|backend| backend.mib).sum::<u64>(),
        );
        // Behind the window of the display adapter and the flash, some RAM cannot be reached.
        assert!(mapped <= all << 20 && mapped + (1 << 20) > all << 20, "{mapped:#x} of {all} MiB: {ranges:x?}");
        for range in ranges {
            let saved = qmp.pmemsave(range.start, range.length);
            let mut ram = vec![0; saved.len()];
            process_memory(guest, false).read_exact_at(&mut ram, qmp.host_address(range.start)).unwrap();
            assert!(ram == saved, "of the process: {range:x?}");
            if let Some(file) = file_of(&files, &range) {
                file.read_exact_at(&mut ram, range.offset).unwrap();
                assert!(ram == saved, "of the file: {range:x?}");
            } else {
                assert!(files.is_empty(), "{range:x?} has no file");
            }
        }
    });
}

/// The actor sees what is written into its page.
pub(crate) fn inbox(guest: &LiveGuest) {
    let actor = guest.actor();
    let value = guest.report().inbox ^ 0x0123_4567_89ab_cdef;
    process_memory(guest, true).write_all_at(&value.to_le_bytes(), guest.qmp2().host_address(actor.physical) + 8).unwrap();
    guest.wait_for_report(|report| report.inbox == value);
}
