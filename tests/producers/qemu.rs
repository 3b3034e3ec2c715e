//! What QEMU writes of a guest that stands still: `dump-guest-memory`, `migrate` and `snapshot-save`.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{LiveGuest, Machine, Memory, Qemu, Qmp, Shape};
use crate::truth::{Process, Truth, same_processes, task_name};

/// How an image is written.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// `dump-guest-memory` in this format.
    Dump(&'static str),
    /// `migrate` through a pipe.
    Stream,
    /// `migrate` to a file.
    File,
    /// `migrate` to a file with memory at fixed places.
    MappedRam,
    /// A snapshot in a disk image, as of `savevm`; with subclusters or without.
    Snapshot { extended: bool },
}

/// All that is read here. Of a format that this QEMU was built without, that is said.
const WAYS: &[Way] = &[
    Way::Dump("elf"),
    Way::Dump("kdump-zlib"),
    Way::Dump("kdump-lzo"),
    Way::Dump("kdump-snappy"),
    Way::Dump("kdump-raw-zlib"),
    Way::Dump("kdump-raw-lzo"),
    Way::Dump("kdump-raw-snappy"),
    Way::Stream,
    Way::File,
    Way::MappedRam,
    Way::Snapshot { extended: false },
    Way::Snapshot { extended: true },
];

/// How long QEMU may take for an image.
const PATIENCE: Duration = Duration::from_secs(60);

macro_rules! rows {
    ($($test:ident: $qemu:ident $machine:ident $memory:ident;)*) => {$(
        #[test]
        fn $test() {
            images_of(&Shape { qemu: Qemu::$qemu, machine: Machine::$machine, memory: Memory::$memory });
        }
    )*};
}

rows! {
    own_one: Own One Private;
    own_high: Own High Private;
    own_numa: Own Numa Memfd;
    qemu10_smp: V10 Smp Memfd;
    qemu10_high: V10 High Private;
    qemu10_numa: V10 Numa Private;
}

fn images_of(shape: &Shape) {
    let guest = match LiveGuest::boot(shape) {
        Ok(guest) => guest,
        Err(skip) => return println!("{skip}"),
    };
    println!("{shape:?}: {}, booted in {:.1} s", guest.version(), guest.boot_seconds());
    for way in WAYS {
        let path = guest.directory().join("image");
        let told: BTreeSet<Process> =
            guest.processes().into_iter().map(|process| (process.pid, process.parent, task_name(&process.name))).collect();
        let mut qmp = guest.qmp2();
        // QEMU migrates a guest but once without running it between.
        let (truth, done, seconds) = qmp.while_paused(|qmp| {
            let truth = Truth {
                memory: qmp.ram().into_iter().map(|range| (range.start, qmp.pmemsave(range.start, range.length))).collect(),
                registers: qmp.monitor("info registers -a"),
            };
            let began = Instant::now();
            let done = write(qmp, *way, &path);
            (truth, done, began.elapsed().as_secs_f64())
        });
        assert!(qmp.is_running());
        if let Err(why) = done {
            println!("skipped: {} {way:?}: {why}", guest.version());
            continue;
        }
        let (began, bytes) = (Instant::now(), path.metadata().unwrap().len());
        let listed = truth.check(&path, &format!("{shape:?} {way:?}"), true);
        same_processes(&told, &listed);
        std::fs::remove_file(&path).unwrap();
        println!("  {way:?}: {bytes} bytes in {seconds:.2} s, checked in {:.2} s", began.elapsed().as_secs_f64());
    }
}

/// Writes an image, or says why this QEMU cannot.
fn write(qmp: &mut Qmp, way: Way, path: &Path) -> Result<(), String> {
    let name = path.to_str().unwrap();
    match way {
        Way::Dump(format) => {
            let can = qmp.execute("query-dump-guest-memory-capability", json!({}))?;
            if !can["formats"].as_array().unwrap().contains(&json!(format)) {
                return Err(format!("it was built without {format}, or is too old for it"));
            }
            let arguments = json!({ "paging": false, "protocol": format!("file:{name}"), "format": format });
            qmp.execute("dump-guest-memory", arguments).map(drop)
        }
        Way::Stream => migrate(qmp, &format!("exec:cat > {name}")),
        Way::File => migrate(qmp, &format!("file:{name}")),
        Way::MappedRam => {
            capability(qmp, "mapped-ram", true)?;
            let done = migrate(qmp, &format!("file:{name}"));
            capability(qmp, "mapped-ram", false)?;
            done
        }
        Way::Snapshot { extended } => snapshot(qmp, path, extended),
    }
}

/// Makes a disk image, gives it to the machine for the time of a snapshot, and takes one.
fn snapshot(qmp: &mut Qmp, path: &Path, extended: bool) -> Result<(), String> {
    std::fs::write(path, []).unwrap();
    qmp.execute("blockdev-add", json!({ "driver": "file", "node-name": "file", "filename": path.to_str().unwrap() }))?;
    // Not a whole number of what an entry of the first level has.
    let disk = json!({ "driver": "qcow2", "file": "file", "size": (700 << 20) + 512, "extended-l2": extended });
    job(qmp, "blockdev-create", json!({ "options": disk }))?;
    qmp.execute("blockdev-add", json!({ "driver": "qcow2", "node-name": "disk", "file": "file" }))?;
    let done = job(qmp, "snapshot-save", json!({ "tag": "moment", "vmstate": "disk", "devices": ["disk"] }));
    qmp.execute("blockdev-del", json!({ "node-name": "disk" }))?;
    qmp.execute("blockdev-del", json!({ "node-name": "file" }))?;
    done
}

/// Runs what QEMU does in the background, to its end.
fn job(qmp: &mut Qmp, command: &str, mut arguments: Value) -> Result<(), String> {
    arguments["job-id"] = json!(command);
    qmp.execute(command, arguments)?;
    let deadline = Instant::now() + PATIENCE;
    let error = loop {
        let jobs = qmp.execute("query-jobs", json!({}))?;
        let job = jobs.as_array().unwrap().iter().find(|job| job["id"] == command).unwrap();
        if job["status"] == "concluded" {
            break job.get("error").map(Value::to_string);
        }
        assert!(Instant::now() < deadline, "{command}: {job}");
        std::thread::sleep(Duration::from_millis(20));
    };
    qmp.execute("job-dismiss", json!({ "id": command }))?;
    error.map_or(Ok(()), |error| panic!("{command}: {error}"))
}

fn capability(qmp: &mut Qmp, name: &str, state: bool) -> Result<(), String> {
    let capabilities: Value = json!([{ "capability": name, "state": state }]);
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": capabilities })).map(drop)
}

/// Migrates, and waits for the end. The guest stands still after that.
pub(crate) fn migrate(qmp: &mut Qmp, uri: &str) -> Result<(), String> {
    qmp.execute("migrate", json!({ "uri": uri }))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = qmp.execute("query-migrate", json!({}))?;
        match state["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => panic!("{uri}: {state}"),
            _ => assert!(Instant::now() < deadline, "{uri}: {state}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
