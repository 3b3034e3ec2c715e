use proptest::prelude::*;

use super::*;
use crate::Field;

const SMALL: &str = r#"{
    "metadata": {"format": "6.2.0", "linux": {"symbols": []}, "producer": {"name": "hand"}},
    "base_types": {
        "pointer": {"size": 8, "signed": false, "kind": "int", "endian": "little"},
        "int": {"size": 4, "signed": true, "kind": "int", "endian": "little"},
        "void": {"size": 0, "signed": false, "kind": "void", "endian": "little"}
    },
    "user_types": {
        "outer": {"size": 64, "kind": "struct", "fields": {
            "z_first": {"offset": 0, "type": {"kind": "base", "name": "int"}},
            "low": {"offset": 4, "type": {"kind": "bitfield", "bit_position": 0, "bit_length": 3, "type": {"kind": "base", "name": "int"}}},
            "high": {"offset": 4, "type": {"bit_position": 3, "type": {"name": "int", "kind": "base"}, "bit_length": 7, "kind": "bitfield"}},
            "unnamed_field_8": {"offset": 8, "anonymous": true, "type": {"kind": "union", "name": "unnamed_1"}},
            "next": {"offset": 16, "type": {"kind": "pointer", "subtype": {"kind": "struct", "name": "outer"}}},
            "matrix": {"offset": 24, "type": {"kind": "array", "count": 2, "subtype": {"kind": "array", "count": 3, "subtype": {"kind": "base", "name": "int"}}}},
            "call": {"offset": 48, "type": {"kind": "pointer", "subtype": {"kind": "function"}}},
            "unknown": {"offset": 56, "type": {"kind": "pointer", "subtype": {"kind": "struct", "name": "nowhere"}}}
        }},
        "unnamed_1": {"size": 8, "kind": "union", "fields": {
            "x": {"offset": 0, "type": {"kind": "base", "name": "int"}},
            "y": {"offset": 4, "type": {"kind": "enum", "name": "colour"}}
        }}
    },
    "enums": {"colour": {"size": 4, "base": "int", "constants": {"RED": -1, "BLUE": 18446744073709551615}}},
    "symbols": {
        "init_task": {"address": 18446744071579000000, "type": {"kind": "struct", "name": "outer"}},
        "linux_banner": {"address": 18446744071570000000, "constant_data": "TGludXggdmVyc2lvbiA2LjEKAA=="},
        "cpu_number": {"address": 4096}
    }
}"#;

fn place(isf: &Isf, path: &str) -> (u64, u64, Option<(u32, u32)>) {
    let Field { offset, size, bits, .. } = (isf as &dyn TypeSource).field("outer", path).unwrap();
    (offset, size, bits)
}

#[test]
fn a_small_file_is_understood() {
    let isf = Isf::parse(SMALL.as_bytes()).unwrap();
    assert_eq!(place(&isf, "z_first"), (0, 4, None));
    assert_eq!(place(&isf, "low"), (4, 1, Some((0, 3))));
    assert_eq!(place(&isf, "high"), (4, 2, Some((3, 7))));
    assert_eq!(place(&isf, "y"), (12, 4, None), "through the anonymous union");
    assert_eq!(place(&isf, "next"), (16, 8, None));
    assert_eq!(place(&isf, "matrix"), (24, 24, None));
    assert_eq!(place(&isf, "call"), (48, 8, None));
    let types: &dyn TypeSource = &isf;
    let outer = types.structure("outer").unwrap();
    assert_eq!(outer.members.first().unwrap().name, "z_first", "members are in the order of memory");
    let Type::Pointer { target } = types.get(outer.members.last().unwrap().ty).unwrap() else { panic!() };
    assert_eq!(types.get(target).unwrap(), Type::Void, "a type that is never described is unknown");
    assert_eq!((types.constant("colour", "RED").unwrap(), types.constant("colour", "BLUE").unwrap()), (-1, -1));
    assert!(types.structure("nowhere").is_err());
    assert_eq!(isf.banner(), Some("Linux version 6.1"));
    assert_eq!(isf.variable("init_task"), types.find("outer"));
    assert_eq!(isf.variable("cpu_number"), None);
    assert_eq!(isf.pdb(), None);

    let symbols = isf.symbols(0x20_0000);
    assert_eq!(symbols.address("init_task").unwrap(), VirtAddr::new(18446744071579000000 + 0x20_0000));
    assert_eq!(symbols.address("cpu_number").unwrap(), VirtAddr::new(4096), "an offset does not slide");
}

#[test]
fn what_is_not_a_symbol_file_is_refused() {
    assert!(matches!(Isf::parse(b"").unwrap_err(), IsfError::Json(_)));
    assert!(matches!(Isf::parse(&XZ_MAGIC).unwrap_err(), IsfError::Xz(_)));
    let other = SMALL.replace("6.2.0", "7.0.0");
    assert!(matches!(Isf::parse(other.as_bytes()).unwrap_err(), IsfError::Format { format } if format == "7.0.0"));
    let deep = SMALL.replace(
        r#"{"kind": "function"}"#,
        &format!("{}0{}", r#"{"kind":"pointer","subtype":"#.repeat(100_000), "}".repeat(100_000)),
    );
    assert!(matches!(Isf::parse(deep.as_bytes()).unwrap_err(), IsfError::Json(_)), "nesting is bounded");
    let refused = |from: &str, to: &str, why: &str| {
        let error = Isf::parse(SMALL.replace(from, to).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    refused(r#""count": 2, "#, "", "a type of kind `array` has no `count`");
    refused(r#""kind": "function""#, r#""kind": "tensor""#, "a type has the unknown kind `tensor`");
    let missing = Isf::open("no/such/file").unwrap_err();
    assert!(missing.to_string().contains("no/such/file"));
}

proptest! {
    #[test]
    fn mutated_files_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = SMALL.as_bytes().to_vec();
        for (at, value) in edits {
            *at.get_mut(&mut bytes) = value;
        }
        if let Ok(isf) = Isf::parse(&bytes) {
            let types: &dyn TypeSource = &isf;
            for name in types.structures() {
                let _ = types.field(&name, "x.y");
                for member in types.structure(&name).map(|structure| structure.members).unwrap_or_default() {
                    let _ = types.size_of(member.ty);
                }
            }
            let _ = isf.symbols(u64::MAX);
        }
    }
}

/// Real files, if `VMI_SHARED_DATA` names a folder that has them in `windows/isf`.
#[test]
fn real_files_of_windows_kernels() {
    let Some(data) = std::env::var_os("VMI_SHARED_DATA") else {
        println!("skipped: VMI_SHARED_DATA is not set, so there are no real files");
        return;
    };
    let folder = Path::new(&data).join("windows/isf");
    let index = std::fs::read_to_string(folder.join("INDEX.tsv")).unwrap();
    for line in index.lines() {
        let [version, file, _] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let start = std::time::Instant::now();
        let isf = Isf::open(folder.join(file)).unwrap();
        println!("{version}: {:?} in {:?}", isf, start.elapsed());
        let types: &dyn TypeSource = &isf;
        let pdb = isf.pdb().unwrap();
        assert_eq!((pdb.database.as_str(), format!("{}-{}.json.xz", pdb.guid, pdb.age).as_str()), ("ntkrnlmp.pdb", file));
        // Kernel structures that have been the same since Windows 7 for 64 bits.
        assert_eq!(types.field("_LIST_ENTRY", "Blink").unwrap().offset, 8);
        assert_eq!(types.field("_UNICODE_STRING", "Buffer").unwrap().offset, 8);
        assert_eq!(types.field("_KPROCESS", "DirectoryTableBase").unwrap().offset, 0x28);
        assert_eq!(types.field("_MMPTE_HARDWARE", "PageFrameNumber").unwrap().bits.unwrap().0, 12 % 8);
        let name = types.field("_EPROCESS", "ImageFileName").unwrap();
        assert_eq!(name.size, 15);
        if version.starts_with("10.0.19041") {
            let offset = |path| types.field("_EPROCESS", path).unwrap().offset;
            assert_eq!((offset("UniqueProcessId"), offset("ActiveProcessLinks"), name.offset), (0x440, 0x448, 0x5a8));
        }
        let symbols = isf.symbols(0xffff_f800_0000_0000);
        assert!(symbols.address("PsActiveProcessHead").unwrap() > VirtAddr::new(0xffff_f800_0000_0000));
        for structure in types.structures() {
            let structure = types.structure(&structure).unwrap();
            for member in &structure.members {
                assert!(member.bit_offset <= structure.size * 8);
                types.size_of(member.ty).unwrap();
            }
        }
    }
}
