//! All of the guest's RAM, from its first byte to its last: by the library, and by QEMU's own command `pmemsave`.
//!
//! `pmemsave` writes a file. To `/dev/null` it does the reading alone, as ours into memory does; into a file in memory (tmpfs) both
//! have the host set memory aside for the file.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde_json::json;
use vmi::file::{Format, write};
use vmi::kvm::QemuDriver;
use vmi::prelude::*;

use crate::guest::SIZE;
use crate::wall;

pub fn run(what: &str, live: &Vmi<QemuDriver>, directory: &Path) {
    let timed = |work: &mut dyn FnMut()| {
        let started = Instant::now();
        work();
        started.elapsed()
    };
    let pmemsave = |path: &Path| -> Duration {
        let monitor = live.driver().monitor();
        let time = timed(&mut || {
            monitor.execute("pmemsave", json!({ "val": 0, "size": SIZE, "filename": path })).unwrap();
        });
        if path.starts_with(directory) {
            assert_eq!(fs::metadata(path).unwrap().len(), SIZE);
            fs::remove_file(path).unwrap();
        }
        time
    };
    let (saved, image) = (directory.join("saved"), directory.join("dump.raw"));
    // Memory that is there: what it costs to get it is no part of reading.
    let mut buffer = vec![1u8; SIZE as usize];
    let regions = live.machine().memory.regions().to_vec();
    let mut read = || {
        for region in &regions {
            let at = region.start().get() as usize;
            live.read_into(region.start(), &mut buffer[at..at + region.len() as usize]).unwrap();
        }
    };
    let place = if statfs(directory).is_ok_and(|info| info.filesystem_type() == TMPFS_MAGIC) { "tmpfs" } else { "disk" };
    let file = |what: &str| format!("{what}, to a new file ({place})");
    wall::rates(
        &format!("full dump of 1 GiB, {what}"),
        5,
        SIZE,
        &mut [
            (&file("pmemsave"), &mut || pmemsave(&saved)),
            ("ours, into memory", &mut || timed(&mut read)),
            (&file("ours, as raw image"), &mut || {
                let time = timed(&mut || {
                    let summary = write::image(live, &image, Format::Raw, |_, _| ()).unwrap();
                    assert_eq!(summary.unreadable, []);
                });
                fs::remove_file(&image).unwrap();
                time
            }),
            ("pmemsave, to /dev/null", &mut || pmemsave(Path::new("/dev/null"))),
        ],
    );
}
