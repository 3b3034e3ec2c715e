//! Writes the seeds of the fuzz targets for Windows into `fuzz/corpus`: parts of synthetic machines. `fuzz/corpus.py` writes all others.

use std::fs;
use std::path::Path;

use nt_machine::{Build, CompiledKernel, NtMachine, Options};

fn put(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder).expect("a folder of the corpus");
    fs::write(folder.join(name), bytes).expect("a seed");
    println!("{target}/{name}: {} bytes", bytes.len());
}

fn main() {
    let build = |name| Build::named(name).expect("a build of the table");
    let (_, system) = NtMachine::typical(build("win10_x64_19041"));
    for (nth, hive) in system.hives.iter().enumerate() {
        let bytes = hive.file_bytes();
        // One of them is empty.
        if bytes.len() > 4096 {
            put("windows_hive", &format!("hive-{nth}"), &bytes);
        }
    }
    for name in ["win7_sp1_x64", "xp_sp3_x86"] {
        let machine = NtMachine::new(build(name), Options { kdbg: Some(nt_machine::Kdbg::Clear), ..Options::default() });
        let truth = machine.truth();
        let read = |at: u64, len: u64| -> Vec<u8> {
            let page = |at| machine.translate(truth.system_root, at).expect("a page of the kernel");
            (at..at + len).step_by(0x10).flat_map(|at| machine.physical().read(page(at), 0x10)).collect()
        };
        put("windows_kdbg", name, &read(truth.symbols["KdDebuggerDataBlock"], 0x340));
        put("windows_pe", name, &read(truth.kernel_base, 0x4000));
        put("windows_symbols", &format!("{name}.json"), minimal(&machine.isf()).as_bytes());
    }
    match CompiledKernel::of(&build("xp_sp3_x86")) {
        Ok(kernel) => {
            put("windows_symbols", "compiled.pdb", &kernel.pdb);
        }
        Err(why) => println!("skipped: {why}"),
    }
    put(
        "windows_texts",
        "path",
        b"srv*/var/symbols*https://symbols.example/download;cache*/tmp/cache;symsrv*symsrv.dll*/a;/plain \"two words\" \\\\\"x",
    );
    put("windows_attach", "untouched", &[1]);
    put("windows_attach", "untouched-without-file", &[0]);
    for machine in 1..6 {
        put("windows_attach", &format!("untouched-{machine}"), &[machine << 1 | 1]);
        put("windows_attach", &format!("untouched-{machine}-without-file"), &[machine << 1]);
    }
    put("windows_attach", "bad-list", &[&[1, 5, 0, 0x48, 4][..], &[0x41; 8], &[9, 0, 0, 0], &[0xff; 8]].concat());
}

/// The same symbol file with a few of its structures and symbols.
fn minimal(isf: &serde_json::Value) -> String {
    let mut isf = isf.clone();
    let keep = ["_EPROCESS", "_KPROCESS", "_LIST_ENTRY", "_UNICODE_STRING", "_LARGE_INTEGER", "_DISPATCHER_HEADER"];
    if let Some(types) = isf["user_types"].as_object_mut() {
        types.retain(|name, _| keep.contains(&name.as_str()));
    }
    isf.to_string()
}
