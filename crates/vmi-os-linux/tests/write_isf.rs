//! The symbol file of a real kernel, the demo image's, says what its BTF and its symbol table say.
//!
//! That BTF itself says what the kernel's debug information does is checked by `tests/peers/agree.py`, with Volatility's plugins on the files.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use vmi_core::{Isf, Member, Structure, Type, TypeId, TypeSource, Vmi};
use vmi_driver_file::ImageDriver;
use vmi_os_linux::Linux;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/debian-6.12.raw.zst");

/// A member's place, and the size and kind of its type.
fn place(types: &dyn TypeSource, member: &Member) -> (String, u64, Option<u32>, u64, &'static str) {
    let kind = match types.resolve(member.ty).unwrap() {
        // Forward declarations are `void`.
        Type::Void => "void",
        Type::Number { .. } => "number",
        Type::Pointer { .. } => "pointer",
        Type::Array { .. } => "array",
        Type::Structure(Structure { union: false, .. }) => "structure",
        Type::Structure(_) => "union",
        Type::Enumeration { .. } => "enumeration",
        _ => "function",
    };
    (member.name.clone(), member.bit_offset, member.bit_width, types.size_of(member.ty).unwrap(), kind)
}

/// What differs below a structure, down through structures without a tag.
fn compare(own: &dyn TypeSource, its: &dyn TypeSource, own_id: TypeId, its_id: TypeId, count: &mut usize) {
    let (Ok(Type::Structure(mut mine)), Ok(Type::Structure(theirs))) = (own.resolve(own_id), its.resolve(its_id)) else {
        panic!("no structure: {:?} and {:?}", own.get(own_id), its.get(its_id));
    };
    assert_eq!((mine.size, mine.union, mine.members.len()), (theirs.size, theirs.union, theirs.members.len()), "{}", mine.name);
    mine.members.sort_by_key(|member| member.bit_offset);
    for (member, other) in mine.members.iter().zip(&theirs.members) {
        *count += 1;
        assert_eq!(place(own, member), place(its, other), "{}", mine.name);
        if let Ok(Type::Structure(inner)) = own.resolve(member.ty)
            && inner.name.is_empty()
        {
            compare(own, its, member.ty, other.ty, count);
        }
    }
}

#[test]
fn the_demo_kernel_comes_back_from_its_file() {
    let vmi = Vmi::new(ImageDriver::open(DEMO).unwrap());
    let linux = Linux::attach(&vmi).unwrap();
    let mut file = Vec::new();
    let summary = linux.write_isf(&mut file).unwrap();
    println!("{summary:?}");
    assert_eq!((summary.broken, summary.incomplete.as_slice()), (0, &[][..]));
    let isf = Isf::parse(&file).unwrap();
    assert_eq!(isf.banner(), Some(linux.banner()));

    let (own, its) = (linux.types(), &isf as &dyn TypeSource);
    let (mut structures, mut members) = (0, 0);
    for tag in own.structures() {
        structures += 1;
        compare(own, its, own.find(&tag).unwrap(), its.find(&tag).unwrap(), &mut members);
    }
    assert!(structures > 5000 && members > 50_000, "{structures} {members}");
    for tag in own.enumerations() {
        let constants = |types: &dyn TypeSource| match types.get(types.find_enumeration(&tag).unwrap()).unwrap() {
            Type::Enumeration { size, mut values, .. } => {
                values.sort();
                (size, values)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(constants(own), constants(its), "{tag}");
    }

    let read = isf.symbols(linux.slide().unwrap());
    for symbol in linux.kernel().symbols.iter() {
        let expected = linux.kernel().symbols.address(symbol.name).unwrap();
        assert_eq!(read.address(symbol.name).unwrap(), expected, "{}", symbol.name);
    }
    assert_eq!(isf.symbols(0).address("_text").unwrap().get(), 0xffff_ffff_8100_0000, "as it is linked");
    for name in ["init_task", "modules", "prb", "tk_core", "net_namespace_list", "runqueues"] {
        assert!(isf.variable(name).is_some(), "{name}");
    }
}
