//! Units: where they are, and what is needed to read their entries.

use gimli::{
    Abbreviations, AttributeValue, DebugInfo, DebugStrOffsetsBase, DebugTypes, DebuggingInformationEntry, LittleEndian,
    UnitHeader, UnitOffset, UnitType, constants as dw,
};
use rustc_hash::FxHashMap;
use vmi_core::TypeId;

use super::sections::{Reader, View};
use super::{DwarfError, MAX_NAME};

pub(super) type Entry<'s> = DebuggingInformationEntry<Reader<'s>>;

/// Where a unit is, in type numbers: offsets in `.debug_info`, and behind its end in `.debug_types`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) start: u32,
    end: u32,
    /// In `.debug_types`.
    types: bool,
}

/// All units in ascending order, and the types of type units by signature.
pub(super) fn spans(view: &View<'_>) -> Result<(Vec<Span>, FxHashMap<u64, TypeId>), DwarfError> {
    let (info, types) = (view.info.len(), view.types.len());
    if u32::try_from(info.saturating_add(types)).is_err() {
        let limit = u64::from(u32::MAX);
        return Err(DwarfError::TooLong { section: ".debug_info", len: info.saturating_add(types) as u64, limit });
    }
    let mut spans = Vec::new();
    let mut signatures = FxHashMap::default();
    let mut add = |header: &UnitHeader<Reader<'_>>, at: usize, types: bool| {
        // Sums within the two sections: below 4 GiB.
        let (start, end) = (at as u32, at.saturating_add(header.length_including_self()) as u32);
        spans.push(Span { start, end, types });
        if let UnitType::Type { type_signature, type_offset } = header.type_() {
            let id = start.saturating_add(u32::try_from(type_offset.0).unwrap_or(u32::MAX));
            signatures.entry(type_signature.0).or_insert(TypeId(id));
        }
        at.saturating_add(header.length_including_self())
    };
    let mut at = 0usize;
    let mut units = DebugInfo::new(view.info, LittleEndian).units();
    while let Some(header) = units.next().map_err(|source| DwarfError::Unit { at: at as u64, source })? {
        at = add(&header, at, false);
    }
    let mut at = info;
    let mut units = DebugTypes::new(view.types, LittleEndian).units();
    while let Some(header) = units.next().map_err(|source| DwarfError::Unit { at: at as u64, source })? {
        at = add(&header, at, true);
    }
    Ok((spans, signatures))
}

/// The span that holds this type.
pub(super) fn of(spans: &[Span], id: TypeId) -> Option<Span> {
    let after = spans.partition_point(|span| span.start <= id.0);
    spans.get(after.checked_sub(1)?).copied().filter(|span| id.0 < span.end)
}

/// A unit that is being read.
pub(super) struct Unit<'s> {
    pub(super) header: UnitHeader<Reader<'s>>,
    pub(super) abbreviations: Abbreviations,
    start: u32,
    view: View<'s>,
}

impl<'s> Unit<'s> {
    pub(super) fn open(view: &View<'s>, span: Span) -> gimli::Result<Self> {
        let missing = gimli::Error::UnexpectedEof(gimli::ReaderOffsetId(0));
        let start = span.start as usize;
        let header = if span.types {
            let within = start.checked_sub(view.info.len()).and_then(|at| view.types.get(at..)).ok_or(missing)?;
            DebugTypes::new(within, LittleEndian).units().next()?
        } else {
            DebugInfo::new(view.info.get(start..).ok_or(missing)?, LittleEndian).units().next()?
        };
        let header = header.ok_or(missing)?;
        let abbreviations = header.abbreviations(&view.abbreviations)?;
        Ok(Self { header, abbreviations, start: span.start, view: *view })
    }

    /// Offset of a type's entry within this unit.
    pub(super) fn offset(&self, id: TypeId) -> UnitOffset {
        UnitOffset(id.0.saturating_sub(self.start) as usize)
    }

    /// Number of the type whose entry is at this offset.
    pub(super) fn id(&self, offset: UnitOffset) -> Option<TypeId> {
        Some(TypeId(self.start.checked_add(u32::try_from(offset.0).ok()?)?))
    }

    /// The name of an entry: `None` if it has none or an empty one, an error if it cannot be read or is too long.
    pub(super) fn name(&self, entry: &Entry<'s>) -> gimli::Result<Option<&'s [u8]>> {
        let string = match entry.attr_value(dw::DW_AT_name) {
            None => return Ok(None),
            Some(AttributeValue::String(text)) => text.slice(),
            Some(AttributeValue::DebugStrRef(at)) => self.view.strings.get(at.0..).unwrap_or_default(),
            Some(AttributeValue::DebugLineStrRef(at)) => self.view.line_strings.get(at.0..).unwrap_or_default(),
            Some(AttributeValue::DebugStrOffsetsIndex(index)) => {
                let at = self.view.string_offsets.get_str_offset(self.header.format(), self.string_base()?, index)?;
                self.view.strings.get(at.0..).unwrap_or_default()
            }
            // The rest means a supplementary file (dwz).
            Some(_) => return Err(gimli::Error::ExpectedStringAttributeValue),
        };
        // Never further than a name can reach: a file could make millions of entries share one endless string.
        let start = string.get(..MAX_NAME).unwrap_or(string);
        let name = match memchr::memchr(0, start) {
            Some(end) => start.get(..end).unwrap_or_default(),
            None if start.len() < MAX_NAME => start,
            None => return Err(gimli::Error::ExpectedStringAttributeValue),
        };
        Ok((!name.is_empty()).then_some(name))
    }

    /// Where this unit's part of `.debug_str_offsets` begins.
    fn string_base(&self) -> gimli::Result<DebugStrOffsetsBase> {
        let root = self.header.entry(&self.abbreviations, self.header.root_offset())?;
        Ok(match root.attr_value(dw::DW_AT_str_offsets_base) {
            Some(AttributeValue::DebugStrOffsetsBase(base)) => base,
            _ => DebugStrOffsetsBase::default_for_encoding_and_file(self.header.encoding(), gimli::DwarfFileType::Main),
        })
    }
}
