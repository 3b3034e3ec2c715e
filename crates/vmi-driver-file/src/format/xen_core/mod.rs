//! Cores of Xen domains, as `xl dump-core` and libxl write them: ELF with sections and without segments.
//!
//! Layout: Xen, docs/misc/dump-core-format.txt. `.xen_pages` holds the pages, `.xen_pfn` (HVM and PVH) or `.xen_p2m` (PV) the number of each,
//! `.note.Xen` how many there are and of what size, `.xen_prstatus` the vCPUs ([`registers`]). A number of all ones is a page that is
//! none: the domain gave it back while it was dumped.
//!
//! Pages ascend in files of real writers, so that runs of them become pieces of memory; the format gives no order, and none is needed.
//! If a page is there twice, its first one holds.
//!
//! The addresses of a PV domain are its pseudo-physical ones. Its page tables hold numbers of machine frames instead, as does its CR3. `.xen_p2m` has the
//! machine frame of each page, by which whoever walks the page tables finds the pages ([`vmi_core::Driver::resolve_frame`]), and CR3 is told as the address of its page.
//!
//! The older form without ELF (`xc_core_header`, Xen 3.0) is recognised and refused.

mod registers;

use object::LittleEndian;
use object::elf::{ELFCLASS64, ELFMAG, EM_386, EM_X86_64, ET_CORE, FileHeader64, SHT_NOBITS};
use object::read::elf::NoteIterator;
use vmi_core::{PAGE_SIZE, PhysAddr, Piece, Region};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::FormatError;
use crate::claims::Claims;
use crate::image::{Image, Input};
use crate::machine_frames::MachineFrames;

/// The core of an x86 domain is little endian.
const LE: LittleEndian = LittleEndian;
/// `XEN_ELFNOTE_DUMPCORE_HEADER`.
const HEADER_NOTE: u32 = 0x0200_0001;
/// `XC_CORE_MAGIC` and `XC_CORE_MAGIC_HVM`.
const PARAVIRTUAL: u64 = 0xf00f_ebed;
const HARDWARE: u64 = 0xf00f_ebee;

/// Length of an entry of `.xen_pfn`, and of one of `.xen_p2m`.
const PFN: u64 = 8;
const P2M: u64 = 16;

/// Real cores have eight.
const MAX_SECTIONS: u64 = 1024;
const MAX_NAMES: u64 = 64 << 10;
const MAX_NOTES: u64 = 1 << 20;
/// The table is read in parts of this length, a multiple of the entries'.
const STEP: u64 = 64 << 10;
/// Runs of pages that are one behind the other. Each takes about 80 bytes.
const MAX_RUNS: usize = 1 << 20;

/// The ELF header of this class.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ElfHeader {
    ident: [u8; 16],
    kind: U16,
    machine: U16,
    version: U32,
    entry: U64,
    segments: U64,
    sections: U64,
    flags: U32,
    /// Lengths of this header and of a segment's, number of segments.
    segment_numbers: [U16; 3],
    section_len: U16,
    section_count: U16,
    /// Which section holds the names.
    names: U16,
}

/// The ELF header of a section.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SectionHeader {
    name: U32,
    kind: U32,
    flags: U64,
    address: U64,
    offset: U64,
    len: U64,
    /// Link, info.
    links: [U32; 2],
    alignment: U64,
    entry_len: U64,
}

/// What the note says.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: U64,
    vcpus: U64,
    pages: U64,
    page_size: U64,
}

/// A section's place in the file.
#[derive(Clone, Copy, Debug)]
struct Section {
    offset: u64,
    len: u64,
}

/// A core of 64-bit class with sections and without segments. Xen writes this class for 32-bit domains too.
pub(crate) fn matches(bytes: &[u8]) -> bool {
    let half = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).map(|half| u16::from_le_bytes(*half));
    let word = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).map(|word| u64::from_le_bytes(*word));
    let is_core = bytes.starts_with(&ELFMAG) && bytes.get(4) == Some(&ELFCLASS64.0) && half(16) == Some(ET_CORE.0);
    // `e_phnum`, `e_shoff` and `e_shnum`.
    is_core && half(56) == Some(0) && word(40).is_some_and(|offset| offset != 0) && half(60).is_some_and(|count| count != 0)
}

/// Joins the pages with their numbers.
pub(crate) fn parse(input: Input<'_>) -> Result<Image, FormatError> {
    let sections = Sections::read(input)?;
    let notes = sections.of(".note.Xen").ok_or_else(|| missing(".note.Xen"))?;
    let header = header(input, notes)?;
    let (pages, page_size) = (header.pages.get(), header.page_size.get());
    if !page_size.is_power_of_two() || !(4096..=1 << 30).contains(&page_size) {
        return Err(malformed(notes.offset, format!("pages of {page_size} bytes, which x86 does not have")));
    }
    let (table, entry) = match (sections.of(".xen_pfn"), sections.of(".xen_p2m")) {
        (Some(table), _) => (table, PFN),
        (None, Some(table)) => (table, P2M),
        (None, None) => return Err(missing(".xen_pfn or .xen_p2m")),
    };
    let content = sections.of(".xen_pages").ok_or_else(|| missing(".xen_pages"))?;
    if pages.checked_mul(entry).is_none_or(|len| len > table.len)
        || pages.checked_mul(page_size).is_none_or(|len| len > content.len)
    {
        return Err(malformed(notes.offset, format!("{pages} pages, which are more than the sections have")));
    }
    let present = input.present(table.offset, pages.saturating_mul(entry), || "the table of page numbers".to_owned())?;
    let table = Section { offset: table.offset, len: present.checked_div(entry).unwrap_or(0).saturating_mul(entry) };
    let stored = input.present(content.offset, pages.saturating_mul(page_size), || "the pages".to_owned())?;
    let paravirtual = header.magic.get() == PARAVIRTUAL;
    // Its frames have the size that x86 page tables have.
    let frames = (paravirtual && entry == P2M && page_size == PAGE_SIZE).then(MachineFrames::default);
    let runs = Runs { page_size, content: content.offset, stored, pieces: Vec::new(), run: None, frames };
    let (pieces, frames) = runs.read(input, table, entry)?;

    let mut image = Image::of(input, pieces);
    if let Some(vcpus) = sections.of(".xen_prstatus") {
        image.registers = registers::read(input, vcpus, header.vcpus.get(), paravirtual, frames.as_ref())?;
    }
    image.frames = frames;
    Ok(image)
}

fn malformed(offset: u64, what: impl Into<String>) -> FormatError {
    FormatError::Malformed { offset, what: what.into() }
}

fn missing(name: &str) -> FormatError {
    malformed(0, format!("no section {name}, which every core of Xen has"))
}

/// The sections by their names.
struct Sections(Vec<(Box<[u8]>, Section)>);

impl Sections {
    fn read(input: Input<'_>) -> Result<Self, FormatError> {
        const LEN: u64 = size_of::<SectionHeader>() as u64;
        let header: ElfHeader = input.source.read(0, "the ELF header")?;
        let machine = header.machine.get();
        if machine != EM_X86_64.0 && machine != EM_386.0 {
            return Err(malformed(18, format!("ELF machine {machine} is not x86")));
        }
        let (start, count) = (header.sections.get(), u64::from(header.section_count.get()));
        if count > MAX_SECTIONS || u64::from(header.section_len.get()) != LEN {
            return Err(malformed(58, format!("{count} sections, of which no core of Xen has more than {MAX_SECTIONS}")));
        }
        let section = |index: u64| -> Result<SectionHeader, FormatError> {
            input.source.read(index.saturating_mul(LEN).saturating_add(start), "the section headers")
        };
        let names = section(header.names.get().into())?;
        let (names_at, names_len) = (names.offset.get(), names.len.get());
        if names_len > MAX_NAMES {
            return Err(malformed(names_at, format!("{names_len} bytes of section names")));
        }
        let names = input.source.get(names_at, names_len, "the names of the sections")?;
        let mut list = Vec::new();
        for index in 0..count {
            let section = section(index)?;
            let name = names.get(section.name.get() as usize..).and_then(|rest| rest.split(|&byte| byte == 0).next());
            if let Some(name) = name.filter(|_| section.kind.get() != SHT_NOBITS.0) {
                list.push((name.into(), Section { offset: section.offset.get(), len: section.len.get() }));
            }
        }
        Ok(Self(list))
    }

    fn of(&self, name: &str) -> Option<Section> {
        self.0.iter().find(|(found, _)| &**found == name.as_bytes()).map(|(_, section)| *section)
    }
}

/// The note that tells the number of pages.
fn header(input: Input<'_>, section: Section) -> Result<Header, FormatError> {
    if section.len > MAX_NOTES {
        return Err(malformed(section.offset, format!("{} bytes of notes", section.len)));
    }
    let data = &*input.source.get(section.offset, section.len, "the notes")?;
    let bad = |error: object::Error| malformed(section.offset, error.to_string());
    let mut notes = NoteIterator::<FileHeader64<LittleEndian>>::new(LE, 4, data).map_err(bad)?;
    while let Some(note) = notes.next().map_err(bad)? {
        if note.name() != b"Xen" || note.n_type(LE).0 != HEADER_NOTE {
            continue;
        }
        if let Ok((header, _)) = Header::read_from_prefix(note.desc())
            && [PARAVIRTUAL, HARDWARE].contains(&header.magic.get())
        {
            return Ok(header);
        }
    }
    Err(malformed(section.offset, "no note that tells the number of pages"))
}

/// Pages that are one behind the other, in the domain and in the file, being joined.
struct Runs {
    page_size: u64,
    /// Where the pages are in the file, and how much of them.
    content: u64,
    stored: u64,
    pieces: Vec<Piece>,
    /// First page, how many, and the index of the first one in the file.
    run: Option<(u64, u64, u64)>,
    /// The frames behind the pages, if the domain knows them.
    frames: Option<MachineFrames>,
}

impl Runs {
    /// Reads the table from the front to the end. Each entry begins with the number of a page.
    fn read(mut self, input: Input<'_>, table: Section, entry: u64) -> Result<(Vec<Piece>, Option<MachineFrames>), FormatError> {
        let (mut done, mut index) = (0u64, 0u64);
        while done < table.len {
            let len = STEP.min(table.len.saturating_sub(done));
            let part = input.source.get(table.offset.saturating_add(done), len, "the table of page numbers")?;
            for entry in part.chunks_exact(entry as usize) {
                let word =
                    |at: usize| entry.get(at..).and_then(<[u8]>::first_chunk).map_or(u64::MAX, |word| u64::from_le_bytes(*word));
                let number = word(0);
                self.page(number, index)?;
                self.frame(word(PFN as usize), number);
                index = index.saturating_add(1);
            }
            done = done.saturating_add(len);
        }
        self.finish()?;
        Ok((disjoint(self.pieces), self.frames.map(MachineFrames::finish)))
    }

    fn frame(&mut self, frame: u64, page: u64) {
        let Some(frames) = &mut self.frames else { return };
        if frame != u64::MAX && page != u64::MAX && !frames.push(frame, page) {
            tracing::warn!("the domain's memory is in too many pieces: its page tables cannot be followed");
            self.frames = None;
        }
    }

    fn page(&mut self, number: u64, index: u64) -> Result<(), FormatError> {
        match &mut self.run {
            Some((first, count, at))
                if first.checked_add(*count) == Some(number) && at.saturating_add(*count) == index && number != u64::MAX =>
            {
                *count = count.saturating_add(1);
            }
            _ => {
                self.finish()?;
                self.run = (number != u64::MAX).then_some((number, 1, index));
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), FormatError> {
        let Some((first, count, index)) = self.run.take() else { return Ok(()) };
        let impossible = || malformed(0, format!("page {first:#x} is beyond what x86 can address"));
        if self.pieces.len() >= MAX_RUNS {
            return Err(malformed(0, format!("more than {MAX_RUNS} runs of pages: no core that Xen wrote")));
        }
        // 52 bits of address (Intel SDM, volume 3, section 4.1.4).
        let start = first.checked_mul(self.page_size).filter(|start| *start < 1 << 52).ok_or_else(impossible)?;
        let offset = index.saturating_mul(self.page_size);
        let len = count.saturating_mul(self.page_size).min(self.stored.saturating_sub(offset));
        let region = Region::new(PhysAddr::new(start), len);
        self.pieces.extend(region.map(|region| Piece { region, offset: offset.saturating_add(self.content) }));
        Ok(())
    }
}

/// The pieces, without what an earlier one has already.
fn disjoint(pieces: Vec<Piece>) -> Vec<Piece> {
    if pieces.is_sorted_by(|low, high| low.region.end() <= high.region.start()) {
        return pieces;
    }
    let mut claims = Claims::default();
    let mut disjoint = Vec::new();
    for piece in pieces {
        for region in claims.claim(piece.region) {
            let within = region.start().get().saturating_sub(piece.region.start().get());
            disjoint.push(Piece { region, offset: piece.offset.saturating_add(within) });
        }
    }
    disjoint
}
