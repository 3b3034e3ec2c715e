//! The headers of an ELF core: one `PT_LOAD` for each region of memory, notes with the vCPUs' registers and VMCOREINFO.
//!
//! The file says x86-64 whatever the guest is: nothing that is known of a machine before its memory is understood tells a 32-bit system
//! from another, and all registers fit. crash and drgn take such files of 64-bit guests; for 32-bit ones they want EM_386.

use object::elf::{
    ELFCLASS64, ELFDATA2LSB, ELFMAG, ELFOSABI_NONE, EM_X86_64, ET_CORE, EV_CURRENT, FileHeader64, Ident, NoteHeader64, NoteType,
    PF_R, PF_W, PF_X, PN_XNUM, PT_LOAD, PT_NOTE, ProgramHeader64, ProgramType, SHT_NULL, SectionHeader64,
};
use object::pod::bytes_of;
use object::{LittleEndian as LE, U16, U32, U64};
use vmi_arch_x86::Registers;
use vmi_core::{MachineInfo, Note, PAGE_SIZE, Piece};

use super::layout::Layout;
use crate::format::elf::{prstatus, qemu};

type Header = FileHeader64<LE>;
type Segment = ProgramHeader64<LE>;
type Section = SectionHeader64<LE>;

const VMCOREINFO: &[u8] = b"VMCOREINFO\0";

/// Headers, then the note, then each region from a page boundary; `None` if an offset leaves the 64-bit range.
pub(super) fn layout(machine: &MachineInfo, registers: &[Registers]) -> Option<Layout> {
    let notes = notes(machine, registers);
    let regions = machine.memory.regions();
    let count = regions.len().checked_add(1)?;
    // More segments than the header's field holds: the number goes into section 0 (elf(5), PN_XNUM).
    let many = count >= usize::from(PN_XNUM);
    let segments_at = size_of::<Header>().checked_add(if many { size_of::<Section>() } else { 0 })? as u64;
    let notes_at = segments_at.checked_add((count as u64).checked_mul(size_of::<Segment>() as u64)?)?;
    let mut end = notes_at.checked_add(notes.len() as u64)?;

    let mut bytes = bytes_of(&header(u32::try_from(count).ok()?, many, segments_at)).to_vec();
    if many {
        bytes.extend(bytes_of(&section_0(u32::try_from(count).ok()?)));
    }
    bytes.extend(bytes_of(&segment(PT_NOTE, notes_at, 0, notes.len() as u64)));
    let mut pieces = Vec::with_capacity(regions.len());
    for &region in regions {
        let offset = end.checked_next_multiple_of(PAGE_SIZE)?;
        bytes.extend(bytes_of(&segment(PT_LOAD, offset, region.start().get(), region.len())));
        pieces.push(Piece { region, offset });
        end = offset.checked_add(region.len())?;
    }
    bytes.extend(notes);
    Some(Layout { headers: vec![(0, bytes)], pieces, len: end })
}

fn header(segments: u32, many: bool, segments_at: u64) -> Header {
    Header {
        e_ident: Ident {
            magic: ELFMAG,
            class: ELFCLASS64,
            data: ELFDATA2LSB,
            version: EV_CURRENT,
            os_abi: ELFOSABI_NONE,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: U16::new(LE, ET_CORE),
        e_machine: U16::new(LE, EM_X86_64),
        e_version: U32::new(LE, u32::from(EV_CURRENT.0)),
        e_entry: U64::default(),
        e_phoff: U64::new(LE, segments_at),
        e_shoff: U64::new(LE, if many { size_of::<Header>() as u64 } else { 0 }),
        e_flags: U32::default(),
        e_ehsize: U16::new(LE, size_of::<Header>() as u16),
        e_phentsize: U16::new(LE, size_of::<Segment>() as u16),
        e_phnum: U16::new(LE, if many { PN_XNUM } else { segments as u16 }),
        e_shentsize: U16::new(LE, if many { size_of::<Section>() as u16 } else { 0 }),
        e_shnum: U16::new(LE, u16::from(many)),
        e_shstrndx: U16::default(),
    }
}

fn section_0(segments: u32) -> Section {
    Section {
        sh_name: U32::default(),
        sh_type: U32::new(LE, SHT_NULL),
        sh_flags: U64::default(),
        sh_addr: U64::default(),
        sh_offset: U64::default(),
        sh_size: U64::default(),
        sh_link: U32::default(),
        sh_info: U32::new(LE, segments),
        sh_addralign: U64::default(),
        sh_entsize: U64::default(),
    }
}

/// A segment of `len` bytes at `offset`. The virtual address is the physical one, as QEMU has it.
fn segment(kind: ProgramType, offset: u64, at: u64, len: u64) -> Segment {
    Segment {
        p_type: U32::new(LE, kind),
        p_flags: U32::new(LE, PF_R | PF_W | PF_X),
        p_offset: U64::new(LE, offset),
        p_vaddr: U64::new(LE, at),
        p_paddr: U64::new(LE, at),
        p_filesz: U64::new(LE, len),
        p_memsz: U64::new(LE, len),
        p_align: U64::default(),
    }
}

/// All notes, in QEMU's order: what Linux tools know of each vCPU, what QEMU adds to that, VMCOREINFO.
pub(super) fn notes(machine: &MachineInfo, registers: &[Registers]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (registers, thread) in registers.iter().zip(1u32..) {
        add_note(&mut bytes, b"CORE\0", prstatus::TYPE, &prstatus::note(registers, thread));
    }
    // A note of QEMU's cannot say that something is not known, so there are all of them or none.
    let states: Option<Vec<_>> = registers.iter().map(qemu::note).collect();
    for state in states.unwrap_or_default() {
        add_note(&mut bytes, b"QEMU\0", qemu::TYPE, &state);
    }
    for note in &machine.notes {
        if let Note::VmCoreInfo(text) = note {
            add_note(&mut bytes, VMCOREINFO, 0, text);
        }
    }
    bytes
}

/// Adds a note; name and content are padded to multiples of four bytes.
fn add_note(notes: &mut Vec<u8>, name: &[u8], kind: u32, content: &[u8]) {
    let header = NoteHeader64 {
        n_namesz: U32::new(LE, name.len() as u32),
        n_descsz: U32::new(LE, content.len() as u32),
        n_type: U32::new(LE, NoteType(kind)),
    };
    notes.extend(bytes_of(&header));
    for part in [name, content] {
        notes.extend(part);
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
}
