//! The examples as a user runs them: on the demo image, and on files that are no image.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

#[path = "examples/images.rs"]
mod images;
#[path = "examples/run.rs"]
mod run;
#[path = "examples/schema.rs"]
mod schema;
#[path = "../examples/common/text.rs"]
#[allow(dead_code, unreachable_pub)]
mod text;
#[path = "examples/windows.rs"]
mod windows;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use images::{DEMO, demo_as};
use run::{Output, example};
use serde_json::Value;

/// Every example that prints rows: its arguments before the target, and the schema of what it prints.
const LISTS: [(&str, &[&str], &str); 12] = [
    ("process-list", &[], "process"),
    ("process-list", &["--tree"], "process"),
    ("process-list", &["--threads"], "thread"),
    ("process-views", &[], "process-view"),
    ("module-list", &[], "module"),
    ("map-symbol", &["init_*"], "symbol"),
    ("map-symbol", &["init_task", "--bytes", "20"], "symbol"),
    ("map-addr", &["--physical", "0xff8"], "page"),
    ("kernel-log", &[], "log-record"),
    ("memory-map", &[], "region"),
    ("memory-map", &["--pid", "1"], "memory-area"),
    ("scan", &["Linux version "], "match"),
];

/// The schemas of lists that need a running guest: `tests/live` compares those of QEMU's.
const LIVE_LISTS: [&str; 8] = ["cpuid", "event", "guest", "memory-access", "msr-write", "snapshot", "trace", "written"];

/// The schemas of lists of Windows guests; see [`windows`].
const WINDOWS_LISTS: [&str; 5] = ["handle", "hive", "needed-symbols", "registry-entry", "windows-kernel"];

/// The lists that need an operating system in the image.
fn guest_lists() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    let physical = |list: &(&str, &[&str], &str)| matches!(list.2, "page" | "region" | "match");
    LISTS.into_iter().filter(move |list| !physical(list)).map(|(name, arguments, _)| (name, arguments))
}

#[test]
fn the_demo_is_read_if_nothing_is_named() {
    let output = example("process-list").run();
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stderr.contains("demo image"), "{output:?}");
    assert_eq!(output.stdout.lines().count(), expected_processes().len() + 1, "a heading and a row for each process: {output:?}");
}

#[test]
fn the_demo_has_the_processes_that_its_guest_saw() {
    let output = example("process-list").args(["--json"]).arg(DEMO).run();
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(processes(&output), expected_processes());
}

#[test]
fn every_list_is_as_its_schema_says() {
    let image = demo_as("raw");
    for (name, arguments, schema) in LISTS {
        let output = example(name).args(arguments).arg("--json").arg(&image).run();
        assert_eq!(output.code, 0, "{name} {arguments:?}: {output:?}");
        let rows = output.rows();
        assert!(!rows.is_empty(), "{name} {arguments:?}: {output:?}");
        schema::check(schema, &rows);
        assert_eq!(output.stdout.lines().count(), rows.len() + 2, "one row a line");
    }
}

#[test]
fn the_documentation_names_what_the_schemas_name() {
    let pages = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md")).unwrap();
    let lists = LISTS.iter().map(|(_, _, schema)| *schema);
    let listed: BTreeSet<_> =
        lists.chain(["dump", "symbol-file"]).chain(LIVE_LISTS).chain(WINDOWS_LISTS).map(str::to_owned).collect();
    assert_eq!(schema::names(), listed, "one schema for each list");
    for name in listed {
        let start = pages.find(&format!("(schema/{name}.json)")).unwrap_or_else(|| panic!("json.md does not mention {name}"));
        let section = pages[start..].split("\n## ").next().unwrap();
        let documented: Vec<_> = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
        assert_eq!(documented, schema::fields(&name), "{name}");
    }
}

#[test]
fn tables_are_plain_text_in_a_pipe() {
    let image = demo_as("raw");
    for (name, arguments, schema) in LISTS {
        let output = example(name).args(arguments).arg(&image).run();
        assert_eq!(output.code, 0, "{name} {arguments:?}: {output:?}");
        assert!(!output.stdout.contains('\x1b') && !output.stderr.contains('\x1b'), "{name}: {output:?}");
        // The kernel's own text stays as it is.
        assert!(schema == "log-record" || output.stdout.lines().all(|line| !line.ends_with(' ')), "{name}: {output:?}");
    }
}

#[test]
fn a_tree_has_each_process_once() {
    let output = example("process-list").args(["--tree", "--json"]).arg(DEMO).run();
    assert_eq!(processes(&output), expected_processes());
}

#[test]
fn symbols_are_found_both_ways() {
    let image = demo_as("raw");
    let symbol = |query: &str| {
        let output = example("map-symbol").arg(query).arg("--json").arg(&image).run();
        assert_eq!(output.code, 0, "{output:?}");
        output.rows().remove(0)
    };
    let init_task = symbol("init_task");
    let address = u64::from_str_radix(init_task["address"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    let nearest = symbol(&format!("{:#x}", address + 8));
    assert_eq!((&nearest["name"], &nearest["offset"]), (&init_task["name"], &Value::from(8)));

    let output = example("map-symbol").arg("no_such_symbol").arg(&image).run();
    output.assert_failed_with("no_such_symbol");
}

#[test]
fn a_reader_may_close_the_pipe() {
    let output = example("map-symbol").arg("*").arg(DEMO).run_until_first_line();
    assert_eq!(output.code, 0, "{output:?}");
    assert!(!output.stderr.contains("error"), "{output:?}");
}

#[test]
fn messages_that_nobody_reads_do_no_harm() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = example("process-list").stderr(full).run();
    assert_eq!(output.code, 0, "{output:?}");
}

#[test]
fn a_wrong_command_line_is_told_apart() {
    assert_eq!(example("process-list").arg("--no-such-option").run().code, 2);
    assert_eq!(example("map-symbol").run().code, 2);
}

#[test]
fn what_is_no_image_is_named() {
    for (file, path) in images::hopeless() {
        for (name, arguments) in guest_lists() {
            let output = example(name).args(arguments).arg(&path).run();
            output.assert_failed_with(path.to_str().unwrap());
            assert!(!output.stderr.contains("panicked"), "{file}, {name}: {output:?}");
        }
    }
}

#[test]
fn a_back_end_that_is_not_there_is_named() {
    // With the feature, what fails is the connection to libvirt, or it has no such domain.
    let named = if cfg!(feature = "libvirt") { "libvirt" } else { "libvirt:web1" };
    example("process-list").arg("libvirt:web1").run().assert_failed_with(named);
}

#[test]
fn what_the_library_warns_of_is_shown() {
    let image = images::cut(&demo_as("lime"), 95 << 20);
    let output = |more: &[&str]| example("memory-map").arg("--allow-truncated").args(more).arg(&image).run();
    let shown = output(&[]);
    assert!(shown.code == 0 && shown.stderr.contains("warning: the image is cut short (what: "), "{shown:?}");
    let quiet = output(&["--quiet"]);
    assert!(quiet.stderr.is_empty() && quiet.stdout == shown.stdout, "{quiet:?}");
}

#[test]
fn snapshots_and_bases_are_chosen() {
    example("process-list").args(["--snapshot", "a"]).run().assert_failed_with("none called `a`");
    // A file that is all holes says nothing: all of it is the base's.
    let base = demo_as("raw");
    let image = images::holes(std::fs::metadata(&base).unwrap().len());
    let output = example("process-list").arg("--json").arg("--base").arg(base).arg(image).run();
    assert_eq!(processes(&output), expected_processes());
}

#[test]
fn a_raw_image_cut_short_never_gives_a_wrong_list() {
    for length in [4096, 17 << 20, 40 << 20, 70 << 20, 95 << 20] {
        let output = example("process-list").arg("--json").arg(images::cut(&demo_as("raw"), length)).run();
        match output.code {
            0 => assert_eq!(processes(&output), expected_processes(), "cut to {length}"),
            // Rows that can be read are right, and the others are counted.
            3 => assert!(processes(&output).is_subset(&expected_processes()), "cut to {length}: {output:?}"),
            _ => output.assert_failed_with("memory"),
        }
    }
}

#[test]
fn a_dump_of_any_format_answers_the_same() {
    for format in ["raw", "lime", "avml", "elf"] {
        let output = example("process-list").arg("--json").arg(demo_as(format)).run();
        assert_eq!(output.code, 0, "{format}: {output:?}");
        assert_eq!(processes(&output), expected_processes(), "{format}");
    }
}

#[test]
fn a_dump_overwrites_only_by_force() {
    let image = demo_as("raw");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dump.lime");
    std::fs::write(&file, b"precious").unwrap();
    example("dump-memory").arg("-o").arg(&file).arg(&image).run().assert_failed_with("--force");
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let output = example("dump-memory").args(["--json", "--force", "-o"]).arg(&file).arg(&image).run();
    assert_eq!(output.code, 0, "{output:?}");
    schema::check("dump", &output.rows());
    assert!(std::fs::read(&file).unwrap().starts_with(b"EMiL"));
}

/// Tools that read such images look there for what the raw image has only within its memory.
#[test]
fn elf_and_kdump_dumps_have_the_kernels_own_note() {
    let image = demo_as("raw");
    let vmi = vmi::open(image.as_path()).unwrap();
    assert!(vmi.machine().notes.is_empty());
    let text = vmi::linux::Linux::attach(&vmi).unwrap().vmcoreinfo().unwrap();
    assert!(text.starts_with(b"OSRELEASE=6.12"));
    let directory = tempfile::tempdir().unwrap();
    for format in ["elf", "kdump"] {
        let file = directory.path().join(format!("dump.{format}"));
        let output = example("dump-memory").args(["--verify", "-o"]).arg(&file).arg(&image).run();
        assert_eq!(output.code, 0, "{output:?}");
        assert_eq!(vmi::open(file.as_path()).unwrap().machine().notes, [vmi::Note::VmCoreInfo(text.clone())]);
    }
}

#[test]
fn a_dump_to_standard_output_is_the_same_image() {
    let image = demo_as("raw");
    let directory = tempfile::tempdir().unwrap();
    for format in ["raw", "lime", "avml", "elf"] {
        let (file, piped) = (directory.path().join("file"), directory.path().join("piped"));
        let dump = || example("dump-memory").args(["--json", "--force", "--format", format]);
        let output = dump().args(["--verify", "-o"]).arg(&file).arg(&image).run();
        assert_eq!(output.code, 0, "{output:?}");
        let stdout = std::fs::File::create(&piped).unwrap();
        let output = dump().args(["-o", "-"]).arg(&image).stdout(stdout).run();
        assert_eq!(output.code, 0, "{output:?}");
        let rows: Vec<Value> = serde_json::from_str(&output.stderr).unwrap();
        schema::check("dump", &rows);
        let stored = std::fs::metadata(&piped).unwrap().len();
        assert_eq!((&rows[0]["file"], &rows[0]["stored"]), (&Value::from("-"), &Value::from(stored)));
        assert!(std::fs::read(&file).unwrap() == std::fs::read(&piped).unwrap(), "{format}");
    }
    let output = example("dump-memory").args(["--format", "raw", "--verify", "-o", "-"]).arg(&image).run();
    assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{output:?}");
}

#[test]
fn a_symbol_file_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("demo.json");
    let output = example("symbol-file").args(["--json", "-o"]).arg(&file).arg(DEMO).run();
    assert_eq!(output.code, 0, "{output:?}");
    let rows = output.rows();
    schema::check("symbol-file", &rows);
    let isf = vmi::Isf::open(&file).unwrap();
    assert!(isf.banner().unwrap().contains(rows[0]["kernel"].as_str().unwrap()));
    assert!((&isf as &dyn vmi::TypeSource).field("task_struct", "comm").is_ok());
    // What there is stays.
    let output = example("symbol-file").arg("-o").arg(&file).arg(DEMO).run();
    output.assert_failed_with("--force");
}

#[test]
fn a_scan_finds_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("guest.raw");
    let mut memory = vec![0; (3 << 20) + 4];
    // At the start, at the end, and over the border of the parts that are searched by one thread each.
    let places = [0, (1 << 20) - 2, (1 << 20) + 100, (3 << 20)];
    for at in places {
        memory[at..at + 4].copy_from_slice(b"\xde\xad\xbe\xef");
    }
    std::fs::write(&file, memory).unwrap();
    let output = example("scan").args(["--json", "--hex", "dead beef"]).arg(&file).run();
    let found: Vec<_> = output.rows().iter().map(|row| row["physical"].as_str().unwrap().to_owned()).collect();
    assert_eq!(found, places.map(|at| format!("{at:#018x}")), "{output:?}");
}

/// What a rootkit does that takes a process off the kernel's list.
#[test]
fn a_process_that_is_not_in_the_list_is_hidden() {
    assert_eq!(example("process-views").args(["--hidden", "--json"]).run().rows(), [] as [Value; 0]);
    let pid = u32::try_from(expected_processes().iter().nth(20).unwrap().0).unwrap();
    let image = images::without_in_list(pid);
    let output = example("process-views").args(["--hidden", "--json"]).arg(image).run();
    assert_eq!(output.code, 0, "{output:?}");
    let rows = output.rows();
    let views = |row: &Value| ["list", "id_table", "children"].map(|view| row[view].as_bool());
    assert_eq!(
        (rows.len(), rows[0]["pid"].as_u64(), views(&rows[0])),
        (1, Some(pid.into()), [Some(false), Some(true), Some(true)])
    );
}

#[test]
fn times_are_those_of_the_calendar() {
    let at = |seconds: u64, millis| text::rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(seconds * 1000 + millis));
    assert_eq!(at(0, 0).unwrap(), "1970-01-01T00:00:00.000Z");
    assert_eq!(at(951_782_399, 7).unwrap(), "2000-02-28T23:59:59.007Z");
    assert_eq!(at(951_782_400, 0).unwrap(), "2000-02-29T00:00:00.000Z");
    assert_eq!(at(1_709_251_199, 0).unwrap(), "2024-02-29T23:59:59.000Z");
    assert_eq!(at(4_107_542_400, 0).unwrap(), "2100-03-01T00:00:00.000Z");
    assert_eq!(at(253_402_300_799, 999).unwrap(), "9999-12-31T23:59:59.999Z");
    assert_eq!(at(253_402_300_800, 0), None);
}

#[test]
fn names_from_a_guest_cannot_act_on_a_terminal() {
    assert_eq!(text::printable("kworker/0:1"), "kworker/0:1");
    assert_eq!(text::printable("a\x1b[31m\u{202e}b\u{9b}"), r"a\u{1b}[31m\u{202e}b\u{9b}");
    let json = serde_json::to_string("a\u{202e}b\u{9b}\u{7f}\x1b").unwrap();
    assert_eq!(text::json_printable(&json), r#""a\u202eb\u009b\u007f\u001b""#);
}

#[test]
fn hexdumps_are_aligned() {
    let expected = "  0000000000001000  30 31 32 33 34 35 36 37  38 39 3a 3b 3c 3d 3e 3f  |0123456789:;<=>?|\n  \
                      0000000000001010  40 41                                             |@A|\n";
    assert_eq!(text::hexdump(0x1000, &(0x30..0x42).collect::<Vec<u8>>()), expected);
}

type ProcessFacts = (u64, u64, String, String, u64);

/// What the guest's own /proc said of its processes when the demo image was taken.
fn expected_processes() -> BTreeSet<ProcessFacts> {
    let table = include_str!("../demo/processes.tsv");
    let row = |line: &str| match line.split('\t').collect::<Vec<_>>()[..] {
        [pid, parent, name, state, uid] => {
            (pid.parse().unwrap(), parent.parse().unwrap(), name.to_owned(), state.to_owned(), uid.parse().unwrap())
        }
        _ => panic!("{line}"),
    };
    table.lines().skip(1).map(row).collect()
}

fn processes(output: &Output) -> BTreeSet<ProcessFacts> {
    let fact = |row: &Value| {
        let (number, text) = (|key: &str| row[key].as_u64().unwrap(), |key: &str| row[key].as_str().unwrap().to_owned());
        (number("pid"), number("parent_pid"), text("name"), text("state"), number("uid"))
    };
    let rows = output.rows();
    let facts: BTreeSet<_> = rows.iter().map(fact).collect();
    assert_eq!(facts.len(), rows.len(), "each process once");
    facts
}
