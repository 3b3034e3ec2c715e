//! Triage dumps ("small memory dumps", `Minidump\*.dmp`): a few structures of the kernel and what they point at, by virtual address.
//!
//! There is no physical memory in them, and a source shows physical memory. So it is made up: each page of which something was saved gets a
//! physical page, and page tables are made that lead there. They start at the header's directory table base, so whoever walks from there, or
//! from the same value in a saved process, reads the saved bytes, and faults everywhere else. What is missing of a page that was saved in parts is
//! a hole in physical memory, to the byte.
//!
//! Parts of the file without a virtual address, such as the list of drivers, are read through the bytes of the whole file, which are in
//! physical memory as well. [`TriageDump`] says where. A note with that field is how this is told from a dump of physical memory.
//!
//! Layout: `TRIAGE_DUMP64`, as Ghidra (TriageDump.java) and a dump of Windows 10 19041 show it.

use vmi_core::{PAGE_SIZE, PhysAddr, Piece, Region, TriageDump, WindowsDump};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::tables::Tables;
use crate::FormatError;
use crate::claims::Claims;
use crate::image::{Image, Input, Part};
use crate::source::Source;

/// Where the structure is.
const AT: u64 = 0x2000;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    service_pack: U32,
    /// Length of the dump; what the file has beyond it belongs to others.
    len: U32,
    valid: U32,
    context: U32,
    exception: U32,
    memory_manager: U32,
    unloaded_drivers: U32,
    processor: U32,
    process: U32,
    thread: U32,
    call_stack: U32,
    call_stack_len: U32,
    drivers: U32,
    driver_count: U32,
    strings: U32,
    strings_len: U32,
    broken_driver: U32,
    options: U32,
    top_of_stack: U64,
    architecture: [u8; 16],
    data_page_address: U64,
    data_page: U32,
    data_page_len: U32,
    debugger_data: U32,
    debugger_data_len: U32,
    blocks: U32,
    block_count: U32,
}

/// Memory that was saved.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DataBlock {
    address: U64,
    offset: U32,
    len: U32,
}

/// The most pages that are made up: 1 GiB. Windows limits these dumps to a few MiB.
const MAX_PAGES: u64 = 1 << 18;
/// The most blocks. The real ones have about two thousand.
const MAX_BLOCKS: u32 = 1 << 20;

/// Physical memory is made up in one half of this, the other one has the root of the page tables.
const HALF: u64 = 1 << 40;
/// Where in that half saved memory, and the file begin. Page tables come first.
const MEMORY: u64 = 1 << 32;
const FILE: u64 = 1 << 33;

/// Bytes of the file at a virtual address.
struct Saved {
    address: u64,
    offset: u64,
    len: u64,
}

/// Makes up physical memory, and says in `note` what it means.
pub(super) fn read(input: Input<'_>, note: &mut WindowsDump) -> Result<Image, FormatError> {
    let header: Header = input.source.read(AT, "the header of the triage dump")?;
    // CR3 carries flags below the address and above it.
    let root = note.directory_table_base.get() & 0x000f_ffff_ffff_f000;
    let base = if root < HALF { HALF } else { 0 };

    let (mut pieces, mut tables) = (Vec::new(), Tables::new(base));
    let (mut frame, mut last_page) = (base.saturating_add(MEMORY), None);
    for saved in disjoint(input, saved(input, note, &header)?)? {
        // Blocks come in ascending order: the next one may share its first page with the last page of the one before.
        let first = saved.address & !0xfff;
        let last = saved.address.saturating_add(saved.len.saturating_sub(1)) & !0xfff;
        let mut page = first;
        let mut at = frame;
        if last_page == Some(first) {
            at = frame.saturating_sub(PAGE_SIZE);
        }
        let start = at.saturating_add(saved.address & 0xfff);
        loop {
            if last_page != Some(page) {
                tables.map(page, at)?;
            }
            at = at.saturating_add(PAGE_SIZE);
            if page >= last {
                break;
            }
            page = page.saturating_add(PAGE_SIZE);
        }
        (frame, last_page) = (at, Some(last));
        pieces.extend(Region::new(PhysAddr::new(start), saved.len).map(|region| Piece { region, offset: saved.offset }));
    }
    let file = Region::new(PhysAddr::new(base.saturating_add(FILE)), input.source.len().min(header.len.get().into()))
        .ok_or_else(|| malformed(4, "a dump of no length".to_owned()))?;
    pieces.push(Piece { region: file, offset: 0 });
    note.triage = Some(parts(file, &header));

    let tables = tables.bytes();
    let rest = (tables.len() as u64).saturating_sub(PAGE_SIZE);
    let root = Region::new(PhysAddr::new(root), PAGE_SIZE).map(|region| Piece { region, offset: 0 });
    let rest = Region::new(PhysAddr::new(base), rest).map(|region| Piece { region, offset: PAGE_SIZE });
    let tables = Part { source: Source::mapped(tables), pieces: root.into_iter().chain(rest).collect() };
    let mut image = Image::of(input, pieces);
    image.parts.push(tables);
    Ok(image)
}

/// All memory that has a virtual address, by falling trust: where two tell of the same address, the first one speaks.
fn saved(input: Input<'_>, note: &WindowsDump, header: &Header) -> Result<Vec<Saved>, FormatError> {
    let count = header.block_count.get();
    if count > MAX_BLOCKS {
        return Err(malformed(0x7c, format!("{count} blocks of memory are more than any triage dump has")));
    }
    let len = u64::from(count).saturating_mul(size_of::<DataBlock>() as u64);
    let bytes = input.source.get(header.blocks.get().into(), len, "the list of the blocks of memory")?;
    let blocks = <[DataBlock]>::ref_from_bytes(&bytes).unwrap_or_default();
    let saved = |address: u64, offset: U32, len: U32| Saved { address, offset: offset.get().into(), len: len.get().into() };
    let mut all: Vec<Saved> = blocks.iter().map(|block| saved(block.address.get(), block.offset, block.len)).collect();
    all.push(saved(header.data_page_address.get(), header.data_page, header.data_page_len));
    all.push(saved(header.top_of_stack.get(), header.call_stack, header.call_stack_len));
    // In memory it may be encoded; here it is not.
    let debugger_data = note.debugger_data.map(|address| saved(address.get(), header.debugger_data, header.debugger_data_len));
    all.extend(debugger_data);
    all.retain(|saved| saved.offset != 0 && saved.len != 0 && saved.address != 0);
    Ok(all)
}

/// Each address once, ascending; what is not in the file is left out if that is allowed.
fn disjoint(input: Input<'_>, saved: Vec<Saved>) -> Result<Vec<Saved>, FormatError> {
    let mut claims = Claims::default();
    let (mut parts, mut pages) = (Vec::new(), 0u64);
    for Saved { address, offset, len } in saved {
        // The lower or the upper half of 48-bit addresses, and not both; nor does a region reach the very last byte.
        let end = address.checked_add(len);
        if !matches!(end.map(|end| (address >> 47, end >> 47)), Some((0, 0) | (0x1_ffff, 0x1_ffff))) {
            return Err(malformed(0x78, format!("a block of {len:#x} bytes at {address:#x}, where no memory can be")));
        }
        let len = input.present(offset, len, || format!("the block of memory at {address:#x}"))?;
        let free = Region::new(PhysAddr::new(address), len).map(|region| claims.claim(region)).unwrap_or_default();
        for part in free {
            let (start, len) = (part.start().get(), part.len());
            pages = pages.saturating_add(len.div_ceil(PAGE_SIZE)).saturating_add(1);
            parts.push(Saved { address: start, offset: offset.saturating_add(start.saturating_sub(address)), len });
        }
        if pages > MAX_PAGES {
            return Err(malformed(0x78, "the blocks have more memory than any triage dump".to_owned()));
        }
    }
    parts.sort_unstable_by_key(|saved| saved.address);
    Ok(parts)
}

/// Where the parts are that the header tells of.
fn parts(file: Region, header: &Header) -> TriageDump {
    let offsets = [
        header.memory_manager,
        header.unloaded_drivers,
        header.processor,
        header.process,
        header.thread,
        header.call_stack,
        header.drivers,
        header.strings,
        header.broken_driver,
        header.data_page,
        header.debugger_data,
        header.blocks,
        header.valid,
        header.len,
    ];
    let part = |offset: U32, len: Option<U32>| {
        let offset = u64::from(offset.get());
        let next = offsets.iter().map(|next| u64::from(next.get())).filter(|&next| next > offset).min();
        let end = len.map_or(next, |len| Some(offset.saturating_add(len.get().into())))?;
        let within = offset != 0 && end <= file.len();
        Region::new(file.start().checked_add(offset)?, end.saturating_sub(offset)).filter(|_| within)
    };
    let mut triage = TriageDump::new(file);
    triage.processor = part(header.processor, None);
    triage.process = part(header.process, None);
    triage.thread = part(header.thread, None);
    triage.call_stack = part(header.call_stack, Some(header.call_stack_len));
    triage.debugger_data = part(header.debugger_data, Some(header.debugger_data_len));
    triage.memory_manager = part(header.memory_manager, None);
    triage.unloaded_drivers = part(header.unloaded_drivers, None);
    triage.drivers = part(header.drivers, None);
    triage.driver_count = header.driver_count.get();
    triage.strings = part(header.strings, Some(header.strings_len));
    triage
}

fn malformed(offset: u64, what: String) -> FormatError {
    FormatError::Malformed { offset: AT.saturating_add(offset), what }
}
