//! Hostile and empty memory: an error, soon.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use vmi_arch_x86::{PagingMode, X86};
use vmi_core::synthetic::{LiveDriver, SyntheticDriver};
use vmi_core::{PhysAddr, Symbols, SymbolsBuilder, Vmi};

use super::{Hints, ShapeError, infer};

/// Debug builds on a busy machine are slow: this is about minutes and hours, not milliseconds.
const SOON: Duration = Duration::from_secs(60);

fn no_symbols() -> Symbols {
    SymbolsBuilder::default().build()
}

fn infer_from(memory: Vec<u8>) -> Result<super::Inferred, ShapeError> {
    let vmi = Vmi::new(SyntheticDriver::<X86>::with_arch([(PhysAddr::ZERO, memory)]));
    infer(&vmi, &Hints { symbols: &no_symbols(), pointer_size: None, tables: None })
}

fn put(memory: &mut [u8], at: usize, word: u32) {
    memory[at..at + 4].copy_from_slice(&word.to_le_bytes());
}

/// Tasks of 0x1000 bytes from 0x1000 on, on i386, in a closed list: `tasks` at 0x100, `comm` at 0x300.
fn tasks(count: u32) -> Vec<u8> {
    let mut memory = vec![0; (count as usize + 2) << 12];
    let node = |index: u32| 0xc000_0000 + ((index % count + 1) << 12) + 0x100;
    for index in 0..count {
        let base = (index as usize + 1) << 12;
        put(&mut memory, base + 0x100, node(index + 1));
        put(&mut memory, base + 0x104, node(index + count - 1));
        let name: &[u8] = match index {
            0 => b"swapper/0",
            1 => b"init",
            2 => b"kthreadd",
            _ => b"worker",
        };
        memory[base + 0x300..base + 0x300 + name.len()].copy_from_slice(name);
    }
    memory
}

#[test]
fn nothing_in_nothing() {
    for memory in [Vec::new(), vec![0; 1 << 20], b"swapper/0\0\0\0\0\0\0\0".to_vec()] {
        let names = usize::from(memory.starts_with(b"swapper"));
        let error = infer_from(memory).unwrap_err();
        assert!(
            matches!(error, ShapeError::NoTaskList { names: found, more: false, exhausted: false } if found == names),
            "{error}"
        );
    }
}

#[test]
fn names_alone_are_not_a_list() {
    let started = Instant::now();
    let error = infer_from(b"swapper/0\0\0\0\0\0\0\0".repeat(1 << 16)).unwrap_err();
    assert!(matches!(error, ShapeError::NoTaskList { more: true, .. }), "{error}");
    assert!(started.elapsed() < SOON);
}

#[test]
fn a_list_of_tasks_without_parents_has_no_base() {
    assert!(matches!(infer_from(tasks(100)).unwrap_err(), ShapeError::NoBase));
}

#[test]
fn tasks_without_page_tables_are_told() {
    let mut memory = tasks(100);
    for index in 1..=100usize {
        // real_parent and parent.
        put(&mut memory, (index << 12) + 0x200, 0xc000_1000);
        put(&mut memory, (index << 12) + 0x204, 0xc000_1000);
    }
    assert!(matches!(infer_from(memory).unwrap_err(), ShapeError::NoPageTables));
}

#[test]
fn a_list_that_does_not_come_back_is_none() {
    // The last leads back to the second: a circle without the first.
    let mut memory = tasks(100);
    put(&mut memory, (100 << 12) + 0x100, 0xc000_2100);
    assert!(matches!(infer_from(memory).unwrap_err(), ShapeError::NoTaskList { names: 1, .. }));
    // A neighbour that does not know the one before it.
    let mut memory = tasks(100);
    put(&mut memory, (50 << 12) + 0x104, 0xc000_1100);
    assert!(matches!(infer_from(memory).unwrap_err(), ShapeError::NoTaskList { names: 1, .. }));
}

#[test]
fn every_word_a_list_of_its_own() {
    // Wherever a node is looked for, its neighbours are themselves full of nodes.
    let started = Instant::now();
    let mut memory = vec![0u8; 1 << 20];
    for at in (0..memory.len()).step_by(4) {
        let next = 0xc000_0000 + (at as u32 * 31 + 8) % (1 << 20) / 4 * 4;
        put(&mut memory, at, next);
    }
    for at in (0..memory.len()).step_by(4096) {
        memory[at + 0xff0..at + 0x1000].copy_from_slice(b"swapper/0\0\0\0\0\0\0\0");
    }
    infer_from(memory).unwrap_err();
    assert!(started.elapsed() < SOON);
}

#[test]
fn memory_that_is_not_mapped_is_searched_too() {
    let vmi = Vmi::new(LiveDriver::<X86>::new(tasks(100), None));
    let hints = Hints { symbols: &no_symbols(), pointer_size: Some(4), tables: None };
    assert!(matches!(infer(&vmi, &hints).unwrap_err(), ShapeError::NoBase));
}

#[test]
fn page_tables_that_map_nothing_find_nothing() {
    let vmi = Vmi::new(SyntheticDriver::<X86>::with_arch([(PhysAddr::ZERO, tasks(100))]));
    let hints = Hints { symbols: &no_symbols(), pointer_size: None, tables: Some((PagingMode::Bits32, PhysAddr::ZERO)) };
    assert!(matches!(infer(&vmi, &hints).unwrap_err(), ShapeError::NoTaskList { names: 1, .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is changed in a list of tasks, the outcome is an answer or an error.
    #[test]
    fn damaged_memory_never_panics(changes in prop::collection::vec((0usize..0x20_000 / 4, any::<u32>()), 0..64)) {
        let mut memory = tasks(30);
        for index in 1..=30usize {
            put(&mut memory, (index << 12) + 0x200, 0xc000_1000);
            put(&mut memory, (index << 12) + 0x204, 0xc000_1000);
        }
        for (word, value) in changes {
            // Half of the values point somewhere.
            let value = if value & 1 == 0 { 0xc000_0000 | value & 0x1_fffc } else { value };
            put(&mut memory, word * 4, value);
        }
        let _ = infer_from(memory);
    }
}
