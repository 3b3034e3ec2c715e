//! Questions to a table of types.

use super::*;

/// Types by number; 0 is `void`.
#[derive(Debug)]
struct Table(Vec<Type>);

impl TypeSource for Table {
    fn find(&self, name: &str) -> Option<TypeId> {
        let named = |ty: &Type| matches!(ty, Type::Structure(structure) if structure.name == name);
        self.0.iter().position(named).map(|index| TypeId(index as u32))
    }
    fn find_enumeration(&self, name: &str) -> Option<TypeId> {
        let named = |ty: &Type| matches!(ty, Type::Enumeration { name: other, .. } if other == name);
        self.0.iter().position(named).map(|index| TypeId(index as u32))
    }
    fn get(&self, id: TypeId) -> Result<Type> {
        let missing = || ErrorKind::NoType { name: id.0.to_string(), why: "no such number".to_owned() };
        Ok(self.0.get(id.0 as usize).cloned().ok_or_else(missing)?)
    }
    fn pointer_size(&self) -> u64 {
        4
    }
    fn origin(&self) -> String {
        "a table".to_owned()
    }
    fn structures(&self) -> Box<dyn Iterator<Item = String> + '_> {
        Box::new(core::iter::empty())
    }
}

/// Offset, size, bits of a bitfield.
type Place = (u64, u64, Option<(u32, u32)>);

impl Table {
    fn new() -> Self {
        Self(vec![Type::Void])
    }

    fn add(&mut self, ty: Type) -> TypeId {
        self.0.push(ty);
        TypeId(self.0.len() as u32 - 1)
    }

    fn int(&mut self) -> TypeId {
        self.add(Type::Number { name: "int".to_owned(), size: 4, signed: true })
    }

    /// Adds a structure of members `(name, offset in bits, width of a bitfield, type)`.
    fn structure(&mut self, name: &str, size: u64, members: &[(&str, u64, Option<u32>, TypeId)]) -> TypeId {
        let member =
            |&(name, bit_offset, bit_width, ty): &(&str, _, _, _)| Member { name: name.to_owned(), bit_offset, bit_width, ty };
        let members = members.iter().map(member).collect();
        self.add(Type::Structure(Structure { name: name.to_owned(), size, union: false, members }))
    }

    fn place(&self, structure: &str, path: &str) -> Result<Place> {
        let field = (self as &dyn TypeSource).field(structure, path)?;
        Ok((field.offset, field.size, field.bits))
    }
}

fn is_missing<T: fmt::Debug>(result: Result<T>, what: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoType { name, .. } if name == what), "{error}");
}

#[test]
fn members_are_found_through_nesting_aliases_and_anonymous_members() {
    let mut table = Table::new();
    let int = table.int();
    let inner = table.structure("inner", 16, &[("a", 0, None, int), ("b", 96, None, int)]);
    let alias = table.add(Type::Alias { target: inner });
    let constant = table.add(Type::Alias { target: alias });
    let deep = table.structure("", 8, &[("x", 0, None, int), ("y", 32, None, int)]);
    let qualified = table.add(Type::Alias { target: deep });
    let middle = table.structure("", 16, &[("w", 0, None, int), ("", 64, None, qualified)]);
    let pointer = table.add(Type::Pointer { target: inner });
    table.structure(
        "outer",
        64,
        &[("first", 0, None, int), ("", 64, None, middle), ("named", 192, None, constant), ("pointer", 320, None, pointer)],
    );
    assert_eq!(table.place("outer", "first").unwrap(), (0, 4, None));
    assert_eq!(table.place("outer", "w").unwrap(), (8, 4, None));
    assert_eq!(table.place("outer", "y").unwrap(), (20, 4, None), "two anonymous members deep");
    assert_eq!(table.place("outer", "named").unwrap(), (24, 16, None));
    assert_eq!(table.place("outer", "named.b").unwrap(), (36, 4, None), "through aliases");
    assert_eq!(table.place("outer", "pointer").unwrap(), (40, 4, None));

    is_missing(table.place("outer", "absent"), "outer.absent");
    is_missing(table.place("outer", "named.absent"), "outer.named.absent");
    is_missing(table.place("outer", "first.a"), "outer.first.a");
    is_missing(table.place("outer", "pointer.a"), "outer.pointer.a");
    is_missing(table.place("outer", ""), "outer.");
    is_missing(table.place("outer", "named."), "outer.named.");
    is_missing(table.place("absent", "first"), "absent");
}

#[test]
fn an_empty_name_never_means_an_anonymous_member() {
    let mut table = Table::new();
    let int = table.int();
    let inner = table.structure("", 4, &[("x", 0, None, int)]);
    table.structure("outer", 4, &[("", 0, None, inner)]);
    is_missing(table.place("outer", ""), "outer.");
    is_missing(table.place("outer", ".x"), "outer..x");
    is_missing((&table as &dyn TypeSource).structure(""), "");
}

#[test]
fn bitfields_say_which_bits_of_which_bytes() {
    let mut table = Table::new();
    let int = table.int();
    let flags = table.structure("", 8, &[("c", 5, Some(13), int)]);
    table.structure(
        "outer",
        16,
        &[("a", 32, Some(1), int), ("b", 39, Some(2), int), ("", 67, None, flags), ("d", 96, Some(0), int)],
    );
    assert_eq!(table.place("outer", "a").unwrap(), (4, 1, Some((0, 1))));
    assert_eq!(table.place("outer", "b").unwrap(), (4, 2, Some((7, 2))), "across a byte");
    assert_eq!(table.place("outer", "c").unwrap(), (9, 2, Some((0, 13))));
    assert_eq!(table.place("outer", "d").unwrap(), (12, 0, Some((0, 0))));
}

#[test]
fn sizes_of_everything() {
    let mut table = Table::new();
    let int = table.int();
    let row = table.add(Type::Array { element: int, count: 3 });
    let matrix = table.add(Type::Array { element: row, count: 2 });
    let flexible = table.add(Type::Array { element: int, count: 0 });
    let huge = table.add(Type::Array { element: row, count: u64::MAX });
    let alias = table.add(Type::Alias { target: matrix });
    let pointers = table.add(Type::Pointer { target: TypeId(0) });
    let pointers = table.add(Type::Array { element: pointers, count: 5 });
    let choice = table.add(Type::Enumeration { name: "choice".to_owned(), size: 4, values: vec![("ONE".to_owned(), 1)] });
    let function = table.add(Type::Function);
    let types: &dyn TypeSource = &table;
    let size = |id| types.size_of(id).unwrap();
    assert_eq!([int, row, matrix, flexible, alias, pointers, choice].map(size), [4, 12, 24, 0, 24, 20, 4]);
    assert_eq!([TypeId(0), function].map(size), [0, 0]);
    assert_eq!(size(huge), u64::MAX, "no overflow");
    assert_eq!(types.constant("choice", "ONE").unwrap(), 1);
    is_missing(types.constant("choice", "TWO"), "choice.TWO");
    is_missing(types.constant("none", "ONE"), "none.ONE");
    is_missing(types.size_of(TypeId(99)), "99");
}

#[test]
fn what_refers_to_itself_is_an_error() {
    let mut table = Table::new();
    let next = TypeId(2);
    let circle = table.add(Type::Alias { target: next });
    table.add(Type::Alias { target: circle });
    let array = table.add(Type::Array { element: TypeId(3), count: 1 });
    table.structure("circle", 4, &[("a", 0, None, circle)]);
    // A structure that anonymously holds itself, twice: 2^32 ways down if every one were tried.
    let own = TypeId(table.0.len() as u32);
    table.structure("itself", 4, &[("", 0, None, own), ("", 0, None, own)]);
    let types: &dyn TypeSource = &table;
    is_missing(types.resolve(circle), &format!("type {}", circle.0));
    is_missing(types.size_of(array), &format!("type {}", array.0));
    assert!(table.place("circle", "a").is_err());
    assert!(table.place("circle", "a.b").is_err());
    assert!(table.place("itself", "absent").is_err());
}

#[test]
fn many_anonymous_members_that_hold_each_other_end_soon() {
    // Each of 30 levels holds the next twice: a billion ways to the bottom.
    let mut table = Table::new();
    let int = table.int();
    let mut inner = table.structure("", 4, &[("bottom", 0, None, int)]);
    for _ in 0..30 {
        inner = table.structure("", 4, &[("", 0, None, inner), ("", 0, None, inner)]);
    }
    table.structure("outer", 4, &[("", 0, None, inner)]);
    assert!(table.place("outer", "absent").is_err());
}
