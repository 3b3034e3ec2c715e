//! Hives in files, written by hand, and hives that lie. Tier: synthetic NT layout.

use proptest::prelude::*;

use super::test_hive::{NONE, TestHive, TestKey, utf16z};
use super::*;

/// Every way of reading, over all of a hive: what it says (paths, names, data), and its errors.
fn everything(bytes: &[u8]) -> (Vec<String>, Vec<String>) {
    let (mut rows, mut errors) = (Vec::new(), Vec::new());
    let file = match HiveFile::parse(bytes) {
        Ok(file) => file,
        Err(error) => return (rows, vec![error.to_string()]),
    };
    let hive = Hive::new(file);
    let root = match hive.root() {
        Ok(root) => root,
        Err(error) => return (rows, vec![error.to_string()]),
    };
    for found in root.tree() {
        let TreeKey { path, key } = match found {
            Ok(found) => found,
            Err(error) => {
                errors.push(error.to_string());
                continue;
            }
        };
        match key.class() {
            Ok(class) => rows.push(format!("{path} {class:?}")),
            Err(error) => errors.push(error.to_string()),
        }
        for value in key.values() {
            match value.and_then(|value| Ok((value.name(), value.data_type(), value.data()?))) {
                Ok((name, kind, data)) => rows.push(format!("{path}:{name} {kind} {data:?}")),
                Err(error) => errors.push(error.to_string()),
            }
        }
    }
    (rows, errors)
}

fn some_keys() -> TestKey {
    let mut system = TestKey::new("System").value("Size", 4, &7u32.to_le_bytes()).value("", 1, &utf16z("the default"));
    system.class = Some("secret".to_owned());
    let many = (0..9).fold(TestKey::new("Many").list("ri"), |many, n| many.with(TestKey::new(&format!("k{n}"))));
    TestKey::new("ROOT")
        .list("lf")
        .with(system.with(TestKey::new("Größe").list("li").value("Ω", 11, &9u64.to_le_bytes())))
        .with(many)
        .with(
            TestKey::new("Données Ω")
                .value("list", 7, &utf16z("one\0two\0"))
                .value("big", 3, &vec![0xab; 40_000])
                .value("none", 0, &[])
                .value("three", 3, &[1, 2, 3])
                .value("swapped", 5, &7u32.to_be_bytes())
                .value("short", 4, &[1]),
        )
}

#[test]
fn everything_that_was_written_is_read() {
    let bytes = TestHive::of(&some_keys()).file();
    let (rows, errors) = everything(&bytes);
    assert_eq!(errors, [""; 0]);
    let big = format!("Données Ω:big REG_BINARY Bytes({:?})", vec![0xab; 40_000]);
    let mut expected =
        vec![" None", "System Some(\"secret\")", "System:Size REG_DWORD Number(7)", "System: REG_SZ Text(\"the default\")"];
    expected.extend(["System\\Größe None", "System\\Größe:Ω REG_QWORD Number(9)", "Many None"]);
    let many: Vec<_> = (0..9).map(|n| format!("Many\\k{n} None")).collect();
    expected.extend(many.iter().map(String::as_str));
    expected.extend(["Données Ω None", "Données Ω:list REG_MULTI_SZ Texts([\"one\", \"two\"])", &big]);
    expected.extend(["Données Ω:none REG_NONE Bytes([])", "Données Ω:three REG_BINARY Bytes([1, 2, 3])"]);
    expected.extend(["Données Ω:swapped REG_DWORD_BIG_ENDIAN Number(7)", "Données Ω:short REG_DWORD Bytes([1])"]);
    assert_eq!(rows, expected);
    let file = HiveFile::parse(&bytes).unwrap();
    assert!(file.has_checksum() && !file.is_dirty());
    assert_eq!(file.version(), (1, 5));
}

#[test]
fn keys_and_values_are_found_in_any_case() {
    let bytes = TestHive::of(&some_keys()).file();
    let hive = Hive::new(HiveFile::parse(&bytes).unwrap());
    let key = hive.key("\\SYSTEM\\gRÖSSE\\");
    assert!(matches!(key, Err(RegistryError::NoKey { path }) if path == "\\SYSTEM\\gRÖSSE"), "SS is not ß");
    let key = hive.key("SYSTEM\\GRÖßE").unwrap();
    assert_eq!(key.value("ω").unwrap().unwrap().data().unwrap(), Data::Number(9));
    assert!(key.value("missing").unwrap().is_none());
    assert_eq!(hive.key("").unwrap().name(), "ROOT");
    assert_eq!(key.parent(), hive.key("System").unwrap().cell());
}

/// The errors of a hive that `spoil` has spoilt, and how many rows it still had.
fn spoilt(spoil: impl FnOnce(&mut TestHive)) -> (usize, Vec<String>) {
    let mut hive = TestHive::of(&some_keys());
    spoil(&mut hive);
    let (rows, errors) = everything(&hive.file());
    (rows.len(), errors)
}

#[test]
fn a_key_that_is_its_own_subkey_is_an_error() {
    let (rows, errors) = spoilt(|hive| {
        let (root, list) = (hive.root, hive.elements("li", &[hive.root, hive.root, hive.root]));
        hive.put32(root + 4 + 0x1c, list);
    });
    assert_eq!(rows, 1);
    assert_eq!(errors.len(), 3);
    assert!(errors[0].contains("is a subkey twice"), "{errors:?}");
}

#[test]
fn lists_that_name_themselves_are_errors() {
    let (rows, errors) = spoilt(|hive| {
        let list = hive.elements("ri", &[0]);
        hive.put32(list + 8, list);
        let root = hive.root;
        hive.put32(root + 4 + 0x1c, list);
    });
    assert_eq!(rows, 1);
    assert!(errors[0].contains("is no list of subkeys: its signature is `ri`"), "{errors:?}");
}

#[test]
fn counts_of_four_billion_are_errors() {
    let (rows, errors) = spoilt(|hive| {
        let root = hive.root;
        hive.put32(root + 4 + 0x14, u32::MAX);
        hive.put32(root + 4 + 0x24, u32::MAX);
        hive.put32(root + 4 + 0x28, root);
    });
    assert!(rows > 10, "the subkeys that are listed come before the error");
    assert!(errors.iter().any(|error| error.contains("lists 3 subkeys") && error.contains("says 4294967295")), "{errors:?}");
    assert!(errors.iter().any(|error| error.contains("more than 1048576")), "{errors:?}");
}

#[test]
fn cells_outside_free_or_of_impossible_size_are_errors() {
    for (cell, text) in
        [(0x00f0_0000, "lies behind"), (0x8000_0020, "lies behind"), (0x21, "multiple of 8"), (NONE, "multiple of 8")]
    {
        let (rows, errors) = spoilt(|hive| {
            let root = hive.root;
            hive.put32(root + 4 + 0x1c, cell);
        });
        assert_eq!(rows, 1);
        assert!(errors[0].contains(text), "{errors:?}");
    }
    for (size, text) in [(8u32, "free cell"), (0, "free cell"), (0x8000_0000, "cannot be"), (-12i32 as u32, "cannot be")] {
        let (rows, errors) = spoilt(|hive| {
            let list = hive.elements("li", &[0]);
            hive.put32(list, size);
            let root = hive.root;
            hive.put32(root + 4 + 0x1c, list);
        });
        assert_eq!(rows, 1);
        assert!(errors[0].contains(text), "{size:#x}: {errors:?}");
    }
}

#[test]
fn data_that_is_shorter_than_its_value_says_is_an_error() {
    let mut hive = TestHive::new();
    let big = hive.value("big", 3, &vec![1; 20_000]);
    let short = hive.value("short", 3, &[1; 16]);
    let resident = hive.value("resident", 3, &[1; 4]);
    hive.put32(big + 4 + 4, 60_000);
    hive.put32(short + 4 + 4, 0x7fff_ffff);
    hive.put32(resident + 4 + 4, 0x8000_0005);
    let list = hive.cell(&[big, short, resident].map(u32::to_le_bytes).concat());
    hive.root = hive.key(&TestKey::new("ROOT"), NONE, true);
    let root = hive.root;
    hive.put32(root + 4 + 0x24, 3);
    hive.put32(root + 4 + 0x28, list);
    let (rows, errors) = everything(&hive.file());
    assert_eq!(rows.len(), 1);
    assert!(errors[0].contains("splits data of 60000 bytes into 2 segments"), "{errors:?}");
    assert!(errors[1].contains("data of 2147483647"), "{errors:?}");
    assert!(errors[2].contains("5 bytes of data within itself"), "{errors:?}");
}

#[test]
fn what_is_no_hive_is_refused() {
    assert!(matches!(HiveFile::parse(b"regf"), Err(RegistryError::NotAHive { .. })));
    assert!(matches!(HiveFile::parse(&[0; 0x2000]), Err(RegistryError::NotAHive { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever is changed in a hive, reading all of it ends.
    #[test]
    fn any_hive_comes_to_an_end(changes in prop::collection::vec((0usize..0x2000, any::<u32>()), 1..12), cut in 0usize..0x10000) {
        let mut bytes = TestHive::of(&some_keys()).file();
        for (at, value) in changes {
            let at = 0x1000 + at % (bytes.len() - 0x1004);
            // Half of the values are small: counts and cells that exist.
            let value = if value & 1 == 0 { value & 0x1ff8 } else { value };
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let len = bytes.len() - cut.min(bytes.len()) / 8;
        bytes.truncate(len);
        everything(&bytes);
    }

    #[test]
    fn any_bytes_come_to_an_end(mut bytes in prop::collection::vec(any::<u8>(), 0..0x2000)) {
        everything(&bytes);
        if bytes.len() > 4 {
            bytes[..4].copy_from_slice(b"regf");
        }
        everything(&bytes);
    }
}
