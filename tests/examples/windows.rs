//! The tools on a synthetic Windows machine, compared with what its builder placed in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::OnceLock;

use nt_machine::{Build, NtMachine, Truth};
use serde_json::Value;

use crate::run::{Output, example};
use crate::schema;

/// A machine on disk, with a directory of symbol files for it.
struct Machine {
    image: PathBuf,
    symbols: PathBuf,
    truth: Truth,
}

/// A typical machine of the build 19041, made once for each run of the tests.
fn machine() -> &'static Machine {
    static MADE: OnceLock<Machine> = OnceLock::new();
    MADE.get_or_init(|| {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("windows");
        let symbols = directory.join("symbols");
        std::fs::create_dir_all(&symbols).unwrap();
        let (machine, _) = NtMachine::typical(Build::named("win10_x64_19041").unwrap());
        let image = directory.join("memory.raw");
        machine.write_raw(&image).unwrap();
        let truth = machine.truth();
        std::fs::write(symbols.join(format!("{}-{}.json", truth.pdb.guid, truth.pdb.age)), machine.isf().to_string()).unwrap();
        Machine { image, symbols, truth }
    })
}

/// Runs a tool on the machine, with its symbol file, and without the symbol path and the cache of whoever runs the tests.
fn run(name: &str, arguments: &[&str]) -> Output {
    let machine = machine();
    let cache = machine.symbols.with_file_name("cache");
    let tool = example(name).args(arguments).arg("--symbols").arg(&machine.symbols).arg(&machine.image);
    tool.env("XDG_CACHE_HOME", &cache).env("XDG_DATA_HOME", &cache).env("_NT_SYMBOL_PATH", "").run()
}

fn rows(name: &str, arguments: &[&str], schema: &str) -> Vec<Value> {
    let output = run(name, &[arguments, &["--json"]].concat());
    assert_eq!(output.code, 0, "{name} {arguments:?}: {output:?}");
    let rows = output.rows();
    assert!(!rows.is_empty(), "{name} {arguments:?}: {output:?}");
    schema::check(schema, &rows);
    rows
}

fn text<'v>(row: &'v Value, field: &str) -> &'v str {
    row[field].as_str().unwrap_or_else(|| panic!("no {field} in {row}"))
}

/// Ids and names of the processes.
fn named(rows: &[Value]) -> BTreeMap<u64, String> {
    rows.iter().map(|row| (row["pid"].as_u64().unwrap(), text(row, "name").to_owned())).collect()
}

#[test]
fn synthetic_nt_layout_processes_and_modules_are_those_that_were_placed() {
    let truth = &machine().truth;
    let placed: BTreeMap<u64, String> =
        truth.processes.iter().filter(|process| process.linked).map(|process| (process.pid, process.name.clone())).collect();
    let processes = rows("process-list", &[], "process");
    assert_eq!(named(&processes), placed);
    // Of all of them in user memory, one must have its arguments.
    assert!(processes.iter().any(|row| row["command_line"].is_array()), "{processes:?}");
    let modules: BTreeSet<_> = rows("module-list", &[], "module").iter().map(|row| text(row, "name").to_owned()).collect();
    assert_eq!(modules, truth.modules.iter().map(|module| module.name.clone()).collect());
}

#[test]
fn synthetic_nt_layout_threads_are_those_that_were_placed() {
    let placed = machine().truth.processes.iter().filter(|process| process.linked);
    let placed: BTreeSet<u64> = placed.flat_map(|process| process.threads.iter().map(|(_, tid)| *tid)).collect();
    let threads = rows("process-list", &["--threads"], "thread");
    assert_eq!(threads.iter().map(|row| row["tid"].as_u64().unwrap()).collect::<BTreeSet<_>>(), placed);
}

#[test]
fn synthetic_nt_layout_hidden_processes_are_shown() {
    let truth = &machine().truth;
    let hidden: BTreeSet<u64> = truth.processes.iter().filter(|p| !p.linked && p.exit_time == 0).map(|p| p.pid).collect();
    assert!(!hidden.is_empty(), "the machine has one");
    let seen = rows("process-views", &["--hidden"], "process-view");
    assert_eq!(seen.iter().map(|row| row["pid"].as_u64().unwrap()).collect::<BTreeSet<_>>(), hidden);
}

#[test]
fn synthetic_nt_layout_the_kernel_is_told() {
    let truth = &machine().truth;
    let [kernel] = &rows("windows-info", &[], "windows-kernel")[..] else { panic!("one row") };
    assert_eq!(kernel["build"].as_u64(), Some(u64::from(truth.build_number)));
    assert_eq!(text(kernel, "kernel_base"), format!("{:#018x}", truth.kernel_base));
    assert_eq!(text(kernel, "page_table"), format!("{:#018x}", truth.system_root));
    assert!(text(kernel, "pdb_key").starts_with(&truth.pdb.guid), "{kernel}");
    let needed = rows("windows-info", &["--needed"], "needed-symbols");
    assert!(needed.iter().any(|row| text(row, "key").starts_with(&truth.pdb.guid)), "{needed:?}");
}

#[test]
fn synthetic_nt_layout_handles_and_registry_have_rows() {
    let handles = rows("handle-list", &[], "handle");
    let types: BTreeSet<_> = handles.iter().map(|row| text(row, "type")).collect();
    for object_type in ["File", "Key", "Process"] {
        assert!(types.contains(object_type), "{types:?}");
    }
    let files = rows("handle-list", &["--type", "file"], "handle");
    assert!(files.iter().all(|row| text(row, "type") == "File") && files.len() < handles.len());
    let hives = rows("registry-list", &[], "hive");
    let root = hives.iter().find_map(|row| row["root_path"].as_str()).expect("a hive that is mounted");
    let entries = rows("registry-list", &["--recursive", "--key", root], "registry-entry");
    assert!(entries.iter().any(|row| text(row, "kind") == "value"), "{entries:?}");
}

#[test]
fn synthetic_nt_layout_tables_are_plain_text_in_a_pipe() {
    for name in ["windows-info", "handle-list", "registry-list", "process-views"] {
        let output = run(name, &[]);
        assert_eq!(output.code, 0, "{name}: {output:?}");
        assert!(!output.stdout.contains('\x1b') && !output.stderr.contains('\x1b'), "{name}: {output:?}");
    }
}

#[test]
fn a_tool_for_windows_says_so_of_another_system() {
    let output = example("windows-info").arg(crate::images::DEMO).run();
    output.assert_failed_with("no Windows kernel found");
}
