//! From an entry to a type.

use gimli::{AttributeValue, EntriesCursor, Operation, constants as dw};
use vmi_core::{Member, Structure, Type, TypeId, TypeSource};

use super::sections::Reader;
use super::unit::{self, Entry, Unit};
use super::{Dwarf, index};

/// More members, values or dimensions than any type has; with the limit of names it bounds what one hostile entry can make us
/// allocate.
const MAX_ELEMENTS: usize = 1 << 16;

/// Why an entry cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error(transparent)]
    Dwarf(#[from] gimli::Error),
    #[error("no unit holds this number")]
    NoUnit,
    #[error("it has more than {MAX_ELEMENTS} members")]
    TooMany,
    #[error("the location of a member is not a constant")]
    Location,
    #[error("it refers to a type that is not in this file")]
    Reference,
    #[error("{0}")]
    Size(#[from] vmi_core::Error),
}

impl Dwarf {
    pub(super) fn decode(&self, id: TypeId) -> Result<Type, Broken> {
        if id.0 == 0 {
            return Ok(Type::Void);
        }
        let unit = self.unit(id)?;
        let mut cursor = unit.header.entries_at_offset(&unit.abbreviations, unit.offset(id))?;
        let Some(entry) = cursor.next_dfs()?.cloned() else { return Err(Broken::NoUnit) };
        let number = |at| entry.attr(at).and_then(|attribute| attribute.udata_value());
        let size = number(dw::DW_AT_byte_size).unwrap_or(0);
        Ok(match entry.tag() {
            dw::DW_TAG_base_type => {
                let signed = match entry.attr_value(dw::DW_AT_encoding) {
                    Some(AttributeValue::Encoding(encoding)) => {
                        matches!(encoding, dw::DW_ATE_signed | dw::DW_ATE_signed_char | dw::DW_ATE_float)
                    }
                    _ => false,
                };
                Type::Number { name: text(&unit, &entry)?, size, signed }
            }
            dw::DW_TAG_pointer_type | dw::DW_TAG_reference_type | dw::DW_TAG_rvalue_reference_type => {
                Type::Pointer { target: self.target(&unit, &entry)? }
            }
            dw::DW_TAG_structure_type | dw::DW_TAG_union_type | dw::DW_TAG_class_type | dw::DW_TAG_enumeration_type
                if index::kind(&entry).is_none() =>
            {
                self.declared(id, &unit, &entry)?
            }
            dw::DW_TAG_structure_type | dw::DW_TAG_union_type | dw::DW_TAG_class_type => {
                let union = entry.tag() == dw::DW_TAG_union_type;
                let members = children(&mut cursor, &entry, dw::DW_TAG_member, |member| self.member(&unit, member))?;
                Type::Structure(Structure { name: text(&unit, &entry)?, size, union, members })
            }
            dw::DW_TAG_enumeration_type => {
                let values =
                    children(&mut cursor, &entry, dw::DW_TAG_enumerator, |value| Ok((text(&unit, value)?, constant(value))))?;
                Type::Enumeration { name: text(&unit, &entry)?, size, values }
            }
            dw::DW_TAG_array_type => {
                let dimensions = children(&mut cursor, &entry, dw::DW_TAG_subrange_type, |range| Ok(length(range)))?;
                let count = dimensions.into_iter().reduce(u64::saturating_mul).unwrap_or(0);
                Type::Array { element: self.target(&unit, &entry)?, count }
            }
            dw::DW_TAG_typedef
            | dw::DW_TAG_const_type
            | dw::DW_TAG_volatile_type
            | dw::DW_TAG_restrict_type
            | dw::DW_TAG_atomic_type => Type::Alias { target: self.target(&unit, &entry)? },
            dw::DW_TAG_subroutine_type | dw::DW_TAG_subprogram => Type::Function,
            _ => Type::Void,
        })
    }

    /// Whether the type of this number is complete and has this name.
    pub(super) fn is_named(&self, id: u32, name: &str, enumeration: bool) -> Result<bool, Broken> {
        let unit = self.unit(TypeId(id))?;
        let entry = unit.header.entry(&unit.abbreviations, unit.offset(TypeId(id)))?;
        Ok(index::kind(&entry) == Some(enumeration) && unit.name(&entry)? == Some(name.as_bytes()))
    }

    fn unit(&self, id: TypeId) -> Result<Unit<'_>, Broken> {
        let span = unit::of(&self.units, id).ok_or(Broken::NoUnit)?;
        Ok(Unit::open(&self.sections.view(), span)?)
    }

    /// A structure or enumeration that this unit does not describe: it is in a type unit, or in another unit under the same name.
    fn declared<'s>(&'s self, id: TypeId, unit: &Unit<'s>, entry: &Entry<'s>) -> Result<Type, Broken> {
        if let Some(signature) = entry.attr_value(dw::DW_AT_signature) {
            return Ok(Type::Alias { target: self.reference(unit, signature)? });
        }
        let enumeration = entry.tag() == dw::DW_TAG_enumeration_type;
        let complete = self.lookup(&text(unit, entry)?, enumeration).filter(|&target| target != id);
        Ok(complete.map_or(Type::Void, |target| Type::Alias { target }))
    }

    /// The type an entry refers to; `void` if it names none.
    fn target(&self, unit: &Unit<'_>, entry: &Entry<'_>) -> Result<TypeId, Broken> {
        entry.attr_value(dw::DW_AT_type).map_or(Ok(TypeId(0)), |target| self.reference(unit, target))
    }

    fn reference(&self, unit: &Unit<'_>, target: AttributeValue<Reader<'_>>) -> Result<TypeId, Broken> {
        let id = match target {
            AttributeValue::UnitRef(offset) => unit.id(offset),
            AttributeValue::DebugInfoRef(offset) => u32::try_from(offset.0).ok().map(TypeId),
            AttributeValue::DebugTypesRef(signature) => self.signatures.get(&signature.0).copied(),
            _ => None,
        };
        id.ok_or(Broken::Reference)
    }

    fn member<'s>(&'s self, unit: &Unit<'s>, entry: &Entry<'s>) -> Result<Member, Broken> {
        let number = |at| entry.attr(at).and_then(|attribute| attribute.udata_value());
        let ty = self.target(unit, entry)?;
        let start = location(unit, entry)?.saturating_mul(8);
        let bit_width = number(dw::DW_AT_bit_size).map(|width| u32::try_from(width).unwrap_or(u32::MAX));
        let bit_offset = match (number(dw::DW_AT_data_bit_offset), number(dw::DW_AT_bit_offset), bit_width) {
            (Some(offset), _, _) => start.saturating_add(offset),
            // Until DWARF 3: bits between the most significant bit of the storage unit and that of the field.
            (None, Some(above), Some(width)) => {
                let storage = match number(dw::DW_AT_byte_size) {
                    Some(size) => size,
                    None => (self as &dyn TypeSource).size_of(ty)?,
                };
                let below = storage.saturating_mul(8).checked_sub(above).and_then(|bits| bits.checked_sub(width.into()));
                start.saturating_add(below.ok_or(Broken::Location)?)
            }
            _ => start,
        };
        Ok(Member { name: text(unit, entry)?, bit_offset, bit_width, ty })
    }
}

/// What `convert` makes of the children of this kind of the entry that the cursor stands on.
fn children<'s, T>(
    cursor: &mut EntriesCursor<'_, Reader<'s>>,
    parent: &Entry<'s>,
    tag: dw::DwTag,
    convert: impl Fn(&Entry<'s>) -> Result<T, Broken>,
) -> Result<Vec<T>, Broken> {
    let mut found = Vec::new();
    if !parent.has_children() || !cursor.next_entry()? {
        return Ok(found);
    }
    while let Some(child) = cursor.current() {
        // A static member of C++ is a variable.
        if child.tag() == tag && !child.has_attr(dw::DW_AT_external) {
            if found.len() == MAX_ELEMENTS {
                return Err(Broken::TooMany);
            }
            found.push(convert(child)?);
        }
        cursor.next_sibling()?;
    }
    Ok(found)
}

/// Bytes from the start of the structure to a member: a constant, or until DWARF 3 an expression that adds one.
fn location(unit: &Unit<'_>, entry: &Entry<'_>) -> Result<u64, Broken> {
    let Some(attribute) = entry.attr(dw::DW_AT_data_member_location) else { return Ok(0) };
    if let Some(offset) = attribute.udata_value() {
        return Ok(offset);
    }
    let expression = attribute.exprloc_value().ok_or(Broken::Location)?;
    match expression.operations(unit.header.encoding()).next()? {
        Some(Operation::PlusConstant { value } | Operation::UnsignedConstant { value }) => Ok(value),
        _ => Err(Broken::Location),
    }
}

/// The number of elements of a dimension; 0 if it is not given, as for a flexible array.
fn length(range: &Entry<'_>) -> u64 {
    let number = |at| range.attr(at).and_then(|attribute| attribute.udata_value());
    // An upper bound of -1 means no elements.
    number(dw::DW_AT_count).or_else(|| Some(number(dw::DW_AT_upper_bound)?.wrapping_add(1))).unwrap_or(0)
}

fn constant(entry: &Entry<'_>) -> i64 {
    let Some(attribute) = entry.attr(dw::DW_AT_const_value) else { return 0 };
    // The fixed-size forms carry no sign; compilers use them for what is not negative, and a signed form else.
    attribute.udata_value().map(|value| value as i64).or_else(|| attribute.sdata_value()).unwrap_or(0)
}

fn text<'s>(unit: &Unit<'s>, entry: &Entry<'s>) -> Result<String, Broken> {
    Ok(String::from_utf8_lossy(unit.name(entry)?.unwrap_or_default()).into_owned())
}
