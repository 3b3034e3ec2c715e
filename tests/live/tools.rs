//! The examples on a running guest.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::LiveGuest;
use crate::schema;

fn run(name: &str, arguments: &[&str]) -> Output {
    let test = std::env::current_exe().unwrap();
    let program: PathBuf = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(program.exists(), "{} is not built: run `cargo build --examples` first", program.display());
    Command::new(program).args(arguments).output().unwrap()
}

/// The rows that an example prints, which are as its schema says.
fn rows(schema: &str, name: &str, arguments: &[&str]) -> Vec<Value> {
    let output = run(name, &[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{name} {arguments:?}: {output:?}");
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    schema::check(schema, &rows);
    rows
}

/// Every example does on a running guest what it does on an image, or what only a running guest allows.
pub(crate) fn examples(guest: &LiveGuest) {
    let target = format!("qemu:{}", guest.qmp_path().display());
    let target = target.as_str();
    for (schema, name, arguments) in [
        ("process", "process-list", vec![target]),
        ("thread", "process-list", vec!["--threads", target]),
        ("module", "module-list", vec![target]),
        ("symbol", "map-symbol", vec!["init_task", target]),
        ("page", "map-addr", vec!["0x1000", "--physical", target]),
        ("log-record", "kernel-log", vec![target]),
        ("region", "memory-map", vec![target]),
        ("memory-area", "memory-map", vec!["--pid", "1", target]),
    ] {
        assert!(!rows(schema, name, &arguments).is_empty(), "{name}");
    }
    let listed = rows("guest", "guest-list", &[]);
    let ours = listed.iter().find(|row| row["pid"] == guest.pid()).unwrap_or_else(|| panic!("{listed:?}"));
    assert_eq!(ours["target"], target);
    assert!(ours["roads"].as_array().unwrap().contains(&"process".into()) && ours["events"] == true, "{ours}");

    let snapshots = rows("snapshot", "snapshot", &["--again", "1", target]);
    assert_eq!(snapshots.len(), 2);
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("guest.lime");
    let image = image.to_str().unwrap();
    rows("snapshot", "snapshot", &["-o", image, target]);
    assert!(rows("process", "process-list", &[image]).iter().any(|row| row["name"] == "actor"));
    let dumped = directory.path().join("guest.elf");
    assert_eq!(rows("dump", "dump-memory", &["-o", dumped.to_str().unwrap(), target])[0]["unreadable"], 0);

    let events = rows("event", "break-on", &["__x64_sys_nanosleep,__x64_sys_clock_nanosleep", "-n", "3", "--registers", target]);
    assert_eq!(events.len(), 3);
    assert!(events.iter().all(|row| row["process"] == "actor"), "{events:?}");
    let pid = guest.actor().pid.to_string();
    let events = rows("event", "watch", &["0x40000000", "--pid", &pid, "-n", "3", target]);
    assert!(events.len() == 3 && events.iter().all(|row| row["pid"] == guest.actor().pid), "{events:?}");
    // One vCPU and one process that runs: there may be no switch.
    for way in [&["--switches", "-n", "2", "--seconds", "2"][..], &["--seconds", "1"], &["--step", "-n", "1", "--seconds", "5"]] {
        let rows = rows("trace", "cr3-trace", &[way, &[target]].concat());
        assert!(!rows.is_empty(), "{way:?}");
    }

    let inbox = ["0x40000008", "--pid", &pid, "--hex", "78 56 34 12 00000000", target];
    let refused = run("write-memory", &inbox);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--yes"), "{refused:?}");
    assert_ne!(guest.report().inbox, 0x1234_5678);
    rows("written", "write-memory", &[&inbox[..], &["--yes"]].concat());
    guest.wait_for_report(|report| report.inbox == 0x1234_5678);
    let refused = run("process-list", &["--road", "pmemaccess", target]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("patch"), "{refused:?}");
}
