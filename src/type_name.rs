//! The names of types as people read them.

use vmi_core::{Result, Type, TypeId, TypeSource};

/// How many steps of pointers and arrays are followed: a type of the guest may point at itself.
const DEPTH: u32 = 8;

/// A type as in C, but for the order of its parts: `struct list_head *`, `char[16]`. Behind eight pointers and arrays it ends with `...`.
///
/// # Errors
/// What reading the description reports.
pub fn type_name(types: &dyn TypeSource, id: TypeId) -> Result<String> {
    name(types, id, DEPTH)
}

fn name(types: &dyn TypeSource, id: TypeId, depth: u32) -> Result<String> {
    let Some(depth) = depth.checked_sub(1) else { return Ok("...".to_owned()) };
    let tag = |kind: &str, name: String| if name.is_empty() { format!("{kind} (anonymous)") } else { format!("{kind} {name}") };
    Ok(match types.resolve(id)? {
        Type::Number { name, .. } => name,
        Type::Pointer { target } => format!("{} *", self::name(types, target, depth)?),
        Type::Array { element, count } => format!("{}[{count}]", self::name(types, element, depth)?),
        Type::Structure(structure) => tag(if structure.union { "union" } else { "struct" }, structure.name),
        Type::Enumeration { name, .. } => tag("enum", name),
        Type::Function => "function".to_owned(),
        _ => "void".to_owned(),
    })
}
