//! Suspended machines (`.vmss`) and snapshots (`.vmsn`) of VMware's products. Memory is in them, or in a `.vmem` of the same name
//! beside them. Opened by either file.
//!
//! Layout, as the crash utility (`vmware_vmss.c`, by VMware) and Volatility read it: a header, groups, and in each group tags with a name,
//! indices and a value ([`tags`]). The group `memory` tells which pages of the memory file are which of the machine's
//! (`regionsCount`, and for each region `regionPPN`, `regionPageNum` and `regionSize`, all in pages); without regions they are the
//! same. The group `cpu` has the registers.
//!
//! A `.vmem` without its `.vmss` or `.vmsn` is a raw image: right for machines of less than 3 GiB.

mod registers;
mod tags;

use std::ffi::OsStr;
use std::path::Path;

use vmi_core::{PhysAddr, Piece, Region};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use self::tags::{Tag, Value};
use crate::FormatError;
use crate::image::{Image, Input, Part};
use crate::source::Source;

/// The extension of memory files.
pub(crate) const MEMORY: &str = "vmem";
/// Those of the files that tell of them.
const STATES: [&str; 2] = ["vmss", "vmsn"];

/// Of old 32-bit products; its groups are of another form.
const OLD: u32 = 0xbed0_bed0;
/// The lengths of values take 4 bytes here.
const NARROW: u32 = 0xbed2_bed0;
const MAGICS: [u32; 6] = [OLD, NARROW, 0xbed2_bed2, 0xbed3_bed3, 0xbad1_bad1, 0xbad2_bad2];

/// A machine has about a hundred groups.
const MAX_GROUPS: u32 = 4096;
/// One for each hole, and there are two or three.
const MAX_REGIONS: u64 = 4096;
const PAGE: u64 = 4096;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: U32,
    version: U32,
    groups: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Group {
    name: [u8; 64],
    offset: U64,
    len: U64,
}

/// One of the magic numbers.
pub(crate) fn matches(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|magic| MAGICS.contains(&u32::from_le_bytes(*magic)))
}

/// Whether `input` is a memory file with its state beside it.
pub(crate) fn owns(input: Input<'_>) -> bool {
    if input.path.and_then(Path::extension) != Some(OsStr::new(MEMORY)) {
        return false;
    }
    let has_state = matches!(state_of(input), Ok(Some(_)));
    if !has_state {
        tracing::warn!("a .vmem without its .vmss or .vmsn: memory above 3 GiB, if there is any, is at wrong addresses");
    }
    has_state
}

/// The file of the same name that tells of the memory file `input`.
fn state_of(input: Input<'_>) -> Result<Option<Source>, FormatError> {
    for extension in STATES {
        let name = input.path.map(|path| path.with_extension(extension));
        if let Some((_, state)) = name.as_deref().and_then(Path::file_name).map(|name| input.beside(name)).transpose()?.flatten()
            && matches(&state.head(4)?)
        {
            return Ok(Some(state));
        }
    }
    Ok(None)
}

/// From the state or from the memory file.
pub(crate) fn parse(input: Input<'_>) -> Result<Image, FormatError> {
    let (state, own_memory) = if matches(&input.source.head(4)?) {
        (input.source.clone(), None)
    } else {
        let state =
            state_of(input)?.ok_or_else(|| FormatError::Files("no .vmss or .vmsn of this memory is beside it".to_owned()))?;
        (state, Some(input.source.clone()))
    };
    let groups = groups(&state)?;
    let mut table = Table::default();
    let memory = groups.of("memory").ok_or_else(|| malformed(12, "no group `memory`"))?;
    match tags::walk(&state, memory, groups.narrow, |tag| table.add(&tag, &state)) {
        // A file that ends within the memory: what is missing is told below.
        Err(FormatError::Truncated { .. })
            if table.stored.is_some_and(|(start, len)| start.saturating_add(len) >= state.len()) => {}
        other => other?,
    }

    let (source, start, len) = match table.stored {
        Some((start, len)) => (state.clone(), start, len),
        None => {
            let memory = own_memory.map_or_else(|| memory_of(input), Ok)?;
            let len = memory.len();
            (memory, 0, len)
        }
    };
    let pieces = table.pieces(Input { source: &source, ..input }, start, len)?;
    let registers = match groups.of("cpu").map(|cpu| registers::read(&state, cpu, groups.narrow)) {
        Some(Err(FormatError::Truncated { what, missing })) if input.options.allow_truncated => {
            tracing::warn!(what, missing, "the state is cut short: no registers");
            Vec::new()
        }
        registers => registers.transpose()?.unwrap_or_default(),
    };
    Ok(Image { parts: vec![Part { source, pieces }], registers, ..Image::default() })
}

/// The memory file of the same name.
fn memory_of(input: Input<'_>) -> Result<Source, FormatError> {
    let name = input.path.map(|path| path.with_extension(MEMORY));
    let name = name.as_deref().and_then(Path::file_name).unwrap_or(OsStr::new("the .vmem"));
    let missing = || FormatError::Files(format!("the memory is in {}, which is not beside this file", name.to_string_lossy()));
    Ok(input.beside(name)?.ok_or_else(missing)?.1)
}

fn malformed(offset: u64, what: impl Into<String>) -> FormatError {
    FormatError::Malformed { offset, what: what.into() }
}

/// Where each group begins.
struct Groups {
    list: Vec<Group>,
    narrow: bool,
}

impl Groups {
    fn of(&self, name: &str) -> Option<u64> {
        let is_named = |group: &&Group| group.name.split(|&byte| byte == 0).next() == Some(name.as_bytes());
        self.list.iter().find(is_named).map(|group| group.offset.get())
    }
}

fn groups(state: &Source) -> Result<Groups, FormatError> {
    const HEADER: u64 = size_of::<Header>() as u64;
    const GROUP: u64 = size_of::<Group>() as u64;
    let header: Header = state.read(0, "the header")?;
    if header.magic.get() == OLD {
        return Err(malformed(0, "the form of old 32-bit products is not supported; give the .vmem as a raw image"));
    }
    let count = header.groups.get();
    if count > MAX_GROUPS {
        return Err(malformed(8, format!("{count} groups, of which no machine has more than {MAX_GROUPS}")));
    }
    let group = |index| state.read(GROUP.saturating_mul(u64::from(index)).saturating_add(HEADER), "the table of groups");
    let list = (0..count).map(group).collect::<Result<_, _>>()?;
    Ok(Groups { list, narrow: header.magic.get() == NARROW })
}

/// What the group `memory` tells.
#[derive(Debug, Default)]
struct Table {
    count: u64,
    /// First page in the machine, first page in the memory file, pages.
    regions: Vec<[Option<u64>; 3]>,
    /// Where in the state the memory is, and how long.
    stored: Option<(u64, u64)>,
}

impl Table {
    fn add(&mut self, tag: &Tag, state: &Source) -> Result<(), FormatError> {
        let column = match &*tag.name {
            b"regionsCount" => {
                self.count = tag.number(state)?;
                return Ok(());
            }
            b"Memory" => match tag.value {
                Value::Packed { offset, .. } => {
                    return Err(malformed(
                        offset,
                        "the memory is compressed, in a form that is not supported; take a snapshot without",
                    ));
                }
                Value::Bytes { offset, len } => {
                    self.stored = Some((offset, len));
                    return Ok(());
                }
            },
            b"regionPPN" => 0,
            b"regionPageNum" => 1,
            b"regionSize" => 2,
            _ => return Ok(()),
        };
        let index = u64::from(tag.index(0).unwrap_or(0));
        if index >= MAX_REGIONS {
            return Err(malformed(tag.offset, format!("region {index}, of which no machine has more than {MAX_REGIONS}")));
        }
        let index = index as usize;
        if self.regions.len() <= index {
            self.regions.resize(index.saturating_add(1), [None; 3]);
        }
        if let Some(cell) = self.regions.get_mut(index).and_then(|region| region.get_mut(column)) {
            *cell = Some(tag.number(state)?);
        }
        Ok(())
    }

    /// The memory, of which `len` bytes are at `start` of the input.
    fn pieces(&self, input: Input<'_>, start: u64, len: u64) -> Result<Vec<Piece>, FormatError> {
        if self.count == 0 {
            let len = input.present(start, len, || "the memory".to_owned())?;
            return Ok(Region::new(PhysAddr::ZERO, len).map(|region| Piece { region, offset: start }).into_iter().collect());
        }
        if self.count > MAX_REGIONS {
            return Err(malformed(
                0,
                format!("{} regions of memory, of which no machine has more than {MAX_REGIONS}", self.count),
            ));
        }
        let mut pieces = Vec::new();
        for index in 0..self.count as usize {
            let region = self.regions.get(index).copied().unwrap_or_default();
            let [Some(first), Some(page), Some(pages)] = region.map(|pages| pages?.checked_mul(PAGE)) else {
                return Err(malformed(0, format!("region {index} of memory has no place or length")));
            };
            let region = Region::new(PhysAddr::new(first), pages).ok_or_else(|| {
                malformed(0, format!("region {index} of memory has {pages:#x} bytes at {first:#x}, which cannot be"))
            })?;
            let what = || format!("region {index} ({first:#x}-{:#x})", region.end());
            if self.stored.is_some() && page.saturating_add(pages) > len {
                return Err(malformed(start, format!("{} ends beyond the {len:#x} bytes of memory", what())));
            }
            let offset = start.saturating_add(page);
            let present = input.present(offset, pages, what)?;
            pieces.extend(Region::new(region.start(), present).map(|region| Piece { region, offset }));
        }
        Ok(pieces)
    }
}
