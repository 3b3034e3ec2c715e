//! The notes of a core: what it tells beside memory.

use object::LittleEndian;
use object::elf::{FileHeader64, PT_NOTE};
use object::read::elf::{NoteIterator, ProgramHeader};
use vmi_arch_x86::Registers;
use vmi_core::Note;

use super::{LE, malformed, prstatus, qemu, virtualbox};
use crate::FormatError;
use crate::image::{Image, Input};

/// More processors than any kernel for x86 supports (Linux 6.12: `NR_CPUS` is at most 8192).
const MAX_VCPUS: usize = 8192;
/// Notes of so many vCPUs, several for each, and some room.
const MAX_NOTES: u64 = 64 << 20;
/// Linux keeps VMCOREINFO in one page (`VMCOREINFO_BYTES`).
const MAX_VMCOREINFO: usize = 64 << 10;

/// Adds registers and VMCOREINFO to `image`.
pub(super) fn read<P: ProgramHeader<Endian = LittleEndian>>(
    segments: &[P],
    input: Input<'_>,
    image: &mut Image,
) -> Result<(), FormatError> {
    // One list for each kind of note: QEMU writes two kinds for each vCPU.
    let (mut virtualbox, mut qemu, mut prstatus) = (Vec::new(), Vec::new(), Vec::new());
    for segment in segments.iter().filter(|segment| segment.p_type(LE) == PT_NOTE) {
        let offset: u64 = segment.p_offset(LE).into();
        let len = input.present(offset, segment.p_filesz(LE).into(), || "the notes".to_owned())?;
        if len > MAX_NOTES {
            return Err(malformed(offset, format!("{len} bytes of notes, of which no writer has more than {MAX_NOTES}")));
        }
        let data = &*input.source.get(offset, len, "the notes")?;
        let bad = |error: object::Error| malformed(offset, error.to_string());
        // Both classes have the same note headers, and all writers align by 4, whatever `p_align` says.
        let mut notes = NoteIterator::<FileHeader64<LittleEndian>>::new(LE, 4, data).map_err(bad)?;
        while let Some(note) = notes.next().map_err(bad)? {
            match (note.name(), note.n_type(LE).0) {
                // An empty header ends the notes of a kdump (Linux, kernel/crash_core.c: `final_note`).
                (b"", 0) => break,
                (b"VBCPU", virtualbox::TYPE) => virtualbox.extend(virtualbox::registers(note.desc())),
                (b"QEMU", qemu::TYPE) => qemu.extend(qemu::registers(note.desc())),
                (b"CORE", prstatus::TYPE) => prstatus.extend(prstatus::registers(note.desc())),
                (b"VMCOREINFO", _) if image.notes.is_empty() && note.desc().len() <= MAX_VMCOREINFO => {
                    image.notes.push(Note::VmCoreInfo(note.desc().to_vec()));
                }
                _ => {}
            }
            if virtualbox.len().max(qemu.len()).max(prstatus.len()) > MAX_VCPUS {
                return Err(malformed(offset, format!("registers of more than {MAX_VCPUS} vCPUs")));
            }
        }
    }
    image.registers = [virtualbox, qemu, prstatus].into_iter().find(|list: &Vec<Registers>| !list.is_empty()).unwrap_or_default();
    Ok(())
}
