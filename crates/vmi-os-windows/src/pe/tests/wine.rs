//! Real PE files: those of Wine, against what `objdump -p` says of them. They prove nothing about Windows' own data structures.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use super::{TestMemory, mapped};
use crate::pe::{ExportTarget, PeImage};

/// Ordinal to what the export stands for, and name to ordinal.
#[derive(Debug, Default, PartialEq)]
struct Exports {
    targets: BTreeMap<u32, String>,
    names: Vec<(String, u32)>,
}

#[test]
fn exports_of_wine_are_those_of_objdump() {
    let Some(directory) = std::env::var_os("VMI_WINE_PE") else {
        eprintln!(
            "skipped: VMI_WINE_PE names no directory with Wine's PE files (package libwine, usr/lib/x86_64-linux-gnu/wine/x86_64-windows)"
        );
        return;
    };
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let (mut compared, mut exports, mut forwarders) = (0, 0, 0);
    for path in &files {
        let Some(image) = std::fs::read(path).ok().and_then(|file| mapped(&file)) else { continue };
        let memory = TestMemory::new(0x1_8000_0000, image);
        let ours = ours(&memory);
        assert_eq!(ours, objdump(path), "{}", path.display());
        compared += 1;
        exports += ours.targets.len();
        forwarders += ours.targets.values().filter(|target| target.contains('.')).count();
    }
    println!("{compared} of {} files, {exports} exports, {forwarders} forwarders: equal", files.len());
    assert!(compared > 600 && forwarders > 100, "{compared} {forwarders}");
}

fn ours(memory: &TestMemory) -> Exports {
    let image = PeImage::new(memory, memory.at()).unwrap();
    let mut listed = Exports::default();
    let Some(exports) = image.exports().unwrap() else { return listed };
    for export in exports.iter() {
        let export = export.unwrap();
        let target = match export.target {
            ExportTarget::Offset(offset) => format!("{offset:x}"),
            ExportTarget::Forwarder(to) => to,
        };
        listed.targets.insert(export.ordinal, target);
        if let Some(name) = export.name {
            assert_eq!(exports.find(&name).unwrap().ordinal, export.ordinal, "{name}");
            listed.names.push((name, export.ordinal));
        }
    }
    listed
}

/// The addresses are lines `[ 931] +base[ 932]  12a1b8 Export RVA`, or `... Forwarder RVA -- NTDLL.RtlAllocateHeap`; the names `[ 931] NtBuildNumber`, with the base in the second
/// bracket in newer versions of objdump.
fn objdump(path: &Path) -> Exports {
    let output = Command::new("objdump").arg("-p").arg(path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let mut listed = Exports::default();
    let mut base = None;
    let mut names = false;
    for line in text.lines() {
        if let Some((_, number)) = line.split_once("Export Address Table -- Ordinal Base ") {
            base = Some(number.trim().parse::<u32>().unwrap());
        } else if line.starts_with("[Ordinal/Name Pointer] Table") {
            names = true;
        }
        let Some(base) = base else { continue };
        let Some((index, rest)) = line.trim_start().strip_prefix('[').and_then(|line| line.split_once(']')) else { continue };
        let Ok(index) = index.trim().parse::<u32>() else { continue };
        let last = rest.split_whitespace().last().unwrap_or_default().to_owned();
        match rest.split_once("RVA") {
            _ if names => listed.names.push((last, base + index)),
            Some((_, "")) => _ = listed.targets.insert(base + index, rest.split_whitespace().nth_back(2).unwrap().to_owned()),
            Some(_) => _ = listed.targets.insert(base + index, last),
            None => {}
        }
    }
    listed
}
