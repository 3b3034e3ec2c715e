//! The form of the cache gives back what was put in.

use vmi_core::{Member, Structure, Type, TypeId, TypeSource, VirtAddr};

use super::super::compact::encode;
use super::super::{SymbolFile, SymbolFileError, exercise};
use crate::PdbIdentity;

fn types() -> Vec<Type> {
    let member = |name: &str, bit_offset, bit_width, ty| Member { name: name.to_owned(), bit_offset, bit_width, ty: TypeId(ty) };
    vec![
        Type::Void,
        Type::Number { name: "unsigned long".to_owned(), size: 4, signed: false },
        Type::Pointer { target: TypeId(4) },
        Type::Array { element: TypeId(1), count: 3 },
        Type::Structure(Structure {
            name: "_B".to_owned(),
            size: 32,
            union: false,
            members: vec![member("next", 0, None, 2), member("low", 64, Some(3), 1), member("", 96, None, 5)],
        }),
        Type::Structure(Structure { name: String::new(), size: 4, union: true, members: vec![member("inner", 0, None, 1)] }),
        Type::Enumeration {
            name: "_E".to_owned(),
            size: 4,
            values: vec![("Minus".to_owned(), -1), ("Big".to_owned(), i64::MAX)],
        },
        Type::Alias { target: TypeId(4) },
        Type::Function,
        Type::Structure(Structure { name: "_A".to_owned(), size: 8, union: false, members: Vec::new() }),
    ]
}

fn encoded() -> Vec<u8> {
    let identity = PdbIdentity::from_key("ntkrnlmp.pdb", "5278AFF86C341677D7D7835C85B7B8441").unwrap();
    encode(&types(), &[("B", 0x20), ("A", 0x10), ("Alias", 0x10)], 8, Some(&identity)).unwrap()
}

#[test]
fn what_was_put_in_comes_out() {
    let file = SymbolFile::from_cache(encoded()).unwrap();
    let source: &dyn TypeSource = &file;
    for (id, ty) in types().into_iter().enumerate() {
        assert_eq!(file.get(TypeId(id as u32)).unwrap(), ty);
    }
    assert!(file.get(TypeId(10)).is_err());
    assert_eq!(source.field("_B", "inner").unwrap().offset, 12);
    assert_eq!(source.field("_B", "low").unwrap().bits, Some((0, 3)));
    assert_eq!(source.constant("_E", "Minus").unwrap(), -1);
    assert_eq!(file.structures().collect::<Vec<_>>(), ["_A", "_B"]);
    assert!(file.find("_E").is_none() && file.find("").is_none());
    assert_eq!(file.offsets().collect::<Vec<_>>(), [("A", 0x10), ("Alias", 0x10), ("B", 0x20)]);
    assert_eq!(file.symbols(VirtAddr::new(0x1000)).address("B").unwrap(), VirtAddr::new(0x1020));
    assert_eq!(file.identity().unwrap().to_string(), "ntkrnlmp.pdb 5278AFF86C341677D7D7835C85B7B8441");
    assert_eq!(file.pointer_size(), 8);
}

#[test]
fn every_damage_is_noticed() {
    let good = encoded();
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            // A file that does not start as one is taken for another kind by `parse`, not here.
            assert!(matches!(SymbolFile::from_cache(bad), Err(SymbolFileError::Cache { .. })), "bit {bit} of byte {at}");
        }
    }
    for len in 0..good.len() {
        assert!(SymbolFile::from_cache(good[..len].to_vec()).is_err());
    }
}

/// Somebody who means harm fits the checksum: references lead nowhere, names overlap, types are their own elements.
#[test]
fn lies_with_a_right_checksum_end_in_errors() {
    let good = encoded();
    let mut seen = 0;
    for at in 24..good.len() {
        for value in [0, 0x7f, 0xff] {
            let mut bad = good.clone();
            bad[at] = value;
            let sum = super::super::compact::checksum(&bad[24..]);
            bad[16..24].copy_from_slice(&sum.to_le_bytes());
            if let Ok(file) = SymbolFile::from_cache(bad) {
                seen += exercise(&file);
            }
        }
    }
    assert!(seen > 1000);
}
