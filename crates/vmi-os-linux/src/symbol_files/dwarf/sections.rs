//! The sections of an ELF file that describe types.

use core::ops::Range;
use std::sync::Arc;

use gimli::{DebugAbbrev, DebugStrOffsets, EndianSlice, LittleEndian};
use object::read::{CompressionFormat, Object, ObjectSection};
use object::{Endianness, ObjectKind};

use super::DwarfError;

/// The bytes of a file, mapped or read.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

pub(super) type Reader<'s> = EndianSlice<'s, LittleEndian>;

/// Longest section, unpacked. Kernels of distributions have below 500 MB of DWARF in all.
const MAX_SECTION: u64 = 2 << 30;

enum Section {
    InFile(Range<usize>),
    Unpacked(Vec<u8>),
}

pub(super) struct Sections {
    file: Bytes,
    info: Section,
    types: Section,
    abbreviations: Section,
    strings: Section,
    line_strings: Section,
    string_offsets: Section,
}

/// The sections as slices.
#[derive(Clone, Copy)]
pub(super) struct View<'s> {
    pub(super) info: &'s [u8],
    pub(super) types: &'s [u8],
    pub(super) abbreviations: DebugAbbrev<Reader<'s>>,
    pub(super) strings: &'s [u8],
    pub(super) line_strings: &'s [u8],
    pub(super) string_offsets: DebugStrOffsets<Reader<'s>>,
}

impl Sections {
    /// The sections, and the size of a pointer.
    pub(super) fn load(file: Bytes) -> Result<(Self, u64), DwarfError> {
        let elf = object::File::parse((*file).as_ref())?;
        if elf.kind() == ObjectKind::Relocatable {
            return Err(DwarfError::Relocatable);
        }
        if elf.endianness() != Endianness::Little {
            return Err(DwarfError::BigEndian);
        }
        let pointer_size = if elf.is_64() { 8 } else { 4 };
        let info = section(&elf, ".debug_info")?;
        if info.is_empty() {
            return Err(DwarfError::NoDwarf);
        }
        let types = section(&elf, ".debug_types")?;
        let abbreviations = section(&elf, ".debug_abbrev")?;
        let strings = section(&elf, ".debug_str")?;
        let line_strings = section(&elf, ".debug_line_str")?;
        let string_offsets = section(&elf, ".debug_str_offsets")?;
        Ok((Self { info, types, abbreviations, strings, line_strings, string_offsets, file }, pointer_size))
    }

    pub(super) fn view(&self) -> View<'_> {
        View {
            info: self.bytes(&self.info),
            types: self.bytes(&self.types),
            abbreviations: DebugAbbrev::new(self.bytes(&self.abbreviations), LittleEndian),
            strings: self.bytes(&self.strings),
            line_strings: self.bytes(&self.line_strings),
            string_offsets: EndianSlice::new(self.bytes(&self.string_offsets), LittleEndian).into(),
        }
    }

    fn bytes<'s>(&'s self, section: &'s Section) -> &'s [u8] {
        match section {
            Section::InFile(range) => (*self.file).as_ref().get(range.clone()).unwrap_or_default(),
            Section::Unpacked(bytes) => bytes,
        }
    }
}

impl Section {
    fn is_empty(&self) -> bool {
        match self {
            Self::InFile(range) => range.is_empty(),
            Self::Unpacked(bytes) => bytes.is_empty(),
        }
    }
}

/// The section of this name, unpacked; empty if there is none.
fn section(elf: &object::File<'_>, name: &'static str) -> Result<Section, DwarfError> {
    let Some(section) = elf.section_by_name(name) else { return Ok(Section::InFile(0..0)) };
    let data = section.compressed_data()?;
    if data.uncompressed_size > MAX_SECTION {
        return Err(DwarfError::TooLong { section: name, len: data.uncompressed_size, limit: MAX_SECTION });
    }
    if data.format != CompressionFormat::None {
        return Ok(Section::Unpacked(data.decompress()?.into_owned()));
    }
    let place = section.compressed_file_range()?;
    let start = usize::try_from(place.offset).unwrap_or(usize::MAX);
    Ok(Section::InFile(start..start.saturating_add(data.data.len())))
}
