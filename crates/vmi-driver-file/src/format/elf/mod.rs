//! ELF core files of whole machines, as QEMU (`dump-guest-memory`), kdump (`/proc/vmcore`, `makedumpfile -E`) and VirtualBox
//! (`VBoxManage debugvm dumpvmcore`) write them.
//!
//! Layout: System V ABI, "Program Header" and "Note Section"; more than 65,534 program headers as in elf(5), `PN_XNUM`. Memory is in
//! the `PT_LOAD` segments, at their *physical* addresses. A segment may be longer in memory than in the file; the rest of it is zero.
//! In a core with VMCOREINFO, the rest is what `makedumpfile -E` excluded, whatever its content: a hole. (Where it excluded but few pages in
//! a row, it wrote zeros in their place, and nothing tells these from zeros of the guest.) In VirtualBox's cores a segment of which the file
//! has nothing is the place of a device, which is no memory.
//!
//! Several segments may show the same memory: `/proc/vmcore` stores the kernel's text twice, and QEMU with `paging=on` writes one
//! segment for each virtual mapping. The first segment in the file holds.
//!
//! QEMU also writes the BIOS ROM, at 0xfffc0000 on usual machines, which images of RAM alone lack. It is readable memory here.

pub(super) mod notes;
pub(crate) mod prstatus;
pub(crate) mod qemu;
mod virtualbox;

use object::LittleEndian;
use object::elf::{ELFCLASS32, ELFCLASS64, ELFMAG, EM_386, EM_X86_64, ET_CORE, FileHeader32, FileHeader64, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use object::read::{ReadCache, ReadRef};
use vmi_core::{PhysAddr, Piece, Region};

use self::notes::Notes;
use crate::FormatError;
use crate::claims::Claims;
use crate::image::{Image, Input};
use crate::source::Source;

/// x86 is little endian, and nothing else is read here.
const LE: LittleEndian = LittleEndian;

/// ELF's magic number.
pub(crate) fn matches(bytes: &[u8]) -> bool {
    bytes.starts_with(&ELFMAG)
}

/// Reads either class: QEMU writes 32-bit guests as class 64 with machine 386.
pub(crate) fn parse(input: Input<'_>) -> Result<Image, FormatError> {
    match input.source {
        Source::Mapped(store) => parse_any((**store).as_ref(), input),
        Source::Indexed(_) => parse_any(&ReadCache::new(input.source.reader()), input),
    }
}

fn parse_any<'a>(data: impl ReadRef<'a>, input: Input<'_>) -> Result<Image, FormatError> {
    match data.read_bytes_at(4, 1) {
        Ok([class]) if *class == ELFCLASS64.0 => parse_class::<FileHeader64<LittleEndian>, _>(data, input),
        Ok([class]) if *class == ELFCLASS32.0 => parse_class::<FileHeader32<LittleEndian>, _>(data, input),
        _ => Err(malformed(4, "the class is neither 32 nor 64 bits")),
    }
}

fn malformed(offset: u64, what: impl Into<String>) -> FormatError {
    FormatError::Malformed { offset, what: what.into() }
}

fn parse_class<'a, H, R>(data: R, input: Input<'_>) -> Result<Image, FormatError>
where
    H: FileHeader<Endian = LittleEndian>,
    R: ReadRef<'a>,
{
    // `FileHeader::parse` would insist on version 1 in `e_ident`, where VirtualBox 7 leaves a zero.
    let header: &H = data.read_at(0).map_err(|()| cut("the ELF header", size_of::<H>() as u64, input))?;
    if !header.is_little_endian() {
        return Err(malformed(5, "the byte order is not little endian: no x86 machine"));
    }
    if header.e_type(LE) != ET_CORE {
        return Err(malformed(
            16,
            "this is a program or an object file, not a core; a kernel's vmlinux goes where symbols are asked for",
        ));
    }
    let machine = header.e_machine(LE);
    if machine != EM_X86_64 && machine != EM_386 {
        return Err(malformed(18, format!("ELF machine {} is not x86", machine.0)));
    }
    let segments = segments(header, data, input)?;
    refuse_process(segments)?;
    let mut notes = Notes::default();
    for segment in segments.iter().filter(|segment| segment.p_type(LE) == PT_NOTE) {
        notes.read(input, segment.p_offset(LE).into(), segment.p_filesz(LE).into())?;
    }
    let mut image = memory(segments, input, &notes)?;
    notes.give(&mut image);
    Ok(image)
}

/// They are read as a whole where the file is not mapped.
const MAX_SEGMENTS: u32 = 1 << 20;

/// The program headers, all of them in the file.
fn segments<'a, H: FileHeader<Endian = LittleEndian>, R: ReadRef<'a>>(
    header: &H,
    data: R,
    input: Input<'_>,
) -> Result<&'a [H::ProgramHeader], FormatError> {
    let start: u64 = header.e_phoff(LE).into();
    let count = header.phnum(LE, data).map_err(|_| {
        let end = Into::<u64>::into(header.e_shoff(LE)).saturating_add(size_of::<H::SectionHeader>() as u64);
        cut("the section header that holds the number of segments", end, input)
    })?;
    let end = u64::from(count).saturating_mul(size_of::<H::ProgramHeader>() as u64).saturating_add(start);
    if end > input.source.len() {
        return Err(cut("the program headers", end, input));
    }
    if count > MAX_SEGMENTS {
        return Err(malformed(start, format!("{count} segments, of which no writer has more than {MAX_SEGMENTS}")));
    }
    header.program_headers(LE, data).map_err(|error| malformed(start, error.to_string()))
}

/// A part that should end at `end`, which is beyond the file; without it nothing can be read.
fn cut(what: &str, end: u64, input: Input<'_>) -> FormatError {
    FormatError::Truncated { what: what.to_owned(), missing: end.saturating_sub(input.source.len()) }
}

/// The core of a process has virtual addresses only (Linux, fs/binfmt_elf.c: `p_paddr` is zero).
fn refuse_process<P: ProgramHeader<Endian = LittleEndian>>(segments: &[P]) -> Result<(), FormatError> {
    let mut loads = segments.iter().filter(|segment| segment.p_type(LE) == PT_LOAD).peekable();
    if loads.peek().is_none() {
        return Err(FormatError::NoMemory);
    }
    let mut any_virtual = false;
    for segment in loads {
        if segment.p_paddr(LE).into() != 0 {
            return Ok(());
        }
        any_virtual |= segment.p_vaddr(LE).into() != 0;
    }
    if any_virtual { Err(malformed(0, "no physical addresses: the core of a process, not of a machine")) } else { Ok(()) }
}

/// What the `PT_LOAD` segments show. VirtualBox has one without content for each range of MMIO (VirtualBox, DBGFCoreWrite.cpp).
fn memory<P: ProgramHeader<Endian = LittleEndian>>(
    segments: &[P],
    input: Input<'_>,
    notes: &Notes,
) -> Result<Image, FormatError> {
    let mut pieces = Vec::new();
    let mut claims = Claims::default();
    let mut tails = Vec::new();
    for (index, segment) in segments.iter().enumerate().filter(|(_, segment)| segment.p_type(LE) == PT_LOAD) {
        let (at, offset): (u64, u64) = (segment.p_paddr(LE).into(), segment.p_offset(LE).into());
        let (file_len, memory_len): (u64, u64) = (segment.p_filesz(LE).into(), segment.p_memsz(LE).into());
        // /proc/kcore has -1 for memory that is mapped by page tables alone (Linux, fs/proc/kcore.c), QEMU has offset -1
        // for mappings of what is no RAM (dump/dump.c, get_offset_range).
        let device = notes.are_of_virtualbox() && file_len == 0;
        if device || memory_len.max(file_len) == 0 || is_minus_one::<P>(at) || is_minus_one::<P>(offset) {
            tracing::debug!(index, at, "a segment without physical memory");
            continue;
        }
        let region =
            Region::new(PhysAddr::new(at), memory_len.max(file_len)).filter(|region| region.end() <= HIGHEST).ok_or_else(
                || malformed(0, format!("segment {index} has {memory_len:#x} bytes at {at:#x}: beyond what x86 can address")),
            )?;
        let what = || format!("segment {index} ({at:#x}-{:#x})", region.end());
        let stored = input.present(offset, file_len, what)?;
        for part in Region::new(region.start(), stored).into_iter().flat_map(|region| claims.claim(region)) {
            let offset = part.start().get().saturating_sub(at).saturating_add(offset);
            pieces.push(Piece { region: part, offset });
        }
        if let Some(tail) = memory_len.checked_sub(file_len).filter(|_| !notes.are_of_kdump()) {
            tails.extend(Region::new(PhysAddr::new(at.saturating_add(file_len)), tail));
        }
    }
    let zeros = tails.into_iter().flat_map(|tail| claims.claim(tail)).collect();
    Ok(Image { zeros, ..Image::of(input, pieces) })
}

/// Whether `value` is -1 in the width of this class.
fn is_minus_one<P: ProgramHeader>(value: u64) -> bool {
    value == if size_of::<P::Word>() == 4 { u64::from(u32::MAX) } else { u64::MAX }
}

/// One more than the highest physical address of x86: 52 bits (Intel SDM, volume 3, section 4.1.4).
const HIGHEST: PhysAddr = PhysAddr::new(1 << 52);
