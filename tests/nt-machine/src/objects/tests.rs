//! The builder's own checks of objects: what is written can be walked by hand.

use super::ground::{Ground, Writing};
use super::hive_cells::{Cells, Key, List};
use super::spec::Contents;
use crate::{Build, NtMachine, ProcessTruth};

/// The descriptors' nodes in order, from the root that the build has.
fn nodes(machine: &NtMachine, process: &ProcessTruth) -> Vec<u64> {
    let at = process.eprocess + machine.at("_EPROCESS", "VadRoot");
    let short = "_MMVAD_SHORT";
    let (left, right) = match machine.find(short, "VadNode") {
        Some(_) => (0, machine.pointer()),
        None => (machine.at(short, "LeftChild"), machine.at(short, "RightChild")),
    };
    let root = if machine.bits("_MM_AVL_TABLE", "DepthOfTree").is_some() { at + right } else { at };
    let mut found = Vec::new();
    let mut path = Vec::new();
    let mut node = machine.get_pointer(root);
    while node != 0 || !path.is_empty() {
        while node != 0 {
            path.push(node);
            node = machine.get_pointer(node + left);
        }
        let last = path.pop().expect("the path is not empty");
        found.push(last);
        node = machine.get_pointer(last + right);
    }
    found
}

/// Objects of a table by handle, from pages of all levels.
fn table(machine: &NtMachine, table: u64) -> Vec<(u64, u64)> {
    let code = machine.get_pointer(table + machine.at("_HANDLE_TABLE", "TableCode"));
    let mut pages = vec![code & !7];
    for _ in 0..code & 3 {
        let slots = pages.iter().flat_map(|page| (0..0x1000).step_by(machine.pointer() as usize).map(move |at| page + at));
        pages = slots.map(|slot| machine.get_pointer(slot)).filter(|page| *page != 0).collect();
    }
    let each = 2 * machine.pointer();
    let entries = pages.iter().flat_map(|page| (0..0x1000).step_by(each as usize).map(move |at| page + at)).zip(0..);
    let target = |low: u64| match (machine.build_number() >= 9200, machine.is_64_bit()) {
        (true, true) => low >> 20 << 4 | if low >> 20 == 0 { 0 } else { 0xFFFF_0000_0000_0000 },
        _ => low & !7,
    };
    entries.map(|(at, nth)| (nth * 4, target(machine.get_pointer(at)))).filter(|(_, object)| *object != 0).collect()
}

#[test]
fn trees_and_tables_hold_what_was_placed_in_every_build() {
    for build in Build::all() {
        let (machine, system) = NtMachine::typical(build);
        let truth = machine.truth();
        let body = machine.at("_OBJECT_HEADER", "Body");
        for process in &truth.processes {
            let contents: &Contents = &system.processes[&process.pid];
            let placed: Vec<u64> = contents.regions.iter().map(|region| region.node).collect();
            assert_eq!(nodes(&machine, process), placed, "{} {}", truth.build, process.name);
            let at = machine.get_pointer(process.eprocess + machine.at("_EPROCESS", "ObjectTable"));
            let found = if at == 0 { Vec::new() } else { table(&machine, at) };
            let placed: Vec<(u64, u64)> = contents.handles.iter().map(|h| (u64::from(h.value), h.object - body)).collect();
            assert_eq!(found, placed, "{} {}", truth.build, process.name);
        }
        let ids = machine.get_pointer(machine.symbol_address("PspCidTable"));
        let placed: Vec<(u64, u64)> = system.ids.iter().map(|(id, object)| (u64::from(*id), *object)).collect();
        assert_eq!(table(&machine, ids), placed, "{}", truth.build);
        assert!(system.processes[&640].handle_level == 2 && system.processes[&620].handles.len() > 256);
        println!("{}: {} ids, {} hives", truth.build, placed.len(), system.hives.len());
    }
}

#[test]
fn regions_of_a_process_do_not_overlap() {
    for build in Build::all() {
        let (machine, system) = NtMachine::typical(build);
        for contents in system.processes.values() {
            for pair in contents.regions.windows(2) {
                assert!(pair[0].end < pair[1].start, "{} {}: {pair:x?}", machine.build().name, contents.pid);
            }
        }
    }
}

#[test]
fn cells_fill_their_bins() {
    let mut root =
        Key::new("ROOT").keys(List::Ri(3), (0..200).map(|nth| Key::new(&format!("key{nth}")).number("n", nth)).collect());
    root.keys.push(Key::new("gone").text("later", "x").volatile());
    root = root.value("big", 3, &[7; 40_000]);
    let cells = Cells::new(&mut root);
    for storage in &cells.storage {
        for (start, len) in &storage.bins {
            let bin = &storage.bytes[*start..start + len];
            assert_eq!(&bin[..4], b"hbin");
            let mut at = 0x20;
            while at < *len {
                let size = i32::from_le_bytes(bin[at..at + 4].try_into().expect("4 bytes")).unsigned_abs() as usize;
                assert!(size >= 8 && size.is_multiple_of(8), "a cell of {size} bytes at {at:#x}");
                at += size;
            }
            assert_eq!(at, *len);
        }
    }
    let file = cells.file("\\SystemRoot\\System32\\Config\\SYSTEM", 0);
    let sum = file[..512].chunks(4).fold(0, |sum, word| sum ^ u32::from_le_bytes(word.try_into().expect("4 bytes")));
    assert_eq!((&file[..4], sum), (&b"regf"[..], 0));
    assert_eq!(file.len(), 0x1000 + cells.storage[0].bytes.len());
}
