//! Which bytes of a new image are what.

use vmi_core::{MachineInfo, MemoryMap, Piece};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::elf;
use crate::Format;
use crate::format::lime;

/// The plan of a file.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// What is not memory: offset and bytes.
    pub(super) headers: Vec<(u64, Vec<u8>)>,
    /// Where each region of memory goes.
    pub(super) pieces: Vec<Piece>,
    /// Length of the file.
    pub(super) len: u64,
}

/// The layout for `machine` in `format`; `None` if an offset leaves the 64-bit range.
pub(super) fn of(machine: &MachineInfo, format: Format) -> Option<Layout> {
    match format {
        Format::Raw => Some(raw(&machine.memory)),
        Format::Lime => lime(&machine.memory),
        Format::Elf => elf::layout(machine),
        // Its length is not known before it is written.
        Format::Kdump => None,
    }
}

fn raw(memory: &MemoryMap) -> Layout {
    let pieces = memory.regions().iter().map(|&region| Piece { region, offset: region.start().get() }).collect();
    Layout { headers: Vec::new(), pieces, len: memory.end().get() }
}

fn lime(memory: &MemoryMap) -> Option<Layout> {
    let mut layout = Layout::default();
    for &region in memory.regions() {
        let header = lime::Header {
            magic: U32::new(lime::MAGIC),
            version: U32::new(lime::VERSION),
            start: U64::new(region.start().get()),
            last: U64::new(region.end().get().checked_sub(1)?),
            reserved: U64::ZERO,
        };
        let offset = layout.len.checked_add(size_of::<lime::Header>() as u64)?;
        layout.headers.push((layout.len, header.as_bytes().to_vec()));
        layout.pieces.push(Piece { region, offset });
        layout.len = offset.checked_add(region.len())?;
    }
    Some(layout)
}
