use proptest::prelude::*;

use super::*;
use crate::{ErrorKind, Isf, Member, Result, Structure, SymbolsBuilder, Type, TypeId, VirtAddr};

/// Types by number; those that are missing are broken.
#[derive(Clone, Debug, Default)]
struct Table(Vec<Type>);

impl Table {
    fn tagged(&self, tag: &str) -> Option<TypeId> {
        let named = |ty: &Type| matches!(ty, Type::Structure(structure) if structure.name == tag && !tag.is_empty());
        self.0.iter().position(named).map(|index| TypeId(index as u32))
    }
}

impl TypeSource for Table {
    fn find(&self, name: &str) -> Option<TypeId> {
        self.tagged(name)
    }

    fn find_enumeration(&self, tag: &str) -> Option<TypeId> {
        let named = |ty: &Type| matches!(ty, Type::Enumeration { name, .. } if name == tag && !tag.is_empty());
        self.0.iter().position(named).map(|index| TypeId(index as u32))
    }

    fn get(&self, id: TypeId) -> Result<Type> {
        let missing = || ErrorKind::NoType { name: format!("type {}", id.0), why: "it is broken".to_owned() };
        Ok(self.0.get(id.0 as usize).cloned().ok_or_else(missing)?)
    }

    fn pointer_size(&self) -> u64 {
        8
    }

    fn origin(&self) -> String {
        "a table".to_owned()
    }

    fn structures(&self) -> Box<dyn Iterator<Item = String> + '_> {
        Box::new(self.0.iter().enumerate().filter_map(|(index, ty)| match ty {
            Type::Structure(structure) if self.tagged(&structure.name) == Some(TypeId(index as u32)) => {
                Some(structure.name.clone())
            }
            _ => None,
        }))
    }

    fn enumerations(&self) -> Box<dyn Iterator<Item = String> + '_> {
        Box::new(self.0.iter().enumerate().filter_map(|(index, ty)| match ty {
            Type::Enumeration { name, .. } if self.find_enumeration(name) == Some(TypeId(index as u32)) => Some(name.clone()),
            _ => None,
        }))
    }
}

fn written(types: &dyn TypeSource) -> (Isf, IsfSummary) {
    let mut file = Vec::new();
    let summary = IsfWriter::new(types).write(&mut file).unwrap();
    assert_eq!(summary.bytes, file.len() as u64);
    (Isf::parse(&file).unwrap(), summary)
}

/// What is told apart of a type, down to `depth` structures and pointers below it. Names that are made up do not count.
fn told(types: &dyn TypeSource, id: TypeId, depth: u32) -> String {
    let Some(depth) = depth.checked_sub(1) else { return "...".to_owned() };
    match types.resolve(id) {
        Ok(Type::Void | Type::Alias { .. }) | Err(_) => "void".to_owned(),
        Ok(Type::Number { size, signed, .. }) => format!("number of {size} {signed}"),
        Ok(Type::Pointer { target }) => format!("*{}", told(types, target, depth)),
        Ok(Type::Array { element, count }) => format!("[{count}]{}", told(types, element, depth)),
        Ok(Type::Function) => "function".to_owned(),
        Ok(Type::Enumeration { size, values, .. }) => {
            let values: std::collections::BTreeMap<_, _> = values.into_iter().collect();
            format!("enum of {size} {values:?}")
        }
        Ok(Type::Structure(structure)) => {
            let mut members = structure.members;
            members.sort_by_key(|member| member.bit_offset);
            let member = |member: &Member| {
                let name = if member.name.starts_with("unnamed_field_") { "" } else { &member.name };
                format!("{} {name} {:?} {};", member.bit_offset, member.bit_width, told(types, member.ty, depth))
            };
            format!("{} of {} {{{}}}", structure.union, structure.size, members.iter().map(member).collect::<String>())
        }
    }
}

fn number(name: &str, size: u64, signed: bool) -> Type {
    Type::Number { name: name.to_owned(), size, signed }
}

fn structure(name: &str, size: u64, members: &[(&str, u64, Option<u32>, u32)]) -> Type {
    let members = members.iter().map(|&(name, bit_offset, bit_width, ty)| Member {
        name: name.to_owned(),
        bit_offset,
        bit_width,
        ty: TypeId(ty),
    });
    Type::Structure(Structure { name: name.to_owned(), size, union: false, members: members.collect() })
}

#[test]
fn names_that_two_types_have() {
    let types = Table(vec![
        Type::Void,
        number("int", 4, true),
        number("int", 2, true),
        number("pointer", 3, false),
        structure("twice", 4, &[("a", 0, None, 1)]),
        structure("twice", 8, &[("b", 0, None, 2)]),
        structure("twice_1", 2, &[("c", 0, None, 2)]),
        structure(
            "outer",
            32,
            &[("x", 0, None, 4), ("y", 32, None, 5), ("z", 96, None, 6), ("w", 112, None, 3), ("n", 136, None, 8)],
        ),
        structure("", 4, &[("d", 0, None, 1)]),
        structure("unnamed_2", 1, &[]),
    ]);
    let (isf, summary) = written(&types);
    assert_eq!((summary.structures, summary.broken), (6, 0));
    let own: &dyn TypeSource = &types;
    let its: &dyn TypeSource = &isf;
    for tag in ["outer", "twice", "twice_1", "unnamed_2"] {
        assert_eq!(told(its, its.find(tag).unwrap(), 4), told(own, own.find(tag).unwrap(), 4), "{tag}");
    }
    assert_eq!(its.pointer_size(), 8, "a number that calls itself `pointer` is not one");
}

#[test]
fn what_is_broken_is_told_and_dangles_nowhere() {
    let mut members = vec![("missing", 0, None, 99), ("endless", 64, None, 1), ("", 128, None, 3)];
    members.push(("", 192, None, 4));
    let types = Table(vec![
        Type::Void,
        Type::Pointer { target: TypeId(1) },
        structure("s", 64, &members),
        structure("", 8, &[("deep", 0, None, 0), ("", 0, None, 3)]),
        Type::Alias { target: TypeId(4) },
    ]);
    let mut file = Vec::new();
    let summary = IsfWriter::new(&types).write(&mut file).unwrap();
    assert_eq!(summary.broken, 3, "{:?}", summary.incomplete);
    assert!(summary.incomplete[0].contains("broken"), "{:?}", summary.incomplete);
    let text = String::from_utf8(file.clone()).unwrap();
    assert!(!text.contains("anonymous"), "a structure that contains itself must not be unfolded: {text}");
    Isf::parse(&file).unwrap();
}

#[test]
fn symbols_variables_and_banner() {
    let types = Table(vec![Type::Void, number("unsigned long", 8, false), structure("list", 16, &[("next", 0, None, 1)])]);
    let mut builder = SymbolsBuilder::default();
    for (name, address) in
        [("offset", 0x1000), ("linux_banner", 0x8_1234_0000), ("twice", 0x8_2000_0000), ("twice", 0x8_1000_0000)]
    {
        builder.push(name, VirtAddr::new(address), b'd');
    }
    builder.push("head", VirtAddr::new(0x8_3000_0000), b'd');
    builder.push("strange", VirtAddr::new(0x8_4000_0000), b'd');
    builder.module("loop");
    builder.push("of_module", VirtAddr::new(0x8_5000_0000), b'd');
    let symbols = builder.build();
    let banner = b"Linux version 6.1 (x) #1\n\0";
    let mut file = Vec::new();
    let summary = IsfWriter::new(&types)
        .symbols(&symbols, 0x1000_0000, 16 << 20)
        .variable("head", IsfType::Pointer(&IsfType::Structure("made")))
        .variable("strange", IsfType::Structure("nowhere"))
        .variable("linux_banner", IsfType::Array(&IsfType::Number("char"), 26))
        .structure(IsfStructure { name: "made", size: 24, members: vec![("inner", 8, IsfType::Structure("list"))] })
        .linux_banner(banner)
        .write(&mut file)
        .unwrap();
    assert_eq!((summary.symbols, summary.variables, summary.structures), (5, 2, 2));
    let isf = Isf::parse(&file).unwrap();
    let read = isf.symbols(0x1000_0000);
    for name in ["offset", "linux_banner", "twice", "head"] {
        assert_eq!(read.address(name).unwrap(), symbols.address(name).unwrap(), "{name}");
    }
    assert!(read.find("of_module").is_none());
    assert_eq!(isf.banner(), Some("Linux version 6.1 (x) #1"));
    let types: &dyn TypeSource = &isf;
    assert_eq!(types.field("made", "inner.next").unwrap().offset, 8);
    assert_eq!(types.variable("strange"), None);
    assert_eq!(types.size_of(types.variable("linux_banner").unwrap()).unwrap(), 26);
    let text = String::from_utf8(file).unwrap();
    assert!(text.contains(r#""long unsigned int""#) && !text.contains(r#""unsigned long""#), "gcc's name for clang's");
    let base = base64(banner);
    assert!(text.contains(&base) && base.ends_with('='), "{base}");
}

#[test]
fn only_what_is_asked_for_and_further_sources() {
    let kernel =
        Table(vec![Type::Void, structure("a", 8, &[("b", 0, None, 2)]), structure("b", 8, &[]), structure("unused", 8, &[])]);
    let mut file = Vec::new();
    let summary = IsfWriter::new(&kernel).only(&["a", "absent"]).write(&mut file).unwrap();
    assert_eq!(summary.structures, 2);
    let module = Table(vec![
        Type::Void,
        structure("b", 8, &[]),
        structure("own", 16, &[("b", 0, None, 1), ("a", 64, None, 3)]),
        structure("a", 4, &[]),
    ]);
    let mut file = Vec::new();
    IsfWriter::new(&kernel).further(&module).write(&mut file).unwrap();
    let isf = Isf::parse(&file).unwrap();
    let types: &dyn TypeSource = &isf;
    assert_eq!(types.structure("a").unwrap().size, 8, "the kernel's own keeps the tag");
    assert_eq!(types.field("own", "a").unwrap().size, 4, "the module means its own");
    assert_eq!(types.structures().count(), 5, "what both describe alike is there once");
}

#[test]
fn output_that_fails_is_an_error() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    assert!(matches!(IsfWriter::new(&Table::default()).write(Full), Err(IsfWriteError::Io(_))));
}

/// Tables whose types refer to any number, in circles and beyond the end too.
fn tables() -> impl Strategy<Value = Table> {
    let id = || (0u32..24).prop_map(TypeId);
    let name = || prop::sample::select(vec!["", "a", "b", "a_1", "unnamed_1", "int", "pointer", "enum"]).prop_map(str::to_owned);
    // Only bitfields begin within a byte.
    let member = (name(), 0u64..2048, prop::option::weighted(0.2, 1u32..70), id()).prop_map(|(name, at, bit_width, ty)| {
        let bit_offset = if bit_width.is_some() { at } else { at / 8 * 8 };
        Member { name, bit_offset, bit_width, ty }
    });
    let members = prop::collection::vec(member, 0..5);
    let ty = prop_oneof![
        Just(Type::Void),
        Just(Type::Function),
        (name(), 0u64..17, any::<bool>()).prop_map(|(name, size, signed)| Type::Number { name, size, signed }),
        id().prop_map(|target| Type::Pointer { target }),
        id().prop_map(|target| Type::Alias { target }),
        (id(), 0u64..5).prop_map(|(element, count)| Type::Array { element, count }),
        (name(), 0u64..9, prop::collection::vec((name(), any::<i64>()), 0..4))
            .prop_map(|(name, size, values)| Type::Enumeration { name, size, values }),
        (name(), 0u64..300, any::<bool>(), members).prop_map(|(name, size, union, members)| Type::Structure(Structure {
            name,
            size,
            union,
            members
        })),
    ];
    prop::collection::vec(ty, 1..20).prop_map(Table)
}

#[test]
fn the_name_of_a_typedef() {
    let types = Table(vec![
        Type::Void,
        structure("", 8, &[]),
        Type::Alias { target: TypeId(1) },
        structure("user", 16, &[("plain", 0, None, 1), ("alias", 64, None, 2)]),
        structure("", 4, &[]),
        structure("other", 4, &[("it", 0, None, 4)]),
    ]);
    let mut file = Vec::new();
    IsfWriter::new(&types).tag(TypeId(2), "kernel_cap_t").tag(TypeId(4), "user").write(&mut file).unwrap();
    let isf = Isf::parse(&file).unwrap();
    let types: &dyn TypeSource = &isf;
    let alias = types.field("user", "alias").unwrap();
    assert_eq!((alias.ty, alias.size), (types.find("kernel_cap_t").unwrap(), 8));
    assert_eq!(types.field("user", "plain").unwrap().ty, alias.ty);
    assert_eq!(types.structure("user").unwrap().size, 16, "a tag that there is stays where it is");
}

/// Whether a JSON reader that unfolds anonymous members without asking, as Volatility does, comes to an end.
fn unfolds(file: &serde_json::Value, name: &str, left: &mut u32) -> bool {
    let Some(fewer) = left.checked_sub(1) else { return false };
    *left = fewer;
    let fields = file["user_types"][name]["fields"].as_object().unwrap_or_else(|| panic!("{name} is referred to and not there"));
    fields
        .values()
        .filter(|field| field["anonymous"] == true)
        .all(|field| unfolds(file, field["type"]["name"].as_str().unwrap(), left))
}

proptest! {
    /// Whatever a guest describes is written, and read again as the same.
    #[test]
    fn what_is_written_is_read(types in tables()) {
        let mut file = Vec::new();
        IsfWriter::new(&types).write(&mut file).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&file).unwrap();
        for name in json["user_types"].as_object().unwrap().keys() {
            prop_assert!(unfolds(&json, name, &mut 100_000));
        }
        let isf = Isf::parse(&file).unwrap();
        let (own, its): (&dyn TypeSource, &dyn TypeSource) = (&types, &isf);
        for tag in own.structures() {
            let (Some(own_id), Some(its_id)) = (own.find(&tag), its.find(&tag)) else { panic!("{tag} is lost") };
            prop_assert_eq!(told(its, its_id, 4), told(own, own_id, 4), "{}", tag);
        }
        for tag in own.enumerations() {
            let (own_id, its_id) = (own.find_enumeration(&tag).unwrap(), its.find_enumeration(&tag).unwrap());
            prop_assert_eq!(told(its, its_id, 4), told(own, own_id, 4), "{}", tag);
        }
    }
}
