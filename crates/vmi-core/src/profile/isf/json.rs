//! The file as it is written.

use core::fmt;
use core::marker::PhantomData;
use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

/// A name, borrowed from the file unless it is written with escapes.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Name<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

#[derive(Deserialize)]
pub(super) struct File<'a> {
    #[serde(borrow)]
    pub(super) metadata: Metadata<'a>,
    #[serde(borrow)]
    pub(super) base_types: Map<'a, BaseType<'a>>,
    #[serde(borrow)]
    pub(super) user_types: Map<'a, UserType<'a>>,
    #[serde(borrow, default)]
    pub(super) enums: Map<'a, Enumeration<'a>>,
    #[serde(borrow, default)]
    pub(super) symbols: Map<'a, Symbol<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Metadata<'a> {
    #[serde(borrow)]
    pub(super) format: Name<'a>,
    #[serde(borrow, default)]
    pub(super) windows: Option<Windows<'a>>,
    #[serde(default)]
    pub(super) linux: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
pub(super) struct Windows<'a> {
    #[serde(borrow, default)]
    pub(super) pdb: Option<Pdb<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Pdb<'a> {
    #[serde(borrow)]
    pub(super) database: Name<'a>,
    #[serde(borrow, rename = "GUID")]
    pub(super) guid: Name<'a>,
    pub(super) age: u32,
}

#[derive(Deserialize)]
pub(super) struct BaseType<'a> {
    pub(super) size: u64,
    pub(super) signed: bool,
    #[serde(borrow)]
    pub(super) kind: Name<'a>,
}

#[derive(Deserialize)]
pub(super) struct UserType<'a> {
    pub(super) size: u64,
    #[serde(borrow)]
    pub(super) kind: Name<'a>,
    #[serde(borrow)]
    pub(super) fields: Map<'a, Field<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Field<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) ty: TypeRef<'a>,
    pub(super) offset: u64,
    /// An anonymous structure or union; its name in the file is made up.
    #[serde(default)]
    pub(super) anonymous: Option<bool>,
}

#[derive(Deserialize)]
pub(super) struct Enumeration<'a> {
    pub(super) size: u64,
    #[serde(borrow)]
    pub(super) constants: Map<'a, Constant>,
}

#[derive(Deserialize)]
pub(super) struct Symbol<'a> {
    pub(super) address: u64,
    #[serde(rename = "type", borrow, default)]
    pub(super) ty: Option<TypeRef<'a>>,
    /// First bytes of the variable, in base 64.
    #[serde(borrow, default)]
    pub(super) constant_data: Option<Name<'a>>,
}

/// A type where it is used. `serde_json` refuses nesting beyond 128.
#[derive(Deserialize)]
#[serde(try_from = "Flat<'a>", bound(deserialize = "'de: 'a"))]
pub(super) enum TypeRef<'a> {
    Base { name: Name<'a> },
    Structure { name: Name<'a> },
    Enumeration { name: Name<'a> },
    Pointer { target: Option<Box<TypeRef<'a>>> },
    Array { count: u64, element: Box<TypeRef<'a>> },
    Bitfield { position: u32, width: u32, of: Box<TypeRef<'a>> },
    Function,
}

/// All that any kind of type may have: read without buffering, whatever the order.
#[derive(Deserialize)]
struct Flat<'a> {
    #[serde(borrow)]
    kind: Name<'a>,
    #[serde(borrow, default)]
    name: Option<Name<'a>>,
    #[serde(borrow, default)]
    subtype: Option<Box<TypeRef<'a>>>,
    #[serde(rename = "type", borrow, default)]
    of: Option<Box<TypeRef<'a>>>,
    count: Option<u64>,
    bit_position: Option<u32>,
    bit_length: Option<u32>,
}

impl<'a> TryFrom<Flat<'a>> for TypeRef<'a> {
    type Error = String;

    fn try_from(flat: Flat<'a>) -> Result<Self, String> {
        let kind = flat.kind.0;
        let lacks = |what: &str| format!("a type of kind `{kind}` has no `{what}`");
        let name = flat.name.ok_or_else(|| lacks("name"));
        Ok(match &*kind {
            "base" => Self::Base { name: name? },
            "struct" | "union" | "class" => Self::Structure { name: name? },
            "enum" => Self::Enumeration { name: name? },
            "pointer" => Self::Pointer { target: flat.subtype },
            "array" => Self::Array {
                count: flat.count.ok_or_else(|| lacks("count"))?,
                element: flat.subtype.ok_or_else(|| lacks("subtype"))?,
            },
            "bitfield" => Self::Bitfield {
                position: flat.bit_position.ok_or_else(|| lacks("bit_position"))?,
                width: flat.bit_length.ok_or_else(|| lacks("bit_length"))?,
                of: flat.of.ok_or_else(|| lacks("type"))?,
            },
            "function" => Self::Function,
            _ => return Err(format!("a type has the unknown kind `{kind}`")),
        })
    }
}

/// The value of a constant; those above `i64::MAX` keep their bits.
pub(super) struct Constant(pub(super) i64);

impl<'de> Deserialize<'de> for Constant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Constant;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a 64-bit integer")
            }
            fn visit_i64<E>(self, value: i64) -> Result<Constant, E> {
                Ok(Constant(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Constant, E> {
                Ok(Constant(value as i64))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// The entries of an object in the order of the file.
pub(super) struct Map<'a, T>(pub(super) Vec<(Name<'a>, T)>);

impl<T> Default for Map<'_, T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de: 'a, 'a, T: Deserialize<'de>> Deserialize<'de> for Map<'a, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<'a, T>(PhantomData<(&'a (), T)>);
        impl<'de: 'a, 'a, T: Deserialize<'de>> Visitor<'de> for Entries<'a, T> {
            type Value = Map<'a, T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Map(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}
