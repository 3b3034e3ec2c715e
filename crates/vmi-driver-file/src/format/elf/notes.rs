//! The notes of a core: what it tells beside memory.

use object::LittleEndian;
use object::elf::FileHeader64;
use object::read::elf::NoteIterator;
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

/// What notes say. Cores of ELF have them, and so have kdump's compressed files.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// Whether VirtualBox's note on the core is there.
    of_virtualbox: bool,
    /// One list for each kind of note: QEMU writes two kinds for each vCPU.
    virtualbox: Vec<Registers>,
    qemu: Vec<Registers>,
    prstatus: Vec<Registers>,
    /// The first one holds.
    vmcoreinfo: Option<Vec<u8>>,
}

impl Notes {
    /// Reads the notes in the `len` bytes at `offset`.
    pub(crate) fn read(&mut self, input: Input<'_>, offset: u64, len: u64) -> Result<(), FormatError> {
        let len = input.present(offset, len, || "the notes".to_owned())?;
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
                (b"VBCORE", virtualbox::CORE_TYPE) => self.of_virtualbox = true,
                (b"VBCPU", virtualbox::TYPE) => self.virtualbox.extend(virtualbox::registers(note.desc())),
                (b"QEMU", qemu::TYPE) => self.qemu.extend(qemu::registers(note.desc())),
                (b"CORE", prstatus::TYPE) => self.prstatus.extend(prstatus::registers(note.desc())),
                (b"VMCOREINFO", _) => self.vmcoreinfo(note.desc()),
                _ => {}
            }
            if self.virtualbox.len().max(self.qemu.len()).max(self.prstatus.len()) > MAX_VCPUS {
                return Err(malformed(offset, format!("registers of more than {MAX_VCPUS} vCPUs")));
            }
        }
        Ok(())
    }

    /// Whether VirtualBox wrote the core.
    pub(super) fn are_of_virtualbox(&self) -> bool {
        self.of_virtualbox
    }

    /// Whether kdump or makedumpfile may have written the core: the kernel's own, and what is made of it, have VMCOREINFO. (QEMU's may have it
    /// too, and no segments that are longer in memory.)
    pub(super) fn are_of_kdump(&self) -> bool {
        self.vmcoreinfo.is_some()
    }

    /// Takes `text` for VMCOREINFO if there is none yet.
    pub(crate) fn vmcoreinfo(&mut self, text: &[u8]) {
        if self.vmcoreinfo.is_none() && text.len() <= MAX_VMCOREINFO {
            self.vmcoreinfo = Some(text.to_vec());
        }
    }

    /// Adds registers and VMCOREINFO to `image`.
    pub(crate) fn give(self, image: &mut Image) {
        let lists = [self.virtualbox, self.qemu, self.prstatus];
        image.registers = lists.into_iter().find(|list| !list.is_empty()).unwrap_or_default();
        image.notes.extend(self.vmcoreinfo.map(Note::VmCoreInfo));
    }
}
