//! BTF written by hand, broken BTF, and the BTF of real kernels.

mod blob;
mod hostile;
mod real;

use std::sync::Arc;

use vmi_core::{Field, Type, TypeId, TypeSource};

use self::blob::Blob;
use super::*;

fn field(btf: &Btf, structure: &str, path: &str) -> Field {
    (btf as &dyn TypeSource).field(structure, path).unwrap()
}

#[test]
fn every_kind_is_decoded() {
    let mut blob = Blob::new();
    let int = blob.int("int", 4, 32, true);
    let pointer = blob.record("", 2, 0, false, int, &[]);
    let array = blob.record("", 3, 0, false, 0, &[int, int, 5]);
    let forward = blob.record("later", 7, 0, false, 0, &[]);
    let alias = blob.record("myint", 8, 0, false, int, &[]);
    let constant = blob.record("", 10, 0, false, alias, &[]);
    let proto = blob.record("", 13, 1, false, int, &[0, int]);
    let function = blob.record("f", 12, 1, false, proto, &[]);
    let variable = blob.record("counter", 14, 0, false, int, &[1]);
    let section = blob.record(".data..percpu", 15, 1, false, 64, &[variable, 32, 4]);
    let float = blob.record("double", 16, 0, false, 8, &[]);
    let tag = blob.record("tag", 17, 0, false, int, &[u32::MAX]);
    let marked = blob.record("rcu", 18, 0, false, int, &[]);
    let [red, blue] = ["RED", "BLUE"].map(|name| blob.name(name));
    let colour = blob.record("colour", 6, 2, true, 4, &[red, 7, blue, -2i32 as u32]);
    let wide = blob.record("wide", 19, 1, false, 8, &[red, 0xffff_0000, 0x1]);
    let btf = Btf::parse(blob.bytes(), 8).unwrap();

    let get = |id| btf.get(TypeId(id)).unwrap();
    assert_eq!(get(0), Type::Void);
    assert_eq!(get(int), Type::Number { name: "int".into(), size: 4, signed: true });
    assert_eq!(get(pointer), Type::Pointer { target: TypeId(int) });
    assert_eq!(get(array), Type::Array { element: TypeId(int), count: 5 });
    assert_eq!((get(forward), get(section), get(tag)), (Type::Void, Type::Void, Type::Void));
    assert_eq!([alias, constant, marked].map(get), [int, alias, int].map(|id| Type::Alias { target: TypeId(id) }));
    assert_eq!((get(proto), get(function)), (Type::Function, Type::Function));
    assert_eq!(get(float), Type::Number { name: "double".into(), size: 8, signed: true });
    let values = vec![("RED".into(), 7), ("BLUE".into(), -2)];
    assert_eq!(get(colour), Type::Enumeration { name: "colour".into(), size: 4, values });
    let values = vec![("RED".into(), 0x1_ffff_0000)];
    assert_eq!(get(wide), Type::Enumeration { name: "wide".into(), size: 8, values });
    assert!(btf.get(TypeId(wide + 1)).is_err());

    assert_eq!(btf.find("later"), None, "a forward declaration is not a structure");
    assert_eq!(btf.find_enumeration("colour"), Some(TypeId(colour)));
    assert_eq!(btf.find("colour"), None);
    assert_eq!((&btf as &dyn TypeSource).constant("colour", "BLUE").unwrap(), -2);
    assert!((&btf as &dyn TypeSource).constant("colour", "GREEN").is_err());
    assert_eq!(btf.variable("counter"), Some(TypeId(int)));
    let expected = Variable { name: "counter", section: ".data..percpu", offset: 32, size: 4, ty: TypeId(int) };
    assert_eq!(btf.variables().map(Result::unwrap).collect::<Vec<_>>(), [expected]);
}

#[test]
fn bitfields_of_both_encodings() {
    let mut blob = Blob::new();
    let int = blob.int("unsigned int", 4, 32, false);
    let narrow = blob.int("unsigned int", 4, 3, false);
    let shifted = blob.record("unsigned int", 1, 0, false, 4, &[2 << 16 | 5]);
    blob.structure("flagged", 8, true, &[("a", int, 0), ("b", int, 3 << 24 | 32), ("c", int, 9 << 24 | 35)]);
    blob.structure("old", 8, false, &[("a", int, 0), ("b", narrow, 32), ("c", shifted, 40)]);
    let btf = Btf::parse(blob.bytes(), 8).unwrap();
    let place = |structure, path| {
        let field = field(&btf, structure, path);
        (field.offset, field.size, field.bits)
    };
    assert_eq!(place("flagged", "a"), (0, 4, None));
    assert_eq!(place("flagged", "b"), (4, 1, Some((0, 3))));
    assert_eq!(place("flagged", "c"), (4, 2, Some((3, 9))));
    assert_eq!(place("old", "b"), (4, 1, Some((0, 3))));
    assert_eq!(place("old", "c"), (5, 1, Some((2, 5))), "the integer's own bit offset counts");
}

#[test]
fn of_one_tag_the_first_complete_type_is_meant() {
    let mut blob = Blob::new();
    let int = blob.int("int", 4, 32, true);
    blob.record("twin", 7, 0, false, 0, &[]);
    let first = blob.structure("twin", 4, false, &[("a", int, 0)]);
    blob.structure("twin", 8, false, &[("a", int, 0), ("b", int, 32)]);
    let union = blob.record("other", 5, 1, false, 4, &[0, int, 0]);
    let btf = Btf::parse(blob.bytes(), 8).unwrap();
    assert_eq!(btf.find("twin"), Some(TypeId(first)));
    assert_eq!(btf.find("other"), Some(TypeId(union)));
    let mut names: Vec<_> = btf.structures().collect();
    names.sort();
    assert_eq!(names, ["other", "twin"], "each tag once");
}

#[test]
fn enumerations_without_any_signedness_are_signed() {
    let mut blob = Blob::new();
    let name = blob.name("NONE");
    blob.record("old", 6, 1, false, 4, &[name, u32::MAX]);
    let old = Btf::parse(blob.bytes(), 8).unwrap();
    assert_eq!((&old as &dyn TypeSource).constant("old", "NONE").unwrap(), -1);
    blob.record("signed", 6, 1, true, 4, &[name, u32::MAX]);
    let new = Btf::parse(blob.bytes(), 8).unwrap();
    assert_eq!((&new as &dyn TypeSource).constant("old", "NONE").unwrap(), 0xffff_ffff);
    assert_eq!((&new as &dyn TypeSource).constant("signed", "NONE").unwrap(), -1);
}

#[test]
fn a_module_continues_the_kernel() {
    let mut kernel = Blob::new();
    let int = kernel.int("int", 4, 32, true);
    let list = kernel.structure("list_head", 16, false, &[("next", 3, 0), ("prev", 3, 64)]);
    kernel.record("", 2, 0, false, list, &[]);
    kernel.structure("shared", 4, false, &[("kernel", int, 0)]);
    let mut module = Blob::continuing(&kernel);
    let own = module.structure("loop_device", 24, false, &[("number", int, 0), ("list", list, 64)]);
    let shared = module.structure("shared", 8, false, &[("module", int, 32)]);
    assert_eq!(own, 5);

    let kernel = Arc::new(Btf::parse(kernel.bytes(), 8).unwrap());
    let btf = Btf::parse_split(kernel.clone(), module.bytes()).unwrap();
    assert_eq!(field(&btf, "loop_device", "list.prev").offset, 16);
    assert_eq!(btf.find("list_head"), Some(TypeId(list)));
    assert_eq!(btf.find("shared"), Some(TypeId(shared)), "the module's own comes first");
    let mut names: Vec<_> = btf.structures().collect();
    names.sort();
    assert_eq!(names, ["list_head", "loop_device", "shared"]);

    // Without its base, names lie elsewhere and the first byte of the strings is not NUL.
    assert_eq!(Btf::parse(module.bytes(), 8).unwrap_err(), BtfError::Strings);
    let other = Arc::new(Btf::parse(Blob::new().bytes(), 8).unwrap());
    assert!(matches!(Btf::parse_split(other, module.bytes()), Err(BtfError::Name { .. })));
}

#[test]
fn kinds_of_the_future_are_stepped_over_with_a_layout_and_refused_without() {
    let mut blob = Blob::new();
    let int = blob.int("int", 4, 32, true);
    // 70,000 elements of four bytes and eight once: needs all of 24 bits of count and of 7 bits of kind.
    let unknown = blob.record("", 100, 70_000, false, 0, &vec![0xa5a5_a5a5; 70_002]);
    let after = blob.structure("after", 4, false, &[("a", int, 0)]);
    assert_eq!(Btf::parse(blob.bytes(), 8).unwrap_err(), BtfError::UnknownKind { kind: 100, id: unknown });

    let mut layouts = vec![[0u8; 4]; 101];
    layouts[100] = [8, 4, 0, 0];
    // What is known is not up to the file: a wrong layout of integers changes nothing.
    layouts[1] = [40, 0, 0, 0];
    blob.layouts = Some(layouts.concat());
    let btf = Btf::parse(blob.bytes(), 8).unwrap();
    assert_eq!(btf.find("after"), Some(TypeId(after)));
    assert_eq!(btf.get(TypeId(unknown)).unwrap(), Type::Void);
}
