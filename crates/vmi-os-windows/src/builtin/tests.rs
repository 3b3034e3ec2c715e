//! The built-in table: its form, what it says of kernels that are known exactly, and how a build number is answered.

use vmi_core::{Type, TypeSource};

use super::*;

fn offset(types: &dyn TypeSource, structure: &str, path: &str) -> Option<u64> {
    types.field(structure, path).ok().map(|field| field.offset)
}

/// Numbers of the triage dump's kernel, as the reference gives them from Microsoft's symbols.
#[test]
fn an_exactly_known_kernel_answers_by_its_program_database() {
    let identity = PdbIdentity::from_key("ntkrnlmp.pdb", "5278AFF86C341677D7D7835C85B7B8441").unwrap();
    let types = BuiltIn::for_pdb(&identity).unwrap();
    assert_eq!((types.build(), types.revision(), types.is_64_bit()), (19041, Some(804), true));
    assert_eq!(types.pdb(), Some(&identity));
    for (path, expected) in
        [("UniqueProcessId", 0x440), ("ActiveProcessLinks.Blink", 0x450), ("Pcb.DirectoryTableBase", 0x28), ("Token", 0x4b8)]
    {
        assert_eq!(offset(&types, "_EPROCESS", path), Some(expected), "{path}");
    }
    assert_eq!(offset(&types, "_ETHREAD", "Tcb.Teb"), Some(0xf0));
    let whole = types.find("_EPROCESS").unwrap();
    assert_eq!((&types as &dyn TypeSource).size_of(whole).unwrap(), 0xa40);
    assert!(types.symbols().contains(&("PsLoadedModuleList", 12755856)));
    let other = PdbIdentity { age: 2, ..identity };
    assert!(BuiltIn::for_pdb(&other).is_none(), "another age is another kernel");
}

#[test]
fn every_kernel_has_what_the_process_list_needs() {
    let names: Vec<_> = BuiltIn::names().collect();
    assert_eq!(names.len(), 65);
    for name in names {
        let types = BuiltIn::named(name).unwrap();
        let width = if types.is_64_bit() { 8 } else { 4 };
        assert_eq!(types.pointer_size(), width, "{name}");
        for path in ["UniqueProcessId", "ActiveProcessLinks.Flink", "ImageFileName", "VadRoot"] {
            assert!(offset(&types, "_EPROCESS", path).is_some(), "{name}: {path}");
        }
        // Partial listings of two releases lack these.
        if !name.contains("22621") {
            let table = if types.is_64_bit() { 0x28 } else { 0x18 };
            assert_eq!(offset(&types, "_EPROCESS", "Pcb.DirectoryTableBase"), Some(table), "{name}");
        }
        assert_eq!(offset(&types, "_UNICODE_STRING", "Buffer"), Some(width), "{name}");
        assert_eq!(offset(&types, "_LIST_ENTRY", "Blink"), Some(width), "{name}");
        assert_eq!(offset(&types, "_EX_FAST_REF", "Object"), Some(0), "{name}");
        assert_eq!(offset(&types, "_CLIENT_ID", "UniqueThread"), Some(width), "{name}");
        assert!(!types.sources().is_empty(), "{name}");
    }
}

#[test]
fn every_word_of_the_table_is_understood() {
    for name in BuiltIn::names() {
        let types = BuiltIn::named(name).unwrap();
        for structure in types.structures() {
            let Type::Structure(structure) = types.get(types.find(&structure).unwrap()).unwrap() else { panic!("{structure}") };
            assert!(!structure.members.is_empty(), "{name}: {} has no member", structure.name);
            for member in &structure.members {
                assert!(member.bit_offset / 8 <= structure.size, "{name}: {}.{}", structure.name, member.name);
            }
        }
    }
    let known: rustc_hash::FxHashSet<(&str, &str)> = table::entries()
        .flat_map(|entry| entry.structures())
        .flat_map(|(structure, places)| places.members.into_iter().map(move |(member, _)| (structure, member)))
        .collect();
    for key in table::kinds(true).keys() {
        assert!(known.contains(key), "members.txt describes {key:?}, which no kernel has");
    }
}

#[test]
fn a_build_number_gives_candidates_and_what_they_agree_on() {
    let mut seven = BuiltIn::for_build(7601, true).unwrap();
    assert_eq!(seven.candidates().count(), 3);
    let agreed = seven.agreed();
    assert_eq!(offset(&agreed, "_EPROCESS", "UniqueProcessId"), Some(0x180));
    assert_eq!(offset(&agreed, "_ETHREAD", "Cid"), None, "0x3b0 before the updates of 2018, 0x3b8 after: nobody knows which");
    assert!(seven.disagreements().iter().any(|it| (it.structure, it.member) == ("_ETHREAD", "Cid")));
    assert!(seven.remarks().iter().any(|remark| remark.contains("_ETHREAD.Cid")), "{:?}", seven.remarks());
    // A guest whose threads say where their Cid is.
    assert!(seven.retain(|types| offset(types, "_ETHREAD", "Cid") == Some(0x3b8)));
    assert_eq!(offset(&seven.agreed(), "_ETHREAD", "Cid"), Some(0x3b8));
    assert_eq!(seven.candidates().count(), 2);
    assert!(!seven.retain(|_| false), "none fits");
    assert_eq!(seven.candidates().count(), 2, "and so none is dropped");
}

#[test]
fn builds_that_share_a_kernel_are_known_and_others_are_not_guessed() {
    let remarks = BuiltIn::for_build(19045, true).unwrap().remarks();
    assert!(remarks[0].contains("build 19045") && remarks[0].contains("19041"), "{remarks:?}");
    assert!(BuiltIn::for_build(22621, false).is_none(), "there is no 32-bit Windows 11");
    assert!(BuiltIn::for_build(19040, true).is_none());
    assert!(BuiltIn::for_build(26100, true).is_some());
}
