//! Where structures and enumerations are, by name.

use gimli::constants as dw;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use rustc_hash::FxHashMap;

use super::DwarfError;
use super::sections::View;
use super::unit::{Entry, Span, Unit};
use crate::btf::names::Names;

/// The first type of each name; structures and enumerations apart.
type First<'s> = FxHashMap<(bool, &'s [u8]), u32>;

pub(super) fn names(view: &View<'_>, units: &[Span]) -> Result<Names, DwarfError> {
    let first = units.par_iter().try_fold(First::default, |mut first, span| match index(view, *span, &mut first) {
        Ok(()) => Ok(first),
        Err(source) => Err(DwarfError::Unit { at: span.start.into(), source }),
    });
    let first = first.try_reduce(First::default, |mut a, b| {
        for (name, id) in b {
            keep(&mut a, name, id);
        }
        Ok(a)
    })?;
    let mut names = Names::default();
    for ((_, name), id) in first {
        names.push(name, id);
    }
    names.finish();
    Ok(names)
}

fn keep<'s>(first: &mut First<'s>, name: (bool, &'s [u8]), id: u32) {
    first.entry(name).and_modify(|other| *other = id.min(*other)).or_insert(id);
}

/// Adds what stands at the top level of a unit, where C has all its types but those declared inside functions.
fn index<'s>(view: &View<'s>, span: Span, first: &mut First<'s>) -> gimli::Result<()> {
    let unit = Unit::open(view, span)?;
    let mut cursor = unit.header.entries(&unit.abbreviations);
    if cursor.next_dfs()?.is_none_or(|root| !root.has_children()) || !cursor.next_entry()? {
        return Ok(());
    }
    while let Some(entry) = cursor.current() {
        if let Some(enumeration) = kind(entry)
            && let Ok(Some(name)) = unit.name(entry)
            && let Some(id) = unit.id(entry.offset())
        {
            keep(first, (enumeration, name), id.0);
        }
        cursor.next_sibling()?;
    }
    Ok(())
}

/// Whether a complete type is an enumeration (`true`) or a structure (`false`); `None` for everything else.
pub(super) fn kind(entry: &Entry<'_>) -> Option<bool> {
    if entry.has_attr(dw::DW_AT_declaration) {
        return None;
    }
    match entry.tag() {
        dw::DW_TAG_structure_type | dw::DW_TAG_union_type | dw::DW_TAG_class_type => Some(false),
        dw::DW_TAG_enumeration_type => Some(true),
        _ => None,
    }
}
