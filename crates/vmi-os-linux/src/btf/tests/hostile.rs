//! Bytes that are not what they should be.

use proptest::prelude::*;
use vmi_core::{TypeId, TypeSource};

use super::blob::Blob;
use crate::btf::{Btf, BtfError, Candidate, find_headers};

fn sample() -> Vec<u8> {
    let mut blob = Blob::new();
    let int = blob.int("int", 4, 32, true);
    let array = blob.record("", 3, 0, false, 0, &[int, int, 5]);
    let inner = blob.structure("", 8, false, &[("x", int, 0), ("y", array, 32)]);
    blob.structure("outer", 32, true, &[("a", int, 3 << 24), ("", inner, 64), ("b", array, 128)]);
    let name = blob.name("ONE");
    blob.record("numbers", 6, 1, true, 4, &[name, 1]);
    let variable = blob.record("cpu_number", 14, 0, false, int, &[1]);
    blob.record(".data..percpu", 15, 1, false, 64, &[variable, 32, 4]);
    blob.bytes()
}

/// Asks everything there is to ask.
fn exercise(bytes: &[u8]) -> Result<(), BtfError> {
    let btf = Btf::parse(bytes, 8)?;
    let types: &dyn TypeSource = &btf;
    for id in 0..=btf.end_id() {
        let _ = (types.get(TypeId(id)), types.size_of(TypeId(id)), types.resolve(TypeId(id)));
    }
    for name in types.structures().chain(["outer".to_owned()]) {
        let _ = (types.field(&name, "x"), types.field(&name, "y.z"));
    }
    let _ = types.constant("numbers", "ONE");
    assert!(btf.variables().count() < 1 << 20);
    Ok(())
}

#[test]
fn cut_anywhere_it_is_an_error() {
    let bytes = sample();
    exercise(&bytes).unwrap();
    for len in 0..bytes.len() {
        assert!(exercise(&bytes[..len]).is_err(), "cut to {len}");
    }
    // What follows is not ours.
    exercise(&[bytes, vec![0xff; 100]].concat()).unwrap();
}

#[test]
fn wrong_headers_are_told_apart() {
    let parse = |edit: fn(&mut Vec<u8>)| {
        let mut bytes = sample();
        edit(&mut bytes);
        Btf::parse(bytes, 8).unwrap_err()
    };
    assert_eq!(parse(|b| b[..4].copy_from_slice(&[0xeb, 0x9f, 1, 0])), BtfError::NotBtf { found: vec![0xeb, 0x9f, 1, 0] });
    assert_eq!(parse(|b| b[2] = 2), BtfError::NotBtf { found: vec![0x9f, 0xeb, 2, 0] });
    assert_eq!(parse(|b| b[4] = 20), BtfError::Header { len: 20 });
    assert!(matches!(parse(|b| b[15] = 0x7f), BtfError::Short { section: "type", .. }));
    assert!(matches!(parse(|b| b[20..24].fill(0xff)), BtfError::Short { section: "string", .. }));
    assert_eq!(parse(|b| *b.last_mut().unwrap() = b'x'), BtfError::Strings);
    assert!(matches!(parse(|b| b[12] -= 4), BtfError::Cut { .. }));
}

#[test]
fn headers_are_found_at_multiples_of_four_and_checked() {
    let bytes = sample();
    let mut haystack = vec![0x9f; 4096];
    haystack[100..100 + bytes.len()].copy_from_slice(&bytes);
    haystack[1001..1001 + bytes.len()].copy_from_slice(&bytes);
    haystack[2000..2000 + bytes.len()].copy_from_slice(&bytes);
    haystack[2004] = 23;
    haystack[3000..3000 + bytes.len()].copy_from_slice(&bytes);
    haystack[3000 + bytes.len() - 1] = 1;
    let cut = haystack.len() - 40;
    haystack[cut..].copy_from_slice(&bytes[..40]);
    let found: Vec<_> = find_headers(&haystack).collect();
    assert_eq!(found, [100, cut].map(|offset| Candidate { offset, len: bytes.len() }));
}

#[test]
fn a_name_shared_by_all_costs_little() {
    // 60,000 members that all bear one name of a megabyte.
    let mut blob = Blob::new();
    let int = blob.int("int", 4, 32, true);
    let long = blob.name(&"n".repeat(1 << 20));
    let members: Vec<u32> = (0..60_000).flat_map(|_| [long, int, 0]).collect();
    let id = blob.record("big", 4, 60_000, false, 4, &members);
    let btf = Btf::parse(blob.bytes(), 8).unwrap();
    assert!(btf.get(TypeId(id)).unwrap_err().to_string().contains("longer than 511 bytes"));
}

proptest! {
    #[test]
    fn mutated_bytes_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let mut bytes = sample();
        for (at, value) in edits {
            *at.get_mut(&mut bytes) = value;
        }
        let _ = exercise(&bytes);
        assert!(find_headers(&bytes).count() <= 1);
    }

    #[test]
    fn random_records_never_panic(words in prop::collection::vec(any::<u32>(), 0..64), kind in 0..32u32, count in 0..8u32) {
        let mut blob = Blob::new();
        blob.int("int", 4, 32, true);
        blob.record("any", kind, count, true, 4, &words);
        let _ = exercise(&blob.bytes());
    }
}
